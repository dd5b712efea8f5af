"""Pairs of images become samples of one frame: from files in the public layouts to shards that the trainer decodes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from phantom_mega.curation.engine.stage import Rejection
from phantom_mega.curation.engine.tables import Table
from phantom_mega.curation.image_pairs import ImagePairSettings, connected, list_images, phrase_before, stages, views
from phantom_mega.curation.samples import SampleSettings, sample_key
from phantom_mega.curation.write import WriteSettings, write_shards
from phantom_mega.errors import UserError
from tests.curation.tables import PARTS, decode_all, run_here
from tests.media import draw_frames, encode_image

TRAIN = SampleSettings(validation_fraction=0)
GOOD = {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5}


def composite(left, right, side=96, padding=16):
    """Two coloured squares side by side, white padding around."""
    image = np.full((side + padding, 2 * (side + padding), 3), 255, np.uint8)
    half = side + padding
    for x, colour in ((0, left), (half, right)):
        image[padding // 2 : half - padding // 2, x + padding // 2 : x + half - padding // 2] = colour
    return encode_image(image, quality=95)


def subjects200k(folder):
    def entry(image, valid=True, quality=GOOD):
        about = {"item": "red teapot", "description_0": "A teapot on a table.",
                 "description_1": "A teapot in the snow.", "category": "Toys", "description_valid": valid}  # fmt: skip
        return {"image": {"bytes": image, "path": None}, "collection": "collection_2", "quality_assessment": quality,
                "description": about}  # fmt: skip

    good = composite((200, 30, 30), (30, 30, 200))
    rows = [entry(good), entry(good, quality=GOOD | {"imageQuality": 3}), entry(good, valid=False), entry(b"no image"),
            entry(good, quality=None), entry(good)]  # fmt: skip
    path = folder / "train-00000-of-00032.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    return path


def curate(folder, settings, written=None):
    """(reasons by stage, what was written, decoded samples)."""
    reasons = run_here(stages(settings, folder / "work"), folder / "work")
    written = write_shards(folder / "work", PARTS, folder / "out", WriteSettings(), quiet=True)
    return reasons, written, decode_all(folder / "out" / "train") | decode_all(folder / "out" / "validation")


def test_both_views_of_a_picture_become_samples_of_each_other(tmp_path):
    path = subjects200k(tmp_path)
    reasons, written, found = curate(tmp_path, ImagePairSettings(files=[str(path)], samples=TRAIN))
    assert written.samples == {"train": 4, "validation": 0} and not written.left_out
    assert reasons["samples"] == {"quality": 2, "description not valid": 1, "image unreadable": 1}
    for group, number in ((0, 0), (1, 1)):
        left, right = (sample_key(f"{path.stem}_{group}_{number}_{i}") for i in range(2))
        triplet, sample = found[left]
        assert (triplet.caption, triplet.frames, triplet.fps, triplet.codec) == ("A teapot on a table.", 1, 0, "jpeg")
        assert found[right][0].caption == "A teapot in the snow." and triplet.video_id == found[right][0].video_id
        reference = triplet.references[0]
        assert (reference.phrase, reference.category, reference.kind) == ("red teapot", "product", "cross")
        assert (reference.source.frame, reference.source.box) == (0, (128.0, 16.0, 208.0, 96.0))
        assert (triplet.height, triplet.width, reference.height, reference.width) == (80, 80, 80, 80)
        shown, other = (sample.video[:, 0].mean((1, 2)) + 1) * 127.5, sample.crops[0].mean((0, 1))
        assert np.abs(shown.numpy() - (200, 30, 30)).max() < 3 and np.abs(other - (30, 30, 200)).max() < 3


def test_pictures_without_assessment_are_taken_when_asked(tmp_path):
    settings = ImagePairSettings(files=[str(subjects200k(tmp_path))], samples=TRAIN, min_quality=0)
    assert curate(tmp_path, settings)[1].samples["train"] == 8


@pytest.mark.parametrize(("size", "box"), [((1056, 528), (16, 16, 512, 512)), ((2080, 1040), (16, 16, 1024, 1024))])
def test_views_hold_no_padding_wherever_it_lies(size, box):
    left, right = views(size, 16)
    assert left == box and right == (box[0] + size[0] // 2, box[1], box[2] + size[0] // 2, box[3])
    with pytest.raises(Rejection, match="holds no two views"):
        views((60, 30), 16)


def omnigen(folder, **changes):
    for i in range(5):
        Image.fromarray(draw_frames(1, 90, 120, i)[0]).save(folder / f"{i}.jpg")
    line = "The flower <img><|image_1|></img> stands beside the small cat <img><|image_2|></img> in a garden."
    lines = [
        {
            "task_type": "subject_driven",
            "instruction": line,
            "input_images": ["0.jpg", "1.jpg"],
            "output_image": "2.jpg",
        },
        {"instruction": "Only <img><|image_1|></img>", "input_images": ["3.jpg"], "output_images": "4.jpg"},
        {"instruction": "A cat", "input_images": ["gone.jpg"], "output_image": "0.jpg"},
        {"instruction": "A cat", "input_images": [], "output_image": "0.jpg"},
        {"instruction": "A cat", "input_images": ["0.jpg"]},
    ]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), "{no json"]) + "\n")
    return path


def test_lines_of_omnigen_become_samples_and_bad_ones_are_named(tmp_path):
    path = omnigen(tmp_path)
    _, written, found = curate(tmp_path, ImagePairSettings("omnigen", [str(path)], short_side=64, samples=TRAIN))
    assert written.samples == {"train": 2, "validation": 0}
    triplet, sample = found[sample_key("pairs_0")]
    assert triplet.caption == "The flower stands beside the small cat in a garden."
    assert [(r.phrase, r.category, r.source.video_id) for r in triplet.references] == [
        ("flower", "others", "0.jpg"), ("small cat", "animal", "1.jpg")
    ]  # fmt: skip
    assert (triplet.height, triplet.width) == (64, 86) and sample.crops[1].shape == (90, 120, 3)
    rows = Table(tmp_path / "work", "samples", PARTS).read(["reason", "detail"], accepted=False).to_pylist()
    assert sorted(row["reason"] for row in rows) == ["image missing", "number of references"]
    assert any("gone.jpg" in (row["detail"] or "") for row in rows)
    rows = Table(tmp_path / "work", "images", PARTS).read(["image_id", "reason"], accepted=False).to_pylist()
    assert {row["image_id"] for row in rows} == {"pairs_4", "pairs_5"}


def test_lines_that_share_an_image_are_on_one_side_of_the_split():
    groups = [["a", "b"], ["c", "d"], ["d", "e"], ["f"], ["e", "a"], ["g", "h"]]
    assert connected(groups) == ["a", "a", "a", "f", "a", "g"]


@pytest.mark.parametrize(
    ("text", "number", "phrase"),
    [
        ("The flower <img><|image_1|></img> in a vase", 1, "flower"),
        ("Put the old red car <img><|image_2|></img> there", 2, "old red car"),
        ("a man <img><|image_1|></img> and <img><|image_2|></img>", 2, "image 2"),
        ("<img><|image_1|></img> dances", 1, "image 1"), ("A cat", 1, "image 1"),
    ],
)  # fmt: skip
def test_the_words_before_a_mark_name_the_image(text, number, phrase):
    assert phrase_before(text, number) == phrase


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match="layout 'webvid' is unknown; use subjects200k or omnigen"):
        list(list_images(ImagePairSettings("webvid")))
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read"):
        list(list_images(ImagePairSettings(files=[str(tmp_path / "a.parquet")])))
