"""From the run's configuration to megatron-core's: TransformerConfig, DDP settings, process groups."""

from __future__ import annotations

import functools
import math
import os
from datetime import timedelta

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig

from phantom_mega.config import ModelConfig, ParallelConfig, PrecisionConfig
from phantom_mega.core.specs import fuses_weight_gradients
from phantom_mega.parallel_layout import (
    DEFAULT_RECOMPUTE_MODULES,
    check_layout,
    check_world_size,
    layers_per_chunk,
)
from phantom_mega.precision import check_precision

# megatron's own order of ranks, from neighbours to the farthest.
_ORDER = "tp-cp-ep-dp-pp"
# Made by `initialize_distributed` for each layout anew.
_replica_group: torch.distributed.ProcessGroup | None = None


def transformer_config(model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig) -> TransformerConfig:
    """megatron-core's configuration of this model and layout.

    Raises:
        UserError: the layout cannot be built (`check_layout`), or not in this precision (`check_precision`).
    """
    check_layout(model, parallel)
    check_precision(precision, model, parallel)
    dtype = torch.bfloat16 if precision.bf16 else torch.float32
    hooked = parallel.recompute_granularity == "selective" or parallel.cpu_offloading_num_layers > 0
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    recompute = dict(recompute_granularity=parallel.recompute_granularity, recompute_modules=[])
    if parallel.recompute_granularity == "full":
        layers = parallel.recompute_num_layers or layers_per_chunk(model, parallel)
        recompute |= dict(recompute_method="block", recompute_num_layers=layers)
    config = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        ffn_hidden_size=model.ffn_hidden_size,
        layernorm_epsilon=model.norm_epsilon,
        activation_func=functools.partial(F.gelu, approximate="tanh"),
        add_bias_linear=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # finalize_model_grads sums the gradients of q_layernorm and k_layernorm over the heads of all tensor ranks.
        qk_layernorm=True,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision.bf16,
        # init.py fills every parameter, so that weights do not depend on the layout.
        perform_initialization=False,
        # Sums over tokens, divided once by the tokens of the whole global batch: the same loss at every layout.
        calculate_per_token_loss=True,
        gradient_accumulation_fusion=fuses_weight_gradients(parallel.transformer_impl, precision.bf16, hooked),
        # Belongs to attention that is not used here.
        masked_softmax_fusion=False,
        # With megatron's defaults (the opposite of both) the interleaved schedule computes wrong gradients silently.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        deallocate_pipeline_outputs=True,
        # Read by `Blocks`. Its switch `cpu_offloading` is Transformer Engine's and refuses pipelines and recompute.
        cpu_offloading_num_layers=parallel.cpu_offloading_num_layers,
        **recompute,
        **(_fp8(precision) if precision.fp8 else {}),
    )
    # After its checks: they know the parts of megatron's own layers.
    config.recompute_modules = list(parallel.recompute_modules or DEFAULT_RECOMPUTE_MODULES)
    # Not a field of TransformerConfig: finalize_model_grads looks for it before it sums `pipeline_parallel` gradients.
    config.has_cond_embedder = True
    return config


def _fp8(precision: PrecisionConfig) -> dict:
    """megatron-core's fields of FP8. Attention and stored parameters stay in bf16."""
    names = (
        "fp8", "fp8_recipe", "fp8_margin", "fp8_amax_history_len", "fp8_amax_compute_algo",
        "first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16",
    )  # fmt: skip
    return {name: getattr(precision, name) for name in names}


def ddp_config(parallel: ParallelConfig, precision: PrecisionConfig) -> DistributedDataParallelConfig:
    """Gradient buffers: fp32 gradients for bf16 parameters, no averaging (the schedule divides by the token count)."""
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=precision.bf16,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=True,
        bucket_size=parallel.ddp_bucket_size,
        average_in_collective=False,
    )


def initialize_distributed(parallel: ParallelConfig, seed: int = 0) -> None:
    """Create the process groups of this layout (NCCL with GPUs, else gloo) from torchrun's environment variables.

    Raises:
        UserError: the number of ranks does not fit the layout.
    """
    check_world_size(parallel, int(os.environ.get("WORLD_SIZE", 1)))
    # Later than `HangWatch`, which tells where every thread stands: a collective that gives up first would not.
    timeout = timedelta(minutes=1.2 * parallel.distributed_timeout_minutes, seconds=5)
    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        # Started without torchrun: one process that needs no rendezvous.
        alone = {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
        store = {} if "MASTER_PORT" in os.environ else alone
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=timeout, **store)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        distributed_timeout_minutes=math.ceil(timeout.total_seconds() / 60),
        order=_ORDER,
    )
    _create_replica_groups(parallel, timeout)
    model_parallel_cuda_manual_seed(seed)


def _create_replica_groups(parallel: ParallelConfig, timeout: timedelta) -> None:
    """megatron's model-parallel groups leave context-parallel peers out; with them, groups are made here."""
    global _replica_group
    _replica_group = None
    if parallel.context_parallel_size > 1:
        generator = parallel_state.RankGenerator(
            tp=parallel.tensor_model_parallel_size,
            ep=1,
            dp=parallel_state.get_data_parallel_world_size(),
            pp=parallel.pipeline_model_parallel_size,
            cp=parallel.context_parallel_size,
            order=_ORDER,
        )
        ranks = generator.get_ranks("tp-cp-pp")
        _replica_group, _ = torch.distributed.new_subgroups_by_enumeration(ranks, timeout=timeout)


def replica_group() -> torch.distributed.ProcessGroup:
    """The ranks that train on the same packs as this one: its tensor-, context- and pipeline-parallel peers."""
    return _replica_group or parallel_state.get_model_parallel_group()
