"""Masks of subjects by a SAM of transformers (SAM, SAM 2), which is shown their boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from phantom_mega.curation.models import open_pretrained


def open_segment(
    name: str, what: str = "crops.mask_model", device: Any = None
) -> Callable[[np.ndarray, Sequence[Sequence[float]]], np.ndarray]:
    """The function of a frame, uint8 [H, W, 3], and boxes in its pixels: a mask of each, bool [boxes, H, W].

    Args:
        name: of the model on the hub, or its folder.
        what: the setting that names it, for messages.
        device: where it computes; a GPU if there is one.

    Raises:
        UserError: it cannot be loaded.
    """
    import torch

    processor, model = open_pretrained(what, name, "AutoModelForMaskGeneration", device)

    @torch.no_grad()
    def segment(frame: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        numbers = [[[float(side) for side in box] for box in boxes]]
        inputs = processor(images=frame, input_boxes=numbers, return_tensors="pt")
        sizes = {key: inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs}
        given = {key: value for key, value in inputs.items() if key not in sizes}
        masks = model(**{key: value.to(model.device) for key, value in given.items()}, multimask_output=False)
        # [boxes, 1, H, W] of the only picture
        return processor.post_process_masks(masks.pred_masks.cpu(), **sizes)[0][:, 0].numpy()

    return segment
