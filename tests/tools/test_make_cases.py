"""Cases from a data set: images as training sees them, captions and phrases, readable by the generator."""

import json

import numpy as np
import pytest
from PIL import Image

from phantom_mega.data.index import TripletIndex
from phantom_mega.data.shards import ShardReader
from phantom_mega.generation.cases import read_cases
from phantom_mega.images import open_image
from tests.media import write_data_set
from tests.scripts import run_script


def run(*words, code=0):
    done = run_script("tools/make_cases.py", *words)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("data"))


def test_cases_hold_the_captions_phrases_and_images_of_the_samples(data, tmp_path):
    assert "(6 cases)" in run("--data", data, "--output", tmp_path)
    reader, cases = ShardReader(TripletIndex.open(data)), read_cases(tmp_path / "cases.json")
    assert len(cases) == 6 and any(case.images for case in cases)
    for row, case in enumerate(cases):
        raw = reader.read(row)
        assert (case.id, case.prompt) == (raw.triplet.key, raw.triplet.caption)
        assert case.labels == tuple(reference.phrase for reference in raw.triplet.references)
        for path, image, mask in zip(case.images, raw.references, raw.masks, strict=True):
            assert np.array_equal(np.asarray(Image.open(path)), open_image(image, mask))


def test_limits_hold_and_mistakes_are_one_line(data, tmp_path):
    run("--data", data, "--output", tmp_path, "--limit", 2, "--max-references", 0)
    assert [entry["img_paths"] for entry in json.loads((tmp_path / "cases.json").read_text()).values()] == [[], []]
    assert (
        run("--data", data, "--output", tmp_path, "--limit", 0, code=1).strip() == "make_cases: --limit 0: at least 1"
    )
    assert "Traceback" not in run("--data", tmp_path / "none", "--output", tmp_path, code=1)
