"""What base models share: the timesteps that stand for all, the timestep embedding, the interface of a base model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from phantom_mega.config import FlowConfig, ModelConfig, RunConfig
from phantom_mega.release.base_models.plan import Plan, Planner
from phantom_mega.release.base_models.weights import Weights

POINTS = 32


@dataclass(frozen=True)
class Source:
    """An opened base model.

    Attributes:
        weights: its tensors.
        config: of its `config.json`; empty where it has none.
    """

    weights: Weights
    config: dict


@dataclass(frozen=True)
class Options:
    """What a user may choose about an import.

    Attributes:
        fresh: beginnings of core names that are to be new.
        guidance_scale: the scale at which an embedded guidance is fixed; None takes the base model's usual one.
    """

    fresh: tuple[str, ...] = ()
    guidance_scale: float | None = None


@dataclass(frozen=True)
class BaseModel:
    """A kind of base model.

    Attributes:
        title: for people.
        recipe: model preset that fits it.
        open: a path to a `Source`.
        fields: fields of the `model` section that the source fixes.
        plan: the rules, for a run whose model has those fields.
    """

    title: str
    recipe: str
    open: Callable[[object], Source]
    fields: Callable[[Source], dict]
    plan: Callable[[Source, RunConfig, Options], Plan]


def typical_timesteps(flow: FlowConfig, count: int = POINTS) -> torch.Tensor:
    """Timesteps [count] in (0, 1) that stand for those of training, each for an equal share of them.

    They are quantiles of the logit-normal distribution, shifted as for a video halfway between smallest and largest.
    """
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    normal = torch.distributions.Normal(torch.tensor(flow.logit_mean, dtype=torch.float64), flow.logit_std)
    t, shift = normal.icdf(quantiles).sigmoid(), (flow.shift_min + flow.shift_max) / 2
    return shift * t / (1 + (shift - 1) * t)


def embed(features: torch.Tensor, first: tuple, second: tuple) -> torch.Tensor:
    """Linear, SiLU, Linear of features [K, dim]; `first` and `second` are (weight, bias)."""
    wide = torch.promote_types(first[0].dtype, torch.float32)
    hidden = F.silu(F.linear(features.to(wide), *(x.to(wide) for x in first)))
    return F.linear(hidden, *(x.to(wide) for x in second))


def plan_inputs(planner: Planner, model: ModelConfig, text: tuple[str, int], why_clip: str) -> None:
    """Rules of what base models have alike at the model's input: the text embedder, and the CLIP projector they lack.

    Args:
        planner: gets the rules.
        model: of the checkpoint.
        text: name of the source's linear over text features, and their width.
        why_clip: why the CLIP projector is new.
    """
    name, width = text
    for part in ("weight", "bias"):
        if width == model.text_dim:
            planner.copy(f"text_embedder.{part}", f"{name}.{part}")
        else:
            planner.new(f"text_embedder.{part}", f"model.text_dim is {model.text_dim}, the source's text has {width}")
    for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
        planner.new(f"clip_projector.{part}", why_clip)
