"""Cutting and encoding: the right frames at a constant rate, upright, in their colours, always the same bytes."""

import io
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from phantom_mega.curation.transcode import TranscodeSettings, cut_frames, frame_rate, resample, transcode, whole_groups
from phantom_mega.curation.video import VideoError, read_frames, to_rgb
from phantom_mega.errors import UserError
from tests.curation.clips import noise, real, write_video
from tests.data.clips import damage_frame, textured_frames, write_clip

SMALL = TranscodeSettings(short_side=144, fps=0)


def decoded(clip):
    """(uint8 [F, H, W, 3], seconds of each frame) of encoded bytes."""
    with av.open(io.BytesIO(clip.data)) as container:
        frames = list(container.decode(video=0))
    return np.stack([to_rgb(frame) for frame in frames]), [frame.time for frame in frames]


def numbered(count, height=96, width=128):
    """Frames that tell their number by their brightness, 2 levels each."""
    return [np.full((height, width, 3), 10 + 2 * i, np.uint8) for i in range(count)]


def numbers(video):
    return [round((frame.mean() - 10) / 2) for frame in video]


@pytest.fixture(scope="module")
def bikes(tmp_path_factory):
    return real(tmp_path_factory.mktemp("videos"), "bikes")


@pytest.mark.parametrize(
    ("average", "most", "expected"),
    [
        (25.0, 24, 24), (23.976, 24, Fraction(24000, 1001)), (29.97, 0, Fraction(30000, 1001)), (15, 24, 15),
        (24.0004, 0, 24), (12.34, 0, Fraction(617, 50)), (0.4, 0, Fraction(2, 5)),
    ],
)  # fmt: skip
def test_the_rate_is_the_videos_own_up_to_the_most(average, most, expected):
    assert frame_rate(average, most) == expected


@pytest.mark.parametrize("average", [0.0, -1.0, float("nan"), float("inf")])
def test_a_video_without_a_rate_is_refused(average):
    with pytest.raises(VideoError, match="has a frame rate of"):
        frame_rate(average, 24)


def test_resampling_shows_at_each_tick_what_a_viewer_sees():
    constant = [(0.3 + i / 25 + (-1) ** i * 0.0005, i) for i in range(10)] + [(0.7, None)]
    assert list(resample(constant, Fraction(25))) == list(range(10)), "rounded times neither drop nor repeat a frame"
    variable = [(0, "a"), (0.1, "b"), (0.5, "c"), (0.52, "d"), (0.8, None)]
    assert "".join(resample(variable, Fraction(10))) == "abbbbddd"
    assert list(resample([(1.0, "a"), (1.01, None)], Fraction(10))) == []


@pytest.mark.parametrize(
    ("count", "most", "kept"), [(0, 0, 0), (1, 0, 1), (4, 0, 1), (5, 0, 5), (24, 0, 21), (24, 9, 9)]
)
def test_4k_plus_1_frames_are_kept(count, most, kept):
    assert list(whole_groups(iter(range(count)), most)) == list(range(kept))


def test_a_cut_holds_exactly_the_frames_of_its_shot(bikes):
    # The third shot of bikes is frames 76 to 136, at 25 frames per second.
    clip = transcode(bikes, 76 / 25, 137 / 25, 25.0, SMALL)
    video, times = decoded(clip)
    source = [to_rgb(frame, 338, 144) for _, frame in read_frames(bikes, 76 / 25 - 0.001, 137 / 25 - 0.001)]
    assert (
        (clip.frames, clip.fps, clip.height, clip.width) == (61, 25.0, 144, 338) == (len(source), 25, *video.shape[1:3])
    )
    assert max(np.abs(a.astype(float) - b).mean() for a, b in zip(video, source, strict=True)) < 4
    assert max(abs(b - a - 0.04) for a, b in pairwise(times)) < 1.5e-3
    assert transcode(bikes, 76 / 25, 137 / 25, 25.0, SMALL).data == clip.data


@pytest.mark.parametrize("off", [0.0, 0.002, -0.002])
def test_cuts_that_are_a_little_off_catch_no_frame_of_the_next_shot(bikes, off):
    times = [time for time, _ in cut_frames(bikes, 76 / 25 + off, 137 / 25 + off, 1 / 25)]
    assert np.allclose(times, [*(i / 25 for i in range(76, 137)), 137 / 25 + off])


def test_key_frames_are_the_encoders_own(bikes, tmp_path):
    path = write_video(tmp_path / "v.mp4", noise(1, 60, 96, 128))  # with a key frame at every twelfth
    clip = transcode(path, 0, 2.4, 25.0, SMALL)
    with av.open(io.BytesIO(clip.data)) as container:
        keys = [i for i, packet in enumerate(p for p in container.demux(video=0) if p.size) if packet.is_keyframe]
    assert keys == [0, 16, 32, 48]


def test_h264_in_mp4_is_cut_alike_and_gives_the_same_bytes_again(bikes):
    settings = TranscodeSettings(short_side=144, fps=0, codec="h264", max_frames=17)
    clip = transcode(bikes, 3.04, 5.48, 25.0, settings)
    assert (clip.codec, clip.extension, clip.frames) == ("h264", "mp4", 17)
    assert decoded(clip)[0].shape == (17, 144, 338, 3)
    assert {transcode(bikes, 3.04, 5.48, 25.0, settings).data for _ in range(3)} == {clip.data}


def test_a_variable_rate_becomes_constant_and_motion_keeps_its_speed(tmp_path):
    times = [i / 25 for i in range(20)] + [0.8 + i / 5 for i in range(10)]  # slows down from 25 to 5 per second
    path = write_video(tmp_path / "v.mp4", numbered(30), times=times)
    clip = transcode(path, 0, 2.8, 12.5, TranscodeSettings(fps=25, short_side=96))
    video, shown = decoded(clip)
    assert clip.fps == 12.5 and max(abs(b - a - 0.08) for a, b in pairwise(shown)) < 1.5e-3
    expected = [
        max(i for i, time in enumerate(times) if round(time * 12.5 + 1e-6) <= tick) for tick in range(clip.frames)
    ]
    assert np.abs(np.subtract(numbers(video), expected)).max() <= 1 and clip.frames == 33


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_is_stored_upright(tmp_path, rotation):
    upright = noise(3, 20, 96, 160)
    stored = [np.ascontiguousarray(np.rot90(image, -rotation // 90)) for image in upright]
    path = write_video(tmp_path / "v.mp4", stored, rotation=rotation)
    clip = transcode(path, 0, 0.8, 25.0, SMALL)
    video, _ = decoded(clip)
    assert (clip.height, clip.width) == (96, 160) == video.shape[1:3]
    assert np.abs(video[0].astype(float) - upright[0]).mean() < 8, "the picture itself is turned, not its size alone"


@pytest.mark.parametrize("tags", [{}, {"colorspace": 1, "color_range": 1}, {"colorspace": 5, "color_range": 2}])
def test_colours_survive_whatever_matrix_and_range_the_source_is_in(tmp_path, tags):
    frames = np.full((20, 96, 128, 3), (200, 60, 40), np.uint8)
    frames[:, :, 64:] = (30, 160, 220)
    path = tmp_path / "v.mkv"
    path.write_bytes(write_clip(frames, "libx264", "matroska", **tags))
    video, _ = decoded(transcode(path, 0, 0.7, 24.0, SMALL))
    assert np.abs(video[3].astype(int) - frames[3])[8:-8, [20, 100]].max() <= 6


def test_what_cannot_be_cut_is_named(bikes, tmp_path):
    with pytest.raises(VideoError, match=r"shows no frame between 50.00 and 52.00 s"):
        transcode(bikes, 50, 52, 25.0, SMALL)
    with pytest.raises(VideoError, match=r"has 9 frames .* fewer than the least"):
        transcode(bikes, 1, 1.4, 25.0, SMALL)
    with pytest.raises(VideoError, match=r"ends at 10.00 s, before the clip does at 12.00 s: truncated or damaged"):
        transcode(bikes, 8, 12, 25.0, SMALL)
    (tmp_path / "page.mp4").write_text("<html>not found</html>")
    with pytest.raises(VideoError, match="cannot be opened"):
        transcode(tmp_path / "page.mp4", 0, 1, 25.0, SMALL)
    with pytest.raises(VideoError, match="cannot be opened"):
        transcode(tmp_path / "absent.mp4", 0, 1, 25.0, SMALL)


def test_a_damaged_place_costs_no_other_clip(tmp_path):
    frames = textured_frames(60)
    whole = write_clip(frames)
    (tmp_path / "a.webm").write_bytes(damage_frame(whole, 50))
    assert transcode(tmp_path / "a.webm", 0, 1, 24.0, SMALL).frames == 21
    (tmp_path / "b.webm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match="truncated or damaged"):
        transcode(tmp_path / "b.webm", 0, 2.5, 24.0, SMALL)


@pytest.mark.parametrize(
    "settings", [{"codec": "divx"}, {"short_side": 8}, {"max_frames": 16}, {"fps": -1}, {"crf": 99}, {"min_frames": 0}]
)
def test_settings_that_no_clip_could_be_made_with_are_refused(settings):
    with pytest.raises(UserError):
        TranscodeSettings(**settings).check()
