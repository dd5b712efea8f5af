"""Masks of subjects by a SAM of transformers (SAM, SAM 2), which is shown their boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from phantom_mega.conditioning.sources import explain_missing, resolve_source
from phantom_mega.curation.models import has_gpu


def open_segment(name: str) -> Callable[[np.ndarray, Sequence[Sequence[int]]], np.ndarray]:
    """The function of a frame, uint8 [H, W, 3], and boxes in its pixels: a mask of each, bool [boxes, H, W].

    Args:
        name: of the model on the hub, or its folder.

    Raises:
        UserError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForMaskGeneration, AutoProcessor

    try:
        source = resolve_source(name)
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForMaskGeneration.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers raises nearly anything on what is no such model
        raise explain_missing("crops.mask_model", name, error) from None
    model = model.to("cuda" if has_gpu() else "cpu").eval()

    @torch.no_grad()
    def segment(frame: np.ndarray, boxes: Sequence[Sequence[int]]) -> np.ndarray:
        numbers = [[[float(side) for side in box] for box in boxes]]
        inputs = processor(images=frame, input_boxes=numbers, return_tensors="pt")
        sizes = {key: inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs}
        given = {key: value for key, value in inputs.items() if key not in sizes}
        masks = model(**{key: value.to(model.device) for key, value in given.items()}, multimask_output=False)
        # [boxes, 1, H, W] of the only picture
        return processor.post_process_masks(masks.pred_masks.cpu(), **sizes)[0][:, 0].numpy()

    return segment
