"""Subjects: a silhouette with a part, a texture and two free colours. Some combinations are held out of training."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "crescent")
PARTS = ("none", "ears", "horns", "hat", "tail", "legs")
TEXTURES = ("plain", "stripes", "dots", "ring", "belt")
# Name -> the hue in degrees where it begins; the last one reaches round to the first.
HUES = {
    "red": 345, "orange": 16, "yellow": 44, "lime": 70, "green": 100,
    "turquoise": 155, "sky-blue": 188, "blue": 215, "purple": 255, "pink": 292,
}  # fmt: skip
HELD_OUT_SHARE = 0.1
LEAST_HUE_STEP = 60  # degrees between body and accent
LEAST_LUMA = 70  # of 255: brighter than the outline in any light
LEAST_LUMA_STEP = 45  # of 255 between body and accent: texture is seen even where hue is blurred

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """What a reference image has to carry over.

    Attributes:
        shape: of `SHAPES`, in the body colour.
        part: of `PARTS`, in the accent colour.
        texture: of `TEXTURES`, accent on the body.
        body, accent: RGB, 0 to 255.
    """

    shape: str
    part: str
    texture: str
    body: Colour
    accent: Colour


def colour_name(rgb: Colour) -> str:
    """The name of a colour's hue, one of `HUES`; lightness and saturation are not looked at."""
    hue = colorsys.rgb_to_hsv(*(value / 255 for value in rgb))[0] * 360
    behind = {name: (hue - start) % 360 for name, start in HUES.items()}
    return min(behind, key=behind.get)


def identity_key(subject: Subject) -> str:
    """A name that two subjects share only if they are drawn alike, such as `star-ears-dots-d02a10-2ac4e0`."""
    colours = ("".join(f"{value:02x}" for value in colour) for colour in (subject.body, subject.accent))
    return "-".join((subject.shape, subject.part, subject.texture, *colours))


def held_out(subject: Subject) -> bool:
    """Whether a subject is kept from training: about `HELD_OUT_SHARE` of all (shape, part, texture, body colour name).

    A rule, not a list: any program that sees a subject can tell, whatever the seed it was drawn with.
    """
    combination = "/".join((subject.shape, subject.part, subject.texture, colour_name(subject.body)))
    digest = hashlib.blake2b(combination.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < HELD_OUT_SHARE * 2**64


def draw_subject(rng: np.random.Generator, *, from_held_out: bool | None = None) -> Subject:
    """Draw a subject: shape, part and texture uniformly, colours with free hue.

    Args:
        rng: is advanced.
        from_held_out: True and False keep to subjects of which `held_out` says the same; None takes any.
    """
    while True:
        shape, part, texture = (pick(rng, names) for names in (SHAPES, PARTS, TEXTURES))
        subject = Subject(shape, part, texture, *_draw_colours(rng))
        if from_held_out is None or held_out(subject) == from_held_out:
            return subject


def pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    """One of some names, each equally likely; ten times as fast as `rng.choice`."""
    return names[rng.integers(len(names))]


def luma(rgb: Colour) -> float:
    """Brightness as BT.601 weighs it, 0 to 255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def _draw_colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Saturated (body, accent) that are told apart by hue and by brightness."""
    while True:
        hue = rng.uniform(0, 360)
        body = _draw_colour(rng, hue)
        accent = _draw_colour(rng, hue + rng.uniform(LEAST_HUE_STEP, 360 - LEAST_HUE_STEP))
        if abs(luma(body) - luma(accent)) >= LEAST_LUMA_STEP and colour_name(body) != colour_name(accent):
            return body, accent


def _draw_colour(rng: np.random.Generator, hue: float) -> Colour:
    while True:
        rgb = colorsys.hsv_to_rgb(hue % 360 / 360, rng.uniform(0.72, 1.0), rng.uniform(0.8, 1.0))
        colour = tuple(round(value * 255) for value in rgb)
        if luma(colour) >= LEAST_LUMA:
            return colour
