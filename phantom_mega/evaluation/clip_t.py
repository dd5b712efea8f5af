"""CLIP-T: mean cosine of CLIP's features of frames and of the prompt, times 100.

Not the paper's metric, which is ViCLIP-T: CLIP sees no motion, and its numbers do not compare with ViCLIP's. For
machines that have a CLIP alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import open_clip
import torch

from phantom_mega.conditioning.sources import explain_missing
from phantom_mega.errors import UserError
from phantom_mega.evaluation.encoders import EncoderSettings, ImageEncoder, clip_encoder, open_clip_model, unit_rows
from phantom_mega.evaluation.frames import uniform
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.viclip_t import NO_PROMPT


@dataclass
class ClipTSettings(EncoderSettings):
    """What measures CLIP-T."""

    model: str = "ViT-B-32-quickgelu"
    """CLIP of open_clip: a name, `hf-hub:NAME` or a folder."""
    pretrained: str = "openai"
    """For a name: a published tag or a checkpoint file."""


class ClipT:
    """Mean cosine of frames and the prompt, times 100.

    Args:
        model: with `encode_text`.
        tokenizer: from texts to its token ids.
        encode: from pictures to features of length 1.
        frames: of a video that are looked at, evenly spaced.
    """

    name, title, higher_is_better = "clip_t", "CLIP-T", True

    def __init__(self, model: Any, tokenizer: Any, encode: ImageEncoder, frames: int):
        self.model, self.tokenizer, self.encode, self.frames = model, tokenizer, encode, frames

    def measure(self, item: Item) -> Measured:
        if not item.prompt.strip():
            return Measured(0.0, NO_PROMPT)
        with torch.inference_mode():
            text = self.model.encode_text(self.tokenizer([item.prompt]).to(self.encode.device)).double().cpu().numpy()
        frames = self.encode(list(uniform(item.frames, self.frames)))
        return Measured(100 * float((frames @ unit_rows(text)[0]).mean()))


def build(settings: ClipTSettings, device: torch.device | str) -> Metric:
    """The metric with its model.

    Raises:
        UserError: a setting is out of range, or the model cannot be loaded.
    """
    settings.check("clip_t")
    name, model = open_clip_model(settings, "clip_t", device)
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip and transformers raise nearly anything on what is no tokenizer
        raise UserError(str(explain_missing("the tokenizer of clip_t.model", settings.model, error))) from None
    return ClipT(model, tokenizer, clip_encoder(model, settings, device), settings.frames)


METRICS = {"clip_t": (ClipTSettings, build)}
