"""How much is trained and measured: the same studies on a GPU, on two CPU cores, and as a smoke test."""

from __future__ import annotations

from dataclasses import dataclass, field

LATENT_CHANNELS = 24  # as the recipe `toy` has them


@dataclass(frozen=True)
class Scale:
    """Sizes of a reproduction.

    Attributes:
        train_samples, pair_samples: training samples of the world with one actor, and with two.
        train_iters, pair_iters: iterations of 32 samples, and of 16 with two actors.
        cases: held-out cases of each condition and seed.
        steps: Euler steps.
        seeds: trainings of each arm.
        processes: trainings at a time.
        threads: of each.
        models: fields of `toyworld.models.ModelSettings`: how the VAE, the judge and the tiny CLIP are made.
    """

    train_samples: int
    pair_samples: int
    train_iters: int
    pair_iters: int
    cases: int
    steps: int
    seeds: int
    processes: int
    threads: int
    models: dict[str, int] = field(default_factory=lambda: {"latent_channels": LATENT_CHANNELS})


SCALES = {
    "gpu": Scale(16000, 16000, 4000, 4000, 128, 50, 3, 4, 2),
    "cpu": Scale(8000, 8000, 1100, 1100, 64, 25, 3, 2, 1),
    "smoke": Scale(64, 64, 4, 4, 3, 2, 1, 2, 1, {
        "latent_channels": LATENT_CHANNELS, "vae_videos": 20, "judge_steps": 2, "clip_steps": 2, "clip_pool": 64,
        "samples": 4,
    }),
}  # fmt: skip
