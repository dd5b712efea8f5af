"""One dual-stream block on tensor-parallel linears: what `hf.transformer_phantom.DualStreamBlock` is in plain PyTorch.

S: visual tokens, L: text-stream tokens, N: heads, D: head dim, C: model width, B: samples. With context parallelism a
rank has 1/cp of a pack's tokens, with sequence parallelism 1/tp of these between the linears. Inside attention it has
all tokens of N/(tp cp) heads, so a window is always whole.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from megatron.core.transformer import MegatronModule, TransformerConfig
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from torch import nn

from phantom_mega.attention import Windows
from phantom_mega.core import fp8
from phantom_mega.core.fused import bias_gelu, gated_residual, head_norm, modulated_layer_norm
from phantom_mega.core.offload import ActivationOffload
from phantom_mega.core.recompute import dropped
from phantom_mega.core.specs import DualStreamBlockSubmodules, StreamBlockSubmodules
from phantom_mega.hf.transformer_phantom import RMSNorm


@dataclass(frozen=True)
class BlockInputs:
    """What every block of a pack reads beside the two streams.

    Attributes:
        visual_sample: int64 [visual tokens between linears], sample of each visual token of this rank.
        text_sample: int64 [text tokens between linears], the same for the text stream.
        windows: the plain and the shifted grid of the whole pack, with rotations of this rank's [S/cp] tokens.
        attend: from (q, k, v) of both streams and the windows to both outputs (`context_parallel.attention`).
    """

    visual_sample: torch.Tensor
    text_sample: torch.Tensor
    windows: tuple[Windows, Windows]
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def recomputed_modules(config: TransformerConfig) -> tuple[str, ...]:
    """Names of `parallel_layout.RECOMPUTE_MODULES` that this configuration recomputes one by one."""
    return tuple(config.recompute_modules) if config.recompute_granularity == "selective" else ()


class Modulation(MegatronModule):
    """Learned per-layer offset of the shared timestep modulation ("ada single").

    A module of its own: overlap_param_gather waits for a parameter when the module that owns it is called.
    """

    def __init__(self, config: TransformerConfig, rows: int):
        super().__init__(config)
        self.offset = nn.Parameter(torch.zeros(rows, config.hidden_size))

    def forward(self, base: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """base [B, 6, C] -> shift, scale, gate of attention, then of the MLP, each [B, C]."""
        return (base[:, : len(self.offset)] + self.offset).unbind(1)


class HeadNorm(RMSNorm):
    """The plain model's norm of heads, and the rotation after it."""

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """x [tokens, N, D], rotation (cos, sin) of these tokens or None -> [tokens, N, D]."""
        return head_norm(x, self.weight, rotation, self.eps)


class BiasGeluMLP(MLP):
    """megatron-core's MLP with the project's GELU; what its linears read need not be kept (`recompute_modules`)."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens, C] -> [tokens, C], and the bias that is still to be added to it."""
        modules = recomputed_modules(self.config)
        with dropped(hidden_states) if "layernorm" in modules else nullcontext():
            hidden, bias = self.linear_fc1(hidden_states)
        activated = bias_gelu(hidden, bias)
        with dropped(activated) if "mlp_act" in modules else nullcontext():
            return self.linear_fc2(activated)


class StreamBlock(MegatronModule):
    """One stream's half of a block. With `qkv_only` the part after attention is absent (see the plain model).

    `linear_qkv` stacks its output rows as [N, 3, D], so that a split of its columns gives whole heads.
    """

    def __init__(self, config: TransformerConfig, submodules: StreamBlockSubmodules, qkv_only: bool = False):
        super().__init__(config)
        C, self.head_dim, self.qkv_only = config.hidden_size, config.kv_channels, qkv_only
        self.local_heads = config.num_attention_heads // config.tensor_model_parallel_size
        self.recomputed = recomputed_modules(config)
        common = dict(config=config, init_method=config.init_method, bias=True, is_expert=False)
        self.modulation = Modulation(config, rows=2 if qkv_only else 6)
        self.linear_qkv = build_module(
            submodules.linear_qkv,
            C,
            3 * C,
            gather_output=False,
            skip_bias_add=False,
            tp_comm_buffer_name="qkv",
            **common,
        )
        # The names that finalize_model_grads looks for: these gradients cover local heads only.
        self.q_layernorm = HeadNorm(self.head_dim, config.layernorm_epsilon)
        self.k_layernorm = HeadNorm(self.head_dim, config.layernorm_epsilon)
        if not qkv_only:
            self.linear_proj = build_module(
                submodules.linear_proj,
                C,
                C,
                input_is_parallel=True,
                skip_bias_add=True,  # gated_residual adds it
                tp_comm_buffer_name="proj",
                **common,
            )
            self.mlp = build_module(submodules.mlp, config=config, ffn_hidden_size=config.ffn_hidden_size)

    def qkv(
        self,
        x: torch.Tensor,
        modulation: tuple[torch.Tensor, ...],
        sample: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """q, k and v of a stream, q and k normalized per head and rotated.

        Args:
            x: [this rank's tokens, C].
            modulation: as `Modulation` returns it.
            sample: int64 [this rank's tokens].
            rotation: (cos, sin) of the tokens that come out of `linear_qkv`; None leaves them unrotated.

        Returns:
            Each [all tokens, local heads, D].
        """
        normed = modulated_layer_norm(x, *modulation[:2], sample, self.config.layernorm_epsilon)
        with dropped(normed) if "layernorm" in self.recomputed else nullcontext():
            fused, _ = self.linear_qkv(normed)
        q, k, v = fused.view(-1, self.local_heads, 3, self.head_dim).unbind(2)
        return self.q_layernorm(q, rotation), self.k_layernorm(k, rotation), v

    def finish(
        self, x: torch.Tensor, attended: torch.Tensor, modulation: tuple[torch.Tensor, ...], sample: torch.Tensor
    ) -> torch.Tensor:
        """Gated residuals of attention output [all tokens, local heads, D] and of the MLP."""
        x = gated_residual(x, *self.linear_proj(attended.flatten(1)), modulation[2], sample)
        if "mlp" in self.recomputed and torch.is_grad_enabled():
            return fp8.checkpoint(self.config, self._mlp, x, *modulation[3:], sample)
        return self._mlp(x, *modulation[3:], sample)

    def _mlp(self, x, shift, scale, gate, sample) -> torch.Tensor:
        normed = modulated_layer_norm(x, shift, scale, sample, self.config.layernorm_epsilon)
        return gated_residual(x, *self.mlp(normed), gate, sample)


class DualStreamBlock(MegatronModule):
    """An MMDiT block (paper 3.2): both streams, joined in window attention with injected references.

    Args:
        layer: number of the block in the whole model, from 0; its parity chooses the window grid.
    """

    def __init__(self, config: TransformerConfig, submodules: DualStreamBlockSubmodules, layer: int):
        super().__init__(config)
        self.parity = layer % 2
        self.visual = build_module(submodules.visual, config)
        self.text = build_module(submodules.text, config, qkv_only=layer == config.num_layers - 1)

    def forward(
        self,
        visual: torch.Tensor,
        text: torch.Tensor,
        base_visual: torch.Tensor,
        base_text: torch.Tensor,
        inputs: BlockInputs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """visual [this rank's visual tokens, C], text [its text tokens, C] -> the same shapes. `base_*` [B, 6, C]."""
        windows = inputs.windows[self.parity]
        mod_visual, mod_text = self.visual.modulation(base_visual), self.text.modulation(base_text)
        qkv = (
            *self.visual.qkv(visual, mod_visual, inputs.visual_sample, (windows.cos, windows.sin)),
            *self.text.qkv(text, mod_text, inputs.text_sample),
        )

        def attend(*qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return inputs.attend(qkv[:3], qkv[3:], windows)

        if "core_attn" in self.visual.recomputed and torch.is_grad_enabled():
            attended_visual, attended_text = fp8.checkpoint(self.config, attend, *qkv)
        else:
            attended_visual, attended_text = attend(*qkv)
        visual = self.visual.finish(visual, attended_visual, mod_visual, inputs.visual_sample)
        if not self.text.qkv_only:
            text = self.text.finish(text, attended_text, mod_text, inputs.text_sample)
        return visual, text


class Blocks(MegatronModule):
    """The blocks of one pipeline stage, named by their number in the whole model.

    So parameter names, checkpoint keys and initial weights are the same at every pipeline layout.
    """

    def __init__(self, config: TransformerConfig, spec: ModuleSpec, layers: range):
        super().__init__(config)
        for layer in layers:
            self.add_module(str(layer), build_module(spec, config, layer=layer))
        self.recomputed = config.recompute_num_layers if config.recompute_granularity == "full" else 0
        self.offloaded = config.cpu_offloading_num_layers

    def forward(
        self,
        visual: torch.Tensor,
        text: torch.Tensor,
        base_visual: torch.Tensor,
        base_text: torch.Tensor,
        inputs: BlockInputs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `DualStreamBlock`.

        The first `recompute_num_layers` blocks keep only their inputs until backward; what the first
        `cpu_offloading_num_layers` keep, they keep in host memory.
        """
        grad = torch.is_grad_enabled()
        offload = ActivationOffload(self, inputs) if grad and self.offloaded else None
        with fp8.stage_context(self.config):
            for i, (layer, block) in enumerate(self.named_children()):

                def run(*tensors: torch.Tensor, layer: str = layer, block: DualStreamBlock = block):
                    with fp8.block_context(self.config, int(layer)):
                        return block(*tensors, inputs)

                args = (visual, text, base_visual, base_text)
                with offload.block() if offload and i < self.offloaded else nullcontext():
                    if grad and i < self.recomputed:
                        visual, text = fp8.checkpoint(self.config, run, *args)
                    else:
                        visual, text = run(*args)
                if offload:
                    offload.computed(visual)
        if offload:
            offload.finish()
        return visual, text
