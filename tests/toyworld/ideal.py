"""What a judge without any error would read: scores are then exact, and every number can be told beforehand."""

from __future__ import annotations

import numpy as np

from phantom_mega.toyworld.backgrounds import BACKGROUNDS
from phantom_mega.toyworld.reading import Reading, SubjectReading, Track
from phantom_mega.toyworld.scenes import CAMERAS, LIGHTS, MOTIONS, Actor, Scene, pose, seen_pose
from phantom_mega.toyworld.subjects import PARTS, SHAPES, TEXTURES, Subject

FRAMES = 5
RED_STAR = Subject("star", "tail", "stripes", (230, 30, 30), (250, 230, 60))
BLUE_CIRCLE = Subject("circle", "ears", "dots", (90, 120, 250), (60, 240, 80))
GREEN_SQUARE = Subject("square", "hat", "ring", (40, 220, 60), (220, 60, 220))


def one_hot(name: str, known: object) -> np.ndarray:
    return np.array([float(name == other) for other in known])


def read_subject(scene: Scene, number: int, aspect: float = 1.0, subject: Subject | None = None) -> SubjectReading:
    """An actor, maybe looking like another subject."""
    actor = scene.actors[number]
    subject = subject or actor.subject
    centre, size = seen_pose(scene, number, FRAMES, aspect)
    angle = np.degrees(pose(actor, np.linspace(0, 1, FRAMES), aspect).angle)
    track = Track(centre / (aspect, 1) + 0.5, size, angle, np.ones(FRAMES, bool))
    return SubjectReading(
        one_hot(subject.shape, SHAPES), one_hot(subject.texture, TEXTURES), one_hot(subject.part, PARTS),
        subject.body, subject.accent, one_hot(actor.motion, MOTIONS), float(actor.flip), track,
        np.ones((FRAMES, 16, 16), bool),
    )  # fmt: skip


def read_scene(scene: Scene, subjects: tuple[Subject | None, ...] | None = None) -> Reading:
    """A scene whose actors may look like other subjects; those past `subjects` are missing."""
    subjects = (None,) * len(scene.actors) if subjects is None else subjects
    found = tuple(read_subject(scene, number, subject=subject) for number, subject in enumerate(subjects))
    return Reading(
        found, one_hot(scene.background, BACKGROUNDS), one_hot(scene.light, LIGHTS), one_hot(scene.camera, CAMERAS)
    )


def two_actors() -> Scene:
    return Scene(
        "meadow", "dim", "pan",
        (Actor(RED_STAR, "jumps", (0.25, 0.55), 5.0, 0.35, False, 0.14),
         Actor(BLUE_CIRCLE, "moves right", (0.7, 0.5), -8.0, 0.35, True, 0.14)),
    )  # fmt: skip
