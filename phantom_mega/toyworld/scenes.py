"""Scenes: who is where, what each one does, and under which light and camera. Drawn so that nobody overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phantom_mega.errors import UserError
from phantom_mega.toyworld.backgrounds import BACKGROUNDS, PERIOD
from phantom_mega.toyworld.shapes import turns_visibly
from phantom_mega.toyworld.subjects import Subject, pick

# Gains of red, green and blue. Warm light takes little blue: a blue subject stays blue.
LIGHTS = {"bright": (1.0, 1.0, 1.0), "dim": (0.66, 0.66, 0.66), "warm": (1.0, 0.88, 0.68)}
MOTIONS = ("stands still", "moves left", "moves right", "rises", "falls", "spins", "jumps", "grows")
CAMERAS = ("static", "pan", "zoom")
MAX_ACTORS = 4
# Number of actors -> (their places, body height, travel, jitter of the places).
_LAYOUTS = {
    1: (((0.5, 0.5),), 0.45, 0.3, 0.04),
    2: (((0.25, 0.5), (0.75, 0.5)), 0.35, 0.14, 0.01),
    3: (((0.25, 0.28), (0.75, 0.28), (0.5, 0.75)), 0.28, 0.12, 0.01),
    4: (((0.25, 0.28), (0.75, 0.28), (0.25, 0.75), (0.75, 0.75)), 0.28, 0.12, 0.01),
}
REST_ANGLE = 15.0  # degrees that an actor leans at most
PAN = 0.12  # frame heights that a panning camera goes to the right
ZOOM = (0.9, 1.12)  # magnification at the first and the last frame of a zooming camera
GROWTH = (0.65, 1.1)  # of a growing actor's size at the first and the last frame


@dataclass(frozen=True)
class Actor:
    """A subject that does something.

    Attributes:
        subject: who.
        motion: of `MOTIONS`.
        start: (x, y) of the body's centre at the first frame, in fractions of the frame's width and height.
        angle: degrees that it leans clockwise.
        size: height of the body, in frame heights.
        flip: mirrored left to right, before it leans.
        travel: length of its way, in frame heights, if it moves.
    """

    subject: Subject
    motion: str
    start: tuple[float, float]
    angle: float
    size: float
    flip: bool
    travel: float = 0.3


@dataclass(frozen=True)
class Scene:
    """All that decides a video.

    Attributes:
        background: of `BACKGROUNDS`.
        light: of `LIGHTS`.
        camera: of `CAMERAS`.
        actors: from the back to the front; of two the first is on the left.
        place: frame heights from the left end of the background's tile: no two meadows need look alike.
    """

    background: str
    light: str
    camera: str
    actors: tuple[Actor, ...]
    place: float = 0.0


@dataclass(frozen=True)
class Pose:
    """Where an actor is over time; float64 [F] each.

    Attributes:
        x, y: centre of the body in frame heights, before the camera.
        angle: radians clockwise.
        scale: height of the body in frame heights.
    """

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    scale: np.ndarray


def pose(actor: Actor, time: np.ndarray, aspect: float = 1.0) -> Pose:
    """The actor's pose.

    Args:
        actor: who moves.
        time: float64 [F], 0 at the first frame and 1 at the last.
        aspect: width of the frame over its height.

    Raises:
        UserError: an unknown motion.
    """
    if actor.motion not in MOTIONS:
        raise UserError(f"motion {actor.motion!r} is unknown; use one of {', '.join(MOTIONS)}")
    still, way = np.zeros_like(time), actor.travel * time
    dx = {"moves left": -way, "moves right": way}.get(actor.motion, still)
    dy = {"rises": -way, "falls": way, "jumps": -actor.travel * abs(np.sin(2 * np.pi * time))}.get(actor.motion, still)
    turn = 2 * np.pi * time if actor.motion == "spins" else still
    growth = GROWTH[0] + (GROWTH[1] - GROWTH[0]) * time if actor.motion == "grows" else still + 1
    return Pose(actor.start[0] * aspect + dx, actor.start[1] + dy, np.deg2rad(actor.angle) + turn, actor.size * growth)


def camera_view(camera: str, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(way to the right in frame heights, magnification about the frame's centre), float64 [F] each.

    Raises:
        UserError: an unknown camera.
    """
    if camera not in CAMERAS:
        raise UserError(f"camera {camera!r} is unknown; use one of {', '.join(CAMERAS)}")
    still = np.zeros_like(time)
    way = PAN * (time - 0.5) if camera == "pan" else still
    return way, ZOOM[0] + (ZOOM[1] - ZOOM[0]) * time if camera == "zoom" else still + 1


def draw_scene(rng: np.random.Generator, subjects: Sequence[Subject]) -> Scene:
    """Draw all but the subjects, so that every body stays in the frame and off the others.

    Args:
        rng: is advanced.
        subjects: one to four; of two the first is on the left.

    Raises:
        UserError: another number of subjects.
    """
    if len(subjects) not in _LAYOUTS:
        raise UserError(f"{len(subjects)} actors; a scene has 1 to {MAX_ACTORS}")
    background, light, camera = (pick(rng, names) for names in (BACKGROUNDS, tuple(LIGHTS), CAMERAS))
    places, size, travel, jitter = _LAYOUTS[len(subjects)]
    actors = tuple(_draw_actor(rng, subject, place, size, travel, jitter) for subject, place in zip(subjects, places))
    return Scene(background, light, camera, actors, round(float(rng.uniform(0, PERIOD)), 3))


def _draw_actor(
    rng: np.random.Generator, subject: Subject, place: tuple[float, float], size: float, travel: float, jitter: float
) -> Actor:
    turns = turns_visibly(subject.shape, subject.part, subject.texture)
    motion = pick(rng, [motion for motion in MOTIONS if turns or motion != "spins"])
    # The middle of the way is at the place: nobody leaves the frame.
    half = travel / 2
    before = {
        "moves left": (half, 0), "moves right": (-half, 0), "rises": (0, half), "falls": (0, -half), "jumps": (0, half)
    }.get(motion, (0, 0))  # fmt: skip
    start = tuple(round(float(at + offset + rng.uniform(-jitter, jitter)), 4) for at, offset in zip(place, before))
    angle = round(float(rng.uniform(-REST_ANGLE, REST_ANGLE)), 2)
    return Actor(subject, motion, start, angle, size, bool(rng.integers(2)), travel)
