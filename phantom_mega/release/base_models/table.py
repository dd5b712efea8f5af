"""A plan as text: the summary that the tool prints, and the whole table that lies beside the checkpoint."""

from __future__ import annotations

import math
import re
from collections import defaultdict

from phantom_mega.release.base_models.plan import Plan
from phantom_mega.release.base_models.weights import Weights

TABLE = "import_table.md"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def summary(plan: Plan, weights: Weights, measured: list[str]) -> str:
    """Counts, what is new, what is not used, and differences, a few lines each."""

    def values(shapes) -> str:
        return f"{sum(map(math.prod, shapes)):,} values"

    made = [plan.shapes[name] for name, rule in plan.rules.items() if rule.sources]
    new = {name: rule for name, rule in plan.rules.items() if not rule.sources}
    lines = [f"{plan.title}: {len(weights.shapes)} tensors, {values(weights.shapes.values())}"]
    lines.append(f"  made of it: {len(made)} tensors, {values(made)}")
    lines.append(f"  new: {len(new)} tensors, {values(plan.shapes[name] for name in new)}")
    lines += [f"    {entry}" for entry in _grouped({name: rule.how for name, rule in new.items()})]
    lines.append(f"  not used: {len(plan.unused)} tensors, {values(weights.shapes[name] for name in plan.unused)}")
    lines += [f"    {entry}" for entry in _grouped(plan.unused)]
    for head, entries in (("in part", [f"{k}: {v}" for k, v in plan.partly.items()]), ("measured", measured)):
        lines += [f"  {head}: {entry}" for entry in entries]
    return "\n".join(lines + [f"  differs: {note}" for note in plan.notes])


def _grouped(reasons: dict[str, str]) -> list[str]:
    """Names that differ by numbers alone, and share a reason, as one line."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, why in reasons.items():
        groups[_NUMBER.sub("*", name), why].append(name)
    named = ((pattern if len(names) > 1 else names[0], why, len(names)) for (pattern, why), names in groups.items())
    return [f"{name}{f' ({count})' if count > 1 else ''}: {why}" for name, why, count in named]


def table(plan: Plan, weights: Weights, measured: list[str]) -> str:
    """Markdown: differences, every tensor of the source, every tensor of the checkpoint."""
    readers: dict[str, list[str]] = defaultdict(list)
    for target, rule in plan.rules.items():
        for source in rule.sources:
            readers[source].append(target)
    lines = [f"# {plan.title}", "", "Differences that no conversion of weights can remove:", ""]
    lines += [f"- {note}" for note in plan.notes] or ["- none"]
    lines += ["", *[f"Measured: {line}" for line in measured], *([""] if measured else [])]
    lines += ["## Every tensor of the source", "", "| source | shape | becomes |", "|---|---|---|"]
    for name, shape in weights.shapes.items():
        found = ", ".join(f"`{target}`" for target in readers[name]) or f"not used: {plan.unused[name]}"
        partly = f" (not used: {plan.partly[name]})" if name in plan.partly else ""
        lines.append(f"| `{name}` | {_shape(shape)} | {found}{partly} |")
    lines += ["", "## Every tensor of the checkpoint", "", "| tensor | shape | made of | how |", "|---|---|---|---|"]
    for name, rule in plan.rules.items():
        made = ", ".join(f"`{source}`" for source in rule.sources) or "-"
        lines.append(f"| `{name}` | {_shape(plan.shapes[name])} | {made} | {rule.how} |")
    return "\n".join(lines) + "\n"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
