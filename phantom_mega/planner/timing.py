"""Seconds of one iteration, part by part, from FLOPs, achieved rates and transfers.

Not modelled: smaller matrices run slower than large ones, so high tensor parallelism is a little worse than shown;
kernels' launch times; waiting for data.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from phantom_mega.config import RunConfig
from phantom_mega.errors import UserError
from phantom_mega.parallel_layout import layers_per_chunk
from phantom_mega.planner import activations as act
from phantom_mega.planner.communication import Cluster, Transfer, transfers
from phantom_mega.planner.gpus import ENCODER_EFFICIENCY, Rates
from phantom_mega.planner.memory import recomputed_modules
from phantom_mega.planner.parameters import stage_parameters
from phantom_mega.planner.workload import Workload

TERA = 1e12
# Bytes that AdamW with bf16 weights and a moving average moves for each parameter of a rank's shard.
_UPDATE_BYTES = 38
# Part of the time without computation in which encoders that encode ahead get work done; assumed, not measured.
HIDDEN = 0.5


@dataclass(frozen=True)
class IterationTime:
    """Seconds of one iteration.

    Attributes:
        linear, attention: forward and backward of linear layers (with padding) and of attention.
        recompute: forward passes done again.
        communication: exposed transfers inside of microbatches: tensor, context and pipeline parallel.
        bubble: stages that wait for the first or after the last microbatch.
        stragglers: waiting for the replica with the largest packs.
        gradients: exposed reduction of gradients and gathering of weights.
        optimizer: the update.
        encoders: the frozen encoders, on the model-parallel peer that has most of their samples; those that encode
            ahead use a part of the gaps that communication, bubble, stragglers and gradients leave, and only the rest
            counts.
        transfers: everything that is sent.
    """

    linear: float
    attention: float
    recompute: float
    communication: float
    bubble: float
    stragglers: float
    gradients: float
    optimizer: float
    encoders: float
    transfers: tuple[Transfer, ...]

    def parts(self) -> dict[str, float]:
        """Seconds by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "transfers"}

    @property
    def total(self) -> float:
        """Seconds of the iteration."""
        return sum(self.parts().values())


def linear_rate(config: RunConfig, rates: Rates) -> float:
    """FLOP/s of linear layers.

    Raises:
        UserError: FP8 without a rate for it.
    """
    fp8 = config.precision.fp8 is not None
    if fp8 and rates.linear_fp8 is None:
        raise UserError("precision.fp8 is set, but this GPU has no FP8; unset it or plan for h100 or h200")
    rate = rates.linear_fp8 if fp8 else rates.linear_bf16
    # fp32 training runs on TF32 at best, half of BF16.
    return rate * TERA * (1 if config.precision.bf16 else 0.5)


def iteration_time(
    config: RunConfig, cluster: Cluster, rates: Rates, workload: Workload, data_parallel: int, microbatches: int
) -> IterationTime:
    """Of a layout whose replicas each train on `microbatches` packs."""
    parallel, model = config.parallel, config.model
    tp, cp, pp = (
        parallel.tensor_model_parallel_size, parallel.context_parallel_size, parallel.pipeline_model_parallel_size
    )  # fmt: skip
    ranks, chunks = tp * cp * pp, parallel.virtual_pipeline_model_parallel_size or 1
    flops = workload.mean_executed
    # Of one microbatch on one stage, forward and backward.
    linear = 3 * flops.linear / ranks / linear_rate(config, rates)
    attention = 3 * flops.attention / ranks / (rates.attention_bf16 * TERA)
    again = _recompute(config, cluster, workload, linear / 3, attention / 3)
    sent = transfers(config, cluster, data_parallel, microbatches, (linear + attention) * 2 / 3)
    inside = sum(transfer.exposed for transfer in sent if transfer.name in _INSIDE)
    steady = microbatches * (linear + attention + again) + inside
    bubble = steady / microbatches * (pp - 1) / chunks
    shard = stage_parameters(model, parallel, 0) / (data_parallel * cp)
    encoding = workload.encoding_share(ranks, microbatches)
    straggling = workload.straggling(data_parallel, microbatches)
    waiting = (straggling - 1) * (steady + bubble)
    outside = sum(transfer.exposed for transfer in sent if transfer.name not in _INSIDE)
    encoders = encoding / (ENCODER_EFFICIENCY * cluster.gpu.peak_bf16 * TERA)
    if config.conditioning.encode_ahead:
        encoders = max(0.0, encoders - HIDDEN * (inside + bubble + waiting + outside))
    return IterationTime(
        linear=microbatches * linear,
        attention=microbatches * attention,
        recompute=microbatches * again,
        communication=inside,
        bubble=bubble,
        stragglers=waiting,
        gradients=outside,
        optimizer=shard * _UPDATE_BYTES / (cluster.gpu.hbm * 1e9),
        encoders=encoders,
        transfers=tuple(sent),
    )


_INSIDE = ("tensor parallel", "context parallel", "pipeline")


def _recompute(config: RunConfig, cluster: Cluster, workload: Workload, linear: float, attention: float) -> float:
    """Seconds of one microbatch on one stage that recomputation adds; `linear`, `attention`: its forward pass."""
    parallel, model, modules = config.parallel, config.model, recomputed_modules(config.parallel)
    if parallel.recompute_granularity == "full":
        layers = layers_per_chunk(model, parallel)
        return (linear + attention) * (parallel.recompute_num_layers or layers) / layers
    seconds = attention if "core_attn" in modules else 0.0
    if "mlp" in modules:
        seconds += linear * 2 * model.ffn_hidden_size / (4 * model.hidden_size + 2 * model.ffn_hidden_size)
    # Norms and GELU are bound by memory: each tensor is read as something alike and written.
    cheap = tuple({"layernorm", "mlp_act"} & set(modules))
    local = act.Local.of(model, parallel, workload.worst, config.precision)
    table = act.layer_saved(local, last=False)
    dropped = act.total(table) - act.total(table, cheap)
    return seconds + 2 * dropped * model.num_layers / parallel.pipeline_model_parallel_size / (cluster.gpu.hbm * 1e9)
