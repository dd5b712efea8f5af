"""A block's large linears alone, forward and backward, in the model's own modules: what the planner plans with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phantom_mega.benchmark.engines import Engine
from phantom_mega.benchmark.timing import Clock, Spread
from phantom_mega.core import fp8


@dataclass
class LinearResult:
    """The four linears of one block's visual stream, one after another.

    Attributes:
        precision: `fp32`, `bf16` or `fp8`.
        tokens: rows of their input.
        flops: that forward and backward need.
        times: milliseconds of every timed iteration.
        problem: why there is no time; None if there is one.
    """

    precision: str
    tokens: int
    flops: float = 0.0
    times: list[float] | None = None
    problem: str | None = None

    @property
    def median(self) -> float | None:
        """Milliseconds; None where it was not timed."""
        return Spread.of(self.times).median if self.times else None


def measure_linears(engine: Engine, precision: str, tokens: int, iters: int, warmup: int, clock: Clock) -> LinearResult:
    """Time qkv, projection and both of the MLP, each from an input of its own.

    Weight gradients go to the gradient buffers, as in a step.
    """
    config = engine.config
    stream = engine.chunk.blocks.get_submodule("0").visual
    C, ffn = config.hidden_size, config.ffn_hidden_size
    linears = (
        (stream.linear_qkv, C, 3 * C),
        (stream.linear_proj, C, C),
        (stream.mlp.linear_fc1, C, ffn),
        (stream.mlp.linear_fc2, ffn, C),
    )
    draw = lambda width: torch.randn(tokens, width, device=torch.cuda.current_device()).to(config.params_dtype)  # noqa: E731
    inputs = [draw(width).requires_grad_() for _, width, _ in linears]
    grads = [draw(width) for _, _, width in linears]
    engine.wrapped[0].zero_grad_buffer()

    def work() -> None:
        engine.wrapped[0].set_is_first_microbatch()  # as the schedule does: FP8 weights are quantized once a step
        for (linear, _, _), x, grad in zip(linears, inputs, grads, strict=True):
            x.grad = None
            with fp8.stage_context(config), fp8.block_context(config, 0):
                out, _ = linear(x)
            out.backward(grad)

    for _ in range(warmup):
        work()
    result = LinearResult(precision, tokens, 6.0 * tokens * sum(inside * out for _, inside, out in linears))
    result.times = [clock.time(work) for _ in range(iters)]
    return result
