"""What conditioning achieved, from a judge's reading and the truth: identity, prompt, binding, copy-paste. Pure NumPy.

Everything here is exact if the reading is: how well a judge reads is measured apart (`judge_accuracy`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from phantom_mega.toyworld.reading import Reading, SubjectReading
from phantom_mega.toyworld.samples import ToyReference
from phantom_mega.toyworld.scenes import Scene, pose, seen_pose
from phantom_mega.toyworld.shapes import flips_visibly, turns_visibly
from phantom_mega.toyworld.subjects import PARTS, SHAPES, TEXTURES, Colour, Subject, shows_accent

# Shares of an identity. The accent's falls to the others where a subject shows no accent.
IDENTITY_WEIGHTS = {"shape": 0.3, "texture": 0.15, "part": 0.15, "body": 0.25, "accent": 0.15}
COLOUR_REACH = 255.0  # Euclidean RGB distance from which on two colours have nothing in common
RECOGNISED = 0.35  # an identity distance below which a subject counts as shown
CONFUSED_SHARE = 1 / 3  # of the attributes that set two actors apart
# Least differences between a reference and the wanted scene from which on it can be told whose the video repeats, and
# how near the reference's value a video must come.
LEAST_DIFFERENCE = {"angle": 15.0, "size": 0.15, "position": 0.1}  # degrees, log of a ratio, frame heights
COPY_TOLERANCE = {name: least / 2 for name, least in LEAST_DIFFERENCE.items()}
COPY_ATTRIBUTES = ("angle", "flip", "size", "position", "background", "light")


def colour_distance(first: Colour, second: Colour) -> float:
    """Euclidean distance of two RGB colours in units of `COLOUR_REACH`, at most 1."""
    return float(min(1.0, np.linalg.norm(np.subtract(first, second)) / COLOUR_REACH))


def attribute_distances(shown: SubjectReading | Subject, wanted: Subject) -> dict[str, float]:
    """Distance in [0, 1] of each attribute of `IDENTITY_WEIGHTS`; without `accent` if `wanted` shows none.

    A reading's distance of shape, texture and part is the probability that it is another.
    """
    distances = {}
    for name, known in (("shape", SHAPES), ("texture", TEXTURES), ("part", PARTS)):
        value, true = getattr(shown, name), getattr(wanted, name)
        distances[name] = float(value != true) if isinstance(value, str) else 1 - float(value[known.index(true)])
    distances["body"] = colour_distance(shown.body, wanted.body)
    if shows_accent(wanted):
        distances["accent"] = colour_distance(shown.accent, wanted.accent)
    return distances


def identity_distance(shown: SubjectReading | Subject, wanted: Subject) -> float:
    """How unlike a subject is, in [0, 1]: the mean of `attribute_distances`, weighted by `IDENTITY_WEIGHTS`."""
    distances = attribute_distances(shown, wanted)
    weights = [IDENTITY_WEIGHTS[name] for name in distances]
    return float(np.average(list(distances.values()), weights=weights))


def identity_score(shown: SubjectReading | Subject, wanted: Subject) -> float:
    """1 - `identity_distance`."""
    return 1 - identity_distance(shown, wanted)


def best_identity_score(reading: Reading, wanted: Subject) -> float:
    """Of the subject that is most like `wanted`; 0 if none was found."""
    return max((identity_score(shown, wanted) for shown in reading.subjects), default=0.0)


def retrieval(shown: SubjectReading | Subject, true: Subject, others: Iterable[Subject]) -> bool:
    """Whether a subject is nearer to the true identity than to every other one."""
    own = identity_distance(shown, true)
    return all(own < identity_distance(shown, other) for other in others)


def match_places(reading: Reading, scene: Scene, aspect: float = 1.0) -> np.ndarray:
    """Which found subject stands where each actor belongs, by position alone: int [A], -1 where none is left.

    An assignment of least squared distance between mean places: of two actors, the one on the left is the caption's
    first, whatever it looks like.

    Args:
        reading: of a video.
        scene: what it should show.
        aspect: width of the frame over its height.
    """
    matched = np.full(len(scene.actors), -1)
    if scene.actors and reading.subjects:
        found = [(np.nanmean(subject.track.centre, 0) - 0.5) * (aspect, 1) for subject in reading.subjects]
        frames = len(reading.subjects[0].track.seen)
        wanted = [seen_pose(scene, number, frames, aspect)[0].mean(0) for number in range(len(scene.actors))]
        distance = np.square(np.array(wanted)[:, None] - np.array(found)[None]).sum(-1)
        rows, columns = linear_sum_assignment(distance)
        matched[rows] = columns
    return matched


def prompt_scores(reading: Reading, scene: Scene, aspect: float = 1.0) -> dict[str, float]:
    """Whether a video does what the caption says, 0 or 1 each, and their mean as `prompt`.

    Returns:
        `background`, `light`, `camera`, `count`, and `motion`: the share of actors that move as told; one that is
        missing does not.
    """
    motions = [
        float(number >= 0 and reading.subjects[number].most_likely_motion == actor.motion)
        for number, actor in zip(match_places(reading, scene, aspect), scene.actors)
    ]
    scores = {name: float(value == getattr(scene, name)) for name, value in reading.scene.items()}
    scores["count"] = float(reading.count == len(scene.actors))
    if motions:
        scores["motion"] = float(np.mean(motions))
    return scores | {"prompt": float(np.mean(list(scores.values())))}


def attribute_leak(shown: SubjectReading | Subject, own: Subject, other: Subject) -> float:
    """Share of the attributes that set two actors apart in which a subject is nearer to the other one.

    Two actors' colours, shapes, textures and parts mix where a model confuses them. 0: nothing is taken from the
    other; 1: it is the other. Colours set apart from half of `COLOUR_REACH` on.
    """
    apart = {name for name, distance in attribute_distances(own, other).items() if distance >= 0.5}
    to_own, to_other = attribute_distances(shown, own), attribute_distances(shown, other)
    apart &= to_own.keys() & to_other.keys()
    return float(np.mean([to_other[name] < to_own[name] for name in apart])) if apart else 0.0


def binding(reading: Reading, scene: Scene, aspect: float = 1.0) -> dict[str, float]:
    """Whether every actor is in its place with its own identity.

    Returns:
        One of these is 1, the others 0:
        `missing`: fewer subjects than actors;
        `confused`: an actor's place shows an identity nearer to another actor's, or one that has taken over
        `CONFUSED_SHARE` of what sets the two apart;
        `success`: nothing of that, and all distances are below `RECOGNISED`;
        `unlike`: all are there and none is confused, but one is not recognised.
        Beside them `leak`, the largest `attribute_leak` (nan if one is missing, or there is no other), and `swapped`,
        1 if identities alone would put the actors at other places.
    """
    matched = match_places(reading, scene, aspect)
    result = dict.fromkeys(("success", "confused", "missing", "unlike", "swapped"), 0.0) | {"leak": float("nan")}
    if not scene.actors or (matched < 0).any():
        return result | {"missing": float(bool(scene.actors)), "success": float(not scene.actors)}
    cast = [actor.subject for actor in scene.actors]
    shown = [reading.subjects[number] for number in matched]
    distance = np.array([[identity_distance(one, subject) for subject in cast] for one in shown])
    own = distance.diagonal()
    leaks = [
        attribute_leak(one, cast[row], other)
        for row, one in enumerate(shown) for column, other in enumerate(cast) if row != column
    ]  # fmt: skip
    rows, columns = linear_sum_assignment(distance)
    result["swapped"] = float(distance[rows, columns].sum() < own.sum())
    result["leak"] = max(leaks, default=float("nan"))
    if (distance.min(1) < own).any() or max(leaks, default=0.0) >= CONFUSED_SHARE:
        result["confused"] = 1.0
    else:
        result["success" if (own < RECOGNISED).all() else "unlike"] = 1.0
    return result


def copy_paste(
    reading: Reading, references: Sequence[ToyReference], scene: Scene, *, height: int = 32, width: int = 32,
    frames: int = 17,
) -> dict[str, float]:  # fmt: skip
    """What a video repeats of its references beside the identity, from the truth of both.

    Looked at is only where a reference and the wanted scene differ (by `LEAST_DIFFERENCE`). An attribute is copied,
    1, if the video is nearer to the reference than to the scene, and as near as `COPY_TOLERANCE`. Size and position
    are those in the reference image as a model sees it: padded to the video's aspect, scaled to its size.

    Args:
        reading: of the video.
        references: one for each actor.
        scene: what the video should show.
        height, width, frames: of the video, and of what the references were cut from.

    Returns:
        `COPY_ATTRIBUTES`, each the mean over the actors (nan where nothing differs or nothing was found), and their
        mean as `copied`.
    """
    aspect = width / height
    told: dict[str, list[float]] = {name: [] for name in COPY_ATTRIBUTES}
    for name in ("background", "light"):
        wanted, shown = getattr(scene, name), reading.scene[name]
        told[name] = [float(shown == getattr(reference.scene, name)) for reference in references
                      if getattr(reference.scene, name) != wanted]  # fmt: skip
    for number, (found, reference) in enumerate(zip(match_places(reading, scene, aspect), references)):
        if found >= 0:
            pasted = reference_pose(reference, height, width, frames)
            for name, value in _copied_pose(reading.subjects[found], pasted, scene, number, aspect).items():
                told[name].append(value)
    result = {name: float(np.mean(values)) if values else float("nan") for name, values in told.items()}
    known = [value for value in result.values() if not np.isnan(value)]
    return result | {"copied": float(np.mean(known)) if known else float("nan")}


@dataclass(frozen=True)
class PastedPose:
    """What a video would show of a reference image that fills it.

    Attributes:
        centre: (x, y) of the body's centre from the frame's middle, in frame heights.
        size: body height in frame heights.
        angle: degrees that it leans clockwise.
        flip: whether it is mirrored.
    """

    centre: np.ndarray
    size: float
    angle: float
    flip: bool


def reference_pose(reference: ToyReference, height: int = 32, width: int = 32, frames: int = 17) -> PastedPose:
    """The pose in a reference image after padding to the aspect of a video and scaling to its size.

    Args:
        reference: cut from frames of these sizes.
        height, width, frames: of them, and of the video.
    """
    number = next(n for n, actor in enumerate(reference.scene.actors) if actor.subject == reference.subject)
    actor, aspect = reference.scene.actors[number], width / height
    time = np.arange(frames) / max(1, frames - 1)
    centre, size = (value[reference.frame] for value in seen_pose(reference.scene, number, frames, aspect))
    angle = np.degrees(pose(actor, time, aspect).angle[reference.frame])
    x0, y0, x1, y1 = reference.box
    middle = np.array([(x0 + x1 - width) / 2, (y0 + y1 - height) / 2]) / height
    scale = height / max(y1 - y0, (x1 - x0) / aspect)
    return PastedPose((centre - middle) * scale, float(size * scale), float(angle), actor.flip)


def _copied_pose(
    shown: SubjectReading, pasted: PastedPose, scene: Scene, number: int, aspect: float
) -> dict[str, float]:
    """`angle`, `flip`, `size` and `position` of one actor, where they can be told."""
    actor, track = scene.actors[number], shown.track
    kind = (actor.subject.shape, actor.subject.part, actor.subject.texture)
    centre, size = seen_pose(scene, number, len(track.seen), aspect)
    at = (track.centre - 0.5) * (aspect, 1)
    length = functools.partial(np.linalg.norm, axis=-1)
    # Distances: reference to scene, video to reference, video to scene.
    distances = {
        "size": (np.log(pasted.size / size), np.log(track.size / pasted.size), np.log(track.size / size)),
        "position": (length(pasted.centre - centre), length(at - pasted.centre), length(at - centre)),
    }
    if turns_visibly(*kind):
        wanted = np.degrees(pose(actor, np.linspace(0, 1, len(track.seen)), aspect).angle)
        turns = ((pasted.angle, wanted), (track.angle, pasted.angle), (track.angle, wanted))
        distances["angle"] = tuple(turn_between(*pair) for pair in turns)
    copied = {}
    for name, (apart, to_reference, to_scene) in distances.items():
        told = (abs(apart) >= LEAST_DIFFERENCE[name] - 1e-6) & track.seen
        if told.any():
            near = (abs(to_reference) < abs(to_scene)) & (abs(to_reference) <= COPY_TOLERANCE[name])
            copied[name] = float(near[told].mean())
    if flips_visibly(*kind) and pasted.flip != actor.flip:
        copied["flip"] = float((shown.flip >= 0.5) == pasted.flip)
    return copied


def turn_between(first: np.ndarray | float, second: np.ndarray | float) -> np.ndarray:
    """Degrees from one angle to another, in [-180, 180)."""
    return (np.subtract(first, second) + 180) % 360 - 180
