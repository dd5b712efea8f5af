"""CurricularFace (Huang et al., CVPR 2020, arXiv 2004.00288): its backbone IR-101, whose weights its authors publish.

Names of weights are those of the checkpoint (github.com/HuangYG123/CurricularFace: `CurricularFace_Backbone.pth`;
trained on Glint360K: `glint360k_curricular_face_r101_backbone.bin` of huggingface.co/BestWishYsh/OpenS2V-Weight). Faces
are shown as ArcFace's are: aligned to 112 x 112, RGB, x / 127.5 - 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from phantom_mega.conditioning.sources import read_weights
from phantom_mega.curation.face_models import unit
from phantom_mega.curation.face_models.arcface import as_input
from phantom_mega.errors import UserError


class Unit(nn.Module):
    """A residual unit of IR ("improved residual", ArcFace 3.2).

    Args:
        width_in, width: channels.
        stride: of the second convolution.
    """

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if width_in != width:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(width_in),
            nn.Conv2d(width_in, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class CurricularFaceNet(nn.Module):
    """The backbone.

    Args:
        widths: channels of every unit's input and output; the picture is halved by the first unit and wherever they
            differ.
        features: width of the vector.
    """

    def __init__(self, widths: list[tuple[int, int]], features: int):
        super().__init__()
        first, last = widths[0][0], widths[-1][1]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        strides = [2 if i == 0 or a != b else 1 for i, (a, b) in enumerate(widths)]
        self.body = nn.Sequential(*(Unit(a, b, stride) for (a, b), stride in zip(widths, strides, strict=True)))
        side = 112 // 2 ** strides.count(2)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last), nn.Dropout(0.4), nn.Flatten(), nn.Linear(last * side * side, features),
            nn.BatchNorm1d(features, affine=False),
        )  # fmt: skip

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """[n, features] of [n, 3, 112, 112]."""
        return self.output_layer(self.body(self.input_layer(faces)))


def net_of(weights: Mapping[str, torch.Tensor], where: str) -> CurricularFaceNet:
    """The network that weights belong to, in eval mode without gradients; its depth is read from them.

    Args:
        weights: by name.
        where: they are from, for messages.

    Raises:
        UserError: they are not those of a CurricularFace, or not all of them.
    """
    count = sum(name.startswith("body.") and name.endswith("res_layer.1.weight") for name in weights)
    try:
        shapes = [weights[f"body.{i}.res_layer.1.weight"].shape for i in range(count)]
        net = CurricularFaceNet([(shape[1], shape[0]) for shape in shapes], len(weights["output_layer.3.weight"]))
        net.load_state_dict(weights)
    except (IndexError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{where} holds no weights of a CurricularFace: {reason}") from None
    return net.eval().requires_grad_(False)


class CurricularFace:
    """A recogniser of aligned faces.

    Args:
        path: of the weights.
        what: the setting that names it, for messages.
        device: where it computes.

    Raises:
        UserError: it cannot be loaded.
    """

    def __init__(self, path: str, what: str, device: torch.device | str):
        self._net = net_of(read_weights(path, what), f"{what}={path}").to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, face: np.ndarray) -> np.ndarray:
        """The vector, float32 [D] of length 1, of an aligned face, uint8 [112, 112, 3], RGB."""
        return unit(self._net(torch.from_numpy(as_input(face, 127.5, 127.5)).to(self._device)).float().cpu().numpy())
