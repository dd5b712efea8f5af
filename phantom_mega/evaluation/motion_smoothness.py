"""Motion smoothness of VBench: how well a frame interpolator foretells every second frame from its neighbours.

VBench's own (arXiv 2311.17982, vbench/motion_smoothness.py): frames 1, 3, 5... against what AMT-S makes of the two
beside each, the mean absolute difference, (255 - difference) / 255; AMT's padding to multiples of 16; predictions cut
to whole numbers. What differs: the interpolator is a file of yours, for AMT (arXiv 2304.09790) is in no package; and
frames are never scaled down, as VBench does on a GPU with too little memory.

AMT-S with the weights that VBench names (amt-s.pth, huggingface.co/lalala125/AMT) becomes such a file in a checkout of
github.com/MCG-NKU/AMT, at the size of the videos, padded to multiples of 16:

    half = torch.full((1, 1, 1, 1), 0.5)
    class Middle(torch.nn.Module):
        def __init__(self): super().__init__(); self.amt = amt
        def forward(self, a, b): return self.amt(a, b, half, scale_factor=1.0, eval=True)["imgt_pred"]
    torch.jit.trace(Middle().eval(), (a, b)).save("amt_s.pt")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from phantom_mega.errors import UserError
from phantom_mega.evaluation.consistency import too_short
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.pixels import to_float

PADDED_TO = 16
_SETTING = "motion_smoothness.interpolator"

# From two frames [1, 3, H, W], RGB in [0, 1], sides multiples of 16, to the frame between them, alike.
Interpolator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def smoothness(frames: np.ndarray, between: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """(255 - mean absolute difference of frames 1, 3, 5... to what is foretold of them) / 255.

    Args:
        frames: uint8 [F, H, W, 3], F at least 3; the last is not used where F is even.
        between: from two frames uint8 [H, W, 3] to the one between them.

    Returns:
        in [0, 1].
    """
    differences = []
    for i in range(1, len(frames) - 1, 2):
        foretold = between(frames[i - 1], frames[i + 1])
        differences.append(np.abs(foretold.astype(np.int16) - frames[i]).mean())
    return (255 - float(np.mean(differences))) / 255


def padding(height: int, width: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) that make the sides multiples of 16, halves on both sides, as AMT does."""
    rows, columns = -height % PADDED_TO, -width % PADDED_TO
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


@dataclass
class MotionSmoothnessSettings:
    """What measures motion smoothness."""

    interpolator: str = ""
    """File of a frame interpolator: TorchScript (`.pt`) or ONNX (`.onnx`). It takes two float32 frames [1, 3, H, W],
    RGB in [0, 1], sides multiples of 16, and gives the frame halfway between them, of the same shape. VBench uses
    AMT-S; the top of this file shows how to write it."""


class MotionSmoothness:
    """Closeness of every second frame to its interpolation.

    Args:
        interpolator: see `Interpolator`.
        device: where it takes its frames.
        source: its file, for messages.
    """

    name, title, higher_is_better = "motion_smoothness", "Motion smoothness", True

    def __init__(self, interpolator: Interpolator, device: torch.device | str, source: str = ""):
        self.interpolator, self.device, self.source = interpolator, device, source

    def measure(self, item: Item) -> Measured:
        return too_short(len(item.frames), 3) or Measured(smoothness(item.frames, self._between))

    @torch.inference_mode()
    def _between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        height, width = first.shape[:2]
        sides = padding(height, width)
        one, two = (
            F.pad(to_float(frame[None]) / 255, sides, mode="replicate").to(self.device) for frame in (first, second)
        )
        try:
            middle = self.interpolator(one, two)
            if not isinstance(middle, torch.Tensor) or middle.shape != one.shape:
                found = list(middle.shape) if isinstance(middle, torch.Tensor) else type(middle).__name__
                raise ValueError(f"it gives {found} instead of {list(one.shape)}")
        except Exception as error:  # a model of someone else's
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(
                f"{_SETTING}={self.source!r} fails on frames of {one.shape[3]}x{one.shape[2]}: {reason}; a traced "
                "model fits the size it was traced at"
            ) from None
        middle = middle[0, :, sides[2] : sides[2] + height, sides[0] : sides[0] + width]
        return (middle.float() * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def load_interpolator(path: str, device: torch.device | str) -> Interpolator:
    """An interpolator's file.

    Raises:
        UserError: none is set, or it cannot be read.
    """
    advice = "give AMT-S (github.com/MCG-NKU/AMT) as TorchScript or ONNX; evaluation/motion_smoothness.py shows how"
    if not path:
        raise UserError(f"{_SETTING} is not set; {advice}")
    if not Path(path).is_file():
        raise UserError(f"{_SETTING}={path!r}: there is no such file; {advice}")
    try:
        return _load_onnx(path) if path.endswith(".onnx") else torch.jit.load(path, map_location=device).eval()
    except Exception as error:  # neither library says which errors it raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{_SETTING}={path!r} cannot be read: {reason}; {advice}") from None


def _load_onnx(path: str) -> Interpolator:
    """An ONNX model of two inputs and one output, on a GPU if onnxruntime was built with one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    inputs = [entry.name for entry in session.get_inputs()]
    if len(inputs) != 2:
        raise ValueError(f"it takes {len(inputs)} inputs, not two frames")

    def between(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        fed = {name: frame.cpu().numpy() for name, frame in zip(inputs, (one, two))}
        return torch.from_numpy(session.run(None, fed)[0]).to(one.device)

    return between


def build(settings: MotionSmoothnessSettings, device: torch.device | str) -> Metric:
    """The metric with its model.

    Raises:
        UserError: the model cannot be loaded.
    """
    interpolator = load_interpolator(settings.interpolator, device)
    return MotionSmoothness(interpolator, device, settings.interpolator)


METRICS = {"motion_smoothness": (MotionSmoothnessSettings, build)}
