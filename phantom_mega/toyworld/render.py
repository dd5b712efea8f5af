"""From a scene to pixels and masks, antialiased by supersampling. The same scene gives the same bytes.

Axes: F frames, H and W pixels, A actors, Q pixels along the square around an actor, S samples along a pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from phantom_mega.errors import UserError
from phantom_mega.toyworld.backgrounds import pixels
from phantom_mega.toyworld.scenes import LIGHTS, Actor, Scene, camera_view, pose
from phantom_mega.toyworld.shapes import ACCENT, BODY, EXTENT, OUTLINE, PER_UNIT, SIDE, label_map

SUBSAMPLES = 4  # S of actors
BACKGROUND_SUBSAMPLES = 3  # S of backgrounds
OUTLINE_COLOUR = (24, 20, 28)
# A label counts in a byte of its own, so that one sum over a pixel's samples counts all three.
_BYTES = {BODY: 0, ACCENT: 8, OUTLINE: 16}


def render(scene: Scene, frames: int = 17, height: int = 32, width: int = 32) -> np.ndarray:
    """The video of a scene, uint8 [F, H, W, 3].

    Args:
        scene: what is shown.
        frames: of the video. Motion always goes from its beginning to its end; a single frame is the beginning.
        height, width: in pixels.

    Raises:
        UserError: a size below 1, or an unknown background, light, motion or camera.
    """
    time = _time(frames, height, width)
    if scene.light not in LIGHTS:
        raise UserError(f"light {scene.light!r} is unknown; use one of {', '.join(LIGHTS)}")
    picture = _background(scene, time, height, width)
    for actor in scene.actors:
        layer = _layer(scene, actor, time, height, width)
        for frame, place, inside in layer.windows(height, width):
            # Premultiplied colour over what is behind (Porter and Duff 1984).
            picture[frame][place] *= 1 - layer.coverage[frame][inside][..., None]
            picture[frame][place] += layer.colour[frame][inside]
    picture *= np.asarray(LIGHTS[scene.light], np.float32)
    picture += 0.5
    return picture.astype(np.uint8)


def render_masks(scene: Scene, frames: int = 17, height: int = 32, width: int = 32) -> np.ndarray:
    """Where each actor is seen, bool [F, A, H, W]: it fills at least half of the pixel, outline included.

    Args, Raises: as `render`.
    """
    time = _time(frames, height, width)
    seen = np.zeros((len(scene.actors), frames, height, width), np.float32)
    for number, actor in enumerate(scene.actors):
        layer = _layer(scene, actor, time, height, width)
        for frame, place, inside in layer.windows(height, width):
            coverage = layer.coverage[frame][inside]
            seen[(slice(number), frame, *place)] *= 1 - coverage
            seen[(number, frame, *place)] = coverage
    return (seen >= 0.5).swapaxes(0, 1)


def _time(frames: int, height: int, width: int) -> np.ndarray:
    """float64 [F] from 0 to 1."""
    if min(frames, height, width) < 1:
        raise UserError(f"frames={frames}, height={height}, width={width} must all be at least 1")
    return np.arange(frames) / max(1, frames - 1)


def _background(scene: Scene, time: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [F, H, W, 3] in [0, 255], before the light."""
    way, magnification = camera_view(scene.camera, time)
    moves = scene.camera != "static"
    if not moves:
        way, magnification = way[:1], magnification[:1]
    S = BACKGROUND_SUBSAMPLES
    across = ((np.arange(width * S) + 0.5) / S - width / 2) / height
    down = ((np.arange(height * S) + 0.5) / S - height / 2) / height
    x = scene.place + width / height / 2 + way[:, None] + across / magnification[:, None]
    y = 0.5 + down / magnification[:, None]
    picture = pixels(scene.background, x, np.broadcast_to(y, (len(x), height * S)), S)
    return picture if moves else np.repeat(picture, len(time), axis=0)


@dataclass(frozen=True)
class _Layer:
    """One actor on its own.

    Attributes:
        top, left: int [F], the square's first row and column; it may reach beyond the frame.
        colour: float32 [F, Q, Q, 3] in [0, 255], premultiplied by the coverage.
        coverage: float32 [F, Q, Q] in [0, 1].
    """

    top: np.ndarray
    left: np.ndarray
    colour: np.ndarray
    coverage: np.ndarray

    def windows(self, height: int, width: int) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """(frame, rows and columns of the frame, the same of the square), for the frames where it is in view."""
        side = self.coverage.shape[1]
        for frame, (top, left) in enumerate(zip(self.top.tolist(), self.left.tolist())):
            rows, columns = slice(max(0, top), min(height, top + side)), slice(max(0, left), min(width, left + side))
            if rows.start < rows.stop and columns.start < columns.stop:
                inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
                yield frame, (rows, columns), inside


def _layer(scene: Scene, actor: Actor, time: np.ndarray, height: int, width: int) -> _Layer:
    """Sample the actor's label map; labels are counted over a pixel's samples, and only then coloured."""
    way, magnification = camera_view(scene.camera, time)
    where = pose(actor, time, width / height)
    x = ((where.x - width / height / 2 - way) * magnification) * height + width / 2
    y = ((where.y - 0.5) * magnification) * height + height / 2
    scale = where.scale * magnification * height  # pixels of the body's height
    codes, radius = _codes(actor.subject.shape, actor.subject.part, actor.subject.texture)
    side = int(np.ceil(2 * radius * scale.max())) + 2
    top, left = np.floor(y - side / 2).astype(np.intp), np.floor(x - side / 2).astype(np.intp)
    within = (np.arange(side * SUBSAMPLES) + 0.5) / SUBSAMPLES
    # From pixels to steps of the label map: [F, 1, Q * S] along a row, [F, Q * S, 1] along a column.
    step = (PER_UNIT / scale)[:, None]
    across = ((left - x)[:, None] + within) * step
    down = ((top - y)[:, None] + within) * step
    cosine, sine = np.cos(where.angle)[:, None], np.sin(where.angle)[:, None]
    middle = EXTENT * PER_UNIT
    mirror = -1 if actor.flip else 1
    column = _outer(mirror * cosine * across + middle, mirror * sine * down)
    row = _outer(-sine * across + middle, cosine * down)
    counts = codes.take(row * SIDE + column)
    counts = counts.reshape(len(time), side, SUBSAMPLES, -1).sum(2, dtype=np.uint32)
    counts = counts.reshape(len(time), side, side, SUBSAMPLES).sum(3, dtype=np.uint32)
    colours = {BODY: actor.subject.body, ACCENT: actor.subject.accent, OUTLINE: OUTLINE_COLOUR}
    shares = np.stack([counts >> shift & 255 for shift in _BYTES.values()], -1) * np.float32(SUBSAMPLES**-2)
    palette = np.array([colours[label] for label in _BYTES], np.float32)
    return _Layer(top, left, shares @ palette, shares.sum(-1))


def _outer(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """int32 [F, Q * S, Q * S], places in the label map: the sums of float64 [F, Q * S] each, kept on the map."""
    places = (across[:, None, :].astype(np.float32) + down[:, :, None].astype(np.float32)).astype(np.int32)
    return np.clip(places, 0, SIDE - 1, out=places)


@functools.cache
def _codes(shape: str, part: str, texture: str) -> tuple[np.ndarray, float]:
    """A label map as uint32 [SIDE * SIDE] of counters, and how far it reaches from its centre in body heights."""
    labels = label_map(shape, part, texture)
    codes = np.zeros(labels.shape, np.uint32)
    for label, shift in _BYTES.items():
        codes[labels == label] = 1 << shift
    row, column = np.nonzero(labels)
    reach = np.hypot(row + 0.5 - SIDE / 2, column + 0.5 - SIDE / 2).max() / PER_UNIT
    return codes.ravel(), float(reach)
