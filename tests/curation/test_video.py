"""Frames by their timestamps and upright, from whatever a file is."""

import os

import numpy as np
import pytest

from phantom_mega.curation.video import VideoError, frames_at, probe, read_frames, to_rgb
from tests.curation.clips import noise, real, write_video


def numbered(count, height=64, width=96):
    """Frames whose brightness is their number."""
    return [np.full((height, width, 3), 20 + 4 * i, np.uint8) for i in range(count)]


def number(frame):
    return round((to_rgb(frame).mean() - 20) / 4)


def test_a_real_clip_is_what_it_says(tmp_path):
    info = probe(real(tmp_path, "bikes"))
    assert (info.width, info.height, info.frames, info.codec, info.rotation) == (640, 272, 250, "h264", 0)
    assert info.fps == pytest.approx(25, abs=0.1) and info.duration == pytest.approx(10, abs=0.1)


def test_frames_are_taken_by_time_from_anywhere(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(50), fps=25)
    times, frames = zip(*read_frames(path, 0.8, 1.2), strict=True)
    assert [number(frame) for frame in frames] == list(range(20, 30))
    np.testing.assert_allclose(times, np.arange(20, 30) / 25, atol=1e-3)
    assert [number(frame) for frame in frames_at(path, [0.0, 0.41, 1.0, 1.99, 5.0])] == [0, 10, 25, 49, 49]


def test_a_variable_rate_shows_each_frame_until_the_next(tmp_path):
    times = [0.0, 0.1, 0.2, 1.2, 1.3, 3.0]
    path = write_video(tmp_path / "a.mp4", numbered(6), times=times)
    assert [round(time, 3) for time, _ in read_frames(path)] == times
    assert [number(frame) for frame in frames_at(path, [0.15, 1.1, 1.25, 2.9])] == [1, 2, 3, 4]
    assert probe(path).frames == 6


@pytest.mark.parametrize("degrees, corner", [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (270, (0, 1)), (-90, (0, 1))])
def test_rotated_videos_are_seen_upright(tmp_path, degrees, corner):
    """A white corner, where a player shows it: rotation is counter-clockwise."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48] = 255
    path = write_video(tmp_path / "a.mp4", [image] * 5, rotation=degrees)
    info, shown = probe(path), to_rgb(frames_at(path, [0.1])[0])
    assert (info.height, info.width) == shown.shape[:2] == ((96, 64) if degrees % 180 else (64, 96))
    half = [side // 2 for side in shown.shape[:2]]
    quarters = [
        [shown[: half[0], : half[1]], shown[: half[0], half[1] :]],
        [shown[half[0] :, : half[1]], shown[half[0] :, half[1] :]],
    ]
    assert quarters[corner[0]][corner[1]].mean() > 200
    assert to_rgb(frames_at(path, [0.1])[0], 20, 30).shape == (30, 20, 3)


@pytest.mark.parametrize(
    "name", ["a b.mp4", "http:%2F%2Fx.mp4", "concat:a|b.mp4", "-i.mp4", "'\";$(touch x)\n.mp4", "日本.mp4"]
)
def test_hostile_names_are_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.mp4", numbered(5))
    os.rename(tmp_path / "plain.mp4", tmp_path / name)
    assert probe(tmp_path / name).frames == 5 and not (tmp_path / "x").exists()
    assert probe(name).frames == 5


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    for name in ("empty", "text", "list", "missing"):
        with pytest.raises(VideoError, match="cannot be opened"):
            probe(tmp_path / f"{name}.mp4")
    with pytest.raises(VideoError, match="cannot be opened"):
        probe(tmp_path)


def test_a_truncated_or_damaged_video_gives_what_can_be_decoded(tmp_path):
    data = real(tmp_path, "carphone").read_bytes()
    whole = len(list(read_frames(tmp_path / "carphone.mp4")))
    broken = bytearray(data)
    broken[len(data) // 3 : len(data) // 3 + 200] = os.urandom(200)
    (tmp_path / "broken.mp4").write_bytes(broken)
    assert whole // 2 < len(list(read_frames(tmp_path / "broken.mp4"))) <= whole
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    try:
        assert 0 < len(list(read_frames(tmp_path / "cut.mp4"))) < whole
    except VideoError as error:
        assert "cannot be" in str(error)


def test_a_video_without_frames_is_named(tmp_path):
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="has no video stream"):
        probe(tmp_path / "sound.mp4")
    data = write_video(tmp_path / "a.mp4", noise(1, 5)).read_bytes()
    at = data.index(b"mdat") + 4
    (tmp_path / "blank.mp4").write_bytes(
        data[:at] + bytes(data.index(b"moov") - at - 4) + data[data.index(b"moov") - 4 :]
    )
    with pytest.raises(VideoError, match=r"no frame|cannot be decoded"):
        probe(tmp_path / "blank.mp4")
