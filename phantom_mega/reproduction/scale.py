"""How much is trained and measured: the same studies on a GPU, on two CPU cores, and as a smoke test."""

from __future__ import annotations

from dataclasses import dataclass

from phantom_mega.toyworld.models import ModelSettings


@dataclass(frozen=True)
class Scale:
    """Sizes of a reproduction.

    Attributes:
        train_samples, pair_samples: training samples of the world with one actor, and with two.
        train_iters, pair_iters: iterations of 32 samples, and of 16 with two actors.
        cases: held-out cases of each condition and seed.
        steps: Euler steps.
        seeds: trainings of each arm.
        models: how the VAE, the judge and the tiny CLIP are made.
        processes: trainings at a time.
        threads: of each.
    """

    train_samples: int
    pair_samples: int
    train_iters: int
    pair_iters: int
    cases: int
    steps: int
    seeds: int
    models: ModelSettings
    processes: int
    threads: int


SCALES = {
    "gpu": Scale(16000, 16000, 4000, 4000, 128, 50, 3, ModelSettings(), 4, 2),
    "cpu": Scale(8000, 8000, 2500, 2500, 64, 25, 3, ModelSettings(), 2, 1),
    "smoke": Scale(64, 64, 4, 4, 3, 2, 1, ModelSettings(0, 24, 20, 2, 2, 64, 4), 2, 1),
}
