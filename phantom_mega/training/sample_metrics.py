"""Metrics of the sample videos: built-in ones that need no download, and anybody's own by `module:function`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence

import torch

from phantom_mega.conditioning.vision import FrozenVisionTower, load_vision_tower
from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
from phantom_mega.evaluation.metric import Metric
from phantom_mega.evaluation.temporal_flickering import TemporalFlickering
from phantom_mega.evaluation.tower_i import TowerI

BUILT_IN = ("tower_i", "temporal_flickering")


def find_metrics(names: Sequence[str]) -> dict[str, Callable | None]:
    """What `train.eval_metrics` names: the function of each `module:function`, None for a built-in one. Loads no model.

    Raises:
        UserError: a name is unknown or twice there, or its module or function cannot be found.
    """
    found = {}
    for name in names:
        if name in found:
            raise UserError(f"train.eval_metrics names {name} twice")
        found[name] = None if name in BUILT_IN else _function(name)
    return found


def _function(name: str) -> Callable:
    module, _, attribute = name.partition(":")
    if not attribute:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"train.eval_metrics: {name!r} is unknown; use {', '.join(BUILT_IN)} or module:function{hint}")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"train.eval_metrics: {name} cannot be imported ({error}); is it on PYTHONPATH?") from None
    if not callable(function):
        raise UserError(f"train.eval_metrics: {name} is a {type(function).__name__}, not a function")
    return function


def load_metrics(
    names: Sequence[str], config: RunConfig, device: torch.device, tower: FrozenVisionTower | None
) -> list[Metric]:
    """The metrics, with their models.

    Args:
        names: `train.eval_metrics`.
        config: of the run; handed to every function.
        device: where their models belong.
        tower: the run's vision tower; None loads it where `tower_i` needs it.

    Raises:
        UserError: see `find_metrics`; or a function gives no metric, or one whose name another has.
    """
    metrics: list[Metric] = []
    for name, function in find_metrics(names).items():
        if name == "tower_i":
            dtype = torch.bfloat16 if device.type == "cuda" and config.precision.bf16 else torch.float32
            metric = TowerI((tower or load_vision_tower(config.conditioning, device, dtype)).encode)
        elif name == "temporal_flickering":
            metric = TemporalFlickering()
        else:
            metric = _called(name, function, config, device)
        if not isinstance(getattr(metric, "name", None), str) or not callable(getattr(metric, "measure", None)):
            raise UserError(f"train.eval_metrics: {name} returns a {type(metric).__name__}, not a Metric")
        if metric.name in {other.name for other in metrics}:
            raise UserError(f"train.eval_metrics: {name} is a second metric of the name {metric.name!r}")
        metrics.append(metric)
    return metrics


def _called(name: str, function: Callable, config: RunConfig, device: torch.device) -> Metric:
    try:
        return function(config, device)
    except UserError as error:
        raise UserError(f"train.eval_metrics: {name}: {error}") from None
    except Exception as error:  # anybody's code
        raise UserError(f"train.eval_metrics: {name} failed: {type(error).__name__}: {error}") from error
