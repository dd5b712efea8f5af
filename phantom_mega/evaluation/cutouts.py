"""Subjects cut out of pictures: a zero-shot detector finds what is asked for, SAM outlines it (Grounded-SAM).

The paper (4.2): "we used grounded-sam to segment the subject part of the video and calculate the CLIP and DINO scores
(excluding scene graphs)".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from phantom_mega.errors import UserError
from phantom_mega.evaluation.encoders import EncoderSettings, check_choice
from phantom_mega.evaluation.frames import uniform_indices
from phantom_mega.evaluation.image_similarity import NO_REFERENCE, cosines, frames_without, mean_similarity
from phantom_mega.evaluation.metric import Item, Measured
from phantom_mega.evaluation.remembered import Remembered

REGIONS = ("box", "frame")
DETECTOR_SOURCE = "huggingface.co/IDEA-Research/grounding-dino-base"
MASK_SOURCE = "huggingface.co/facebook/sam-vit-huge"
# Of a picture and phrases: (number of the phrase, score, box in pixels); of a picture and boxes: masks [boxes, H, W].
Detect = Callable[[Image.Image, Sequence[str]], list[tuple[int, float, list[float]]]]
Segment = Callable[[np.ndarray, Sequence[Sequence[float]]], np.ndarray]


@dataclass
class SegmentedSettings(EncoderSettings):
    """A frozen encoder, and how subjects are cut out for it."""

    fit: str = "pad"
    """How a cut-out becomes the model's square: `pad` keeps all of it on white; `crop` and `squash` as for whole
    pictures."""
    detector: str = "IDEA-Research/grounding-dino-base"
    """Zero-shot detector of transformers: a name of the hub or a folder."""
    threshold: float = 0.3
    """Score of a box at least; 0.3 is what Grounded-SAM's authors take."""
    mask_model: str = "facebook/sam-vit-huge"
    """SAM or SAM 2 of transformers: a name of the hub or a folder."""
    region: str = "box"
    """What is left of a picture, whose rest is white: the subject's `box`, or the whole `frame`."""
    segment_references: bool = True
    """References are cut out too, as frames are. The paper names the video alone; false follows its letter."""

    def check(self, metric: str) -> None:
        """Raise UserError on a value out of range."""
        super().check(metric)
        check_choice(metric, "region", self.region, REGIONS)
        if not 0 < self.threshold < 1:
            raise UserError(f"{metric}.threshold={self.threshold}; it must be between 0 and 1")
        for name, source in (("detector", DETECTOR_SOURCE), ("mask_model", MASK_SOURCE)):
            if not getattr(self, name):
                raise UserError(f"{metric}.{name} is not set; give a name of the hub or a folder ({source})")


def cut_out(image: np.ndarray, mask: np.ndarray, region: str) -> np.ndarray | None:
    """What a mask keeps of a picture, on white.

    Args:
        image: uint8 [h, w, 3].
        mask: bool [h, w].
        region: `box`, the smallest that holds the mask, or `frame`, all of the picture.

    Returns:
        uint8 [., ., 3]; None if the mask is empty.
    """
    if not mask.any():
        return None
    white = np.where(mask[..., None], image, np.uint8(255))
    if region == "frame":
        return white
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return white[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class Cutouts:
    """Masks of labelled subjects in frames and references.

    Args:
        detect, segment: see `Detect` and `Segment`.
    """

    def __init__(self, detect: Detect, segment: Segment):
        self.detect, self.segment = detect, segment
        self.frame_masks = Remembered(self._frame_masks)
        self.reference_masks = Remembered(self._reference_masks)

    def masks(self, image: np.ndarray, labels: Sequence[str]) -> list[np.ndarray | None]:
        """Mask, bool [h, w], of the surest box of each label; None where it is not detected, or has no name.

        Two references of one label share a box: which is which is not told (the paper measures single subjects only).

        Args:
            image: uint8 [h, w, 3].
            labels: to look for.
        """
        wanted = sorted({label for label in labels if label.strip()})
        best: dict[str, tuple[float, list[float]]] = {}
        for number, score, box in self.detect(Image.fromarray(image), wanted) if wanted else ():
            if wanted[number] not in best or score > best[wanted[number]][0]:
                best[wanted[number]] = score, box
        if not best:
            return [None] * len(labels)
        outlined = dict(zip(best, self.segment(image, [box for _, box in best.values()]), strict=True))
        return [outlined.get(label) for label in labels]

    def _frame_masks(self, item: Item, count: object) -> list[list[np.ndarray | None]]:
        return [self.masks(item.frames[index], item.labels) for index in uniform_indices(len(item.frames), count)]

    def _reference_masks(self, item: Item, _: object) -> list[np.ndarray | None]:
        return [self.masks(*one)[0] for one in zip(item.references, ([label] for label in item.labels), strict=True)]


@functools.lru_cache(maxsize=1)
def _cutouts(detector: str, threshold: float, mask_model: str, device: str) -> Cutouts:
    from phantom_mega.curation.segment import open_segment
    from phantom_mega.curation.zero_shot import open_zero_shot

    detect = _opened(functools.partial(open_zero_shot, detector, threshold, "detector", device), DETECTOR_SOURCE)
    return Cutouts(detect, _opened(functools.partial(open_segment, mask_model, "mask_model", device), MASK_SOURCE))


forget_models = _cutouts.cache_clear


def _opened[T](load: Callable[[], T], source: str) -> T:
    """What `load` gives; where it does not, the message tells where the model comes from."""
    try:
        return load()
    except UserError as error:
        raise UserError(f"{error}; {source}") from None


class SegmentedSimilarity:
    """Mean cosine of cut-out subjects in frames and their references.

    A frame in which a subject is not detected counts as zero for its reference; so do all frames for a reference that
    has no label, or in which its subject is not detected.

    Args:
        name, title: of the metric.
        encode: from pictures, uint8 [h, w, 3] each, to features [n, D] of length 1.
        cutouts: finds the subjects.
        settings: with `frames`, `region` and `segment_references`.
    """

    higher_is_better = True

    def __init__(
        self,
        name: str,
        title: str,
        encode: Callable[[Sequence[np.ndarray]], np.ndarray],
        cutouts: Cutouts,
        settings: SegmentedSettings,
    ):
        self.name, self.title, self.encode, self.cutouts, self.settings = name, title, encode, cutouts, settings

    def measure(self, item: Item) -> Measured:
        if not item.references:
            return Measured(0.0, NO_REFERENCE)
        indices = uniform_indices(len(item.frames), self.settings.frames)
        frames = self._frames(item, indices)
        references, missing = self._references(item)
        similarities = np.full((len(indices), len(references)), np.nan)
        for column, (reference, label) in enumerate(zip(references, item.labels, strict=True)):
            if reference is None:
                continue
            subjects = [row[column] for row in frames]
            lacking = [subject is None for subject in subjects]
            missing.append(frames_without(f"{label!r} not detected", lacking, indices))
            found = [subject for subject in subjects if subject is not None]
            if found:
                features = self.encode([reference, *found])
                similarities[~np.array(lacking), column] = cosines(features[1:], features[:1])[:, 0]
        value, detail = mean_similarity(similarities)
        return Measured(value, "; ".join(filter(None, missing)), detail)

    def _frames(self, item: Item, indices: np.ndarray) -> list[list[np.ndarray | None]]:
        """Cut-outs [F][R] of the frames, None where the subject was not found."""
        masks = self.cutouts.frame_masks(item, self.settings.frames)
        return [
            [None if mask is None else cut_out(item.frames[index], mask, self.settings.region) for mask in row]
            for index, row in zip(indices, masks, strict=True)
        ]

    def _references(self, item: Item) -> tuple[list[np.ndarray | None], list[str]]:
        """(what each reference is compared by, or None; why it is none)."""
        unnamed = [f"reference {i} has no label" for i, label in enumerate(item.labels, 1) if not label.strip()]
        if not self.settings.segment_references:
            pairs = zip(item.references, item.labels, strict=True)
            return [image if label.strip() else None for image, label in pairs], unnamed
        found = [
            None if mask is None else cut_out(image, mask, self.settings.region)
            for image, mask in zip(item.references, self.cutouts.reference_masks(item, None), strict=True)
        ]
        lost = [
            f"{label!r} not detected in reference {number}"
            for number, (image, label) in enumerate(zip(found, item.labels, strict=True), 1)
            if image is None and label.strip()
        ]
        return found, unnamed + lost


def build_segmented(
    name: str,
    title: str,
    settings: SegmentedSettings,
    device: torch.device | str,
    load: Callable[[EncoderSettings, str, torch.device | str], Callable[[Sequence[np.ndarray]], np.ndarray]],
) -> SegmentedSimilarity:
    """A metric of cut-out subjects; those that are given the same detector and masks share them.

    Args:
        name, title: of the metric.
        settings: of the metric.
        device: where the models compute.
        load: of the encoder, from settings, name and device.

    Raises:
        UserError: a setting is out of range, or a model cannot be loaded.
    """
    settings.check(name)
    lacking = []
    try:
        encode = load(settings, name, device)
    except UserError as error:
        lacking.append(str(error))
    try:  # the models may be shared, so they do not know whose settings name them
        cutouts = _cutouts(settings.detector, settings.threshold, settings.mask_model, str(device))
    except UserError as error:
        lacking.append(f"{name}.{error}")
    if lacking:
        raise UserError("; ".join(lacking))
    return SegmentedSimilarity(name, title, encode, cutouts, settings)
