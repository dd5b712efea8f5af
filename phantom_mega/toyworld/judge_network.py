"""The judge's first network: a U-Net over frames that also looks along time, and heads for subjects and for scenes.

Axes: B videos, K frames, C channels, H W pixels, h w cells of 2x2 pixels, A subjects.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from phantom_mega.toyworld.backgrounds import BACKGROUNDS
from phantom_mega.toyworld.scenes import CAMERAS, LIGHTS, MOTIONS

FRAMES = 5  # K
CELL = 2  # pixels along a side of a cell
STRIDE = 8  # height and width must be multiples of this
# What is told of a subject in one frame, and how many numbers each takes.
SUBJECT_OUTPUTS = {"angle": 2, "size": 1, "centre": 2}
SCENE_OUTPUTS = {"background": len(BACKGROUNDS), "light": len(LIGHTS), "camera": len(CAMERAS)}
# What every cell tells: whether a subject covers it, and the way (x, y) to where that subject is on average.
CELL_OUTPUTS = {"covered": 1, "anchor": 2}
_WIDTHS = (48, 96, 128)


def _convolution(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class _AlongTime(nn.Module):
    """Every frame learns of all the others at the same place: an MLP over the frames' channels."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(FRAMES * width, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, FRAMES * width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width, h, w = x.shape[1:]
        by_place = x.permute(0, 2, 3, 1).reshape(-1, FRAMES, h * w, width).transpose(1, 2)  # [B, h * w, K, C]
        told = self.inner(by_place.flatten(2)).unflatten(2, (FRAMES, width)).transpose(1, 2)
        return x + told.reshape(-1, h, w, width).permute(0, 3, 1, 2)


class JudgeNetwork(nn.Module):
    """Reads videos [B, K, 3, H, W] in [-1, 1]; H and W are multiples of `STRIDE`.

    `features` gives what all heads read; `cells`, `subjects`, `motion` and `scene` are the heads. Subjects are pooled
    over the cells that they cover, as in RoI pooling, so a head sees a whole subject and not one cell.
    """

    def __init__(self):
        super().__init__()
        first, middle, last = _WIDTHS
        self.stem = nn.Sequential(_convolution(9 * CELL**2, first), _Residual(first))
        self.down = nn.Sequential(_convolution(first, middle, stride=2), _Residual(middle), _AlongTime(middle))
        self.bottom = nn.Sequential(_convolution(middle, last, stride=2), _AlongTime(last), _Residual(last))
        self.context = nn.Linear(last, last)
        self.up = nn.Sequential(_convolution(middle + last, middle), _Residual(middle))
        self.top = nn.Sequential(_convolution(first + middle, middle), _Residual(middle))
        self.cell_head = nn.Conv2d(middle, sum(CELL_OUTPUTS.values()), 1)
        self.subject_head = nn.Sequential(
            nn.Linear(middle, 128), nn.ReLU(), nn.Linear(128, sum(SUBJECT_OUTPUTS.values()))
        )
        self.motion_frame = nn.Linear(middle + 3, 48)
        self.motion_head = nn.Sequential(
            nn.ReLU(), nn.Linear(FRAMES * 48, 128), nn.ReLU(), nn.Linear(128, len(MOTIONS))
        )
        self.scene_frame = nn.Linear(middle + last, 64)
        self.scene_head = nn.Sequential(
            nn.ReLU(), nn.Linear(FRAMES * 64, 128), nn.ReLU(), nn.Linear(128, sum(SCENE_OUTPUTS.values()))
        )

    def features(self, videos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(of cells [B, K, C, h, w], of whole frames [B, K, C'])."""
        # A camera that pans moves the background by a pixel a frame: neighbours in time are seen together.
        near = torch.cat([torch.cat([videos[:, :1], videos[:, :-1]], 1), videos,
                          torch.cat([videos[:, 1:], videos[:, -1:]], 1)], 2)  # fmt: skip
        frames = F.pixel_unshuffle(near.flatten(0, 1), CELL)
        fine = self.stem(frames.contiguous(memory_format=torch.channels_last))
        half = self.down(fine)
        coarse = self.bottom(half)
        summary = coarse.mean((2, 3))
        coarse = coarse + self.context(summary)[:, :, None, None]
        half = self.up(torch.cat([half, F.interpolate(coarse, scale_factor=2)], 1))
        cells = self.top(torch.cat([fine, F.interpolate(half, scale_factor=2)], 1))
        whole = torch.cat([cells.mean((2, 3)), summary], 1)
        return cells.unflatten(0, (-1, FRAMES)), whole.unflatten(0, (-1, FRAMES))

    def cells(self, cells: torch.Tensor) -> dict[str, torch.Tensor]:
        """`CELL_OUTPUTS`, [B, K, outputs, h, w]."""
        out = self.cell_head(cells.flatten(0, 1)).float().unflatten(0, (-1, FRAMES))
        return dict(zip(CELL_OUTPUTS, out.split(list(CELL_OUTPUTS.values()), 2)))

    @staticmethod
    def pool(cells: torch.Tensor, cover: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is seen of subjects.

        Args:
            cells: [B, K, C, h, w].
            cover: [B, K, A, h, w], the share of every cell that a subject covers.

        Returns:
            (mean features [B, K, A, C], zero where a subject is not seen; cells that it covers [B, K, A]; their middle
            [B, K, A, 2], as `cell_places`).
        """
        area = cover.sum((3, 4))
        shares = cover / area.clamp(min=1e-3)[..., None, None]
        middle = torch.einsum("bkahw,hwd->bkad", shares, cell_places(*cover.shape[3:], cover.device))
        return torch.einsum("bkchw,bkahw->bkac", cells.float(), shares), area, middle

    def subjects(self, pooled: torch.Tensor) -> dict[str, torch.Tensor]:
        """`SUBJECT_OUTPUTS` of pooled features [..., C]: (sine, cosine) of the angle, size, centre from the middle."""
        out = self.subject_head(pooled).float()
        return dict(zip(SUBJECT_OUTPUTS, out.split(list(SUBJECT_OUTPUTS.values()), -1)))

    def motion(self, pooled: torch.Tensor, area: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        """Logits [B, A, motions] of what `pool` gives."""
        frames = torch.cat([pooled, (area > 0.5)[..., None].to(pooled), middle], -1)
        return self.motion_head(self.motion_frame(frames).transpose(1, 2).flatten(2)).float()

    def scene(self, whole: torch.Tensor) -> dict[str, torch.Tensor]:
        """`SCENE_OUTPUTS`, logits [B, outputs] each."""
        out = self.scene_head(self.scene_frame(whole).flatten(1)).float()
        return dict(zip(SCENE_OUTPUTS, out.split(list(SCENE_OUTPUTS.values()), 1)))


def cell_places(rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """float32 [h, w, 2], (x, y) of the cells' middles from the frame's middle, in frame heights."""
    y = (torch.arange(rows, device=device) + 0.5 - rows / 2) / rows
    x = (torch.arange(columns, device=device) + 0.5 - columns / 2) / rows
    return torch.stack([x[None].expand(rows, -1), y[:, None].expand(-1, columns)], -1)
