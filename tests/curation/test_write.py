"""From tables to shards: real clips go in, what comes out is opened and decoded by the trainer's own reader."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phantom_mega.curation import samples, write
from phantom_mega.curation.engine.run import ray_session, run_stage
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.samples import SampleSettings, sample_key
from phantom_mega.curation.transcode import TranscodeSettings
from phantom_mega.curation.video import probe, read_frames, to_rgb
from phantom_mega.curation.write import WriteSettings, write_shards
from phantom_mega.data.encode import encode_image
from phantom_mega.data.index import TripletIndex
from phantom_mega.errors import UserError
from tests.curation.clips import noise, real, write_video
from tests.curation.tables import PARTS, decode_all, run_here, write_table

HOSTILE = "--concat:a|b; $(rm x) 日本.mp4"
BOX = [0.25, 0.25, 0.75, 0.75]
CLIPS_OF = {  # clip: (video, start, end)
    "bikes_2": ("bikes", 76 / 25, 137 / 25),
    "bikes_4": ("bikes", 187 / 25, 242 / 25),
    "carphone": ("carphone", 0.5, 2.0),
    "../hostile/clip": ("hostile", 0.0, 1.0),
    "rotated": ("rotated", 0.0, 1.0),
    "damaged": ("damaged", 0.0, 1.0),
    "too_short": ("carphone", 0.0, 0.3),
    "alone": ("bunny", 1.0, 2.0),
    "held": ("held", 0.2, 1.2),
}
PAIRS = [  # clip, subject, crop's clip, kind
    ("bikes_2", 0, "bikes_4", "cross"), ("bikes_2", 1, "bikes_2", "in"), ("bikes_4", 0, "bikes_2", "cross"),
    ("carphone", 0, "carphone", "in"), ("carphone", 1, "held", "cross"), ("../hostile/clip", 0, "bikes_2", "cross"),
    ("rotated", 1, "rotated", "in"), ("damaged", 0, "bikes_2", "cross"), ("too_short", 0, "carphone", "in"),
    ("held", 0, "held", "in"), ("held", 1, "carphone", "cross"),
]  # fmt: skip
SETTINGS = SampleSettings(validation_fraction=0, validation_videos=["held"])
WRITING = WriteSettings(max_samples_per_shard=2)
ENCODING = TranscodeSettings(short_side=96, min_frames=17)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    paths = {name: real(folder, name) for name in ("bikes", "carphone")}
    paths["bunny"] = real(folder, "bigbuckbunny")
    paths["hostile"] = write_video(folder / "h.mp4", noise(1, 30)).rename(folder / HOSTILE)
    paths["rotated"] = write_video(folder / "rotated.mp4", noise(2, 30), rotation=90)
    paths["held"] = write_video(folder / "held.mp4", noise(3, 40))
    paths["damaged"] = folder / "damaged.mp4"
    paths["damaged"].write_bytes(paths["bikes"].read_bytes()[:200_000])
    return paths


def hand_made(folder, videos, **crop):
    """All tables that `samples` reads."""
    sizes = {name: probe(path) for name, path in videos.items() if name != "damaged"}
    clips = {}
    for name, (video, start, end) in CLIPS_OF.items():
        size = sizes.get(video, sizes["bikes"])
        clips[name] = {
            "clip_id": name, "video_id": video, "path": str(videos[video]), "start": start, "end": end,
            "fps": size.fps, "width": size.width, "height": size.height,
        }  # fmt: skip
    crops = []
    for name in {pair[2] for pair in PAIRS}:
        clip = clips[name]
        time, frame = next(iter(read_frames(clip["path"], clip["start"] + 0.2)))
        image = Image.fromarray(to_rgb(frame))
        box = [BOX[i] * image.size[i % 2] for i in range(4)]
        image = image.crop(box)
        crops.append({
            "crop_id": f"{name}_0_50", "clip_id": name, "video_id": clip["video_id"], "path": clip["path"],
            "subject": 0, "phrase": "it", "category": "others", "time": time, "box": BOX, "width": image.width,
            "height": image.height, "image": encode_image(image),
        } | crop)  # fmt: skip
    subjects = [{"phrase": "the first one", "category": "product", "appearance": "red"},
                {"phrase": "the other one", "category": "human", "appearance": ""}]  # fmt: skip
    write_table(folder, "clips", clips.values())
    write_table(folder, "selected", [{"clip_id": name} for name in clips])
    write_table(folder, "captions", [{"clip_id": name, "caption": f"A clip called {name}"} for name in clips])
    write_table(folder, "subjects", [{"clip_id": name, "subjects": subjects} for name in clips])
    write_table(folder, "crops", crops, leave_out=() if crop else ("mask",))
    write_table(folder, "pairs", [
        {"pair_id": f"{clip}-{subject}", "clip_id": clip, "subject": subject, "crop_id": f"{other}_0_50", "kind": kind,
         "similarity": 0.7}
        for clip, subject, other, kind in PAIRS
    ])  # fmt: skip


def stages(folder):
    return [samples.stage(SETTINGS), write.stage(ENCODING, folder)]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory):
    """(work folder, output, results of the stages, what was written)."""
    folder = tmp_path_factory.mktemp("curated")
    work, output = folder / "work", folder / "out"
    hand_made(work, videos)
    with ray_session(num_cpus=2):
        results = [run_stage(stage, work, PARTS, quiet=True) for stage in stages(work)]
    return work, output, results, write_shards(work, PARTS, output, WRITING, quiet=True)


def test_samples_are_accepted_or_rejected_with_the_reason(made):
    work, _, results, written = made
    assert results[0].reasons == {"no reference": 1} and results[1].reasons == {"cannot be encoded": 2}
    rows = Table(work, "encoded", PARTS).read(["key", "detail"], accepted=False).to_pylist()
    details = {row["key"]: row["detail"] for row in rows}
    assert "damaged.mp4" in details[sample_key("damaged")]
    assert "has 5 frames of 4k+1" in details[sample_key("too_short")]
    assert (written.samples, written.made) == ({"train": 5, "validation": 1}, ["train", "validation"])
    assert not written.left_out


def test_the_trainers_reader_opens_and_decodes_what_was_written(made):
    _, output, _, _ = made
    train, validation = decode_all(output / "train"), decode_all(output / "validation")
    assert set(validation) == {sample_key("held")}
    expected = {"bikes_2", "bikes_4", "carphone", "../hostile/clip", "rotated"}
    assert set(train) == {sample_key(name) for name in expected}
    for triplet, sample in (train | validation).values():
        assert sample.error is None and sample.video.shape == (3, triplet.frames, 48, 64)
        side = 90 if triplet.video_id in ("hostile", "rotated", "held") else 96
        assert (triplet.frames % 4, triplet.codec, min(triplet.height, triplet.width)) == (1, "vp9", side)
        assert len(sample.crops) == len(triplet.references) and triplet.text_tokens > 5
        for reference, crop in zip(triplet.references, sample.crops, strict=True):
            x0, y0, x1, y1 = reference.source.box
            assert crop.shape[:2] == (reference.height, reference.width)
            assert np.abs(np.subtract(crop.shape[:2], (y1 - y0, x1 - x0))).max() <= 1
    triplet, sample = train[sample_key("bikes_2")]
    assert [(r.phrase, r.category, r.kind) for r in triplet.references] == [
        ("the first one", "product", "cross"), ("the other one", "human", "in")
    ]  # fmt: skip
    assert (triplet.frames, triplet.fps) == (57, 24.0)  # 2.44 s
    assert triplet.references[0].source.frame == 192 and triplet.references[0].source.box == (160.0, 68.0, 480.0, 204.0)
    assert train[sample_key("rotated")][0].width == 90 < train[sample_key("rotated")][0].height
    assert train[sample_key("carphone")][0].references[0].kind == "in", "the cross reference is of a held-out video"


def test_a_written_clip_shows_the_frames_of_its_time(made, videos):
    triplet, sample = decode_all(made[1] / "train")[sample_key("carphone")]
    assert (triplet.fps, triplet.frames) == (24.0, 33)
    source = [to_rgb(frame) for _, frame in read_frames(videos["carphone"], 0.49, 2.0)]
    # 144 x 176 covers 48 x 64 as 52 x 64; the rows in the middle are compared.
    wanted = np.asarray(Image.fromarray(source[40]).resize((64, 52), Image.Resampling.BILINEAR), dtype=float)[2:50]
    shown = (sample.video[:, 32].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(shown - wanted).mean() < 4


def test_every_clip_and_reference_of_a_video_is_in_one_split(made):
    sides = {}
    for split in ("train", "validation"):
        index = TripletIndex.open([made[1] / split])
        for row in range(len(index)):
            for video in [index.value("video_id", row), *(r["video_id"] for r in index.references(row))]:
                assert sides.setdefault(video, split) == split
    assert sides["held"] == "validation" and len(sides) == 5


def test_writing_again_changes_nothing_and_elsewhere_gives_the_same_bytes(made, videos, tmp_path):
    work, output, _, written = made
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    again = write_shards(work, PARTS, output, WRITING, quiet=True)
    assert again.made == [] and again.samples == written.samples
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    hand_made(tmp_path / "work", videos)
    run_here(stages(tmp_path / "work"), tmp_path / "work")
    write_shards(tmp_path / "work", PARTS, tmp_path / "out", WRITING, quiet=True)
    assert files(tmp_path / "out") == files(output)
    assert len(list((output / "train").glob("*.tar"))) == 3


def test_a_split_that_is_not_whole_or_of_other_samples_is_replaced_whole(made, tmp_path):
    output = shutil.copytree(made[1], tmp_path / "out")
    (output / "validation" / "index.parquet").unlink()
    (output / "validation" / "mine.txt").write_text("keep")
    assert write_shards(made[0], PARTS, output, WRITING, quiet=True).made == ["validation"]
    assert files(output) == files(made[1]) | {"validation/mine.txt": b"keep"}
    fewer = write_shards(made[0], PARTS, output, WriteSettings(max_samples_per_shard=9), quiet=True)
    assert fewer.made == ["train", "validation"] and len(list((output / "train").glob("*.tar"))) == 1
    assert len(decode_all(output / "train")) == 5
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "train" / "thesis.doc").write_text("keep")
    with pytest.raises(UserError, match="holds something else"):
        write_shards(made[0], PARTS, tmp_path / "other", WRITING, quiet=True)


def test_a_clip_that_is_gone_or_damaged_is_named(made, tmp_path):
    work = shutil.copytree(made[0], tmp_path / "work")
    rows = Table(work, "encoded", PARTS).read(["key", "file"], accepted=True).to_pylist()
    path = next(work / row["file"] for row in rows if row["key"] == sample_key("bikes_2"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=f"{path.name} is damaged; remove .*encoded and run again"):
        write_shards(work, PARTS, tmp_path / "out", WriteSettings(), quiet=True)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} cannot be read"):
        write_shards(work, PARTS, tmp_path / "out", WriteSettings(), quiet=True)
    shutil.rmtree(work / "encoded")
    with pytest.raises(UserError, match="shards need stage encoded, which has not run"):
        write_shards(work, PARTS, tmp_path / "out", WriteSettings(), quiet=True)
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_masks_of_references_reach_the_shards_and_what_is_unreadable_is_left_out(made, videos, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(buffer, "PNG")
    work = shutil.copytree(made[0], tmp_path / "work")
    hand_made(work, videos, mask=buffer.getvalue())
    written = write_shards(work, PARTS, tmp_path / "out", WriteSettings(tokenizer=""), quiet=True)
    assert written.samples == {"train": 5, "validation": 1}
    triplet, sample = decode_all(tmp_path / "out" / "validation")[sample_key("held")]
    assert triplet.references[0].mask and triplet.text_tokens == 0
    assert (sample.crops[0][0, -1] == 255).all(), "what the mask leaves out is white"
    hand_made(work, videos, image=b"no image")
    written = write_shards(work, PARTS, tmp_path / "out", WriteSettings(), quiet=True)
    assert written.left_out == {"a reference's image cannot be read": 6} and not sum(written.samples.values())
    assert Path(tmp_path / "out" / "train" / "index.parquet").is_file()
