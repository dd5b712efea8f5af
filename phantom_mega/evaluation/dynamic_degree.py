"""Dynamic degree of VBench: whether a video moves at all, by RAFT's optical flow.

VBench's own (arXiv 2311.17982, vbench/dynamic_degree.py): eight frames a second, 20 iterations, the mean of the largest
5% of flow lengths, the threshold by the frame's size, the count by the number of frames. Its RAFT is
`raft-things.pth`; torchvision's `C_T_V1` are those very weights, so they are the default here.

What differs: a video of two sampled frames moves if that pair does (VBench rounds the pairs asked for down to none, and
calls every such video moving). One version of VBench raised the threshold for videos under 8 frames a second; this
follows the others, which do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from phantom_mega.errors import UserError
from phantom_mega.evaluation.consistency import too_short
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.pixels import to_float

MODELS = ("raft_large", "raft_small")
FRAME_RATE = 8
ITERATIONS = 20
LEAST_SIDE = 128  # below it, RAFT's coarsest correlation has less than two cells
_WEIGHTS = "dynamic_degree.weights"


def sampled(count: int, fps: float) -> np.ndarray:
    """Indices of the frames that are looked at: about eight a second, none between them.

    Args:
        count: frames there are.
        fps: frames per second.
    """
    return np.arange(0, count, max(1, round(fps / FRAME_RATE)))


def strong_flow(flow: np.ndarray) -> float:
    """Mean length, in pixels, of the 5% of flow vectors that are longest.

    Args:
        flow: [2, H, W] in pixels, H * W at least 20.
    """
    lengths = np.hypot(flow[0], flow[1]).ravel()
    kept = int(lengths.size * 0.05)
    return float(np.partition(lengths, lengths.size - kept)[-kept:].mean())


def moves(strengths: list[float], height: int, width: int) -> bool:
    """Whether enough pairs of frames move.

    Args:
        strengths: `strong_flow` of each pair of successive sampled frames.
        height, width: of a frame, in pixels.
    """
    threshold = 6 * min(height, width) / 256
    needed = max(1, round(4 * (len(strengths) + 1) / 16))
    return sum(strength > threshold for strength in strengths) >= needed


def pad_to_eight(frames: torch.Tensor) -> torch.Tensor:
    """[F, 3, H, W] grown to multiples of 8 pixels, as RAFT needs: the border repeated, alike on both sides."""
    height, width = frames.shape[-2:]
    rows, columns = -height % 8, -width % 8
    return F.pad(frames, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), mode="replicate")


@dataclass
class DynamicDegreeSettings:
    """What measures the dynamic degree."""

    model: str = "raft_large"
    """`raft_large` (VBench's) or `raft_small`, of torchvision."""
    weights: str = "C_T_V1"
    """A name of torchvision, which it downloads, or a file of its weights. VBench's are `C_T_V1` of `raft_large`."""


class DynamicDegree:
    """1 for a video that moves, else 0; `detail` has the mean `flow` of the strongest pixels.

    Args:
        flow: from two frames [1, 3, H, W] in [-1, 1], sides multiples of 8, to the flow [1, 2, H, W] in pixels.
        device: where it computes.
    """

    name, title, higher_is_better = "dynamic_degree", "Dynamic degree", True

    def __init__(self, flow: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], device: torch.device | str):
        self.flow, self.device = flow, device

    @torch.inference_mode()
    def measure(self, item: Item) -> Measured:
        frames = item.frames[sampled(len(item.frames), item.fps)]
        height, width = frames.shape[1:3]
        if min(height, width) < LEAST_SIDE:
            return Measured(0.0, f"the video is {width}x{height}; RAFT needs {LEAST_SIDE} pixels a side")
        if short := too_short(len(frames), 2):
            return short
        strengths = []
        for pair in pairwise(frames):
            one, two = (pad_to_eight(to_float(f[None]) / 127.5 - 1).to(self.device) for f in pair)
            strengths.append(strong_flow(self.flow(one, two)[0].float().cpu().numpy()))
        return Measured(float(moves(strengths, height, width)), detail={"flow": float(np.mean(strengths))})


def load_raft(
    model: str, weights: str, device: torch.device | str
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """RAFT's last flow.

    Raises:
        UserError: there is no such model, or its weights cannot be had.
    """
    from torchvision.models import get_model, get_model_weights

    if model not in MODELS:
        raise UserError(f"dynamic_degree.model={model!r}; use {' or '.join(MODELS)}")
    published = get_model_weights(model)
    raft = get_model(model, weights=None)
    try:
        if Path(weights).is_file():
            state = torch.load(weights, map_location="cpu", weights_only=True)
        elif weights in published.__members__:
            state = published[weights].get_state_dict(progress=False, check_hash=True)
        else:
            raise ValueError(f"it is neither a file nor one of {', '.join(published.__members__)}")
        raft.load_state_dict(state)
    except Exception as error:  # downloads, files that are no weights, weights of another model
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        url = published["C_T_V1"].url
        raise UserError(f"{_WEIGHTS}={weights!r} cannot be used: {reason}; give the file of {url}") from None
    raft = raft.to(device).eval().requires_grad_(False)
    return lambda one, two: raft(one, two, num_flow_updates=ITERATIONS)[-1]


def build(settings: DynamicDegreeSettings, device: torch.device | str) -> Metric:
    """The metric with its model.

    Raises:
        UserError: the model cannot be loaded.
    """
    return DynamicDegree(load_raft(settings.model, settings.weights, device), device)


METRICS = {"dynamic_degree": (DynamicDegreeSettings, build)}
