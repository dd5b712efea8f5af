"""Builds what a run trains: this rank's model chunks, their DDP wrappers, the optimizer."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from megatron.core.optimizer_param_scheduler import ParamGroupOverride
from megatron.core.transformer import TransformerConfig

from phantom_mega.config import ModelConfig, OptimizerConfig, ParallelConfig, PrecisionConfig
from phantom_mega.core.fp8 import require_fp8
from phantom_mega.core.init import init_weights
from phantom_mega.core.mmdit import PhantomMMDiT, layer_range
from phantom_mega.core.parallel_config import ddp_config, transformer_config
from phantom_mega.core.specs import block_spec


def build_model(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, seed: int
) -> list[PhantomMMDiT]:
    """This rank's chunks with initial weights, on its device; process groups exist (`initialize_distributed`).

    Raises:
        UserError: the layout cannot be built, or this machine cannot compute in that precision.
    """
    require_fp8(precision)
    config, spec = transformer_config(model, parallel, precision), block_spec(parallel.transformer_impl)
    pp_rank = parallel_state.get_pipeline_model_parallel_rank()
    chunks = []
    for vp_stage in range(parallel.virtual_pipeline_model_parallel_size or 1):
        stage = vp_stage if parallel.virtual_pipeline_model_parallel_size else None
        layers = layer_range(config, pp_rank, stage)
        chunks.append(PhantomMMDiT(config, model, spec, layers, parallel.attention_backend, stage))
    init_weights(chunks, seed)
    return chunks


def wrap_ddp(
    chunks: list[PhantomMMDiT], config: TransformerConfig, parallel: ParallelConfig
) -> list[DistributedDataParallel]:
    """Megatron's DDP around each chunk, and the hooks in `config` that its schedules call."""
    settings = ddp_config(parallel, PrecisionConfig(bf16=config.bf16))
    wrapped = [
        # Later chunks of the interleaved schedule reduce in one bucket, as in Megatron-LM: their reduction is hidden.
        DistributedDataParallel(config, settings, chunk, disable_bucketing=i > 0)
        for i, chunk in enumerate(chunks)
    ]
    if parallel.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    config.finalize_model_grads_func = finalize_model_grads
    return wrapped


def sync_parameters(wrapped: list[DistributedDataParallel]) -> None:
    """Finish the gathering of parameters that `overlap_param_gather` leaves to the next forward pass.

    Call it after an optimizer step before anything but that pass reads weights: a checkpoint, an export, an evaluation.
    """
    for chunk in wrapped:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def build_optimizer(
    wrapped: list[DistributedDataParallel],
    optimizer: OptimizerConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
) -> MegatronOptimizer:
    """AdamW over all chunks. Only matrices decay: biases, norms and modulation offsets do not."""
    settings = MegatronOptimizerConfig(
        optimizer="adam",
        lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2,
        adam_eps=optimizer.adam_eps,
        clip_grad=optimizer.clip_grad,
        bf16=precision.bf16,
        params_dtype=torch.bfloat16 if precision.bf16 else torch.float32,
        use_distributed_optimizer=True,
        overlap_param_gather=parallel.overlap_param_gather,
    )
    vectors = ParamPredicate(name="vectors", fn=lambda param: param.ndim == 1)
    no_decay = ParamKey(name=("*.bias", "*.modulation.offset"), predicate=vectors)
    overrides = {no_decay: ParamGroupOverride(wd_mult=0.0)}
    built = get_megatron_optimizer(settings, wrapped, config_overrides=overrides)
    for group in built.param_groups:
        # megatron leaves this to its scheduler: without it every group decays.
        group["weight_decay"] = optimizer.weight_decay * group["wd_mult"]
    return built
