"""Files are whole or absent, and never half of one replaces a good one."""

import pytest

from phantom_mega.errors import UserError
from phantom_mega.files import read_json_object, whole_file, write_json


def test_a_file_appears_when_it_is_whole_and_an_older_one_stays_until_then(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.name.startswith(".")
    assert path.read_text() == "new"
    with pytest.raises(KeyError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "new" and [found.name for found in tmp_path.iterdir()] == ["a.txt"]


def test_what_the_disk_says_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(UserError, match=r"a\.txt could not be written: Not a directory")
    with refused, whole_file(tmp_path / "file/a.txt") as temporary:
        temporary.write_text("")


def test_json_comes_back_as_written_and_anything_but_an_object_is_refused(tmp_path):
    path = write_json({"a": "é"}, tmp_path / "a.json")
    assert read_json_object(path) == {"a": "é"}
    for content, message in ((b"[1]", "must be an object"), (b"{", "is not JSON"), (b"\xff", "is not JSON")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.json {message}"):
            read_json_object(path)
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file"):
        read_json_object(tmp_path / "none.json")
