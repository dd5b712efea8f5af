"""Shots: both detectors on real clips, the streamed network against the package's own, pieces of a length."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phantom_mega.curation.engine.stage import Rejection
from phantom_mega.curation.shots import ShotFinder, ShotSettings, TransNet, clips_of, intervals_of, pieces_of, split_at
from phantom_mega.curation.video import probe
from phantom_mega.errors import UserError
from tests.curation.clips import noise, real, write_video

BIKES = [0, 30, 76, 137, 187, 242, 250]  # first frames of its shots, by looking at them


def shots(path, **settings):
    info = probe(path)
    row = {"video_id": "v", "path": str(path), "fps": info.fps, "width": info.width, "height": info.height}
    return ShotFinder(ShotSettings(**settings))(row)


@pytest.mark.parametrize("count", [1, 24, 49, 50, 51, 74, 75, 76, 100, 124, 125, 126, 173, 250])
def test_frames_as_they_come_get_the_probabilities_of_the_package(count):
    frames = np.random.default_rng(count).integers(0, 255, (count, 27, 48, 3), dtype=np.uint8)
    frames[count // 2 :] //= 4
    net = TransNet()
    expected, _ = net.model.predict_frames(torch.from_numpy(frames), quiet=True)
    found = list(net(iter(frames)))
    assert len(found) == count
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("detector", ["transnet", "scenedetect", "union"])
def test_both_detectors_find_the_shots_of_a_real_clip(tmp_path, detector):
    found = shots(real(tmp_path, "bikes"), shot_detector=detector)
    starts = [round(row["start"] * 25) for row in found]
    assert len(starts) == len(BIKES) - 1, starts
    assert all(abs(a - b) <= 2 for a, b in zip(starts, BIKES, strict=False)), starts
    assert found[-1]["end"] == pytest.approx(10.0, abs=0.05)
    assert sum(row["frames"] for row in found) >= 240 and len({row["shot_id"] for row in found}) == 6


def test_one_take_is_one_shot(tmp_path):
    (one,) = shots(real(tmp_path, "carphone"))
    assert one["start"] == 0 and one["frames"] == 120


def test_cuts_of_a_variable_frame_rate_are_at_their_times(tmp_path):
    times = [*(i / 50 for i in range(40)), *(0.8 + i / 10 for i in range(40))]
    path = write_video(tmp_path / "a.mp4", noise(1, 40) + noise(2, 40), times=times)
    first, second = shots(path)
    assert (first["end"], second["start"]) == (pytest.approx(0.8, abs=0.03), pytest.approx(0.8, abs=0.03))
    assert second["end"] == pytest.approx(4.8, abs=0.1)


def test_a_single_frame_is_a_shot_and_a_broken_file_is_rejected(tmp_path):
    assert [row["frames"] for row in shots(write_video(tmp_path / "one.mp4", noise(1, 1)))] == [1]
    (tmp_path / "text.mp4").write_text("no video")
    row = {"video_id": "v", "path": str(tmp_path / "text.mp4"), "fps": 25.0, "width": 160, "height": 90}
    with pytest.raises(Rejection, match="unreadable: cannot be opened"):
        ShotFinder(ShotSettings(shot_detector="scenedetect"))(row)
    with pytest.raises(UserError, match=r"shots\.shot_detector='both' is unknown; use one of transnet"):
        ShotFinder(ShotSettings(shot_detector="both"))


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_intervals_are_the_frames_of_no_transition(transitions):
    found = intervals_of(np.asarray(transitions))
    inside = [i for a, b in found for i in range(a, b)]
    assert inside == [i for i, cut in enumerate(transitions) if not cut]
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(found))


@given(st.integers(1, 99), st.lists(st.integers(0, 120), max_size=8), st.integers(1, 10))
def test_splitting_keeps_every_frame_and_makes_no_stub(middle, cuts, merge):
    intervals = [(0, middle), (middle + 1, 120)]
    found = split_at(intervals, cuts, merge)
    assert [i for a, b in found for i in range(a, b)] == [i for i in range(120) if i != middle]
    assert all(b - a >= merge for a, b in found if (a, b) not in intervals)
    for cut in cuts:
        assert any(abs(cut - edge) < merge for pair in found for edge in pair) or cut in (120,)


@given(st.floats(0, 100), st.floats(0.01, 200))
def test_pieces_are_equal_within_the_limits_and_cover_the_trimmed_shot(start, length):
    settings = ShotSettings(min_clip=1.0, max_clip=10.0, trim=0.1)
    pieces = pieces_of(start, start + length, settings)
    if length - 0.2 < 1.0 - 1e-6:
        assert not pieces
    elif length - 0.2 > 1.0 + 1e-6:
        assert pieces[0][0] == pytest.approx(start + 0.1) and pieces[-1][1] == pytest.approx(start + length - 0.1)
        sizes = [b - a for a, b in pieces]
        assert max(sizes) <= 10 + 1e-6 and max(sizes) - min(sizes) < 1e-6
        assert len(pieces) == 1 or min(sizes) > 5


def test_short_shots_are_kept_as_rejected_clips():
    video = {"video_id": "v", "path": "p", "fps": 25.0, "width": 64, "height": 48}
    shot = {"shot_id": "v-0000000", "video_id": "v", "start": 0.0, "end": 1.1}
    (row,) = clips_of(shot, video, ShotSettings())
    assert (row["accepted"], row["reason"], row["score"]) == (False, "too short", 1.1)
    rows = clips_of(shot | {"end": 25.0}, video, ShotSettings())
    assert [row["clip_id"] for row in rows] == [f"v-0000000-0{i}" for i in range(3)]
