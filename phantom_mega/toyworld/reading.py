"""What a judge says of a video: who is seen where, what each one does, and where. All NumPy, no network.

Axes: K frames that were read, spread evenly over the video.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phantom_mega.toyworld.backgrounds import BACKGROUNDS
from phantom_mega.toyworld.scenes import CAMERAS, LIGHTS, MOTIONS
from phantom_mega.toyworld.subjects import PARTS, SHAPES, TEXTURES, Subject


@dataclass(frozen=True)
class Track:
    """Where a subject is in each frame that was read; nan where it is not seen.

    Attributes:
        centre: float [K, 2], (x, y) of the body's centre in fractions of the frame's width and height.
        size: float [K], the body's height in frame heights.
        angle: float [K], degrees that it leans clockwise, in (-180, 180].
        seen: bool [K].
    """

    centre: np.ndarray
    size: np.ndarray
    angle: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True)
class SubjectReading:
    """One subject that was found.

    Attributes:
        shape, texture, part: float [8], [5], [6], probabilities in the order of `SHAPES`, `TEXTURES`, `PARTS`.
        body, accent: RGB, 0 to 255, as in bright light. The accent means nothing if nothing is drawn in it.
        motion: float [8], probabilities in the order of `MOTIONS`.
        flip: probability that it is mirrored.
        track: where it is over time.
        mask: bool [K, H/2, W/2], the cells of two by two pixels (of a frame of 32 lines) that it covers.
    """

    shape: np.ndarray
    texture: np.ndarray
    part: np.ndarray
    body: tuple[float, float, float]
    accent: tuple[float, float, float]
    motion: np.ndarray
    flip: float
    track: Track
    mask: np.ndarray

    @property
    def subject(self) -> Subject:
        """The most probable subject."""
        body, accent = (tuple(int(np.clip(round(value), 0, 255)) for value in rgb) for rgb in (self.body, self.accent))
        return Subject(
            SHAPES[int(self.shape.argmax())], PARTS[int(self.part.argmax())], TEXTURES[int(self.texture.argmax())],
            body, accent,
        )  # fmt: skip

    @property
    def most_likely_motion(self) -> str:
        """Of `MOTIONS`."""
        return MOTIONS[int(self.motion.argmax())]


@dataclass(frozen=True)
class Reading:
    """A video as a judge reads it.

    Attributes:
        subjects: those that were found, from the left to the right.
        background, light, camera: float [6], [3], [3], probabilities in the order of `BACKGROUNDS`, `LIGHTS`,
            `CAMERAS`.
    """

    subjects: tuple[SubjectReading, ...]
    background: np.ndarray
    light: np.ndarray
    camera: np.ndarray

    @property
    def count(self) -> int:
        """How many subjects were found."""
        return len(self.subjects)

    @property
    def scene(self) -> dict[str, str]:
        """The most probable `background`, `light` and `camera`."""
        return {
            "background": BACKGROUNDS[int(self.background.argmax())],
            "light": list(LIGHTS)[int(self.light.argmax())],
            "camera": CAMERAS[int(self.camera.argmax())],
        }
