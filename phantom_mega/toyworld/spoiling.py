"""What the trainings of the toy world's models share: the loop, the learning rate, the precision, spoiled videos."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

WARM_UP = 60  # steps


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak: linear warm-up, then half a cosine down to nothing."""
    warm_up = min(WARM_UP, steps // 5)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))


def fit(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, loss_at: Callable[[int], torch.Tensor],
    title: str, progress: bool, max_norm: float | None = None, after_step: Callable[[], object] | None = None,
) -> None:  # fmt: skip
    """Train in place, at a share of the optimizer's rate that `learning_rate` tells.

    Args:
        model: whose gradients are clipped.
        optimizer: of its weights.
        steps: how many.
        loss_at: from a step's number to its loss.
        title: of the bar.
        progress: show a bar on stderr.
        max_norm: gradients are clipped to it; None clips none.
        after_step: called after every update.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    with tqdm(total=steps, desc=title, unit="it", disable=not progress, dynamic_ncols=True) as bar:
        for step in range(steps):
            loss = loss_at(step)
            optimizer.zero_grad()
            loss.backward()
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            schedule.step()
            if after_step is not None:
                after_step()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")


def new_network[N: torch.nn.Module](
    kind: type[N], seed: int, device: torch.device | str, peak: float
) -> tuple[N, torch.optim.Optimizer]:
    """A network with weights by a seed, and its AdamW with a peak learning rate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind()
    network = network.to(device, memory_format=torch.channels_last)
    return network, torch.optim.AdamW(network.parameters(), peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether a device computes in bfloat16; others emulate it, slower than float32."""
    return torch.cuda.is_bf16_supported(False) if device.type == "cuda" else torch.cpu._is_amx_tile_supported()


def spoil(videos: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur, noise and shifts of colour as generated videos have them; half of the videos stay nearly as they are.

    Args:
        videos: float [B, K, 3, H, W] in [0, 255].
        rng: is advanced.

    Returns:
        float [B, K, 3, H, W] in [-1, 1].
    """
    out = videos / 127.5 - 1
    noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
    for row in range(len(out)):
        video = out[row]
        if rng.random() < 0.5:
            video = blur(video, rng.uniform(0.3, 1.1))
            video = video * rng.uniform(0.9, 1.08) + rng.uniform(-0.06, 0.06)
            video = video + torch.from_numpy(rng.uniform(-0.04, 0.04, (3, 1, 1))).float()
        amount = rng.uniform(0, 0.12) if rng.random() < 0.5 else rng.uniform(0, 0.02)
        out[row] = (video + amount * torch.randn(video.shape, generator=noise)).clamp(-1, 1)
    return out


def blur(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of float [K, 3, H, W], `sigma` in pixels."""
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma).square())
    weights = (weights / weights.sum()).to(frames)
    padded = F.pad(frames.flatten(0, 1)[:, None], (radius,) * 4, mode="replicate")
    across = F.conv2d(padded, weights.view(1, 1, 1, -1))
    return F.conv2d(across, weights.view(1, 1, -1, 1))[:, 0].unflatten(0, frames.shape[:2])
