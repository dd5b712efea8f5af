"""Files of a video: what is written is what was generated, in the right colours, and whole or absent."""

import av
import numpy as np
import pytest
from PIL import Image

from phantom_mega.errors import UserError
from phantom_mega.generation.video import animation, video_card, write_mp4
from tests.media import draw_frames


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, stream.codec_context.name, float(stream.average_rate), stream.codec_context


@pytest.mark.parametrize("fps", [24.0, 29.97, 8.0])
def test_the_file_holds_the_frames_as_h264(tmp_path, fps):
    frames = draw_frames(9, 48, 64)
    write_mp4(frames, tmp_path / "v.mp4", fps)
    found, codec, rate, context = read(tmp_path / "v.mp4")
    assert codec == "h264" and rate == pytest.approx(fps, abs=0.01) and context.pix_fmt == "yuv420p"
    assert found.shape == frames.shape and np.abs(found.astype(int) - frames).mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_colours_survive_within_what_chroma_subsampling_costs(tmp_path):
    """A wrong matrix or range would move pure colours by 10 to 30."""
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)], np.uint8)
    frame = np.repeat(np.repeat(colours[None], 96, axis=0), 32, axis=1)
    write_mp4(np.stack([frame] * 5), tmp_path / "v.mp4", 24)
    found, *_, context = read(tmp_path / "v.mp4")
    assert (context.colorspace, context.color_range) == (1, 1)
    for i, colour in enumerate(colours):
        shown = found[2, 40:56, 32 * i + 12 : 32 * i + 20].reshape(-1, 3).mean(0)
        assert np.abs(shown - colour).max() < 4, (colour, shown)


def test_a_file_that_cannot_be_written_is_one_message_and_leaves_nothing(tmp_path):
    folder = tmp_path / "file"
    folder.write_text("")
    with pytest.raises(UserError, match=r"v\.mp4 could not be written"):
        write_mp4(draw_frames(3, 32, 32), folder / "v.mp4", 24)


def test_a_card_shows_references_frames_and_prompt(tmp_path):
    Image.new("RGB", (30, 40), "#ff0000").save(tmp_path / "red.png")
    frames = np.zeros((9, 32, 64, 3), np.uint8)
    frames[..., 1] = np.linspace(0, 255, 9).astype(np.uint8)[:, None, None]
    card = np.asarray(video_card("id", "about", "a red box moves", [tmp_path / "red.png"], frames, ["a red box"]))
    assert (card == (255, 0, 0)).all(-1).sum() > 3000, "the reference"
    for green in (0, 255):  # the first and the last frame
        assert (card == (0, green, 0)).all(-1).sum() > 1000


def test_an_animation_is_small_moves_and_keeps_the_pace(tmp_path):
    frames = draw_frames(100, 96, 512)
    (tmp_path / "a.gif").write_bytes(animation(frames, 24.0))
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.size == (256, 48) and moving.n_frames == 34  # every third
        seconds = 0
        for i in range(moving.n_frames):
            moving.seek(i)
            seconds += moving.info["duration"] / 1000
        assert seconds == pytest.approx(100 / 24, rel=0.08) and moving.info["loop"] == 0
        moving.seek(5)
        found = np.asarray(moving.convert("RGB").resize((512, 96)), dtype=int)
    errors = [np.abs(found - frame).mean() for frame in frames[:22]]  # the square comes back after half a turn
    assert np.argmin(errors) == 15 and errors[15] < 5
