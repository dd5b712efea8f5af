"""A vision tower of open_clip (CLIP, SigLIP) that diffusers can save and load: patch features of reference images."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from open_clip.model import _build_vision_tower


class PhantomVisionTower(ModelMixin, ConfigMixin):
    """The image half of an open_clip model, without pooling and projection.

    Args:
        vision_cfg: open_clip's `vision_cfg` of the architecture, or of a trunk of timm.
        embed_dim: open_clip's `embed_dim`.
        quick_gelu: as OpenAI's CLIP was trained.
        image_size: (height, width) of its input, pixels.
        image_mean, image_std: its normalization, of values in [0, 1].
    """

    @register_to_config
    def __init__(
        self,
        vision_cfg: dict,
        embed_dim: int,
        quick_gelu: bool = False,
        image_size: tuple[int, int] = (224, 224),
        image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711),
    ):
        super().__init__()
        # timm would look for weights on the hub; ours come from the checkpoint.
        local = dict(vision_cfg) | ({"timm_model_pretrained": False} if "timm_model_name" in vision_cfg else {})
        self.tower = _build_vision_tower(embed_dim, local, quick_gelu)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalized pixels [n, 3, *image_size] to the last block's patch tokens after the final norm [n, c, dim]."""
        out = self.tower.forward_intermediates(
            pixels, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        return out["image_intermediates"][-1]  # open_clip gives them without class tokens
