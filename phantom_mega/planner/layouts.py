"""All layouts of a run on a cluster: which cannot be built or do not fit, and which of the others is fastest."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from phantom_mega.config import ParallelConfig, RunConfig
from phantom_mega.errors import UserError
from phantom_mega.parallel_layout import (
    check_global_batch_size,
    check_layout,
    check_num_microbatches,
    layers_per_chunk,
)
from phantom_mega.planner.communication import Cluster
from phantom_mega.planner.gpus import Rates
from phantom_mega.planner.memory import GIB, Memory, peak_memory
from phantom_mega.planner.timing import IterationTime, iteration_time
from phantom_mega.planner.workload import Workload
from phantom_mega.precision import check_precision

# What may be recomputed, from nothing to all; `full` then takes as few layers as fit.
_SELECTIVE = ([], ["layernorm", "mlp_act", "core_attn"], ["layernorm", "mlp"], ["layernorm", "mlp", "core_attn"])
# Part of a GPU's memory that stays free: what formulas miss.
MARGIN = 0.05
# Times that differ by less are equal, as far as the formulas go: the simpler layout is then the better one.
RESOLUTION = 1.03


@dataclass(frozen=True)
class Machines:
    """What a plan is for.

    Attributes:
        cluster: nodes and GPUs.
        rates: of one GPU.
        margin: part of its memory that must stay free.
    """

    cluster: Cluster
    rates: Rates
    margin: float = MARGIN

    @property
    def usable(self) -> float:
        """Bytes of one GPU that a layout may take."""
        return self.cluster.gpu.memory_gib * GIB * (1 - self.margin)


@dataclass(frozen=True)
class Estimate:
    """What one layout takes.

    Attributes:
        parallel: the layout.
        data_parallel: replicas.
        microbatches: packs of an iteration on one replica.
        memory: of the GPU that needs most.
        time: of one iteration.
        fits: whether the memory is there, with the margin.
    """

    parallel: ParallelConfig
    data_parallel: int
    microbatches: int
    memory: Memory
    time: IterationTime
    fits: bool


@dataclass(frozen=True)
class Refusal:
    """A layout that cannot be used, and why, in words."""

    parallel: ParallelConfig
    reason: str


def replicas(config: RunConfig, world_size: int) -> tuple[int, int]:
    """(data-parallel size, microbatches on each replica) of a layout on `world_size` GPUs.

    Raises:
        UserError: it cannot be built there, or the global batch does not divide.
    """
    parallel, size = config.parallel, config.train.global_batch_size
    check_layout(config.model, parallel, config.data, world_size)
    check_precision(config.precision, config.model, parallel, config.data)
    model_parallel = (
        parallel.tensor_model_parallel_size * parallel.context_parallel_size * parallel.pipeline_model_parallel_size
    )
    data_parallel = world_size // model_parallel
    check_global_batch_size(size, data_parallel)
    check_num_microbatches(parallel, size // data_parallel)
    return data_parallel, size // data_parallel


def estimate(config: RunConfig, machines: Machines, workload: Workload) -> Estimate:
    """Memory and time of the configuration's own layout.

    Raises:
        UserError: see `replicas`.
    """
    counts = replicas(config, machines.cluster.world_size)
    memory = peak_memory(config, workload.worst, *counts)
    time = iteration_time(config, machines.cluster, machines.rates, workload, *counts)
    return Estimate(config.parallel, *counts, memory, time, memory.total <= machines.usable)


def _divisors(number: int, limit: int) -> list[int]:
    return [size for size in range(1, min(number, limit) + 1) if number % size == 0]


def shapes(config: RunConfig, cluster: Cluster) -> Iterator[ParallelConfig]:
    """Every layout without its recomputation: sizes of all groups, interleaving, sequence parallelism.

    Tensor and context parallelism stay within a node each; beyond it they are never worth it.
    """
    inside = _divisors(cluster.gpus_per_node, cluster.gpus_per_node)
    stages = _divisors(cluster.world_size, config.model.num_layers)
    sizes = itertools.product(inside, inside, stages, (None, 2, 4), (True, False))
    for tp, cp, pp, vpp, sequence in sizes:
        if (sequence and tp == 1) or (vpp and pp == 1) or tp * cp * pp > cluster.world_size:
            continue  # another spelling of a layout that is there anyway, or more than all GPUs
        yield dataclasses.replace(
            config.parallel,
            tensor_model_parallel_size=tp,
            context_parallel_size=cp,
            pipeline_model_parallel_size=pp,
            virtual_pipeline_model_parallel_size=vpp,
            sequence_parallel=sequence,
            recompute_granularity=None,
            recompute_num_layers=None,
            recompute_modules=[],
            cpu_offloading_num_layers=0,
        )


def _recomputations(config: RunConfig, fits) -> Iterator[ParallelConfig]:
    """The ways to recompute that a layout may need, from the cheapest; `full` with the fewest layers that fit."""
    parallel = config.parallel
    yield parallel
    for modules in _SELECTIVE:
        yield dataclasses.replace(parallel, recompute_granularity="selective", recompute_modules=list(modules))
    layers = layers_per_chunk(config.model, parallel)
    full = [
        dataclasses.replace(parallel, recompute_granularity="full", recompute_num_layers=count)
        for count in range(1, layers + 1)
    ]
    low, high = 0, layers - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(full[middle]) else (middle + 1, high)
    yield full[low]


def search(config: RunConfig, machines: Machines, workload: Workload) -> tuple[list[Estimate], list[Refusal]]:
    """All layouts: those that fit, each with its fastest recomputation, the best first; and the refused.

    Of two that differ in sequence parallelism alone the better one is kept.
    """
    found, refused = [], []
    for parallel in shapes(config, machines.cluster):
        here = dataclasses.replace(config, parallel=parallel)
        try:
            counts = replicas(here, machines.cluster.world_size)
        except UserError as error:
            refused.append(Refusal(parallel, str(error)))
            continue
        memory: dict[int, Memory] = {}

        def fits(tried: ParallelConfig, counts=counts, memory=memory) -> bool:
            needed = peak_memory(dataclasses.replace(config, parallel=tried), workload.worst, *counts)
            memory[id(tried)] = needed
            return needed.total <= machines.usable

        fitting, least = [], None
        for tried in _recomputations(here, fits):
            if fits(tried):
                time = iteration_time(
                    dataclasses.replace(config, parallel=tried), machines.cluster, machines.rates, workload, *counts
                )
                fitting.append(Estimate(tried, *counts, memory[id(tried)], time, True))
            least = memory[id(tried)].total if least is None else min(least, memory[id(tried)].total)
        if fitting:
            found.append(min(fitting, key=lambda each: (each.time.total, each.memory.total)))
        else:
            refused.append(Refusal(parallel, _too_large(least, machines)))
    return _ranked(found), refused


_SIZES = (
    "tensor_model_parallel_size", "context_parallel_size", "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
)  # fmt: skip


def _ranked(found: list[Estimate]) -> list[Estimate]:
    """The fastest first; among those as fast within `RESOLUTION`, the one with fewer stages, then fewer parts."""
    twins: dict[tuple, list[Estimate]] = defaultdict(list)
    for each in found:
        sizes = tuple(getattr(each.parallel, name) for name in _SIZES)
        twins[sizes].append(each)
    kept = [min(pair, key=lambda each: (each.time.total, each.memory.total)) for pair in twins.values()]
    fastest = min((each.time.total for each in kept), default=1.0)

    def rank(each: Estimate) -> tuple:
        parallel = each.parallel
        steps = int(math.log(each.time.total / fastest) / math.log(RESOLUTION))
        parts = parallel.tensor_model_parallel_size * parallel.context_parallel_size
        virtual = parallel.virtual_pipeline_model_parallel_size or 1
        return steps, parallel.pipeline_model_parallel_size, virtual, parts, each.time.total

    return sorted(kept, key=rank)


def _too_large(least: float, machines: Machines) -> str:
    gpu = machines.cluster.gpu
    return (
        f"needs {least / GIB:.1f} GiB on a GPU at full recomputation; {gpu.name} has {gpu.memory_gib:g} GiB, of which "
        f"{machines.usable / GIB:.1f} may be used"
    )


def group_refusals(refused: list[Refusal]) -> list[tuple[str, list[Refusal]]]:
    """Refused layouts by kind of reason, the largest group first; the reason is that of a group's first layout."""
    groups: dict[str, list[Refusal]] = defaultdict(list)
    for refusal in refused:
        groups[re.sub(r"\d[\d,.]*", "#", refusal.reason)].append(refusal)
    return sorted(((group[0].reason, group) for group in groups.values()), key=lambda pair: -len(pair[1]))
