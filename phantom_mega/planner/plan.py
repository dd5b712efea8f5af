"""The whole plan of a run on a cluster: what it trains on, its own layout, all layouts ranked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from phantom_mega.config import ParallelConfig, RunConfig
from phantom_mega.errors import UserError
from phantom_mega.parallel_layout import check_global_batch_size
from phantom_mega.planner.layouts import Estimate, Machines, Refusal, estimate, search
from phantom_mega.planner.parameters import model_parameters
from phantom_mega.planner.workload import Workload
from phantom_mega.precision import check_precision


@dataclass(frozen=True)
class Plan:
    """Everything that `report` shows.

    Attributes:
        recipe: its name.
        config: the run.
        machines: what it runs on.
        workload: what an iteration trains on.
        own: the configuration's own layout; None where it cannot be built there.
        own_refused: why not; empty where it can.
        ranked: layouts that fit, the fastest first.
        refused: the others.
    """

    recipe: str
    config: RunConfig
    machines: Machines
    workload: Workload
    own: Estimate | None
    own_refused: str
    ranked: tuple[Estimate, ...]
    refused: tuple[Refusal, ...]

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return model_parameters(self.config.model)

    @property
    def needed_flops(self) -> float:
        """FLOPs of one iteration: forward and backward of real tokens."""
        return 3 * self.workload.mean_needed.total * self.config.train.global_batch_size

    @property
    def executed_flops(self) -> float:
        """The same with the padding that linear layers compute."""
        return 3 * self.workload.mean_executed.total * self.config.train.global_batch_size

    @property
    def encoder_flops(self) -> float:
        """FLOPs of the frozen encoders in one iteration."""
        return self.workload.mean_encoding * self.config.train.global_batch_size

    def utilisation(self, estimate: Estimate) -> float:
        """Needed FLOPs over the BF16 peak of all GPUs (MFU)."""
        cluster = self.machines.cluster
        return self.needed_flops / (estimate.time.total * cluster.world_size * cluster.gpu.peak_bf16 * 1e12)

    def gpu_hours(self, estimate: Estimate) -> float:
        """GPU-hours of all iterations of the recipe."""
        return estimate.time.total * self.config.train.train_iters * self.machines.cluster.world_size / 3600


def make_plan(recipe: str, config: RunConfig, machines: Machines, workload: Workload) -> Plan:
    """Estimate the configuration's own layout and search all others.

    Raises:
        UserError: what no other layout would change: number formats, an iteration without packs.
    """
    check_precision(config.precision, config.model, ParallelConfig(), config.data)
    check_global_batch_size(config.train.global_batch_size, 1)
    own, why = None, ""
    try:
        own = estimate(config, machines, workload)
    except UserError as error:
        why = str(error)
    ranked, refused = search(config, machines, workload)
    return Plan(recipe, config, machines, workload, own, why, tuple(ranked), tuple(refused))


def plain(value: object) -> object:
    """A dataclass as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
