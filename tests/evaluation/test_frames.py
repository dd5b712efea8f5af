"""Frames of generated videos: all of them, in order, within bounds; and evenly picked ones."""

import numpy as np
import pytest

from phantom_mega.errors import UserError
from phantom_mega.evaluation.frames import read_video, uniform, uniform_indices
from phantom_mega.generation.video import write_mp4
from tests.media import draw_frames


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    frames = draw_frames(12, 48, 64) // 4 + np.arange(0, 180, 15, dtype=np.uint8)[:, None, None, None]
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_mp4(frames, path, 8.0)
    return path, frames


def test_every_frame_comes_back_in_order_with_its_rate(video):
    path, frames = video
    decoded, fps = read_video(path)
    assert decoded.shape == frames.shape and decoded.dtype == np.uint8
    assert fps == pytest.approx(8.0)
    errors = np.abs(decoded[:, None].astype(int) - frames[None]).mean((2, 3, 4))  # [decoded, written]
    assert (errors.argmin(1) == np.arange(12)).all() and np.diag(errors).max() < 4


def test_a_video_beyond_the_bounds_is_refused_with_what_would_fit(video):
    path, _ = video
    assert len(read_video(path, max_frames=12)[0]) == 12
    assert len(read_video(path, max_bytes=12 * 48 * 64 * 3)[0]) == 12
    with pytest.raises(UserError, match=r"a\.mp4 has more than 11 frames of 64x48"):
        read_video(path, max_frames=11)
    with pytest.raises(UserError, match="more than 11 frames"):
        read_video(path, max_bytes=12 * 48 * 64 * 3 - 1)


@pytest.mark.parametrize("content", [None, b"", b"no video"])
def test_what_is_no_video_is_one_message_that_names_it(tmp_path, content):
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.mp4 cannot be opened"):
        read_video(path)


@pytest.mark.parametrize(("count", "wanted"), [(1, 10), (7, 10), (10, 10), (11, 10), (145, 10), (145, 2), (5, 1)])
def test_uniform_indices_are_even_ascending_and_none_twice(count, wanted):
    indices = uniform_indices(count, wanted)
    assert len(indices) == min(count, wanted) and indices[0] == 0
    if wanted > 1:
        assert indices[-1] == count - 1
        steps = np.diff(indices)
        assert count == 1 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    assert (uniform(np.arange(count), wanted) == indices).all()


def test_uniform_indices_are_the_nearest_frames():
    assert uniform_indices(12, 10).tolist() == [0, 1, 2, 4, 5, 6, 7, 9, 10, 11]


def test_frames_cannot_be_taken_from_nothing():
    for count, wanted in ((0, 10), (5, 0)):
        with pytest.raises(ValueError, match="cannot be taken"):
            uniform_indices(count, wanted)
