"""One iteration's forward and backward passes over its microbatches, and the loss that all ranks agree on.

The objective is the sum of squared errors of all video tokens of the global batch over their number, so it does not
depend on how packs are spread over ranks and microbatches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from torch import nn

from phantom_mega.core.context_parallel import context_tokens
from phantom_mega.errors import UserError
from phantom_mega.flow import flow_loss
from phantom_mega.packs import PackInputs

# inputs, target velocity [S, 4 * latent_channels], weight [S] (1 on video tokens that count, 0 elsewhere)
Microbatch = tuple[PackInputs, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class SampleLosses:
    """Losses of the samples of one microbatch, for logging by timestep.

    Attributes:
        timestep: float32 [B].
        loss_sum: float32 [B], squared error summed over the sample's video tokens.
        tokens: float32 [B], video tokens that count.

    With context parallelism both sums are over the tokens of this rank alone.
    """

    timestep: torch.Tensor
    loss_sum: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class StepStats:
    """What one iteration computed.

    Attributes:
        loss_sum: squared error summed over all video tokens of the global batch; equal on all ranks.
        num_tokens: number of those tokens; equal on all ranks.
        samples: this rank's microbatches; on last pipeline stages only, elsewhere empty.
    """

    loss_sum: float
    num_tokens: int
    samples: list[SampleLosses] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Mean squared error per video token."""
        return self.loss_sum / max(self.num_tokens, 1)


def _per_sample(values: torch.Tensor, sample: torch.Tensor, count: int) -> torch.Tensor:
    """Sum values [tokens] over the tokens of each of `count` samples -> [count]."""
    return values.new_zeros(count).index_add(0, sample, values)


def _loss(
    inputs: PackInputs, target: torch.Tensor, weight: torch.Tensor, velocity: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, SampleLosses]:
    """Megatron's loss function: summed error, token count (it divides by their global sum), what to keep.

    The velocity is that of this context-parallel rank's tokens, and so are the sums: megatron adds up gradients and
    counts over data- and context-parallel ranks alike, and each token is counted once.
    """
    own = context_tokens(len(weight))
    weight, sample, count = weight[own], inputs.layout.visual_sample[own], len(inputs.layout.shapes)
    error = flow_loss(velocity, target[own], weight)
    kept = SampleLosses(
        timestep=inputs.timestep.detach(),
        loss_sum=_per_sample(error.detach(), sample, count),
        tokens=_per_sample(weight.to(error.dtype), sample, count),
    )
    return error.sum(), weight.sum().to(torch.int), kept


def _forward_step(batches: Iterator[Microbatch], chunk: nn.Module):
    """Megatron's forward step: output of one chunk for the next microbatch, and the loss function for it."""
    inputs, target, weight = next(batches)
    return chunk(inputs), partial(_loss, inputs, target, weight)


def forward_backward(
    wrapped: list[nn.Module],
    batches: Sequence[Microbatch],
    config: TransformerConfig,
    forward_only: bool = False,
) -> StepStats:
    """Run all microbatches of one iteration through the pipeline; gradients are then complete in `main_grad`.

    Gradients are reduced over data- and context-parallel ranks (to each rank's shard with the distributed optimizer),
    summed over tensor ranks and stages where needed, and divided by the number of tokens. Call `zero_grad_buffer()` on
    every chunk before.

    Args:
        wrapped: this rank's chunks (`wrap_ddp`).
        batches: this data-parallel rank's microbatches, the same on all its model-parallel ranks; all of one padded
            size (S, L).
        config: the chunks' configuration.
        forward_only: compute the loss alone.

    Returns:
        The iteration's loss, reduced over all ranks.

    Raises:
        UserError: packs of different padded sizes.
    """
    sizes = {(inputs.layout.seq_length, inputs.layout.text_seq_length) for inputs, _, _ in batches}
    if len(sizes) != 1:
        raise UserError(f"the packs of one iteration have different padded sizes {sorted(sizes)}; pad all to one")
    kept: list[SampleLosses] = get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=[iter(batches) for _ in wrapped],
        model=wrapped,
        num_microbatches=len(batches),
        # The hidden state between stages is [S' + L', 1, C]; megatron divides by context and tensor ranks itself.
        seq_length=sum(sizes.pop()),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return _reduce(kept)


def _reduce(kept: list[SampleLosses]) -> StepStats:
    """Sum over data- and context-parallel ranks, then tell the earlier pipeline stages."""
    device = torch.cuda.current_device()
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    for samples in kept:
        totals += torch.stack([samples.loss_sum.double().sum(), samples.tokens.double().sum()])
    torch.distributed.all_reduce(totals, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(totals, src=source, group=parallel_state.get_pipeline_model_parallel_group())
    loss_sum, num_tokens = totals.tolist()
    return StepStats(loss_sum, round(num_tokens), list(kept))
