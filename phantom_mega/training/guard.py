"""Decides whether a step may update the weights: not with a non-finite loss or gradient, nor on a loss spike."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from phantom_mega.errors import UserError


class TrainingDivergedError(UserError):
    """Too many steps in a row had to be skipped."""


@dataclass
class StepGuard:
    """Running mean and variance of the loss, and counters of skipped steps; the same numbers on every rank.

    Attributes:
        spike_sigma: standard deviations over the running mean that make a spike.
        spike_warmup: losses seen before spikes are looked for.
        max_skipped_in_a_row: skipped steps in a row that end the run.
        skipped: steps skipped so far; `nan` of them for a non-finite loss or gradient norm.
    """

    spike_sigma: float = 6.0
    spike_warmup: int = 100
    max_skipped_in_a_row: int = 10
    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0
    skipped: int = 0
    nan: int = 0
    in_a_row: int = 0

    def check(self, loss: float, grad_norm: float) -> str | None:
        """Reason to skip the step, or None; counts it.

        Raises:
            TrainingDivergedError: `max_skipped_in_a_row` is reached.
        """
        reason = None
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            reason = f"loss {loss} or gradient norm {grad_norm} is not finite"
            self.nan += 1
        elif self.seen >= self.spike_warmup and loss > self.mean + self.spike_sigma * math.sqrt(self.variance):
            reason = f"loss {loss:.4g} is over {self.spike_sigma:g} sigma above its mean {self.mean:.4g}"
        if reason is None:
            self._learn(loss)
            self.in_a_row = 0
            return None
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.max_skipped_in_a_row:
            raise TrainingDivergedError(
                f"{self.in_a_row} steps in a row were skipped, the last because {reason}; "
                "lower optimizer.lr or look at the data, then resume from the last checkpoint"
            )
        return reason

    def _learn(self, loss: float) -> None:
        # Exponential moving moments over about a hundred steps, unbiased at the start.
        self.seen += 1
        rate = max(1 / self.seen, 0.01)
        delta = loss - self.mean
        self.mean += rate * delta
        self.variance = (1 - rate) * (self.variance + rate * delta * delta)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps: moments and counters."""
        return {key: value for key, value in asdict(self).items() if key not in _SETTINGS}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore moments and counters; the thresholds stay those of the current configuration."""
        for key, value in state.items():
            setattr(self, key, value)


_SETTINGS = ("spike_sigma", "spike_warmup", "max_skipped_in_a_row")
