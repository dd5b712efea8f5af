"""One dual-stream block on tensor-parallel linears: what `hf.transformer_phantom.DualStreamBlock` is in plain PyTorch.

S: visual tokens, L: text-stream tokens, N: heads, D: head dim, C: model width, B: samples. With context parallelism a
rank has 1/cp of a pack's tokens, with sequence parallelism 1/tp of these between the linears. Inside attention it has
all tokens of N/(tp cp) heads, so a window is always whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core.transformer import MegatronModule, TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from torch import nn

from phantom_mega.attention import Windows
from phantom_mega.core import fp8
from phantom_mega.core.specs import DualStreamBlockSubmodules, StreamBlockSubmodules
from phantom_mega.hf.transformer_phantom import RMSNorm, modulate
from phantom_mega.rope import apply_rope


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


class Modulation(MegatronModule):
    """Learned per-layer offset of the shared timestep modulation ("ada single").

    A module of its own: overlap_param_gather waits for a parameter when the module that owns it is called.
    """

    def __init__(self, config: TransformerConfig, rows: int):
        super().__init__(config)
        self.offset = nn.Parameter(torch.zeros(rows, config.hidden_size))

    def forward(self, base: torch.Tensor, sample: torch.Tensor) -> list[torch.Tensor]:
        """base [B, 6, C], sample [tokens] -> per token: shift, scale, gate of attention, then of the MLP."""
        rows = base[:, : len(self.offset)] + self.offset
        return [row.index_select(0, sample) for row in rows.unbind(1)]


class StreamBlock(MegatronModule):
    """One stream's half of a block. With `qkv_only` the part after attention is absent (see the plain model).

    `linear_qkv` stacks its output rows as [N, 3, D], so that a split of its columns gives whole heads.
    """

    def __init__(self, config: TransformerConfig, submodules: StreamBlockSubmodules, qkv_only: bool = False):
        super().__init__(config)
        C, self.head_dim, self.qkv_only = config.hidden_size, config.kv_channels, qkv_only
        self.local_heads = config.num_attention_heads // config.tensor_model_parallel_size
        common = dict(config=config, init_method=config.init_method, bias=True, skip_bias_add=False, is_expert=False)
        self.modulation = Modulation(config, rows=2 if qkv_only else 6)
        self.linear_qkv = build_module(
            submodules.linear_qkv, C, 3 * C, gather_output=False, tp_comm_buffer_name="qkv", **common
        )
        # The names that finalize_model_grads looks for: these gradients cover local heads only.
        self.q_layernorm = RMSNorm(self.head_dim, config.layernorm_epsilon)
        self.k_layernorm = RMSNorm(self.head_dim, config.layernorm_epsilon)
        if not qkv_only:
            self.linear_proj = build_module(
                submodules.linear_proj, C, C, input_is_parallel=True, tp_comm_buffer_name="proj", **common
            )
            self.mlp = build_module(submodules.mlp, config=config, ffn_hidden_size=config.ffn_hidden_size)

    def qkv(self, x: torch.Tensor, modulation: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """x [this rank's tokens, C] -> q, k, v, each [all tokens, local heads, D], q and k normalized per head."""
        x = modulate(x, *modulation[:2], self.config.layernorm_epsilon)
        fused, _ = self.linear_qkv(x)
        q, k, v = fused.view(-1, self.local_heads, 3, self.head_dim).unbind(2)
        return self.q_layernorm(q), self.k_layernorm(k), v

    def finish(self, x: torch.Tensor, attended: torch.Tensor, modulation: list[torch.Tensor]) -> torch.Tensor:
        """Gated residuals of attention output [all tokens, local heads, D] and of the MLP."""
        gate, shift_mlp, scale_mlp, gate_mlp = modulation[2:]
        projected, _ = self.linear_proj(attended.flatten(1))
        x = x + gate * projected
        hidden, bias = self.mlp(modulate(x, shift_mlp, scale_mlp, self.config.layernorm_epsilon))
        return x + gate_mlp * (hidden + bias)


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
        mod_visual = self.visual.modulation(base_visual, inputs.visual_sample)
        mod_text = self.text.modulation(base_text, inputs.text_sample)
        q, k, v = self.visual.qkv(visual, mod_visual)
        q, k = (apply_rope(x, windows.cos, windows.sin) for x in (q, k))
        attended_visual, attended_text = inputs.attend((q, k, v), self.text.qkv(text, mod_text), windows)
        visual = self.visual.finish(visual, attended_visual, mod_visual)
        if not self.text.qkv_only:
            text = self.text.finish(text, attended_text, mod_text)
        return visual, text


class Blocks(MegatronModule):
    """The blocks of one pipeline stage, named by their number in the whole model.

    So parameter names, checkpoint keys and initial weights are the same at every pipeline layout.
    """

    def __init__(self, config: TransformerConfig, spec: ModuleSpec, layers: range):
        super().__init__(config)
        for layer in layers:
            self.add_module(str(layer), build_module(spec, config, layer=layer))
        recompute = config.recompute_granularity == "full"
        self.recomputed = config.recompute_num_layers if recompute else 0

    def forward(
        self,
        visual: torch.Tensor,
        text: torch.Tensor,
        base_visual: torch.Tensor,
        base_text: torch.Tensor,
        inputs: BlockInputs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `DualStreamBlock`; the first `recompute_num_layers` blocks keep only their inputs until backward."""
        with fp8.stage_context(self.config):
            for i, (layer, block) in enumerate(self.named_children()):

                def run(*tensors: torch.Tensor, layer: str = layer, block: DualStreamBlock = block):
                    with fp8.block_context(self.config, int(layer)):
                        return block(*tensors, inputs)

                args = (visual, text, base_visual, base_text)
                if i < self.recomputed and torch.is_grad_enabled():
                    visual, text = fp8.checkpoint(self.config, run, *args)
                else:
                    visual, text = run(*args)
        return visual, text
