"""The judge's second network: who is shown in a crop that was turned upright, centred and scaled before.

A crop covers the square in which a subject's label map is drawn (`shapes.EXTENT`), so places in it mean the same for
all subjects. n: crops, S: pixels along a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from phantom_mega.toyworld.shapes import EXTENT
from phantom_mega.toyworld.subjects import PARTS, SHAPES, TEXTURES

SIDE = 28  # S; a body is then nearly 15 pixels high, as in the videos
# Logits of the kinds and of being mirrored, and how far the crop is off: (sine, cosine) of the turn that is left, the
# way to the body's centre along the crop's axes in body heights, the log of the true size over the crop's.
IDENTITY_OUTPUTS = {
    "shape": len(SHAPES), "texture": len(TEXTURES), "part": len(PARTS), "flip": 1, "turn": 2, "shift": 2, "scale": 1,
}  # fmt: skip
_WIDTHS = (32, 64, 96)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class IdentityNetwork(nn.Module):
    """Reads crops [n, 3, S, S] in [-1, 1]; gives `IDENTITY_OUTPUTS`."""

    def __init__(self):
        super().__init__()
        first, middle, last = _WIDTHS
        self.trunk = nn.Sequential(
            _convolution(3, first), _convolution(first, middle, 2), _convolution(middle, middle),
            _convolution(middle, last, 2), _convolution(last, last), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(last * (SIDE // 4) ** 2, 256), nn.ReLU(),
            nn.Linear(256, sum(IDENTITY_OUTPUTS.values())),
        )  # fmt: skip

    def forward(self, crops: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name -> float32 [n, outputs]."""
        seen = self.trunk(crops.contiguous(memory_format=torch.channels_last))
        out = self.head(seen).float()
        return dict(zip(IDENTITY_OUTPUTS, out.split(list(IDENTITY_OUTPUTS.values()), 1)))


def cut_upright(
    frames: torch.Tensor, centre: torch.Tensor, size: torch.Tensor, angle: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """Crops [n, 3, S, S] of frames [n, 3, H, W], sampled bilinearly; the frame's edge goes on beyond it.

    Args:
        frames: one for each crop.
        centre: [n, 2], (x, y) of the body's centre from the frame's middle in frame heights.
        size: [n], the body's height in frame heights.
        angle: [n], radians that it leans clockwise.
    """
    axis = (torch.arange(SIDE, device=frames.device) + 0.5) / SIDE * 2 * EXTENT - EXTENT
    x, y = axis[None, None, :], axis[None, :, None]
    cosine, sine = (value[:, None, None] for value in (angle.cos(), angle.sin()))
    scale = size[:, None, None]
    across = centre[:, 0, None, None] + scale * (cosine * x - sine * y)
    down = centre[:, 1, None, None] + scale * (sine * x + cosine * y)
    height, width = frames.shape[2:]
    grid = torch.stack([2 * across * height / width, 2 * down], -1)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False)


def turned(vectors: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Vectors [..., 2] (x, y), turned clockwise by radians [...]: from a crop's axes to the frame's."""
    cosine, sine, (x, y) = angle.cos(), angle.sin(), vectors.unbind(-1)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)


def refined(
    told: dict[str, torch.Tensor], centre: torch.Tensor, size: torch.Tensor, angle: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centre, size and angle after what the network says of crops that were cut with these."""
    return (
        centre + size[:, None] * turned(told["shift"], angle),
        size * torch.exp(told["scale"][:, 0].clamp(-0.5, 0.5)),
        angle + torch.atan2(*told["turn"].unbind(-1)),
    )
