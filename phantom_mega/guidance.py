"""Three-branch classifier-free guidance (paper 3.2, equation of the sampling section)."""

from __future__ import annotations

import torch


def combine(
    v_null: torch.Tensor,
    v_image: torch.Tensor,
    v_text_image: torch.Tensor,
    image_guidance_scale: float = 3.0,
    text_guidance_scale: float = 7.5,
) -> torch.Tensor:
    """v = v_null + w_I (v_I - v_null) + w_TI (v_TI - v_I).

    Args:
        v_null: velocity with the negative prompt and zero references.
        v_image: velocity with the negative prompt and the references.
        v_text_image: velocity with the prompt and the references.
        image_guidance_scale: w_I, 3 in the paper.
        text_guidance_scale: w_TI, 7.5 in the paper.

    Returns:
        The guided velocity, of the branches' shape. Both scales 1 give `v_text_image`.
    """
    return v_null + image_guidance_scale * (v_image - v_null) + text_guidance_scale * (v_text_image - v_image)
