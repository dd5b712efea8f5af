"""Copy-paste: how much of a reference's pose, crop and light a video repeats, beyond the subject's identity.

A model trained on references cut from the very video learns to paste them in. No public benchmark of videos measures
that; MultiID-Bench (WithAnyone, arXiv 2510.14975) does for faces in images, by distances of face embeddings to the
reference and to a true other picture. This is this project's own score, for any subject, from pixels, without a model.
Each frame is laid onto the reference by one turn, scale and shift (`alignment.py`); then, all in [0, 1]:

    pose  = share of the reference's textured cells that the frame repeats, less where the copy is turned
    crop  = correlation of all of the reference with the frame, its surroundings included, times the share in sight
    light = exp(-d / 32), d being how far brightness, its slope across and its slope down differ, in grey levels
    score = pose * (crop + light) / 2

so that framing and light count as far as the picture is repeated at all. A pasted reference scores about 1, whatever
its size and place; the subject in another shot scores low. A mirrored copy counts as none. Where a reference was cut
out on white, nothing of its surroundings is left to compare. The video's score is the mean over 10 frames and over
references; lower is better. 0 is no proof of quality: a video without the subject has it too.

True videos do not score 0 either (a shot filmed from the same place again); `excess` takes theirs off. On 100 crops of
subjects of Big Buck Bunny the mean (5%, 95%) is 0.993 (0.97, 1.00) with the crop's own frame, 0.437 (0.13, 0.91) with
its shot, 0.017 (0.00, 0.06) with the subject in another shot, 0.013 (0.00, 0.04) with another subject.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from phantom_mega.evaluation.alignment import Aligner, Alignment, Frame, correlation, grey
from phantom_mega.evaluation.frames import uniform
from phantom_mega.evaluation.image_similarity import NO_REFERENCE
from phantom_mega.evaluation.metric import Item, Measured, Metric

FRAMES = 10  # as the paper's other metrics of subjects
CELLS = 8  # cells of the reference, across and down
TEXTURED, REPEATED = 4.0, 0.8  # a cell's deviation in grey levels; the correlation from which it counts as repeated
TURNED = 45.0  # degrees from which a turned copy counts as another pose
LIGHT = 32.0  # grey levels by which light falls to 1/e


def cells(area: np.ndarray, count: int = CELLS) -> list[tuple[slice, slice]]:
    """The cells of a grid over [h, w] of which at least half lies in an area, bool [h, w]."""
    rows, columns = (np.linspace(0, side, min(count, side) + 1).astype(int) for side in area.shape)
    grid = [(slice(a, b), slice(c, d)) for a, b in pairwise(rows) for c, d in pairwise(columns)]
    return [cell for cell in grid if area[cell].mean() >= 0.5]


def pose(found: Alignment) -> float:
    """Share of the reference's textured cells that the frame repeats; a turned copy counts less, none from 45 degrees.

    Args:
        found: the frame on the reference.
    """
    reference, frame = grey(found.reference), grey(found.frame)
    textured = [cell for cell in cells(found.area) if reference[cell][found.area[cell]].std() >= TEXTURED]
    if not textured:
        return 0.0
    repeated = [correlation(reference[cell], frame[cell], found.inside[cell]) >= REPEATED for cell in textured]
    return float(np.mean(repeated)) * max(0.0, 1 - abs(found.degrees) / TURNED)


def crop(found: Alignment) -> float:
    """Correlation of all of the reference with the frame, times the share of the reference that is in sight.

    Args:
        found: see `pose`.
    """
    alike = correlation(grey(found.reference), grey(found.frame), found.inside)
    return max(0.0, alike) * float(found.inside.sum() / found.area.sum())


def light(found: Alignment) -> float:
    """Closeness of the illumination: of a plane fitted to each colour's brightness, its height and its two slopes.

    Args:
        found: see `pose`.
    """
    inside = found.inside
    if not inside.any():
        return 0.0
    y, x = (places / max(1, side - 1) * 2 - 1 for places, side in zip(np.nonzero(inside), inside.shape))
    difference = found.frame[inside].astype(np.float64) - found.reference[inside]
    plane, *_ = np.linalg.lstsq(np.stack([np.ones_like(x), x, y], 1), difference, rcond=None)
    return math.exp(-float(np.abs(plane).mean(1).sum()) / LIGHT)


def excess(of_video: float, of_truth: float) -> float:
    """Copy-paste beyond what a true other video of the subject has with the same reference; below 0 is less than it.

    Args:
        of_video: score of the generated video.
        of_truth: score of the true one.
    """
    return of_video - of_truth


def repeats(frame: Frame, aligner: Aligner) -> tuple[float, float, float, float]:
    """(score, pose, crop, light) of one frame with one reference.

    Args:
        frame: of the video.
        aligner: of the reference.
    """
    found = aligner.align(frame)
    if found is None:
        return 0.0, 0.0, 0.0, 0.0
    parts = pose(found), crop(found), light(found)
    return parts[0] * (parts[1] + parts[2]) / 2, *parts


@dataclass
class CopyPasteSettings:
    """Nothing is to be set."""


class CopyPaste:
    """Copy-paste score: mean over frames and references; lower is better.

    `detail` has the means of `pose`, `crop` and `light`, the score of the worst frame (`peak`), and of each reference
    (`reference_1`...).
    """

    name, title, higher_is_better = "copy_paste", "Copy-paste", False

    def measure(self, item: Item) -> Measured:
        if not item.references:
            return Measured(0.0, NO_REFERENCE)
        frames = [Frame(image) for image in uniform(item.frames, FRAMES)]
        table = np.zeros((len(item.references), len(frames), 4))
        for i, reference in enumerate(item.references):
            aligner = Aligner(reference)
            table[i] = [repeats(frame, aligner) for frame in frames]
        means = table.mean((0, 1))
        detail = {"peak": float(table[..., 0].max()), **dict(zip(("pose", "crop", "light"), means[1:].tolist()))}
        detail |= {f"reference_{i}": float(score) for i, score in enumerate(table[..., 0].mean(1), start=1)}
        return Measured(float(means[0]), detail=detail)


def build(settings: CopyPasteSettings, device: torch.device | str) -> Metric:
    """The metric."""
    return CopyPaste()


METRICS = {"copy_paste": (CopyPasteSettings, build)}
