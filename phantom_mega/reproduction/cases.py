"""Held-out cases: what is asked for, with the truth. The same for every arm and seed, so differences are paired."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phantom_mega.reproduction.arms import ARMS, PAIR, Condition
from phantom_mega.toyworld.samples import ToyReference, ToySample, make_sample
from phantom_mega.toyworld.subjects import Subject

CASE_SEED = 77  # not that of any data set
FRAMES = 17
SIZES = {"single": (32, 32), "pair": (32, 64)}  # height, width
MAX_ALIKE = 50  # identities among which a subject must be found again


@dataclass(frozen=True)
class Case:
    """One video that is asked for.

    Attributes:
        sample: scene, caption and own references.
        given: the references that the model gets; another case's where they are shuffled.
    """

    sample: ToySample
    given: tuple[ToyReference, ...]

    @property
    def images(self) -> list[np.ndarray]:
        """uint8 [h, w, 3] each."""
        return [reference.image for reference in self.given]


def size_of(condition: Condition) -> tuple[int, int]:
    """(height, width) in pixels of a condition's videos."""
    return SIZES[ARMS[condition.arm].world]


def make_cases(condition: Condition, count: int) -> list[Case]:
    """The first `count` held-out cases of a condition's world, in its words, with its references."""
    height, width = size_of(condition)
    actors = 2 if ARMS[condition.arm].world == PAIR else 1
    samples = [
        make_sample(
            CASE_SEED, number, split="validation", actors=actors, kind="cross", style=condition.style,
            height=height, width=width, frames=FRAMES,
        )
        for number in range(count)
    ]  # fmt: skip
    shift = 1 if condition.references == "shuffled" else 0
    given = [samples[(number + shift) % count].references for number in range(count)]
    if actors > 1:
        # Neither order of the references tells who is on which side.
        given = [refs if number % 2 == 0 else refs[::-1] for number, refs in enumerate(given)]
    return [Case(sample, references) for sample, references in zip(samples, given, strict=True)]


def line_up(cases: list[Case]) -> list[Subject]:
    """The first identities of the cases, among which each must be found again."""
    subjects = [actor.subject for case in cases for actor in case.sample.scene.actors]
    return list(dict.fromkeys(subjects))[:MAX_ALIKE]
