"""What the plan of an epoch holds, for people: how full packs are, what trains at which size, what is left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PlanReport:
    """Counts of one epoch's plan.

    Attributes:
        epoch: which.
        rows: of the index.
        packs: number of packs.
        samples: samples in them; `rows` less the left-out ones.
        efficiency: visual tokens of all samples over packs x seq_length.
        text_efficiency: the same of text-stream tokens and text_seq_length.
        buckets: samples by (resolution, height, width, frames), sizes in pixels.
        tokens: visual tokens by (resolution, frames), references included.
        references: samples by number of reference images.
        left_out: rows that do not train, by reason.
        never_fit: lengths of the recipe that no pack can hold.
    """

    epoch: int
    rows: int
    packs: int
    samples: int
    efficiency: float
    text_efficiency: float
    buckets: Counter[tuple[str, int, int, int]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, int]] = field(default_factory=Counter)
    references: Counter[int] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    never_fit: tuple[str, ...] = ()

    def __str__(self) -> str:
        packs = f"{self.packs:,} packs" if self.packs != 1 else "1 pack"
        lines = [
            f"plan of epoch {self.epoch}: {self.samples:,} of {self.rows:,} samples in {packs}, "
            f"filled to {100 * self.efficiency:.1f}% (text stream {100 * self.text_efficiency:.1f}%)"
        ]
        if self.samples:
            lines += ["  resolution  frames  sizes (width x height)      samples   share   share of tokens"]
            lines += self._bucket_lines()
            counts = ", ".join(
                f"{number}: {100 * n / self.samples:.1f}%" for number, n in sorted(self.references.items())
            )
            lines.append(f"  references of a sample: {counts}")
        if self.left_out:
            lines.append(f"  left out: {self.left_out.total():,} samples")
            lines += [f"    {count:>9,}  {reason}" for reason, count in self.left_out.most_common()]
        lines += [f"  never trains: {name}" for name in self.never_fit]
        return "\n".join(lines)

    def _bucket_lines(self) -> list[str]:
        lines, total = [], max(self.tokens.total(), 1)
        for resolution, frames in dict.fromkeys((bucket[0], bucket[3]) for bucket in self.buckets):
            sizes = {key[1:3]: n for key, n in self.buckets.items() if (key[0], key[3]) == (resolution, frames)}
            count = sum(sizes.values())
            height, width = max(sizes, key=lambda size: (sizes[size], size))
            shown = f"{width}x{height}" + (f" and {len(sizes) - 1} more" if len(sizes) > 1 else "")
            lines.append(
                f"  {resolution:<10}{frames:>8}  {shown:<24}{count:>11,}{100 * count / self.samples:>7.1f}%"
                f"{100 * self.tokens[resolution, frames] / total:>17.1f}%"
            )
        return lines
