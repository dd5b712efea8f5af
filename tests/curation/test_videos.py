"""What there is to curate: folders and lists, names that never clash, files that cannot be read."""

import re

import pytest

from phantom_mega.curation.engine.stage import Rejection
from phantom_mega.curation.videos import VideoSettings, fingerprint, list_files, list_videos, open_probe, video_id
from phantom_mega.data.schema import KEY_PATTERN
from phantom_mega.errors import UserError
from tests.curation.clips import noise, real, write_video


def test_videos_of_a_folder_and_of_a_list_are_found_in_order(tmp_path):
    for name in ("b.MP4", "deep/er/a.webm", "notes.txt", "z.mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_videos(tmp_path)] == ["b.MP4", "a.webm", "z.mkv"]
    (tmp_path / "list.txt").write_text("# some\nz.mkv\n\nb.MP4\nz.mkv\n")
    assert [path.name for path in list_videos(tmp_path / "list.txt")] == ["b.MP4", "z.mkv"]
    assert list_videos(tmp_path / "z.mkv") == [tmp_path / "z.mkv"]
    (tmp_path / "none").mkdir()
    (tmp_path / "none.txt").write_text("# nothing\n")
    for source, message in (("none", "holds no video"), ("none.txt", "lists no video"), ("gone", "is no folder")):
        with pytest.raises(UserError, match=message):
            list_videos(tmp_path / source)


def test_names_are_of_letters_and_differ_for_files_of_one_name(tmp_path):
    paths = [
        tmp_path / name for name in ("a/x.mp4", "b/x.mp4", "x.mkv", "日本.mp4", "a b;rm -rf.mp4", "y" * 200 + ".mp4")
    ]
    names = [video_id(path, tmp_path) for path in paths]
    assert len(set(names)) == len(paths) and all(re.fullmatch(KEY_PATTERN, f"{name}-0000000-00_0_05") for name in names)
    assert video_id(tmp_path / "a/x.mp4", tmp_path) == video_id(tmp_path / "c/a/x.mp4", tmp_path / "c")


def test_a_file_that_changes_or_cannot_be_read_is_known_by_its_fingerprint(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(3 << 20))
    before = fingerprint(path)
    path.write_bytes(bytes(3 << 20) + b"1")
    assert fingerprint(path) != before and len(before) == 32
    assert fingerprint(tmp_path / "gone.mp4") == "cannot be read (No such file or directory)"


def test_names_that_are_no_text_are_rejected_by_name(tmp_path):
    (tmp_path / b"bad\xff.mp4".decode("utf-8", "surrogateescape")).touch()
    (row,) = list_files(str(tmp_path))
    assert row["reason"] == "name is not UTF-8" and "bad\ufffd.mp4" in row["path"]
    row["path"].encode()


def test_videos_are_probed_or_rejected_with_what_was_measured(tmp_path):
    process = open_probe(VideoSettings(min_side=100, min_video_duration=1.0, max_video_duration=8.0))

    def rejection(path):
        with pytest.raises(Rejection) as caught:
            process({"video_id": "v", "path": str(path)})
        return caught.value.reason, caught.value.score, caught.value.values.get("width")

    (row,) = process({"video_id": "v", "path": str(real(tmp_path, "carphone"))})
    assert (row["width"], row["height"], row["frames"]) == (176, 144, 120)
    assert rejection(write_video(tmp_path / "s.mp4", noise(1, 50))) == ("too small", 90, 160)
    assert rejection(write_video(tmp_path / "t.mp4", noise(1, 5, 120, 160)))[0] == "too short"
    assert rejection(real(tmp_path, "bikes"))[0] == "too long"
    (tmp_path / "x.mp4").write_text("x")
    assert rejection(tmp_path / "x.mp4") == ("unreadable", None, None)
