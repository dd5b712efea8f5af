"""Data sets: what the trainer plans and decodes is what was drawn, bit for bit, and the truth is kept beside it."""

import dataclasses

import numpy as np
import pytest

from phantom_mega.config import DataConfig, ModelConfig, ResolutionConfig
from phantom_mega.data.decode import PyAVDecoder
from phantom_mega.data.index import INDEX_NAME, TripletIndex
from phantom_mega.data.plan import PackPlan
from phantom_mega.data.samples import TOKENIZER
from phantom_mega.data.shards import ShardReader
from phantom_mega.errors import UserError
from phantom_mega.toyworld import dataset
from phantom_mega.toyworld.dataset import ToySettings, toy_sample, write_toyworld
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.subjects import held_out
from phantom_mega.toyworld.truth import TRUTH_NAME, read_truth

SETTINGS = ToySettings(samples=24, validation_samples=6, actors=(1, 2), cross_share=0.5, style="distinct", seed=3)
RECIPE = DataConfig(
    resolutions={"32p": ResolutionConfig(1024, [17])}, aspect_ratios=["1:1"], frame_rate=8.0, seq_length=64
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    assert write_toyworld(folder, SETTINGS, quiet=True) == {"train": 24, "validation": 6}
    return folder


@pytest.fixture(scope="module")
def decoded(made):
    """(row's raw sample, its tensors) of all that a plan trains on."""
    index = TripletIndex.open(made / "train")
    plan = PackPlan(index, RECIPE, ModelConfig(), clip_tokens=4, seed=0, empty_text_tokens=2)
    reader, decoder = ShardReader(index), PyAVDecoder()
    samples = [sample for pack in plan.packs(0) for sample in pack]
    assert sorted(sample.key for sample in samples) == sorted(index.keys())
    return [(raw := reader.read(sample.row), decoder.decode_one(sample, raw)) for sample in samples]


def to_bytes(tensor):
    """Channels first in [-1, 1] to uint8, channels last."""
    return ((tensor.movedim(0, -1).double() + 1) * 127.5).round().byte().numpy()


def test_the_decoder_gives_back_the_frames_and_references_that_were_drawn(made, decoded):
    truth = read_truth(made / "train")
    assert len(decoded) == 24
    for raw, tensors in decoded:
        assert tensors.error is None, tensors.error
        drawn = truth[raw.triplet.key]
        assert np.array_equal(to_bytes(tensors.video), render(drawn.scene, 17, 32, 32))
        order = tensors.sample.references
        for crop, number in zip(tensors.crops, order, strict=True):
            reference = drawn.references[number]
            x0, y0, x1, y1 = reference.box
            source = render(reference.scene, reference.frames, 32, 32)[reference.frame]
            assert np.array_equal(crop, source[y0:y1, x0:x1])


def test_descriptions_say_what_is_stored(made, decoded):
    truth = read_truth(made / "train")
    kinds = set()
    for raw, _ in decoded:
        triplet, drawn = raw.triplet, truth[raw.triplet.key]
        assert (triplet.codec, raw.clip_ext, triplet.frames, triplet.fps) == ("ffv1", "mkv", 17, 8.0)
        assert [reference.kind for reference in triplet.references] == [drawn.kind] * len(drawn.scene.actors)
        assert all(reference.phrase in triplet.caption for reference in triplet.references)
        for reference in triplet.references:
            assert (reference.source.video_id == triplet.video_id) == (reference.kind == "in")
        kinds.add((drawn.kind, len(drawn.references)))
    assert kinds == {("cross", 1), ("cross", 2), ("in", 1), ("in", 2)}


def test_captions_are_counted_with_the_tokenizer_that_the_index_names(made):
    from phantom_mega.conditioning.text import load_tokenizer, token_ids

    index = TripletIndex.open(made / "train")
    assert index.tokenizer == TOKENIZER
    reader, tokenizer = ShardReader(index), load_tokenizer(TOKENIZER)
    for row in range(len(index)):
        triplet = reader.read(row).triplet
        assert triplet.text_tokens == len(token_ids(tokenizer, triplet.caption)) == index.value("text_tokens", row)


def test_splits_share_neither_videos_nor_subjects(made):
    ids = {split: set(TripletIndex.open(made / split).column("video_id")) for split in ("train", "validation")}
    assert not ids["train"] & ids["validation"] and len(ids["train"]) == 24
    for split in ids:
        for drawn in read_truth(made / split).values():
            assert {held_out(reference.subject) for reference in drawn.references} == {split == "validation"}


def test_the_truth_is_what_the_samples_were_made_of(made):
    truth = read_truth(made / "train")
    for number in range(SETTINGS.samples):
        sample = toy_sample(SETTINGS, "train", number)
        drawn = truth[sample.key]
        assert (drawn.scene, drawn.kind, drawn.style) == (sample.scene, sample.kind, "distinct")
        assert [(r.subject, r.scene, r.frame, r.box) for r in drawn.references] == [
            (r.subject, r.scene, r.frame, r.box) for r in sample.references
        ]


def test_a_larger_share_of_cross_references_keeps_those_of_a_smaller_one():
    chosen = {}
    for share in (0.0, 0.3, 0.7, 1.0):
        settings = dataclasses.replace(SETTINGS, cross_share=share)
        chosen[share] = {n for n in range(60) if toy_sample(settings, "train", n).kind == "cross"}
    assert not chosen[0.0] and len(chosen[1.0]) == 60 and chosen[0.3] < chosen[0.7]
    assert 8 <= len(chosen[0.3]) <= 28


def test_equal_settings_write_equal_bytes_and_are_written_once(made, tmp_path):
    write_toyworld(tmp_path, SETTINGS, quiet=True)
    for split in ("train", "validation"):
        names = sorted(path.name for path in (made / split).iterdir())
        assert names == [INDEX_NAME, "shard-000000.tar", "toyworld.json", TRUTH_NAME]
        for name in names:
            assert (tmp_path / split / name).read_bytes() == (made / split / name).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    write_toyworld(tmp_path, SETTINGS, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before


def test_a_run_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    small = dataclasses.replace(SETTINGS, samples=3, validation_samples=0)
    write_toyworld(tmp_path, small, quiet=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "write_truth", full)
    with pytest.raises(UserError, match=r"cannot write to .*train: No space left on device"):
        write_toyworld(tmp_path, dataclasses.replace(small, samples=4), quiet=True)
    kept = {
        path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file() and ".building" not in str(path)
    }
    assert kept == before
    monkeypatch.undo()
    write_toyworld(tmp_path, dataclasses.replace(small, samples=4), quiet=True)
    assert len(TripletIndex.open(tmp_path / "train")) == len(read_truth(tmp_path / "train")) == 4


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="train holds something else; choose another --output"):
        write_toyworld(tmp_path, SETTINGS, quiet=True)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples=0; it must be at least 1"),
        ({"frames": 16}, "frames=16; training takes 4k.1 frames, at least 5, such as 13"),
        ({"frames": 1}, "frames=1; .*such as 5"),
        ({"height": 8}, "32x8 pixels .width x height.; sides are at least 16"),
        ({"actors": (1, 5)}, r"actors=\[1, 5\]; scenes have 1 to 4"),
        ({"actors": ()}, r"actors=\[\]; scenes have 1 to 4"),
        ({"cross_share": 1.5}, "cross_share=1.5; it must lie between 0 and 1"),
        ({"style": "loud"}, "caption style 'loud' is unknown; use one of plain"),
        ({"seed": -1}, "seed=-1; it must be at least 0"),
    ],
)
def test_settings_that_cannot_be_right_are_named(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_a_truth_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*truth\.parquet; tools/make_toyworld.py writes it"):
        read_truth(tmp_path)
    (tmp_path / TRUTH_NAME).write_bytes(b"no table")
    with pytest.raises(UserError, match=r"cannot be read .*make the data set again"):
        read_truth(tmp_path)
