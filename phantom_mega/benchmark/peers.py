"""Diffusers' stock HunyuanVideo transformer as the same function as this project's model with full attention.

The peer is `HunyuanVideoTransformer3DModel` itself, its forward untouched; only weights are mapped. What it has more is
switched off by configuration (no single-stream blocks, no token refiner blocks, no guidance embedding) or by zero
weights (pooled text projection); the references are the video's last latent frames, which full attention and its RoPE
treat as this project does. Source: diffusers/models/transformers/transformer_hunyuan_video.py.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoTransformer3DModel,
)
from megatron.core.enums import ModelType
from megatron.core.transformer import MegatronModule, TransformerConfig
from torch import nn

from phantom_mega.config import ModelConfig
from phantom_mega.errors import UserError
from phantom_mega.geometry import patchify, unpatchify
from phantom_mega.packs import PackInputs

_KERNELS = {
    "native": AttentionBackendName.NATIVE,
    "flash": AttentionBackendName._NATIVE_FLASH,
    "cudnn": AttentionBackendName._NATIVE_CUDNN,
}
# Of the pooled text embedding, which the weights below make zero.
_POOLED_DIM = 8
# (peer, plain model) names of the linears and norms of each stream of a block.
_VISUAL = (
    ("attn.to_q", "to_q"),
    ("attn.to_k", "to_k"),
    ("attn.to_v", "to_v"),
    ("attn.norm_q", "norm_q"),
    ("attn.norm_k", "norm_k"),
    ("attn.to_out.0", "to_out"),
    ("ff.net.0.proj", "mlp.fc1"),
    ("ff.net.2", "mlp.fc2"),
)
_TEXT = (
    ("attn.add_q_proj", "to_q"),
    ("attn.add_k_proj", "to_k"),
    ("attn.add_v_proj", "to_v"),
    ("attn.norm_added_q", "norm_q"),
    ("attn.norm_added_k", "norm_k"),
    ("attn.to_add_out", "to_out"),
    ("ff_context.net.0.proj", "mlp.fc1"),
    ("ff_context.net.2", "mlp.fc2"),
)
# Equal but for their names.
_ENDS = (
    ("context_embedder.proj_in", "text_embedder"),
    ("time_text_embed.timestep_embedder.linear_1", "timestep_embedder.0"),
    ("time_text_embed.timestep_embedder.linear_2", "timestep_embedder.2"),
    ("proj_out", "final_proj"),
)


def _peer_config(model: ModelConfig) -> dict:
    if model.norm_epsilon != 1e-6 or model.timestep_dim != 256:
        raise UserError("diffusers' HunyuanVideo has a norm epsilon of 1e-6 and 256 timestep features, and no others")
    return dict(
        in_channels=model.latent_channels,
        out_channels=model.latent_channels,
        num_attention_heads=model.num_attention_heads,
        attention_head_dim=model.hidden_size // model.num_attention_heads,
        num_layers=model.num_layers,
        num_single_layers=0,
        num_refiner_layers=0,
        mlp_ratio=model.ffn_hidden_size / model.hidden_size,
        guidance_embeds=False,
        text_embed_dim=model.text_dim,
        pooled_projection_dim=_POOLED_DIM,
        rope_theta=model.rope_theta,
        rope_axes_dim=tuple(model.rope_axes_dim),
    )


def same_names(layers: int) -> dict[str, str]:
    """Peer name -> plain name of every parameter that is one tensor in both models."""
    modules = dict(_ENDS)
    for i in range(layers):
        modules |= {f"transformer_blocks.{i}.{peer}": f"blocks.{i}.visual.{own}" for peer, own in _VISUAL}
        # The plain model's last text stream ends with its q, k and v.
        last = _TEXT[:5] if i == layers - 1 else _TEXT
        modules |= {f"transformer_blocks.{i}.{peer}": f"blocks.{i}.text.{own}" for peer, own in last}
    return {
        f"{peer}.{kind}": f"{own}.{kind}"
        for peer, own in modules.items()
        for kind in (["weight"] if "norm" in peer else ["weight", "bias"])
    }


def peer_weights(plain: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The peer's weights that make it the function of the plain model's weights.

    Its adaLN per block is linear in silu(temb), as is the shared modulation here: W = shared weight, b = shared bias +
    the layer's offset. Its final norm has the scale before the shift. Parameters that nothing reads are left out.

    Args:
        plain: state dict of `hf.PhantomTransformer3DModel`; `clip_projector` is not used.
        layers: number of blocks.

    Returns:
        Tensors by the peer's names.
    """
    weights = {peer: plain[own] for peer, own in same_names(layers).items()}
    embedder = plain["visual_embedder.weight"]
    weights["x_embedder.proj.weight"] = embedder.reshape(len(embedder), -1, 1, 2, 2)
    weights["x_embedder.proj.bias"] = plain["visual_embedder.bias"]
    for i in range(layers):
        for norm, stream in (("norm1", "visual"), ("norm1_context", "text")):
            offset = plain[f"blocks.{i}.{stream}.modulation.offset"].float()
            bias = plain[f"{stream}_modulation.bias"].float().clone()
            bias[: offset.numel()] += offset.flatten()
            name = f"transformer_blocks.{i}.{norm}.linear"
            weights[f"{name}.weight"] = plain[f"{stream}_modulation.weight"]
            weights[f"{name}.bias"] = bias
    for kind in ("weight", "bias"):
        shift, scale = plain[f"final_modulation.{kind}"].chunk(2)
        weights[f"norm_out.linear.{kind}"] = torch.cat([scale, shift])
    return weights


class Unmasked(HunyuanVideoAttnProcessor2_0):
    """The stock attention without its mask, which is all true for one sample without padding but bars flash kernels."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the stock processor's."""
        return super().__call__(attn, hidden_states, encoder_hidden_states, None, image_rotary_emb)


class DiffusersPeer(MegatronModule):
    """The stock transformer as a chunk of megatron's schedule: from a pack of one sample to its velocity.

    Args:
        config: of the chunk; its sizes must be those of `model`.
        model: sizes.
        plain: weights by the plain model's names.
        device: where the weights go, in `config.params_dtype`.

    Raises:
        UserError: sizes that the peer does not have.
    """

    model_type = ModelType.encoder_or_decoder
    share_embeddings_and_output_weights = False
    pre_process = post_process = True
    vp_stage = None

    def __init__(
        self, config: TransformerConfig, model: ModelConfig, plain: dict[str, torch.Tensor], device: torch.device
    ):
        super().__init__(config)
        with torch.device("meta"):
            self.transformer = HunyuanVideoTransformer3DModel(**_peer_config(model))
        weights = peer_weights(plain, model.num_layers)
        # Two kinds have no counterpart: what nothing reads, and the projection of the pooled text, which must be zero.
        idle = {name: p for name, p in self.transformer.named_parameters() if name not in weights}
        weights |= {name: torch.zeros(param.shape) for name, param in idle.items()}
        copies = {name: value.detach().to(device, config.params_dtype, copy=True) for name, value in weights.items()}
        self.transformer.load_state_dict(copies, assign=True)
        for name, param in self.transformer.named_parameters():
            param.requires_grad_(name not in idle)
        # By compiler; all share the parameters. A dict, so that they are not registered twice.
        self.lists = {None: self.transformer.transformer_blocks}

    def set_input_tensor(self, input_tensor: list[torch.Tensor]) -> None:
        """Nothing comes from an earlier stage."""

    def configure(self, kernel: str | None, compiler: str | None) -> None:
        """Choose how the same weights are run.

        Args:
            kernel: None for the stock attention; `native`, `flash` or `cudnn` for none of its mask and that kernel.
            compiler: backend by which torch.compile compiles each block, or None.
        """
        plain = self.lists[None]
        self.transformer.transformer_blocks = plain
        processor = HunyuanVideoAttnProcessor2_0() if kernel is None else Unmasked()
        processor._attention_backend = _KERNELS.get(kernel)
        self.transformer.set_attn_processor(processor)
        if compiler not in self.lists:
            # Kinds of attention x lengths x 2 (the last block's text stream is frozen in part) are more than the usual
            # limit, beyond which blocks would run uncompiled under the name of compiled ones.
            torch._dynamo.config.recompile_limit = 64
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            self.lists[compiler] = nn.ModuleList(
                torch.compile(block, backend=compiler, dynamic=False) for block in plain
            )
        self.transformer.transformer_blocks = self.lists[compiler]

    def forward(self, inputs: PackInputs) -> torch.Tensor:
        """The pack's one sample -> velocity [S, 4 * latent_channels]."""
        (shape,), dtype = inputs.layout.shapes, self.config.params_dtype
        grid = (shape.frames + shape.references, shape.height, shape.width)
        latents = unpatchify(inputs.visual.to(dtype), *grid)
        out = self.transformer(
            hidden_states=latents[None],
            timestep=1000.0 * inputs.timestep,
            encoder_hidden_states=inputs.text.to(dtype)[None],
            encoder_attention_mask=torch.ones(1, len(inputs.text), device=latents.device, dtype=torch.bool),
            pooled_projections=latents.new_zeros(1, _POOLED_DIM),
            return_dict=False,
        )[0]
        return patchify(out[0])
