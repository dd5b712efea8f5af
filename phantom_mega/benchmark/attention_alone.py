"""Attention alone, forward and backward: every backend on windows and on one window of all, beside torch's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from phantom_mega.attention import BACKENDS, Windows, resolve_backend, window_attention
from phantom_mega.benchmark.cases import REFERENCES, TOLERANCE, Deadline, attempt, check
from phantom_mega.benchmark.timing import Clock, Spread, share
from phantom_mega.benchmark.workload import FULL_ATTENTION, Size, layout_of
from phantom_mega.errors import UserError
from phantom_mega.flops import window_flops

# These gather the rows of every window, with text and references repeated in each.
REPEATED = ("sdpa", "varlen", "te")
ROUNDS = 3
# torch's full attention by one kernel.
TORCH = {"torch flash": SDPBackend.FLASH_ATTENTION, "torch cudnn": SDPBackend.CUDNN_ATTENTION}

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


@dataclass
class AttentionResult:
    """One way to compute the attention of a plain and a shifted layer.

    Attributes:
        name: a backend of `attention.BACKENDS`, or one of `TORCH`.
        frames, references: of the sample.
        windows: whether it is window attention; else every token attends to all.
        problem: why there is no time; None if there is one.
        error: largest relative error, of outputs and gradients, against fp32.
        flops: that both layers need, forward and backward.
        times: milliseconds of every timed iteration.
        peak_memory: most bytes allocated while it was timed; None on a CPU.
    """

    name: str
    frames: int
    references: int
    windows: bool
    problem: str | None = None
    error: float | None = None
    flops: float = 0.0
    times: list[float] = field(default_factory=list)
    peak_memory: int | None = None

    @property
    def median(self) -> float | None:
        """Milliseconds; None where it was not timed to an end."""
        return Spread.of(self.times).median if self.times and self.problem is None else None


def _full(backend: SDPBackend) -> Attend:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parity: int) -> torch.Tensor:
        with sdpa_kernel(backend):
            heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
            return F.scaled_dot_product_attention(*heads_first)[0].transpose(0, 1)

    return attend


def _windowed(windows: tuple[Windows, Windows], backend: str) -> Attend:
    return lambda q, k, v, parity: window_attention(q, k, v, windows[parity], backend)


def _forward_backward(attend: Attend, qkv: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of both layers, then the gradients of q, k and v."""
    for tensor in qkv:
        tensor.grad = None
    outputs = [attend(*qkv, parity) for parity in (0, 1)]
    torch.autograd.backward(outputs, [grad, grad])
    return [output.detach() for output in outputs] + [tensor.grad for tensor in qkv]


def attention_flops(windows: Sequence[Windows], width: int) -> float:
    """That forward and backward over these grids need: three times the forward pass's."""
    return 3 * sum(window_flops(grid.plan, width) for grid in windows)


class AttentionBenchmark:
    """All backends at every length and count of references.

    Args:
        size: sizes of the model and the sample.
        frames, references: what to run through.
        iters, warmup: timed and untimed iterations.
        device: where.
        deadline: when to begin nothing more.
        say: prints a line of progress.
    """

    def __init__(
        self,
        size: Size,
        frames: tuple[int, ...],
        references: tuple[int, ...],
        iters: int,
        warmup: int,
        device: torch.device,
        deadline: Deadline,
        say: Callable[[str], None],
    ):
        self.size, self.frames, self.references = size, frames, references
        self.iters, self.warmup, self.device, self.deadline, self.say = iters, warmup, device, deadline, say
        self.precision = "bf16" if device.type == "cuda" else "fp32"
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.clock = Clock(device)
        self.results: list[AttentionResult] = []

    def run(self) -> None:
        """Check, then time. Full attention, the slowest by far, is timed with the step's count of references alone."""
        for frames in self.frames:
            for references in self.references:
                own = [AttentionResult(name, frames, references, True) for name in BACKENDS]
                if references == REFERENCES:
                    own += [AttentionResult(name, frames, references, False) for name in (*TORCH, *BACKENDS)]
                self.results += own
                if self.deadline.passed:
                    problem = "not run: out of time (--budget-seconds)"
                else:
                    _, problem = attempt(self._sample, own)
                for result in own:
                    result.problem = result.problem or problem
                    told = result.problem or f"{result.median:.2f} ms"
                    kind = "windows" if result.windows else "full"
                    self.say(f"attention, {frames} frames, {references} references, {kind}, {result.name}: {told}")

    def _sample(self, results: list[AttentionResult]) -> None:
        model, first = self.size.model, results[0]
        shape = self.size.shape(first.frames, first.references)
        joint = shape.visual_tokens + shape.text_stream_tokens
        heads, width = model.num_attention_heads, model.hidden_size
        generator = torch.Generator(self.device).manual_seed(0)
        draw = lambda: torch.randn(joint, heads, width // heads, generator=generator, device=self.device)  # noqa: E731
        qkv, grad = [draw().to(self.dtype).requires_grad_() for _ in range(3)], draw().to(self.dtype)
        ways: list[tuple[AttentionResult, Attend]] = []
        for kind in sorted({result.windows for result in results}):
            windows = layout_of(model, shape, self.size.windows if kind else FULL_ATTENTION, self.device).windows
            wide = [x.detach().float().requires_grad_() for x in qkv]
            expected = _forward_backward(_windowed(windows, "sdpa"), wide, grad.float())
            for result in (result for result in results if result.windows == kind):
                result.flops = attention_flops(windows, width)
                way, result.problem = attempt(self._checked, result, windows, qkv, grad, expected)
                if result.problem is None:
                    ways.append((result, way))
            del expected, wide
        for number, iters in enumerate(share(self.iters, ROUNDS)):
            for result, way in ways:
                if result.problem is None:
                    warmup = self.warmup if number == 0 else 1
                    work = functools.partial(_forward_backward, way, qkv, grad)
                    _, result.problem = attempt(self._time, result, work, warmup, iters)

    def _checked(
        self,
        result: AttentionResult,
        windows: tuple[Windows, Windows],
        qkv: list[torch.Tensor],
        grad: torch.Tensor,
        expected: list[torch.Tensor],
    ) -> Attend:
        """How to compute it, once outputs and gradients of both layers were found right."""
        if result.name in TORCH:
            if self.device.type == "cpu" and result.name == "torch cudnn":
                raise UserError("cuDNN attention needs a GPU")
            way = _full(TORCH[result.name])
        else:
            way = _windowed(windows, resolve_backend(result.name, self.device, self.dtype))
        actual, tolerance = _forward_backward(way, qkv, grad), TOLERANCE[self.precision]
        result.error = max(check(result.name, a, e, tolerance) for a, e in zip(actual, expected, strict=True))
        return way

    def _time(self, result: AttentionResult, work: Callable[[], object], warmup: int, iters: int) -> None:
        for _ in range(warmup):
            work()
        if self.clock.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        result.times += [self.clock.time(work) for _ in range(iters)]
        if self.clock.on_gpu:
            result.peak_memory = max(result.peak_memory or 0, torch.cuda.max_memory_allocated())
