"""Settings of an evaluation: which metrics run, and a section for each. Recipes are YAML files in `recipes/`."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

from phantom_mega.config_io import Recipes
from phantom_mega.errors import UserError
from phantom_mega.evaluation.registry import METRICS, check_names


@dataclass
class EvaluationSettings:
    """What is measured, and how it is summed up."""

    metrics: list[str] = field(default_factory=lambda: [name for name in METRICS if name != "clip_t"])
    """Names of metrics; the flag --metrics a,b,c sets them too."""
    confidence: float = 0.95
    """Of the intervals of means and of differences."""
    resamples: int = 9999
    """Bootstrap samples of an interval, and random sign patterns of a test."""
    seed: int = 0
    """Of the resampling."""

    def check(self) -> None:
        """Raise UserError on a value out of range."""
        self.metrics = check_names(self.metrics)
        if not 0 < self.confidence < 1:
            raise UserError(f"evaluation.confidence={self.confidence}; it must be between 0 and 1")
        if self.resamples < 99:
            raise UserError(f"evaluation.resamples={self.resamples}; it must be at least 99")


_SECTIONS = {"evaluation": EvaluationSettings} | {name: entry.settings for name, entry in METRICS.items()}
# A section for each metric, called like it.
EvaluationConfig = make_dataclass(
    "EvaluationConfig", [(name, kind, field(default_factory=kind)) for name, kind in _SECTIONS.items()]
)
EVALUATION = Recipes(EvaluationConfig, Path(__file__).parent / "recipes")


def load_config(recipe: str, overrides: list[str]) -> EvaluationConfig:
    """The settings of a recipe with overrides.

    Raises:
        UserError: see `Recipes.load`; or a metric is unknown, or a value out of range.
    """
    config = EVALUATION.load(recipe, overrides)
    config.evaluation.check()
    return config
