"""The judge as metrics of the evaluation, for `train.eval_metrics` and wherever else an `evaluation.metric` is taken.

    train.eval_metrics=[phantom_mega.toyworld.metrics:identity,phantom_mega.toyworld.metrics:prompt]

The truth is read from beside the index of `data.valid_index_path`, the judge from beside the VAE: the folders that
tools/make_toyworld.py and tools/make_toy_models.py write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
from phantom_mega.evaluation.metric import Item, Measured
from phantom_mega.toyworld.judge import Judge
from phantom_mega.toyworld.models import load_judge
from phantom_mega.toyworld.reading import Reading
from phantom_mega.toyworld.scores import copy_paste as copied
from phantom_mega.toyworld.scores import identity_score, match_places, prompt_scores
from phantom_mega.toyworld.truth import Truth, read_truth

# (reading, truth, width over height) -> numbers; the first is the metric's value, all are its detail.
Scores = Callable[[Reading, Truth, float], dict[str, float]]


@dataclass
class ToyMetric:
    """A score of the toy world by its judge.

    Attributes:
        name, title, higher_is_better: of the metric.
        scores: what is computed from a reading.
        judge: reads.
        truths: key of a sample -> its truth.
    """

    name: str
    title: str
    higher_is_better: bool
    scores: Scores
    judge: Judge
    truths: dict[str, Truth]

    def measure(self, item: Item) -> Measured:
        """The score of one video; 0 where the judge sees no subject, or the sample's truth is not known."""
        truth = self.truths.get(item.id)
        if truth is None:
            return Measured(0.0, f"the truth of {item.id} is not in the data set")
        reading = self.judge.read([item.frames])[0]
        if not reading.subjects:
            return Measured(0.0, "no subject in any frame")
        found = self.scores(reading, truth, item.frames.shape[2] / item.frames.shape[1])
        value = next(iter(found.values()))
        if np.isnan(value):
            return Measured(0.0, "it does not apply to this sample", found)
        return Measured(value, "", found)


def identity(config: RunConfig, device: torch.device) -> ToyMetric:
    """How like the wanted subjects the shown ones are, in [0, 1] (`scores.identity_score`)."""

    def scores(reading: Reading, truth: Truth, aspect: float) -> dict[str, float]:
        pairs = zip(match_places(reading, truth.scene, aspect), truth.scene.actors)
        values = [identity_score(reading.subjects[n], actor.subject) if n >= 0 else 0.0 for n, actor in pairs]
        return {"identity": float(np.mean(values))}

    return _metric("toy_identity", "identity", True, scores, config, device)


def prompt(config: RunConfig, device: torch.device) -> ToyMetric:
    """Share of what the prompt tells that is shown: background, light, camera, motion, count."""

    def scores(reading: Reading, truth: Truth, aspect: float) -> dict[str, float]:
        found = prompt_scores(reading, truth.scene, aspect)
        return {"prompt": found["prompt"], **found}

    return _metric("toy_prompt", "prompt", True, scores, config, device)


def copy_paste(config: RunConfig, device: torch.device) -> ToyMetric:
    """Share of the references' pose, crop, light and background that the video repeats; lower is better."""

    def scores(reading: Reading, truth: Truth, aspect: float) -> dict[str, float]:
        size = {"height": truth.height, "width": truth.width, "frames": truth.frames}
        found = copied(reading, truth.references, truth.scene, **size)
        return {"copied": found["copied"], **found}

    return _metric("toy_copy_paste", "copy-paste", False, scores, config, device)


def _metric(name: str, title: str, higher: bool, scores: Scores, config: RunConfig, device: torch.device) -> ToyMetric:
    """Load judge and truths.

    Raises:
        UserError: they are not where the configuration's VAE and held-out data are.
    """
    if not config.data.valid_index_path:
        raise UserError("data.valid_index_path is empty; name the validation folder that tools/make_toyworld.py wrote")
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in config.data.valid_index_path]
    truths = {key: truth for folder in folders for key, truth in read_truth(folder).items()}
    judge = load_judge(Path(config.conditioning.vae).parent)
    judge.network.to(device)
    return ToyMetric(name, title, higher, scores, judge, truths)
