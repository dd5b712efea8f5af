"""What follows from the times: ratios, rates for the planner, targets met or missed."""

from __future__ import annotations

from dataclasses import dataclass

from phantom_mega.attention import BACKENDS
from phantom_mega.benchmark.attention_alone import REPEATED, AttentionResult
from phantom_mega.benchmark.cases import FAIR, REFERENCES
from phantom_mega.benchmark.steps import StepResult
from phantom_mega.benchmark.timing import tflops

# The targets are for this GPU.
TARGET_GPU = "H100"


@dataclass(frozen=True)
class Target:
    """One thing that the project set out to reach.

    Attributes:
        text: what.
        needed: the least value.
        measured: the value, or None where a part of it was not measured.
        verdict: `met`, `missed`, or `not run` with the reason.
    """

    text: str
    needed: float
    measured: float | None
    verdict: str


def median_of(results: list[StepResult], case: str, frames: int) -> float | None:
    """Milliseconds of a case's step; None where it was not timed."""
    return next((r.median for r in results if r.case.name == case and r.frames == frames), None)


def fair_peer(results: list[StepResult], frames: int) -> float | None:
    """Milliseconds of the faster of the fair peers; None where none was timed."""
    return min((t for t in (median_of(results, name, frames) for name in FAIR) if t is not None), default=None)


def ratio(slower: float | None, faster: float | None) -> float | None:
    """How many times faster; None where one is missing."""
    return None if slower is None or faster is None else slower / faster


def attention_gain(results: list[AttentionResult], frames: int, references: int) -> tuple[str, float] | None:
    """The fastest backend without repeated rows, and how many times faster than `varlen` it is."""
    own = [r for r in results if (r.frames, r.references, r.windows) == (frames, references, True)]
    times = {r.name: r.median for r in own if r.median is not None}
    without_copies = [name for name in times if name not in REPEATED]
    if "varlen" not in times or not without_copies:
        return None
    best = min(without_copies, key=times.get)
    return best, times["varlen"] / times[best]


def fastest_backend(results: list[AttentionResult], windows: bool) -> str | None:
    """The backend that was fastest on the longest video with the step's references; None where none was timed."""
    timed = [r for r in results if r.windows == windows and r.references == REFERENCES and r.name in BACKENDS]
    timed = [r for r in timed if r.median is not None]
    longest = max((r.frames for r in timed), default=None)
    return min((r for r in timed if r.frames == longest), key=lambda r: r.median).name if timed else None


def planner_rates(
    steps: list[StepResult], attention: list[AttentionResult], linear_share: dict[int, float]
) -> dict[str, float]:
    """TFLOP/s for `tools/plan.py --rates`, from the longest video: of attention alone, and of linears with all else.

    `linear_*` is what is left of a step's forward and backward when attention's time is taken away, so norms,
    modulation and residuals count against it.

    Args:
        steps, attention: what was measured, in half precision on a GPU.
        linear_share: frames -> FLOPs of all linears of a step.
    """
    rates: dict[str, float] = {}
    for name, case in (("linear_bf16", "ours_windows"), ("linear_fp8", "ours_windows_fp8")):
        step = max(
            (r for r in steps if r.case.name == case and r.median is not None), key=lambda r: r.frames, default=None
        )
        alone = step and next(
            (
                r
                for r in attention
                if (r.name, r.frames, r.references, r.windows) == (step.backend, step.frames, REFERENCES, True)
                and r.median is not None
            ),
            None,
        )
        if not step or not alone:
            continue
        # The attention alone was of two layers, a plain and a shifted one.
        rest = step.forward_backward_median - alone.median * (step.flops - linear_share[step.frames]) / alone.flops
        rates["attention_bf16"] = tflops(alone.flops, alone.median)
        if rest > 0:
            rates[name] = tflops(linear_share[step.frames], rest)
    return {name: round(value, 1) for name, value in sorted(rates.items())}


def targets(
    steps: list[StepResult],
    attention: list[AttentionResult],
    frames: tuple[int, ...],
    device: str,
    peak: float | None,
    full_size: bool,
) -> list[Target]:
    """Each target at each length.

    Args:
        steps, attention: what was measured.
        frames: lengths of the video.
        device: name of the GPU.
        peak: its dense BF16 TFLOP/s.
        full_size: whether the sizes were those that the targets are for.
    """
    found: list[Target] = []
    for count in frames:
        times = {name: median_of(steps, name, count) for name in ("ours_full", "ours_windows", "ours_windows_fp8")}
        windows = next((r for r in steps if r.case.name == "ours_windows" and r.frames == count), None)
        used = None
        if peak and windows and windows.median:
            used = 100 * tflops(windows.flops, windows.median) / peak
        gain = attention_gain(attention, count, 4)
        name = f" ({gain[0]})" if gain else ""
        found += [
            _judge(
                "full attention over the fair peer", 1.15, ratio(fair_peer(steps, count), times["ours_full"]), count
            ),
            _judge("windows in BF16, % of the peak", 40.0, used, count),
            _judge("FP8 over BF16, windows", 1.25, ratio(times["ours_windows"], times["ours_windows_fp8"]), count),
            _judge(f"window attention{name} over repeated varlen, 4 references", 1.3, gain and gain[1], count),
        ]
    if TARGET_GPU in device and full_size:
        return found
    reason = f"not run: the target is for one {TARGET_GPU}" if full_size else "not run: the target is for the full size"
    return [Target(target.text, target.needed, target.measured, reason) for target in found]


def _judge(text: str, needed: float, measured: float | None, frames: int) -> Target:
    verdict = "not run" if measured is None else "met" if measured >= needed else "missed"
    return Target(f"{text}, {frames} frames", needed, measured, verdict)
