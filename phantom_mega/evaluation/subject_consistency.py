"""Subject consistency of VBench: whether what the video shows stays the same, by DINO's class token.

VBench's own: the resizing, all frames, the formula, DINO ViT-B/16 (arXiv 2104.14294). What differs: DINO comes from
transformers, which interpolates its position embeddings to the frame's shape by size, not by a scale factor with 0.1
added, as torch.hub's does: features of frames that are not square differ a little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from phantom_mega.conditioning.sources import check_complete, resolve_source
from phantom_mega.errors import UserError
from phantom_mega.evaluation.consistency import consistency, too_short
from phantom_mega.evaluation.metric import Item, Measured, Metric
from phantom_mega.evaluation.pixels import dino_pixels, encode

_WHAT = "subject_consistency.model"


@dataclass
class SubjectConsistencySettings:
    """What measures subject consistency."""

    model: str = "facebook/dino-vitb16"
    """DINO of transformers: a hub name or a folder. VBench uses ViT-B/16."""


class SubjectConsistency:
    """Mean of the cosines to the first and to the previous frame.

    Args:
        model: from normalized pixels [n, 3, h, w] to class tokens [n, width].
        device: where it is.
    """

    name, title, higher_is_better = "subject_consistency", "Subject consistency", True

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], device: torch.device | str):
        self.model, self.device = model, device

    def measure(self, item: Item) -> Measured:
        return too_short(len(item.frames), 2) or Measured(
            consistency(encode(item.frames, dino_pixels, self.model, self.device))
        )


def load_dino(name: str, device: torch.device | str) -> Callable[[torch.Tensor], torch.Tensor]:
    """DINO's class token after the last norm, of frames of any shape.

    Raises:
        UserError: it cannot be loaded, misses weights, or is no vision transformer.
    """
    import transformers

    try:
        source = resolve_source(name)
        kind = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
        if kind != "vit":
            raise ValueError(f"it is a {kind!r} model, DINO is a 'vit'")
        # DINO has no pooler: transformers would make one up
        model, info = transformers.ViTModel.from_pretrained(source, add_pooling_layer=False, output_loading_info=True)
    except Exception as error:  # transformers raises nearly anything on what is no such model
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{_WHAT}={name!r} could not be loaded: {reason}; "
            "give the folder of a download of huggingface.co/facebook/dino-vitb16"
        ) from None
    check_complete(_WHAT, name, info["missing_keys"])
    model = model.to(device).eval().requires_grad_(False)
    return lambda pixels: model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]


def build(settings: SubjectConsistencySettings, device: torch.device | str) -> Metric:
    """The metric with its model.

    Raises:
        UserError: the model cannot be loaded.
    """
    return SubjectConsistency(load_dino(settings.model, device), device)


METRICS = {"subject_consistency": (SubjectConsistencySettings, build)}
