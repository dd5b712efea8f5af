"""ViCLIP-T: cosine of ViCLIP's features of the video and the prompt, times 100 (paper 4.2, tables 1 to 3).

Frames are shown as the published demo of ViCLIP does (github.com/OpenGVLab/InternVideo, Data/InternVid/viclip):
squashed to 224 x 224 by OpenCV's bilinear filter, ImageNet's normalization. VBench shows the same weights what CLIP is
shown: `fit` crop, `normalization` clip. The demo takes every (F // 8)-th frame from the first on; here eight are spread
over all of the video, the first and the last among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch

from phantom_mega.conditioning.sources import read_weights
from phantom_mega.errors import UserError
from phantom_mega.evaluation.encoders import DTYPES, FITS, check_choice, to_square, unit_rows
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.viclip import ViClip, viclip_of

SOURCE = "huggingface.co/OpenGVLab/ViCLIP: ViClip-InternVid-10M-FLT.pth"
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
}
NO_PROMPT = "the case has no prompt"


@dataclass
class ViClipTSettings:
    """What measures ViCLIP-T."""

    weights: str = ""
    """Checkpoint of ViCLIP, as ViClip-InternVid-10M-FLT.pth; its sizes are read from it."""
    fit: str = "squash"
    """How a frame becomes a square: `squash` (ViCLIP's demo), `crop` (VBench) or `pad`."""
    normalization: str = "imagenet"
    """Of pixels: `imagenet` (ViCLIP's demo) or `clip` (VBench)."""
    dtype: str = "float32"
    """Of the model's weights: float32, bfloat16 or float16."""

    def check(self, metric: str = "viclip_t") -> None:
        """Raise UserError on a value out of range, or a file that is not there."""
        check_choice(metric, "fit", self.fit, FITS)
        check_choice(metric, "normalization", self.normalization, tuple(NORMALIZATIONS))
        check_choice(metric, "dtype", self.dtype, tuple(DTYPES))
        if not Path(self.weights).is_file():
            raise UserError(f"{metric}.weights={self.weights!r}: no such file; get {SOURCE}")


def spread_indices(count: int, wanted: int) -> np.ndarray:
    """Numbers of `wanted` frames that are spread over `count`; of a shorter video some come twice. One frame stays one.

    Args:
        count: frames of the video, at least 1.
        wanted: frames to take.
    """
    return np.linspace(0, count - 1, 1 if count == 1 else wanted).round().astype(np.int64)


class ViClipT:
    """Cosine of a video and its prompt, times 100.

    Args:
        model: ViCLIP.
        settings: with `fit`, `normalization` and `dtype`.
        device: where the model is.
    """

    name, title, higher_is_better = "viclip_t", "ViCLIP-T", True

    def __init__(self, model: ViClip, settings: ViClipTSettings, device: torch.device | str):
        self.model, self.fit, self.device = model, settings.fit, device
        self.dtype = DTYPES[settings.dtype]
        mean, std = NORMALIZATIONS[settings.normalization]
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1, 1) for values in (mean, std))

    @torch.inference_mode()
    def measure(self, item: Item) -> Measured:
        if not item.prompt.strip():
            return Measured(0.0, NO_PROMPT)
        config = self.model.config
        picked = item.frames[spread_indices(len(item.frames), config.frames)]
        squares = np.stack([self._square(frame, config.side) for frame in picked])
        pixels = torch.from_numpy(squares).to(self.device).permute(3, 0, 1, 2).float() / 255
        video = self.model.encode_video(((pixels - self.mean) / self.std)[None].to(self.dtype))
        features = torch.cat([video, self.model.encode_text([item.prompt])]).double().cpu().numpy()
        of_video, of_text = unit_rows(features)
        return Measured(100 * float(of_video @ of_text))

    def _square(self, frame: np.ndarray, side: int) -> np.ndarray:
        if self.fit == "squash":  # as the demo does, without antialiasing
            return cv2.resize(frame, (side, side))
        return to_square(frame, side, self.fit)


def build(settings: ViClipTSettings, device: torch.device | str) -> Metric:
    """The metric with its model.

    Raises:
        UserError: a setting is out of range, or the model cannot be loaded.
    """
    settings.check()
    model = viclip_of(read_weights(settings.weights, "viclip_t.weights"), f"viclip_t.weights={settings.weights}")
    return ViClipT(model.to(device, DTYPES[settings.dtype]), settings, device)


METRICS = {"viclip_t": (ViClipTSettings, build)}
