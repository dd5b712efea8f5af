"""Which tensor of a source becomes which tensor of a training checkpoint, complete in both directions.

A plan is made before anything is read: every tensor of the model has one rule, every tensor of the source is read by a
rule or is listed as not used with the reason, or there is no plan.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from phantom_mega.config import ModelConfig, model_arguments
from phantom_mega.errors import UserError
from phantom_mega.hf.naming import core_name
from phantom_mega.hf.transformer_phantom import PhantomTransformer3DModel
from phantom_mega.release.base_models.weights import Weights

Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Rule:
    """How one tensor of the checkpoint is made.

    Attributes:
        sources: names of what `build` reads; empty for a new tensor.
        how: for the table.
        build: makes the tensor, given a function that reads tensors of the source by name.
    """

    sources: tuple[str, ...]
    how: str
    build: Callable[[Read], torch.Tensor]


@dataclass
class Plan:
    """All rules, and what is to be told about them.

    Attributes:
        title: of the source, for people.
        shapes: shape of every tensor of the checkpoint, by core name.
        rules: by core name, in the same order.
        unused: reason by name, for tensors of the source that no rule reads.
        partly: what of a tensor that rules do read is not used.
        notes: differences in mechanism that no conversion of weights can remove.
        measure: figures of what had to be approximated, one line each; called after the rules were built.
    """

    title: str
    shapes: dict[str, tuple[int, ...]]
    rules: dict[str, Rule] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    partly: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    measure: Callable[[Read], list[str]] = lambda read: []

    def build(self, name: str, weights: Weights, dtype: torch.dtype | None) -> torch.Tensor:
        """One tensor of the checkpoint.

        Args:
            name: its core name.
            weights: the source.
            dtype: its number format; None keeps the one in which the rule makes it.

        Raises:
            UserError: the source's tensors do not give the shape that the model has.
        """
        rule = self.rules[name]
        try:
            tensor = rule.build(weights.read)
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{', '.join(rule.sources)} cannot become {name}: {str(error).splitlines()[0]}") from None
        if tuple(tensor.shape) != self.shapes[name]:
            found, wanted = list(tensor.shape), list(self.shapes[name])
            raise UserError(f"{', '.join(rule.sources)} would give {name} the shape {found}; the model has {wanted}")
        return tensor if dtype is None else tensor.to(dtype)


def target_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a training checkpoint of this model, by core name, over all ranks.

    Raises:
        UserError: sizes that do not divide.
    """
    with torch.device("meta"):
        plain = PhantomTransformer3DModel(**model_arguments(model)).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in plain.items():
        key, shape = core_name(name), tuple(tensor.shape)
        shapes[key] = (3 * shape[0], *shape[1:]) if ".linear_qkv." in key else shape
    return shapes


class Planner:
    """Collects the rules of a plan.

    Args:
        title: of the source.
        weights: the source.
        model: of the checkpoint.
        seed: of new tensors; they get what a fresh run with this seed starts with.
        fresh: beginnings of core names that are to be new, whatever the source has for them.
    """

    def __init__(self, title: str, weights: Weights, model: ModelConfig, seed: int, fresh: Iterable[str] = ()):
        self.plan = Plan(title, target_shapes(model))
        self.weights, self.seed, self.fresh = weights, seed, tuple(fresh)
        self._refused: dict[str, str] = {}
        for prefix in self.fresh:
            if not any(name.startswith(prefix) for name in self.plan.shapes):
                raise UserError(
                    f"--fresh {prefix}: no tensor's name begins so; names are as {next(iter(self.plan.shapes))}"
                )

    def rule(self, target: str, sources: Iterable[str], how: str, build: Callable[[Read], torch.Tensor]) -> None:
        """Make `target` of `sources`."""
        sources = tuple(sources)
        if target.startswith(self.fresh) and self.fresh:
            self._refused.update(dict.fromkeys(sources, f"{target} was asked to start anew (--fresh)"))
            self.new(target, "asked for (--fresh)")
            return
        for name in sources:
            self.weights.shape(name)
        self.plan.rules[target] = Rule(sources, how, build)

    def copy(self, target: str, source: str) -> None:
        """Take a tensor as it is."""
        self.rule(target, [source], "as it is", lambda read: read(source))

    def new(self, target: str, why: str) -> None:
        """Leave `target` as a fresh run has it."""
        from phantom_mega.core.init import initial_tensor  # imports megatron

        shape, seed = list(self.plan.shapes[target]), self.seed
        probe = initial_tensor(target, [2] * len(shape), seed)
        kind = "zeros" if not probe.any() else "ones" if (probe == 1).all() else f"random, seed {seed}"
        self.plan.rules[target] = Rule((), f"new ({kind}): {why}", lambda read: initial_tensor(target, shape, seed))

    def zero(self, target: str, why: str) -> None:
        """Set `target` to zeros."""
        shape = self.plan.shapes[target]
        self.plan.rules[target] = Rule((), f"new (zeros): {why}", lambda read: torch.zeros(shape))

    def finish(self, unused: Iterable[tuple[str, str]]) -> Plan:
        """The plan, once every tensor on both sides is accounted for.

        Args:
            unused: (pattern of names as in a shell, why they are not used), tried in turn.

        Raises:
            UserError: a tensor of the source is in no rule and matches no pattern.
        """
        plan, unused = self.plan, tuple(unused)
        if lacking := plan.shapes.keys() - plan.rules.keys():
            raise UserError(f"the plan for {plan.title} has no rule for {len(lacking)} tensor(s), as {min(lacking)}")
        plan.rules = {name: plan.rules[name] for name in plan.shapes}
        used = {name for rule in plan.rules.values() for name in rule.sources}
        unknown = []
        for name in self.weights.shapes:
            if name in used:
                continue
            why = self._refused.get(name) or next((why for pat, why in unused if fnmatch.fnmatchcase(name, pat)), None)
            if why is None:
                unknown.append(name)
            else:
                plan.unused[name] = why
        if unknown:
            raise UserError(
                f"{self.weights.path}: {len(unknown)} tensor(s) are not known to belong to {plan.title}, "
                f"as {', '.join(unknown[:3])}; nothing was imported"
            )
        return plan
