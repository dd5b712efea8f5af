"""The start-up report: its numbers are those of the packs, and a person can read it."""

from collections import Counter

from phantom_mega.data.plan import PackPlan
from tests.data.helpers import MODEL, make_index, make_triplet, mixed_data, mixed_index


def test_the_report_counts_what_is_in_the_packs():
    plan = PackPlan(mixed_index(800), mixed_data(), MODEL, 16, 3)
    report, samples = plan.report(1), [sample for pack in plan.packs(1) for sample in pack]
    assert (report.samples, report.packs, report.rows) == (len(samples), len(plan.packs(1)), 800)
    assert report.references == Counter(len(sample.references) for sample in samples)
    sizes = Counter((sample.height, sample.width, sample.num_frames) for sample in samples)
    assert Counter({bucket[1:]: count for bucket, count in report.buckets.items()}) == sizes
    tokens = sum(sample.shape.visual_tokens for sample in samples)
    assert report.tokens.total() == tokens and report.efficiency == tokens / (report.packs * plan.data.seq_length)
    text = sum(sample.shape.text_stream_tokens for sample in samples)
    assert report.text_efficiency == text / (report.packs * plan.data.text_seq_length)


def test_the_report_reads_as_a_table():
    triplets = [make_triplet(f"k{i}", frames=40, height=256, width=456) for i in range(3)]
    triplets += [make_triplet("small", height=64, width=64), make_triplet("other", height=60, width=64)]
    lines = str(PackPlan(make_index(triplets), mixed_data(seq_length=70000), MODEL, 16, 3).report()).splitlines()
    assert lines == [
        "plan of epoch 0: 3 of 5 samples in 1 pack, filled to 11.9% (text stream 0.3%)",
        "  resolution  frames  sizes (width x height)      samples   share   share of tokens",
        "  256p            37  336x192                           3  100.0%            100.0%",
        "  references of a sample: 1: 100.0%",
        "  left out: 2 samples",
        "            2  too small for every resolution (data.max_upscale 1)",
        "  never trains: 720p x 81 frames takes 78936 visual tokens with one reference (data.seq_length 70000)",
    ]
