"""Memory of one GPU, part by part, at the peak of an iteration: the backward pass of the last forward pass.

Weights and gradients lie in megatron's buffers (bf16 weights, fp32 gradients); fp32 main weights, both moments and the
moving average are sharded over data- and context-parallel ranks by the distributed optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from phantom_mega.config import ParallelConfig, RunConfig
from phantom_mega.geometry import PATCH
from phantom_mega.parallel_layout import DEFAULT_RECOMPUTE_MODULES, layers_per_chunk
from phantom_mega.planner import activations as act
from phantom_mega.planner.encoders import Encoders
from phantom_mega.planner.parameters import block_linear_parameters, stage_layers, stage_parameters
from phantom_mega.planner.workload import PackSizes
from phantom_mega.windows import WindowSpec

GIB = 1 << 30
# CUDA's context with the kernels' code, NCCL's buffers of every group, cuBLAS's and cuDNN's workspaces; assumed.
RESERVED = 3 * GIB
# Part of what the allocator holds that lies between blocks in use; assumed.
FRAGMENTATION = 0.05
# What the VAE takes while it encodes a clip (`conditioning.vae.GPU_TILE_ABOVE`), beside training with `encode_ahead`.
ENCODING = 5 * GIB


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU.

    Attributes:
        weights: parameters as the model reads them.
        gradients: megatron's gradient buffers.
        optimizer: this rank's shard of main weights, moments and average.
        activations: kept by all microbatches in flight.
        workspace: gradients of activations at the peak, and what a recomputed block keeps for a moment.
        packs: inputs, targets and index arrays of all microbatches of the iteration.
        encoders: weights of the frozen encoders, and `ENCODING` where they encode ahead.
        reserved: `RESERVED`.
        fragmentation: `FRAGMENTATION` of what is allocated and freed again.
        host: pinned memory of the host that offloading takes; not a part of the total.
        stage: pipeline stage.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float
    packs: float
    encoders: float
    reserved: float
    fragmentation: float
    host: float
    stage: int

    def parts(self) -> dict[str, float]:
        """Parts of the total by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("host", "stage")}

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts().values())


def chunks_in_flight(parallel: ParallelConfig, stage: int, microbatches: int) -> int:
    """Forward passes of one model chunk that a stage holds at once, at most.

    1F1B: stage p of pp holds those of pp - p microbatches. Interleaved (arXiv 2104.04473, megatron's schedules.py): the
    warm-up of 2 (pp - p - 1) + (vpp - 1) pp chunks, and one more.
    """
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if not vpp:
        return min(pp - stage, microbatches)
    return min(2 * (pp - stage - 1) + (vpp - 1) * pp + 1, microbatches * vpp)


def recomputed_modules(parallel: ParallelConfig) -> tuple[str, ...]:
    """What `selective` recomputes in every block."""
    if parallel.recompute_granularity != "selective":
        return ()
    return tuple(parallel.recompute_modules or DEFAULT_RECOMPUTE_MODULES)


@dataclass(frozen=True)
class _Kept:
    """Bytes of one forward pass of one chunk: kept on the GPU, offloaded, and for a moment in the backward pass."""

    device: float
    host: float
    moment: float


def _chunk(local: act.Local, parallel: ParallelConfig, layers: int) -> _Kept:
    """Of a chunk of `layers` equal blocks; the first ones are recomputed or offloaded."""
    modules = recomputed_modules(parallel)
    table = act.layer_saved(local, last=False)
    whole, inputs = act.total(table, modules), act.layer_inputs(local)
    recomputed = 0
    if parallel.recompute_granularity == "full":
        recomputed = parallel.recompute_num_layers or layers
    sizes = [inputs] * recomputed + [whole] * (layers - recomputed)
    offloaded = parallel.cpu_offloading_num_layers
    # Two offloaded blocks are on the GPU at a time (`core.offload.ActivationOffload`).
    resident = sum(sorted(sizes[:offloaded])[-2:])
    moment = act.layer_workspace(local, modules) + (whole - inputs if recomputed else 0.0)
    return _Kept(sum(sizes[offloaded:]), sum(sizes[:offloaded]), moment + resident)


def pack_bytes(config: RunConfig, sizes: PackSizes) -> float:
    """Bytes of one microbatch's inputs, target and index arrays (`PackInputs`, `PackLayout`, `Windows`)."""
    model, e = config.model, 2 if config.precision.bf16 else 4
    patch_dim = model.latent_channels * PATCH[1] * PATCH[2]
    numbers = sizes.visual * patch_dim * (e + 4) + e * (sizes.caption * model.text_dim + sizes.clip * model.clip_dim)
    tokens = sizes.visual * (8 + 1 + 4) + sizes.text * 8 + 8 * (sizes.caption + sizes.clip)
    grids = 2 if WindowSpec.of(model).is_shifted(1) else 1
    rotation = 4 * sizes.visual * (model.hidden_size // model.num_attention_heads)
    windows = 16 * sizes.rows + 8 * (sizes.video_rows + sizes.shared_rows) + rotation
    return float(numbers + tokens + grids * windows)


def stage_memory(config: RunConfig, sizes: PackSizes, data_parallel: int, microbatches: int, stage: int) -> Memory:
    """Peak of one rank of a pipeline stage.

    Args:
        config: model, layout, precision, average and encoders are read.
        sizes: of the largest pack.
        data_parallel: replicas.
        microbatches: packs of an iteration on one replica.
        stage: number of the pipeline stage.
    """
    model, parallel, bf16 = config.model, config.parallel, config.precision.bf16
    local = act.Local.of(model, parallel, sizes, config.precision)
    count = stage_parameters(model, parallel, stage)
    quantized = 0.0
    if (
        config.precision.fp8 is not None
    ):  # Transformer Engine keeps FP8 weights and their transposes between microbatches
        quantized = 2.0 * sum(
            block_linear_parameters(model, parallel)
            + block_linear_parameters(model, parallel, layer + 1 == model.num_layers)
            for layer in stage_layers(model, parallel, stage)
        )
    chunk = _chunk(local, parallel, layers_per_chunk(model, parallel))
    chunks = chunks_in_flight(parallel, stage, microbatches)
    kept = chunk.device * chunks
    if stage == 0:
        kept += act.total(act.embedding_saved(local)) * min(chunks, microbatches)
    if stage == parallel.pipeline_model_parallel_size - 1:
        kept += act.total(act.final_saved(local))
    # fp32 training updates the weights in place: no main copy.
    state = (4 if bf16 else 0) + 8 + (4 if config.train.ema_decay > 0 else 0)
    shards = data_parallel * parallel.context_parallel_size
    encoders = Encoders.of(config.conditioning, config.precision)
    packs = pack_bytes(config, sizes) * microbatches
    return Memory(
        weights=count * (2.0 if bf16 else 4.0) + quantized,
        gradients=count * 4.0,
        optimizer=count * state / shards,
        activations=kept,
        workspace=chunk.moment,
        packs=packs,
        encoders=encoders.weights + (ENCODING if encoders.vae_known and config.conditioning.encode_ahead else 0),
        reserved=float(RESERVED),
        fragmentation=FRAGMENTATION * (kept + chunk.moment + packs),
        host=chunk.host * chunks,
        stage=stage,
    )


def peak_memory(config: RunConfig, sizes: PackSizes, data_parallel: int, microbatches: int) -> Memory:
    """Of the stage that takes most: the first holds most microbatches and the embedders, the last the final layer."""
    stages = {0, config.parallel.pipeline_model_parallel_size - 1}
    return max(
        (stage_memory(config, sizes, data_parallel, microbatches, stage) for stage in stages),
        key=lambda memory: memory.total,
    )
