"""Stage `measures`: numbers about each clip, from a few frames of it; no threshold is applied here.

So thresholds can be tuned again without a look at a frame (stage `selected`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image

from phantom_mega.curation.engine.stage import Rejection, Row, Stage
from phantom_mega.curation.video import VideoError, frames_at, to_rgb
from phantom_mega.errors import UserError

_MOTION_HEIGHT = 96  # pixels at which motion is measured
_SHARP_HEIGHT = 360  # and sharpness, so that sizes compare
_DARK = 20  # of 255: bars and black frames
HASH_BITS = 64


@dataclass
class MeasureSettings:
    """What is measured of a clip (paper, supplement 4)."""

    sampled_frames: int = 5
    """Frames of a clip that are looked at, evenly spread."""
    motion_step: float = 0.2
    """Seconds between the two frames of which the motion is measured, at each sampled one."""
    aesthetic_model: str = "none"
    """open_clip model for the aesthetic score, as `ViT-L-14`, or `none`."""
    aesthetic_pretrained: str = "openai"
    """Its weights: a name of open_clip or a file."""
    aesthetic_head: str = ""
    """File of the linear head (LAION's aesthetic predictor: `sa_0_4_vit_l_14_linear.pth`), for `aesthetic_model`."""


# -- pure, each of uint8 frames


def black(frames: list[np.ndarray]) -> float:
    """Share of frames that are dark all over (99 of 100 pixels)."""
    return float(np.mean([np.quantile(frame.max(-1), 0.99) < _DARK for frame in frames]))


def contrast(frames: list[np.ndarray]) -> float:
    """Standard deviation of brightness (0 to 127), of the frame that has the least."""
    return float(min(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).std() for frame in frames))


def letterbox(frames: list[np.ndarray]) -> float:
    """Share of the picture under bars: edges that are dark in every frame, while the middle is not."""
    bright = np.max([frame.max(-1) for frame in frames], 0) >= _DARK
    if not bright.any():
        return 0.0
    rows, columns = (np.flatnonzero(bright.mean(axis) > 0.02) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return 0.0
    kept = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return float(1 - kept / bright.size)


def sharpness(frames: list[np.ndarray]) -> float:
    """Variance of the Laplacian at a height of 360 pixels, median of the frames; blurred pictures have little."""
    return float(np.median([cv2.Laplacian(_grey(frame, _SHARP_HEIGHT), cv2.CV_64F).var() for frame in frames]))


def motion(pairs: list[tuple[np.ndarray, np.ndarray]], step: float) -> float:
    """Optical flow (Farneback) of the fastest tenth of the picture, as its heights per second, mean of the pairs.

    The mean over all pixels would call a shot static in which only a small subject moves.
    """
    speeds = []
    for first, second in pairs:
        flow = cv2.calcOpticalFlowFarneback(
            _grey(first, _MOTION_HEIGHT), _grey(second, _MOTION_HEIGHT), None, 0.5, 3, 15, 3, 5, 1.2, 0
        )
        speed = np.sort(np.linalg.norm(flow, axis=-1), axis=None)
        speeds.append(speed[-speed.size // 10 :].mean() / _MOTION_HEIGHT / step)
    return float(np.mean(speeds)) if speeds else 0.0


def text_area(frames: list[np.ndarray]) -> float:
    """Share of the picture under writing, of the frame that has the least of it: captions and watermarks stay.

    Strokes are found by their gradient, joined to lines, and kept where a box is wide, low and filled like writing; it
    takes some textures for writing. A detector of text is better, where one is at hand.
    """
    return float(min(_writing(frame) for frame in frames))


def _writing(frame: np.ndarray) -> float:
    grey = _grey(frame, _SHARP_HEIGHT)
    gradient = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    _, strokes = cv2.threshold(gradient, 80, 255, cv2.THRESH_BINARY)
    lines = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_RECT, (11, 1)))
    contours, _ = cv2.findContours(lines, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    area = 0
    for contour in contours:
        x, y, width, height = cv2.boundingRect(contour)
        filled = cv2.countNonZero(lines[y : y + height, x : x + width]) / (width * height)
        dense = cv2.countNonZero(strokes[y : y + height, x : x + width]) / (width * height)
        if 8 <= height <= 80 and width > 3 * height and filled > 0.6 and dense > 0.3:
            area += width * height
    return area / grey.size


def perceptual_hash(frame: np.ndarray) -> bytes:
    """64 bits that survive scaling and compression (imagehash's phash)."""
    bits = imagehash.phash(Image.fromarray(frame), hash_size=8).hash.ravel()
    return np.packbits(bits).tobytes()


def _grey(frame: np.ndarray, height: int) -> np.ndarray:
    width = max(8, round(frame.shape[1] * height / frame.shape[0]))
    return cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (width, height), interpolation=cv2.INTER_AREA)


# -- the stage


def sample_times(start: float, end: float, count: int, step: float) -> list[float]:
    """Seconds of the frames that are looked at, in order: `count` pairs, each `step` apart, inside of the clip."""
    span = max(0.0, end - start - step)
    firsts = [start + span * (i + 0.5) / count for i in range(count)]
    return [time for first in firsts for time in (first, first + step)]


def open_measures(settings: MeasureSettings) -> Callable[[Row], list[Row]]:
    """The function of a clip's row.

    Raises:
        UserError: the aesthetic model cannot be loaded.
    """
    cv2.setNumThreads(1)
    aesthetic = open_aesthetic(settings)

    def measure(row: Row) -> list[Row]:
        step = min(settings.motion_step, (row["end"] - row["start"]) / 2)
        times = sample_times(row["start"], row["end"], settings.sampled_frames, step)
        height = min(row["height"], 480)
        width = round(row["width"] * height / row["height"])
        try:
            frames = [to_rgb(frame, width, height) for frame in _in_order(row["path"], times)]
        except VideoError as error:
            raise Rejection("unreadable", None, str(error)) from None
        firsts, seconds = frames[::2], frames[1::2]
        return [{
            "clip_id": row["clip_id"], "black": black(firsts), "contrast": contrast(firsts),
            "letterbox": letterbox(frames), "sharpness": sharpness(firsts),
            "motion": motion(list(zip(firsts, seconds, strict=True)), step), "text_area": text_area(firsts),
            "aesthetic": None if aesthetic is None else aesthetic(firsts),
            "hashes": b"".join(map(perceptual_hash, (firsts[0], firsts[len(firsts) // 2], firsts[-1]))),
        }]  # fmt: skip

    return measure


def _in_order(path: str, times: list[float]) -> list:
    """Frames at times that may overlap (short clips)."""
    order = np.argsort(times, kind="stable")
    found = frames_at(path, [times[i] for i in order])
    frames: list = [None] * len(times)
    for place, frame in zip(order, found, strict=True):
        frames[place] = frame
    return frames


def open_aesthetic(settings: MeasureSettings) -> Callable[[list[np.ndarray]], float] | None:
    """LAION's aesthetic predictor: a linear head on normalised CLIP features; None if it is not asked for.

    Raises:
        UserError: the model or the head cannot be loaded.
    """
    if settings.aesthetic_model == "none":
        return None
    import open_clip
    import torch

    try:
        model, _, prepare = open_clip.create_model_and_transforms(
            settings.aesthetic_model, pretrained=settings.aesthetic_pretrained
        )
        weights = torch.load(settings.aesthetic_head, weights_only=True, map_location="cpu")
        weight, bias = weights["weight"].float(), weights["bias"].float()
    except Exception as error:  # open_clip, the hub's client and torch raise nearly anything
        raise UserError(
            f"measures.aesthetic_model={settings.aesthetic_model} with measures.aesthetic_head="
            f"{settings.aesthetic_head!r} cannot be loaded ({type(error).__name__}: {error})"
        ) from None
    model.eval()

    @torch.no_grad()
    def score(frames: list[np.ndarray]) -> float:
        images = torch.stack([prepare(Image.fromarray(frame)) for frame in frames])
        features = torch.nn.functional.normalize(model.encode_image(images).float(), dim=-1)
        return float((features @ weight.reshape(-1) + bias.reshape(-1)).mean())

    return score


def stage(settings: MeasureSettings) -> Stage:
    """`measures` of `clips`."""
    names = ("black", "contrast", "letterbox", "sharpness", "motion", "text_area", "aesthetic")
    columns = [pa.field("clip_id", pa.string()), *(pa.field(name, pa.float64()) for name in names)]
    return Stage(
        "measures", (*columns, pa.field("hashes", pa.binary())),
        {"clips": ("clip_id", "path", "start", "end", "width", "height")}, settings, open_measures,
    )  # fmt: skip
