"""AdamW on megatron-core's distributed optimizer, the weights' moving average beside its moments, and the guarded step.

The average (EMA) is one more state tensor of every fp32 main parameter: sharded over the data-parallel ranks, saved and
resharded by the same code as `exp_avg`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from phantom_mega.config import RunConfig
from phantom_mega.core import build as core_build
from phantom_mega.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")


class EmaDistributedOptimizer(DistributedOptimizer):
    """A distributed optimizer whose state holds `ema` beside the moments, so that checkpoints carry it."""

    @property
    def optimizer_state_keys(self) -> tuple[str, ...]:
        """State tensors that are saved and loaded for every parameter."""
        return (*super().optimizer_state_keys, "ema")

    @torch.no_grad()
    def whole_average(self, param: torch.nn.Parameter) -> torch.Tensor:
        """float32 average of a model parameter of this rank, put together from the data-parallel ranks that share it.

        A collective call of those ranks.
        """
        whole = torch.zeros(param.numel(), dtype=torch.float32, device=param.device)
        if param in self.model_param_group_index_map:  # this rank holds a part of it
            group, place = self.model_param_group_index_map[param]
            part = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]["ema"]
            held = self._get_model_param_range_map(param)["param"]
            whole[held.start : held.end].copy_(part.view(-1))
        torch.distributed.all_reduce(whole, group=self.data_parallel_group)
        return whole.view(param.shape)


def build_optimizer(wrapped: list[torch.nn.Module], config: RunConfig) -> ChainedOptimizer:
    """AdamW over the DDP-wrapped model chunks of this rank, with the weights' average if `train.ema_decay` > 0.

    State is allocated here, so that memory is known before the first step and a checkpoint can always be read into it.
    """
    optimizer = core_build.build_optimizer(wrapped, config.optimizer, config.parallel, config.precision)
    for part in optimizer.chained_optimizers:
        _allocate_state(part, with_ema=config.train.ema_decay > 0)
    return optimizer


def _allocate_state(part: DistributedOptimizer, with_ema: bool) -> None:
    if with_ema:
        part.__class__ = EmaDistributedOptimizer
        if hasattr(part.optimizer, "name_to_dtype_map"):  # Transformer Engine's FusedAdam looks up every state's type
            part.optimizer.name_to_dtype_map["ema"] = torch.float32
    for param in _main_params(part):
        state = part.optimizer.state[param]
        for key in MOMENTS:
            state[key] = torch.zeros_like(param, dtype=torch.float32)
        if isinstance(part.optimizer, torch.optim.AdamW):  # fused ones count steps by parameter group
            state["step"] = torch.tensor(0.0)
        if with_ema:
            state["ema"] = param.detach().clone().float()


def _main_params(part: DistributedOptimizer) -> list[torch.Tensor]:
    return [param for group in part.optimizer.param_groups for param in group["params"]]


def build_scheduler(optimizer: ChainedOptimizer, config: RunConfig) -> OptimizerParamScheduler:
    """Linear warm-up, then constant or cosine, counted in iterations.

    Raises:
        UserError: an unknown style, or a warm-up as long as the decay.
    """
    settings, iters = config.optimizer, config.train.train_iters
    if settings.lr_decay_style not in ("constant", "cosine"):
        raise UserError(f"optimizer.lr_decay_style={settings.lr_decay_style!r} is unknown; use constant or cosine")
    decay = settings.lr_decay_iters or iters
    if settings.lr_warmup_iters >= decay:
        raise UserError(
            f"optimizer.lr_warmup_iters={settings.lr_warmup_iters} must be below the {decay} iterations of the schedule"
        )
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.lr_warmup_iters,
        lr_decay_steps=decay,
        lr_decay_style=settings.lr_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=decay,
        wd_incr_style="constant",
    )


@torch.no_grad()
def gradient_norm(optimizer: ChainedOptimizer) -> float:
    """Bring the reduced gradients to the fp32 main parameters and return their global 2-norm."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


@torch.no_grad()
def apply_update(optimizer: ChainedOptimizer, grad_norm: float, clip_grad: float) -> None:
    """Clip by the global norm and step. Only after `gradient_norm`, on every rank alike."""
    if clip_grad > 0:
        for part in optimizer.chained_optimizers:
            if part.get_parameters():
                clip_grad_by_total_norm_fp32(part.get_parameters(), max_norm=clip_grad, total_norm=grad_norm)
    optimizer.step_with_ready_grads()


@torch.no_grad()
def update_ema(optimizer: ChainedOptimizer, decay: float, updates: int) -> float:
    """ema <- d ema + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)) so that early averages are not stale.

    Args:
        optimizer: holds the sharded averages.
        decay: the final decay.
        updates: n, optimizer steps done, this one included.

    Returns:
        d, the decay used.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    for part in optimizer.chained_optimizers:
        params = _main_params(part)
        if params:
            averages = [part.optimizer.state[param]["ema"] for param in params]
            torch._foreach_lerp_(averages, [param.float() for param in params], 1 - decay)
    return decay


def averages(optimizer: ChainedOptimizer) -> Callable[[torch.nn.Parameter], torch.Tensor]:
    """From a model parameter to its float32 average (`EmaDistributedOptimizer.whole_average`); for `core_to_hf`."""
    # Of the buffers: the optimizer's own maps hold the parameters alone that this data-parallel rank has a part of.
    parts = optimizer.chained_optimizers
    owner = {param: part for part in parts for buffer in part.buffers for param in buffer.params}
    return lambda param: owner[param].whole_average(param)


@torch.no_grad()
def reset_average(optimizer: ChainedOptimizer) -> None:
    """Start the weights' average anew from the current weights."""
    for part in optimizer.chained_optimizers:
        for param in _main_params(part):
            state = part.optimizer.state[param]
            if "ema" in state:
                state["ema"].copy_(param)


@torch.no_grad()
def reset_moments(optimizer: ChainedOptimizer) -> None:
    """Forget Adam's moments and step count, keep weights and averages: a new phase starts from loaded weights."""
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            if "step" in group:
                group["step"] = 0
        for param in _main_params(part):
            state = part.optimizer.state[param]
            for key in MOMENTS:
                state[key].zero_()
            if "step" in state:
                state["step"].zero_()
