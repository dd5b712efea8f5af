"""The Phantom MMDiT on megatron-core, equal to `hf.PhantomTransformer3DModel` at every parallel layout.

Which rank holds what. Blocks: linears are split over tensor ranks, everything else is replicated there. Embedders live
on the first pipeline stage, the final layer on the last. The timestep embedder and the modulation heads are on every
stage (recomputed from the timestep instead of sent along), and their gradients are summed over stages. With context
parallelism ranks hold the same weights and each a part of the tokens (`context_parallel`); their gradients are summed
like those of data-parallel ranks.

S: visual tokens, L: text-stream tokens, C: model width, B: samples of the pack, tp and cp: tensor- and context-parallel
sizes; S' and L': this rank's tokens, S/cp and L/cp, or S/(tp cp) and L/(tp cp) with sequence parallelism.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import MegatronModule, TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import nn

from phantom_mega.attention import resolve_backend
from phantom_mega.config import ModelConfig
from phantom_mega.core.context_parallel import attention, rank_tokens, rotated_windows
from phantom_mega.core.fused import modulated_layer_norm
from phantom_mega.core.layers import BlockInputs, Blocks
from phantom_mega.geometry import PATCH
from phantom_mega.hf.transformer_phantom import MLP, timestep_features
from phantom_mega.packs import PackInputs

# On every pipeline stage, with equal weights; `_mark_replicated` has what that takes.
REPLICATED_OVER_STAGES = ("timestep_embedder.", "visual_modulation.", "text_modulation.")


class PhantomMMDiT(MegatronModule):
    """One pipeline chunk of the model; the whole model when there is one stage.

    Args:
        config: `parallel_config.transformer_config(...)`.
        model: sizes.
        spec: `specs.block_spec(...)`.
        layers: numbers of this chunk's blocks in the whole model.
        attention_backend: a name of `attention.BACKENDS` or `auto`.
        vp_stage: number of this chunk on its rank in the interleaved schedule, else None.
    """

    # Read by megatron's schedules and finalize_model_grads.
    model_type = ModelType.encoder_or_decoder
    share_embeddings_and_output_weights = False

    def __init__(
        self,
        config: TransformerConfig,
        model: ModelConfig,
        spec: ModuleSpec,
        layers: range,
        attention_backend: str = "auto",
        vp_stage: int | None = None,
    ):
        super().__init__(config)
        self.model, self.attention_backend, self.vp_stage = model, attention_backend, vp_stage
        self.pre_process, self.post_process = layers.start == 0, layers.stop == config.num_layers
        self.input_tensor: torch.Tensor | None = None
        C, patch_dim = config.hidden_size, model.latent_channels * PATCH[1] * PATCH[2]
        if self.pre_process:
            self.visual_embedder = nn.Linear(patch_dim, C)
            self.text_embedder = nn.Linear(model.text_dim, C)
            self.clip_projector = MLP(model.clip_dim, C, C)
        self.timestep_embedder = nn.Sequential(nn.Linear(model.timestep_dim, C), nn.SiLU(), nn.Linear(C, C))
        self.visual_modulation = nn.Linear(C, 6 * C)
        self.text_modulation = nn.Linear(C, 6 * C)
        self.blocks = Blocks(config, spec, layers)
        if self.post_process:
            self.final_modulation = nn.Linear(C, 2 * C)
            self.final_proj = nn.Linear(C, patch_dim)
        self.to(config.params_dtype).cuda(torch.cuda.current_device())
        self._mark_replicated()

    def _mark_replicated(self) -> None:
        """Tell megatron which gradients to sum over tensor ranks and over pipeline stages."""
        stages = self.config.pipeline_model_parallel_size
        for name, param in self.named_parameters():
            if not getattr(param, "tensor_model_parallel", False):
                # Each tensor rank saw only its own tokens.
                param.sequence_parallel = self.config.sequence_parallel
            if name.startswith(REPLICATED_OVER_STAGES) and stages > 1:
                param.pipeline_parallel = True
                # Counted once in the gradient norm.
                param.shared = not self.pre_process
                # A gradient bucket of its own. The distributed optimizer reduce-scatters buckets before gradients are
                # summed over stages: a rank's part of this tensor must be the same part on every stage.
                param.shared_embedding = True

    def set_input_tensor(self, input_tensor: list[torch.Tensor]) -> None:
        """Take the previous stage's output, in a list of one; called by the schedule before `forward`."""
        self.input_tensor = input_tensor[0]

    def _condition(self, timestep: torch.Tensor) -> torch.Tensor:
        """[B, C] embedding of timesteps [B], the input of all modulation heads."""
        features = timestep_features(timestep, self.model.timestep_dim).to(self.config.params_dtype)
        return F.silu(self.timestep_embedder(features))

    def _embed(self, inputs: PackInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's tokens of both streams, [S', C] and [L', C].

        The text stream is short, so each rank embeds all of it and keeps its part. All parameters take part for every
        pack, also without references: overlapped gradient reduction waits for each of them.
        """
        layout, dtype = inputs.layout, self.config.params_dtype
        visual = self.visual_embedder(inputs.visual[rank_tokens(layout.seq_length, self.config)].to(dtype))
        caption = self.text_embedder(inputs.text.to(dtype))
        stream = caption.new_zeros(layout.text_seq_length, self.config.hidden_size)
        stream = stream.index_copy(0, layout.text_index, caption)
        stream = stream.index_copy(0, layout.clip_index, self.clip_projector(inputs.clip.to(dtype)))
        return visual, stream[rank_tokens(layout.text_seq_length, self.config)]

    def forward(self, inputs: PackInputs) -> torch.Tensor:
        """Run this chunk on one pack.

        Args:
            inputs: the pack; chunks after the first read only its layout and timesteps.

        Returns:
            On the last chunk the velocity [S/cp, 4 * latent_channels] of `context_parallel.context_tokens(S)`, the same
            on every tensor rank; else the hidden state [S' + L', 1, C], visual then text.
        """
        layout, config = inputs.layout, self.config
        visual_tokens = rank_tokens(layout.seq_length, config)
        text_tokens = rank_tokens(layout.text_seq_length, config)
        emb = self._condition(inputs.timestep)
        base_visual, base_text = (
            head(emb).unflatten(-1, (6, config.hidden_size)) for head in (self.visual_modulation, self.text_modulation)
        )
        if self.pre_process:
            visual, text = self._embed(inputs)
        else:
            hidden = self.input_tensor.squeeze(1)
            visual, text = hidden.split(
                [visual_tokens.stop - visual_tokens.start, text_tokens.stop - text_tokens.start]
            )
        backend = resolve_backend(self.attention_backend, visual.device, visual.dtype)
        visual_sample = layout.visual_sample[visual_tokens]
        block_inputs = BlockInputs(
            visual_sample,
            layout.text_sample[text_tokens],
            rotated_windows(layout),
            attention(layout, config, backend),
        )
        visual, text = self.blocks(visual, text, base_visual, base_text, block_inputs)
        if not self.post_process:
            # Not a view: the schedule frees this tensor once it is sent.
            return torch.cat([visual[:, None], text[:, None]])
        return self._final(visual, emb, visual_sample)

    def _final(self, visual: torch.Tensor, emb: torch.Tensor, visual_sample: torch.Tensor) -> torch.Tensor:
        shift, scale = self.final_modulation(emb).chunk(2, dim=-1)
        normed = modulated_layer_norm(visual, shift, scale, visual_sample, self.config.layernorm_epsilon)
        velocity = self.final_proj(normed)
        if self.config.sequence_parallel:
            # Every tensor rank computes the same loss of these tokens, so the backward pass only takes its part again.
            velocity = gather_from_sequence_parallel_region(velocity, tensor_parallel_output_grad=False)
        return velocity

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """State for `dist_checkpointing`; keys are the same at every layout, see `Blocks`."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for key, sharded in state.items():
            if key.startswith(tuple(prefix + name for name in REPLICATED_OVER_STAGES)):
                # The first chunk's copy is the one that is written.
                _, tp_rank, dp_rank = sharded.replica_id
                sharded.replica_id = (self.blocks_offset, tp_rank, dp_rank)
        return state

    @property
    def blocks_offset(self) -> int:
        """Number of this chunk's first block in the whole model."""
        return int(next(name for name, _ in self.blocks.named_children()))


def layer_range(config: TransformerConfig, pp_rank: int, vp_stage: int | None) -> range:
    """Blocks of one chunk. Chunk `vp_stage` of stage `pp_rank` comes after the same chunk of all earlier stages."""
    stages, chunks = config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size or 1
    count = config.num_layers // (stages * chunks)
    first = ((vp_stage or 0) * stages + pp_rank) * count
    return range(first, first + count)
