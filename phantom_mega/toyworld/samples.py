"""Samples: a scene, its caption, and reference images of its actors, each a pure function of (seed, split, number)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phantom_mega.data.hashing import draw_bits, hash_keys
from phantom_mega.errors import UserError
from phantom_mega.toyworld.backgrounds import BACKGROUNDS, PERIOD
from phantom_mega.toyworld.captions import STYLES, describe, phrase
from phantom_mega.toyworld.render import render, render_masks
from phantom_mega.toyworld.scenes import LIGHTS, MAX_ACTORS, Actor, Scene, draw_scene
from phantom_mega.toyworld.subjects import Subject, draw_subject, pick

SPLITS = ("train", "validation")
KINDS = ("cross", "in")
REFERENCE_SIZE = (0.5, 0.6)  # body heights of a reference, in frame heights
REFERENCE_ANGLE = 40.0  # degrees that a cross reference leans at most
LEAST_TURN = 15.0  # degrees between a cross reference and the clip
MARGIN = 0.08  # around a subject's box, in longer sides of it


@dataclass(frozen=True)
class ToyReference:
    """A reference image and where it was cut from.

    Attributes:
        subject: who is shown.
        image: uint8 [h, w, 3], the subject's box with a margin, square but for the frame's edges.
        scene: what it was cut from; for kind `in` the clip's own.
        frame: number of the frame; a cross reference's scene has one.
        box: (x0, y0, x1, y1) of the crop in the frame's pixels.
        mask: bool [h, w], where the subject is seen.
    """

    subject: Subject
    image: np.ndarray
    scene: Scene
    frame: int
    box: tuple[int, int, int, int]
    mask: np.ndarray


@dataclass(frozen=True)
class ToySample:
    """One subject-to-video sample with its truth.

    Attributes:
        key: unique among seeds, splits and numbers.
        scene: what the clip shows; `render(scene, frames, height, width)` draws it.
        caption: of the scene.
        references: one for each actor, in the actors' order.
        kind: `cross` or `in`.
    """

    key: str
    scene: Scene
    caption: str
    references: tuple[ToyReference, ...]
    kind: str


def make_sample(
    seed: int, number: int, *, split: str = "train", actors: int = 1, kind: str = "cross", style: str = "plain",
    height: int = 32, width: int = 32, frames: int = 17,
) -> ToySample:  # fmt: skip
    """Make a sample.

    The scene depends on seed, split, number and actors alone: the same clip exists with either kind of reference and
    any style of caption.

    Args:
        seed, number: any; equal ones give equal samples.
        split: `train` never shows a subject that `subjects.held_out` names, `validation` shows only those.
        actors: 1 to 4.
        kind: `cross` shows each subject in another scene: background, light, angle, scale and maybe mirrored;
            `in` cuts it out of the clip.
        style: of the caption.
        height, width, frames: of the clip that `in` references are cut from; cross references are drawn at this size.

    Raises:
        UserError: an argument that is none of these.
    """
    for name, value, known in (("split", split, SPLITS), ("kind", kind, KINDS), ("style", style, STYLES)):
        if value not in known:
            raise UserError(f"{name} {value!r} is unknown; use {' or '.join(known)}")
    if not 1 <= actors <= MAX_ACTORS:
        raise UserError(f"{actors} actors; a scene has 1 to {MAX_ACTORS}")
    key = f"toy{seed}_{split}_{number:07d}"
    rng = _generator(key, actors, "scene")
    scene = draw_scene(rng, _draw_cast(rng, actors, split))
    if kind == "in":
        references = _cut_from_clip(_generator(key, actors, "in"), scene, frames, height, width)
    else:
        rng = _generator(key, actors, "cross")
        references = tuple(_draw_cross(rng, scene, actor, height, width) for actor in scene.actors)
    return ToySample(key, scene, describe(scene, style), references, kind)


def _generator(key: str, *stream: object) -> np.random.Generator:
    return np.random.default_rng(int(draw_bits(hash_keys([key]), *stream)[0]))


def _draw_cast(rng: np.random.Generator, actors: int, split: str) -> list[Subject]:
    """Subjects that even a plain caption tells apart."""
    cast: dict[str, Subject] = {}
    while len(cast) < actors:
        subject = draw_subject(rng, from_held_out=split == "validation")
        cast.setdefault(phrase(subject), subject)
    return list(cast.values())


def _cut_from_clip(
    rng: np.random.Generator, scene: Scene, frames: int, height: int, width: int
) -> tuple[ToyReference, ...]:
    video, masks = render(scene, frames, height, width), render_masks(scene, frames, height, width)
    references = []
    for number, actor in enumerate(scene.actors):
        # Where half of what is ever seen of the actor is seen: not the frames at which it leaves the picture.
        areas = masks[:, number].sum((1, 2))
        frame = int(rng.choice(np.flatnonzero(2 * areas >= areas.max())))
        references.append(_cut(actor.subject, video[frame], masks[frame, number], scene, frame))
    return tuple(references)


def _draw_cross(rng: np.random.Generator, scene: Scene, actor: Actor, height: int, width: int) -> ToyReference:
    """The actor's subject in a scene of its own that shares neither background nor light nor angle with the clip."""
    background = pick(rng, [name for name in BACKGROUNDS if name != scene.background])
    light = pick(rng, [name for name in LIGHTS if name != scene.light])
    angle = actor.angle
    while abs(angle - actor.angle) < LEAST_TURN:
        angle = round(float(rng.uniform(-REFERENCE_ANGLE, REFERENCE_ANGLE)), 2)
    shift = rng.uniform(-0.02, 0.02, 2)
    shown = Actor(
        actor.subject,
        "stands still",
        (round(0.5 + float(shift[0]), 4), round(0.5 + float(shift[1]), 4)),
        angle,
        round(float(rng.uniform(*REFERENCE_SIZE)), 4),
        bool(rng.integers(2)),
    )
    other = Scene(background, light, "static", (shown,), round(float(rng.uniform(0, PERIOD)), 3))
    image, masks = render(other, 1, height, width), render_masks(other, 1, height, width)
    return _cut(actor.subject, image[0], masks[0, 0], other, 0)


def _cut(subject: Subject, image: np.ndarray, mask: np.ndarray, scene: Scene, frame: int) -> ToyReference:
    """Cut a subject's box with a margin, squared by widening the shorter side."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise UserError(f"a subject covers no pixel of {image.shape[1]}x{image.shape[0]}; make the frames larger")
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(bottom - top, right - left)
    side = int(side + 2 * np.ceil(MARGIN * side))
    y0, y1 = _span(int(top), int(bottom), side, image.shape[0])
    x0, x1 = _span(int(left), int(right), side, image.shape[1])
    return ToyReference(subject, image[y0:y1, x0:x1].copy(), scene, frame, (x0, y0, x1, y1), mask[y0:y1, x0:x1].copy())


def _span(start: int, stop: int, side: int, limit: int) -> tuple[int, int]:
    """`side` pixels around [start, stop), moved into [0, limit)."""
    first = max(0, min((start + stop - side) // 2, limit - side))
    return first, min(limit, first + side)
