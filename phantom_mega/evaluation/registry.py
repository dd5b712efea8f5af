"""All metrics by name: what they are called in tables, what their settings are, and the paper's tables that show them.

Metrics are measured in stages: those of one stage share models, and what these say of a video; other models are not in
memory meanwhile.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from phantom_mega.errors import UserError
from phantom_mega.evaluation import (
    aesthetic_quality,
    background_consistency,
    clip_i,
    clip_i_seg,
    clip_t,
    copy_paste,
    cutouts,
    dino_i,
    dino_i_seg,
    dynamic_degree,
    facesim,
    imaging_quality,
    motion_smoothness,
    subject_consistency,
    temporal_flickering,
    viclip_t,
)
from phantom_mega.evaluation.image_similarity import NO_REFERENCE
from phantom_mega.evaluation.metric import Metric
from phantom_mega.generation.cases import Case

_MODULES = (
    facesim, clip_i, dino_i, clip_i_seg, dino_i_seg, viclip_t, clip_t, subject_consistency, background_consistency,
    temporal_flickering, motion_smoothness, dynamic_degree, aesthetic_quality, imaging_quality, copy_paste,
)  # fmt: skip
_BUILDERS = {name: found for module in _MODULES for name, found in module.METRICS.items()}


@dataclass(frozen=True)
class Entry:
    """A metric without its models.

    Attributes:
        name: key in tables and files.
        title: for tables.
        most: end of its axis in a figure; the other end is 0.
        higher_is_better: whether a larger value is a better video.
        settings: class of its settings.
        build: from settings and a device to the metric with its models.
    """

    name: str
    title: str
    most: float
    higher_is_better: bool
    settings: type
    build: Callable[[object, torch.device | str], Metric]

    @property
    def worst(self) -> float:
        """What counts for a case without a video that can be measured."""
        return 0.0 if self.higher_is_better else self.most

    @property
    def column(self) -> str:
        """Title with the direction that is better."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"


# (title, end of the axis); cosines with texts, times 100, hardly ever exceed 40.
_TITLES = {
    "facesim_arc": ("FaceSim-Arc", 1),
    "facesim_cur": ("FaceSim-Cur", 1),
    "facesim_glint": ("FaceSim-glint", 1),
    "clip_i": ("CLIP-I", 1),
    "dino_i": ("DINO-I", 1),
    "clip_i_seg": ("CLIP-I-Seg", 1),
    "dino_i_seg": ("DINO-I-Seg", 1),
    "viclip_t": ("ViCLIP-T", 40),
    "clip_t": ("CLIP-T", 40),
    "subject_consistency": ("Subject consistency", 1),
    "background_consistency": ("Background consistency", 1),
    "temporal_flickering": ("Temporal flickering", 1),
    "motion_smoothness": ("Motion smoothness", 1),
    "dynamic_degree": ("Dynamic degree", 1),
    "aesthetic_quality": ("Aesthetic quality", 1),
    "imaging_quality": ("Imaging quality", 1),
    "copy_paste": ("Copy-paste", 1),
}
METRICS = {
    name: Entry(name, title, most, name != "copy_paste", *_BUILDERS[name]) for name, (title, most) in _TITLES.items()
}


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        track: of the cases that it averages over (see `track_of`); "" for all.
        title: over the table.
        metrics: its columns.
    """

    track: str
    title: str
    metrics: tuple[str, ...]


FACES = ("facesim_arc", "facesim_cur", "facesim_glint")
SEGMENTED = ("clip_i_seg", "dino_i_seg")
TABLES = (
    Table("portrait", "Table 1: portraits", (*FACES, "viclip_t")),
    Table("single", "Table 2: single subjects", ("clip_i", "dino_i", *SEGMENTED, "viclip_t")),
    Table("multi", "Table 3: several subjects", ("clip_i", "dino_i", "viclip_t")),
    Table("", "All cases: subjects and prompts", (*FACES, "clip_i", "dino_i", *SEGMENTED, "viclip_t", "clip_t")),
    Table("", "All cases: video quality (VBench) and copy-paste", (
        "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree",
        "aesthetic_quality", "imaging_quality", "copy_paste",
    )),
)  # fmt: skip
_STAGES = (FACES, SEGMENTED, *((name,) for name in METRICS if name not in (*FACES, *SEGMENTED)))
# Why a metric has nothing to say of a case, whatever the video shows; such cases are left out of its mean.
_DOES_NOT_APPLY = (NO_REFERENCE, facesim.NO_PERSON, viclip_t.NO_PROMPT)


def check_names(names: Sequence[str]) -> list[str]:
    """Names of metrics in the registry's order.

    Raises:
        UserError: there is none, or one is unknown; names the nearest.
    """
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(str(name), METRICS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"there is no metric {name!r}{hint} (there are {', '.join(METRICS)})")
    if not names:
        raise UserError(f"no metric is named; there are {', '.join(METRICS)}")
    return [name for name in METRICS if name in names]


def stages(names: Sequence[str]) -> list[list[str]]:
    """Metrics that are measured together, stage by stage."""
    found = [[name for name in stage if name in names] for stage in _STAGES]
    return [stage for stage in found if stage]


def release() -> None:
    """Forget the models that metrics of a stage share."""
    cutouts.forget_models()
    facesim.forget_models()


def track_of(case: Case) -> str:
    """The paper's track of a case: `portrait` (ids that begin with singleface), `single`, `multi`, by its references;
    `none` without one.
    """
    if case.id.startswith("singleface"):
        return "portrait"
    return ("none", "single")[len(case.images)] if len(case.images) < 2 else "multi"


def says_no(reason: str) -> bool:
    """Whether `Measured.missing` means that the metric does not apply to the case."""
    return reason in _DOES_NOT_APPLY


def applies(name: str, case: Case) -> bool:
    """Whether a metric applies to a case, as far as the case itself tells."""
    if name not in (*FACES, *SEGMENTED, "clip_i", "dino_i", "copy_paste"):
        return True
    labels = [*case.labels, *[""] * len(case.images)][: len(case.images)]
    return any(facesim.counts(label, True) for label in labels) if name in FACES else bool(labels)
