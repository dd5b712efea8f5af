"""Annotations by hand: found by video and moment, and refused by line where they are wrong."""

import json

import pytest

from phantom_mega.curation.annotations import Annotations, Box
from phantom_mega.errors import UserError

LINE = {
    "video": "films/bbb.mp4", "time": 63.2, "caption": "A rabbit\n wakes.", "scene": "meadow",
    "subjects": [{"phrase": "a rabbit", "category": "animal", "boxes": [{"time": 63.0, "box": [0, 0.1, 0.5, 1]}]}],
}  # fmt: skip


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_clip_gets_the_annotation_whose_moment_lies_in_it(tmp_path):
    other = {"video": "bbb.mp4", "time": 70, "caption": "later"}
    found = Annotations(write(tmp_path / "a.jsonl", LINE, "", other, {"video": "x/films/bbb.mp4", "time": 90}))
    one = found.find("/data/films/bbb.mp4", 60.0, 65.0)
    assert (one.caption, one.scene, one.subjects[0].phrase) == ("A rabbit wakes.", "meadow", "a rabbit")
    assert one.subjects[0].boxes == (Box(63.0, (0.0, 0.1, 0.5, 1.0)),)
    assert (
        found.find("/data/films/bbb.mp4", 63.2, 70.0) is one and found.find("/data/films/bbb.mp4", 60.0, 63.2) is None
    )
    assert found.find("/data/others/bbb.mp4", 60.0, 65.0) is None, "it is of the film in another folder"
    assert found.find("bbb.mp4", 66.0, 75.0).caption == "later" and found.find("/data/films/bbb.mp4", 90, 91) is None


def test_a_subject_may_have_an_identity_and_may_lack_a_category(tmp_path):
    named = {"phrase": "a rabbit", "identity": " Big  Bunny ", "category": "animal"}
    line = {"video": "a.mp4", "time": 1, "subjects": [named, {"phrase": "a tree"}, {"phrase": "x", "identity": ""}]}
    subjects = Annotations(write(tmp_path / "a.jsonl", line)).find("a.mp4", 0, 2).subjects
    assert [(one.identity, one.category) for one in subjects] == [("Big Bunny", "animal"), (None, None), (None, None)]


@pytest.mark.parametrize(("line", "message"), [
    ("{", "line 2: Expecting"),
    ("[1]", "line 2: a line must hold an object, not list"),
    ({"time": 1}, "line 2: `video` is missing"),
    ({"video": "a.mp4"}, "line 2: `time` is None; it must be seconds"),
    ({"video": "a.mp4", "time": float("nan")}, "line 2: `time` is nan"),
    ({"video": "a.mp4", "time": 1, "caption": ["x"]}, "line 2: `caption` must be a text, not list"),
    ({"video": "a.mp4", "time": 1, "subjects": [{"phrase": ""}]}, 'a subject must be an object with a "phrase"'),
    ({"video": "a.mp4", "time": 1, "subjects": [{"phrase": "x", "category": "cat"}]}, "category 'cat' is unknown"),
    ({"video": "a.mp4", "time": 1, "subjects": [{"phrase": "x", "boxes": [{"time": 1, "box": [0.5, 0, 0.2, 1]}]}]},
     r"line 2: box \[0.5, 0, 0.2, 1\] must be x0, y0, x1, y1"),
    ({"video": "a.mp4", "time": 1, "subjects": [{"phrase": "x", "identity": 7}]}, "`identity` must be a text, not int"),
    ({"video": "a.mp4", "time": 1, "subjects": [{"phrase": "x", "boxes": [{"time": 1, "box": [0, 0, True, 1]}]}]},
     "must be x0, y0, x1, y1"),
    ({"video": "a.mp4", "time": 10**400}, "line 2: "),
    ("[" * 100_000, "line 2: "),
])  # fmt: skip
def test_a_wrong_line_is_named_with_what_is_wrong(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        Annotations(write(tmp_path / "a.jsonl", LINE, line))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    for name in ("none.jsonl", "b.jsonl"):
        with pytest.raises(UserError, match=f"annotations .*{name} cannot be read"):
            Annotations(tmp_path / name)
