"""Stage `boxes`: which detections are good enough to cut a reference out; thresholds alone, no frame is looked at.

A reference shows one subject, whole and large (paper, supplement 4: small, overlapping and incomplete ones are left
out). Every box that is dropped is kept with the reason and with what was measured.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phantom_mega.curation.columns import fields_of
from phantom_mega.curation.engine.stage import Rejection, Row, Stage

Box = Sequence[float]  # x0, y0, x1, y1 as fractions of the picture
NOT_BEST, LOW, OVERLAPS, INSIDE = "not the best box", "low score", "overlaps another", "inside another"


@dataclass
class BoxSettings:
    """Which boxes go on."""

    min_score: float = 0.3
    """Score of a box at least, where its detector gives one."""
    min_box_area: float = 0.01
    """Share of the picture at least."""
    min_box_side: int = 64
    """Pixels of the shorter side at least, of the video."""
    max_box_area: float = 0.9
    """Share of the picture at most: what fills it is its scene."""
    max_box_aspect: float = 5.0
    """Longer side over shorter side at most, in pixels."""
    max_overlap: float = 0.5
    """Intersection over union with the box of another subject at most."""
    max_inside: float = 0.9
    """Share of a box that lies in a larger box of another subject at most; worn clothes may be inside."""
    edge_margin: float = 0.004
    """Share of a side: a box that is nearer to an edge of the picture is cut off by it."""
    max_cut_sides: int = 0
    """Edges that may cut a box off."""
    allow_cut_below: bool = True
    """The lower edge does not count: people are mostly shown without their legs."""


# -- pure


def area(box: Box) -> float:
    """Share of the picture."""
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    """Share of the picture that two boxes have in common."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    common = intersection(a, b)
    return common / (area(a) + area(b) - common)


def cut_sides(box: Box, margin: float, below: bool) -> int:
    """Edges of the picture that a box touches.

    Args:
        box: in fractions.
        margin: nearer than this is touched.
        below: whether the lower edge counts.
    """
    near = (box[0] <= margin, box[1] <= margin, box[2] >= 1 - margin, box[3] >= 1 - margin and below)
    return sum(near)


def problem_of(box: Box, width: int, height: int, settings: BoxSettings) -> tuple[str, float] | None:
    """(reason, what was measured) of the first rule that a box breaks by itself; None if it breaks none.

    Args:
        box: in fractions.
        width, height: of the video in pixels.
        settings: of the stage.
    """
    short, long = sorted(((box[2] - box[0]) * width, (box[3] - box[1]) * height))
    cut = cut_sides(box, settings.edge_margin, not settings.allow_cut_below)
    rules = (
        ("small", area(box), area(box) < settings.min_box_area),
        ("few pixels", short, short < settings.min_box_side),
        ("fills the frame", area(box), area(box) > settings.max_box_area),
        ("long and narrow", long / short, long / short > settings.max_box_aspect),
        ("cut off", cut, cut > settings.max_cut_sides),
    )
    return next(((reason, float(measured)) for reason, measured, broken in rules if broken), None)


def overlaps(places: Sequence[Row], worn: Sequence[bool], settings: BoxSettings) -> dict[int, tuple[str, float]]:
    """Number of each box of a frame that is not shown alone -> (reason, what was measured).

    Of two boxes that overlap, both are dropped: each picture would show both subjects. Of one inside of another, the
    inner one is dropped: its picture shows a part of the other; the outer one is mostly its own. Clothes are inside of
    who wears them: there the inner one stays, and if the two boxes are nearly the same, only the clothes go.

    Args:
        places: the box of each subject.
        worn: whether each is clothes.
        settings: of the stage.
    """
    found: dict[int, tuple[str, float]] = {}
    for i, j in itertools.combinations(range(len(places)), 2):
        a, b = places[i]["box"], places[j]["box"]
        inner, outer = (i, j) if area(a) <= area(b) else (j, i)
        measured = iou(a, b)
        share = intersection(a, b) / min(area(a), area(b))
        if measured > settings.max_overlap:
            dropped = (i, j) if worn[i] == worn[j] else ((i,) if worn[i] else (j,))
            found |= {number: (OVERLAPS, measured) for number in dropped if number not in found}
        elif share > settings.max_inside and not (worn[inner] and not worn[outer]):
            found.setdefault(inner, (INSIDE, share))
    return found


def judge(row: Row, settings: BoxSettings) -> tuple[list[Row], list[Row]]:
    """(good, dropped) boxes of a clip, each in the order of positions and subjects.

    Args:
        row: `width` and `height` of the clip, its `subjects` and `detections`.
        settings: of the stage.
    """
    dropped: list[Row] = []
    best: dict[tuple[float, int], Row] = {}
    for place in sorted(row["detections"], key=_rank):
        score, key = place["score"], (place["position"], place["subject"])
        if score is not None and score < settings.min_score:
            dropped.append(_because(place, LOW, score))
        elif key in best:
            dropped.append(_because(place, NOT_BEST, score))
        else:
            best[key] = place
    frames: dict[float, list[Row]] = defaultdict(list)
    for key in sorted(best):
        frames[key[0]].append(best[key])
    good: list[Row] = []
    for places in frames.values():
        worn = [row["subjects"][place["subject"]]["category"] == "clothes" for place in places]
        covered = overlaps(places, worn, settings)
        for number, place in enumerate(places):
            problem = problem_of(place["box"], row["width"], row["height"], settings) or covered.get(number)
            if problem:
                dropped.append(_because(place, *problem))
            else:
                good.append(place)
    return good, sorted(dropped, key=lambda one: (one["position"], one["subject"], _rank(one)))


def _rank(place: Row) -> tuple:
    """The best box first: by its score, then by its size."""
    return -(place["score"] or 0.0), -area(place["box"]), place["box"], place["time"]


def _because(place: Row, reason: str, measured: float | None) -> Row:
    return place | {"reason": reason, "measured": measured}


# -- the stage


def open_boxes(settings: BoxSettings) -> Callable[[Row], list[Row]]:
    """The function of a clip's row with its detections."""

    def choose(row: Row) -> list[Row]:
        good, dropped = judge(row, settings)
        if not good:
            counts = Counter(one["reason"] for one in dropped)
            reason = min(counts, key=lambda name: (-counts[name], name), default="nothing detected")
            raise Rejection(reason, None, f"{counts[reason]} of {len(dropped)} boxes", boxes=[], dropped=dropped)
        return [{"clip_id": row["clip_id"], "boxes": good, "dropped": dropped}]

    return choose


def stage(settings: BoxSettings) -> Stage:
    """`boxes` of `detections`."""
    inputs = {
        "clips": ("clip_id", "width", "height"), "subjects": ("clip_id", "subjects"),
        "detections": ("clip_id", "detections"),
    }  # fmt: skip
    return Stage("boxes", fields_of("boxes"), inputs, settings, open_boxes)
