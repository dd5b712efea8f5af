"""What a video achieved, as numbers per case: the judge reads, `toyworld.scores` compares with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phantom_mega.reproduction.cases import FRAMES, Case, line_up
from phantom_mega.toyworld.judge import Judge
from phantom_mega.toyworld.reading import Reading
from phantom_mega.toyworld.scores import (
    attribute_distances,
    binding,
    copy_paste,
    identity_score,
    match_places,
    prompt_scores,
    retrieval,
)
from phantom_mega.toyworld.subjects import Subject


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Attributes:
        title: of the column.
        about: what it measures, for readers of a report.
        lower_is_better: only for the report's arrows.
    """

    title: str
    about: str
    lower_is_better: bool = False


METRICS = {
    "identity": Metric("identity", "likeness of each subject to the one asked for: shape, texture, part, colours"),
    "semantics": Metric("semantics", "shape and part: what a word can name"),
    "detail": Metric("detail", "texture and the exact colours: what only the picture tells"),
    "retrieval": Metric("retrieval", "the subject is nearer to its own identity than to 49 other held-out ones"),
    "background": Metric("background", "the background is the prompt's"),
    "light": Metric("light", "the light is the prompt's"),
    "camera": Metric("camera", "the camera moves as the prompt says"),
    "motion": Metric("motion", "the subject moves as the prompt says"),
    "count": Metric("count", "as many subjects as the prompt names"),
    "prompt": Metric("prompt", "mean of background, light, camera, motion and count"),
    "copy_paste": Metric(
        "copy-paste", "share of the reference's angle, mirror, size, place, light and background repeated", True
    ),
    "success": Metric("success", "every subject is in its place with its own identity"),
    "confused": Metric("confused", "a subject took over attributes of the other, or its place", True),
    "swapped": Metric("swapped", "the subjects stand in each other's place", True),
    "both_present": Metric("both present", "as many subjects were found as were asked for"),
    "steadiness": Metric("steadiness", "1 - mean change of the picture's second difference in time"),
}  # fmt: skip
_SEMANTICS, _DETAIL = ("shape", "part"), ("texture", "body", "accent")


def score(judge: Judge, cases: Sequence[Case], videos: np.ndarray) -> list[dict[str, float]]:
    """Every metric of every case; NaN where one does not apply.

    Args:
        judge: reads the videos.
        cases: N.
        videos: uint8 [N, F, H, W, 3].
    """
    others = line_up(list(cases))
    readings = judge.read(list(videos))
    return [
        score_case(case, reading, video, others) for case, reading, video in zip(cases, readings, videos, strict=True)
    ]


def score_case(case: Case, reading: Reading, video: np.ndarray, others: Sequence[Subject]) -> dict[str, float]:
    """Metrics of one case from its reading. A subject that is not found has no likeness at all: 0."""
    height, width = video.shape[1:3]
    aspect, scene = width / height, case.sample.scene
    values: dict[str, list[float]] = {name: [] for name in ("identity", "semantics", "detail", "retrieval")}
    for number, actor in zip(match_places(reading, scene, aspect), scene.actors):
        if number < 0:
            for found in values.values():
                found.append(0.0)
            continue
        shown = reading.subjects[number]
        apart = attribute_distances(shown, actor.subject)
        values["identity"].append(identity_score(shown, actor.subject))
        values["semantics"].append(1 - float(np.mean([apart[name] for name in _SEMANTICS])))
        values["detail"].append(1 - float(np.mean([apart[name] for name in _DETAIL if name in apart])))
        strangers = [other for other in others if other != actor.subject]
        values["retrieval"].append(float(retrieval(shown, actor.subject, strangers)))
    result = {name: float(np.mean(found)) for name, found in values.items()}
    result |= prompt_scores(reading, scene, aspect)
    bound = binding(reading, scene, aspect)
    result |= {name: bound[name] for name in ("success", "confused", "swapped")}
    result["both_present"] = 1.0 - bound["missing"]
    # What the model was given is what it can repeat.
    own = _by_actor(case)
    copied = copy_paste(reading, own, scene, height=height, width=width, frames=FRAMES) if own else {"copied": np.nan}
    result["copy_paste"] = copied["copied"]
    result["steadiness"] = steadiness(video)
    return {name: result[name] for name in METRICS}


def _by_actor(case: Case) -> list:
    """The references that were given, in the order of the actors that they show; empty where they show others."""
    given = {reference.subject: reference for reference in case.given}
    actors = [actor.subject for actor in case.sample.scene.actors]
    return [given[subject] for subject in actors] if all(subject in given for subject in actors) else []


def steadiness(video: np.ndarray) -> float:
    """1 minus the mean absolute second difference in time, in [0, 1]; 1 for a still or an evenly changing picture."""
    frames = video.astype(np.float32) / 255
    if len(frames) < 3:
        return 1.0
    return float(1 - np.abs(frames[2:] - 2 * frames[1:-1] + frames[:-2]).mean() / 2)
