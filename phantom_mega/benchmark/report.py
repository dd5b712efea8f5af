"""The report: JSON for programs, the same as tables for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from phantom_mega.benchmark.attention_alone import REPEATED, AttentionResult
from phantom_mega.benchmark.cases import REFERENCES
from phantom_mega.benchmark.linears import LinearResult
from phantom_mega.benchmark.steps import StepResult
from phantom_mega.benchmark.summary import Target, fair_peer, median_of, ratio
from phantom_mega.benchmark.timing import Spread, tflops

GIB = 1 << 30
Speeds = dict[str, float | None]  # peak_bf16, peak_fp8, matmul: TFLOP/s


def _spread(values: list[float] | None) -> dict | None:
    return asdict(Spread.of(values)) if values else None


def _speed(flops: float, median: float | None, speeds: Speeds) -> dict:
    """TFLOP/s, and its part of the BF16 peak and of the measured matmul, in percent."""
    achieved = None if median is None else tflops(flops, median)

    def percent(of: float | None) -> float | None:
        return None if achieved is None or not of else 100 * achieved / of

    return {
        "tflops": achieved,
        "percent_of_bf16_peak": percent(speeds["peak_bf16"]),
        "percent_of_fp8_peak": percent(speeds["peak_fp8"]),
        "percent_of_matmul": percent(speeds["matmul"]),
    }


def _gib(count: int | None) -> float | None:
    return None if count is None else count / GIB


def step_records(results: list[StepResult], speeds: Speeds) -> list[dict]:
    """One record a case and length; times in ms."""
    records = []
    for result in results:
        timed = result.problem is None
        records.append(
            {
                "case": result.case.name,
                "label": result.case.label,
                "frames": result.frames,
                "precision": result.precision,
                "attention": result.backend or None,
                "problem": result.problem,
                "relative_error": result.error,
                "parameters": result.parameters or None,
                "optimizer": result.optimizer or None,
                "needed_tflop": result.flops / 1e12 or None,
                "step_ms": _spread(result.step) if timed else None,
                "forward_backward_ms": _spread(result.forward_backward) if timed else None,
                "update_ms": _spread(result.update) if timed else None,
                **_speed(result.flops, result.median, speeds),
                "peak_memory_gib": _gib(result.peak_memory),
                "over_fair_peer": ratio(fair_peer(results, result.frames), result.median),
                "over_windows_bf16": ratio(median_of(results, "ours_windows", result.frames), result.median),
            }
        )
    return records


def attention_records(results: list[AttentionResult], speeds: Speeds) -> list[dict]:
    """One record a backend, length and count of references; a time is of a plain and a shifted layer, in ms."""
    records = []
    for result in results:
        varlen = next(
            (
                r.median
                for r in results
                if (r.name, r.frames, r.references, r.windows) == ("varlen", result.frames, result.references, True)
            ),
            None,
        )
        records.append(
            {
                "attention": result.name,
                "kind": ("repeated" if result.name in REPEATED else "shared") if result.windows else "full",
                "frames": result.frames,
                "references": result.references,
                "problem": result.problem,
                "relative_error": result.error,
                "needed_tflop": result.flops / 1e12 or None,
                "ms": _spread(result.times) if result.problem is None else None,
                **_speed(result.flops, result.median, speeds),
                "peak_memory_gib": _gib(result.peak_memory),
                "over_varlen": ratio(varlen, result.median),
            }
        )
    return records


def linear_records(results: list[LinearResult], speeds: Speeds) -> list[dict]:
    """One record a precision; a time is of the four linears of one block's visual stream, in ms."""
    return [
        {
            "precision": result.precision,
            "tokens": result.tokens,
            "problem": result.problem,
            "needed_tflop": result.flops / 1e12 or None,
            "ms": _spread(result.times),
            **_speed(result.flops, result.median, speeds),
        }
        for result in results
    ]


def target_records(found: list[Target]) -> list[dict]:
    """One record a target."""
    return [asdict(target) for target in found]


# -- tables


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; all but the first are set to the right."""
    cells = [head, *rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    line = lambda row: "| " + " | ".join(  # noqa: E731
        cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
    )
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"{line(row)} |" for row in (head, rule, *rows))


def number(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals, or at least three digits that count; `-` for None."""
    if value is None:
        return "-"
    return f"{value:.3g}" if 0 < abs(value) < 10**-digits else f"{value:,.{digits}f}"


def _range(spread: dict | None) -> str:
    return "-" if spread is None else f"{spread['median']:,.1f} ({spread['min']:,.1f} to {spread['max']:,.1f})"


def _short(problem: str | None) -> str | None:
    """What fits into a cell; the rest stands below the table."""
    return problem and problem.partition(":")[0]


def _problems(records: list[dict], title: Callable[[dict], str]) -> str:
    """Each problem once, with what has it."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record["problem"] and record["problem"] != _short(record["problem"]):
            names = found.setdefault(record["problem"], [])
            names += [] if title(record) in names else [title(record)]
    return "\n".join(f"- {'; '.join(names)}: {problem}" for problem, names in found.items())


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _steps(records: list[dict]) -> str:
    head = [
        "case",
        "frames",
        "precision, attention",
        "step ms (range)",
        "forward + backward",
        "clip + AdamW",
        "TFLOP/s",
    ]
    head += ["% of BF16 peak", "% of matmul", "peak GiB", "x fair peer", "x windows BF16", "relative error"]
    rows = []
    for r in records:
        step, both, update = (r[name] and r[name]["median"] for name in ("step_ms", "forward_backward_ms", "update_ms"))
        rows.append(
            [
                r["label"],
                str(r["frames"]),
                r["precision"] + (f", {r['attention']}" if r["attention"] else ""),
                _short(r["problem"]) or _range(r["step_ms"]),
                number(both if step else None),
                number(update if step else None),
                number(r["tflops"]),
                number(r["percent_of_bf16_peak"]),
                number(r["percent_of_matmul"]),
                number(r["peak_memory_gib"]),
                number(r["over_fair_peer"], 2),
                number(r["over_windows_bf16"], 2),
                _error(r["relative_error"]),
            ]
        )
    return _with_problems(table(head, rows), _problems(records, lambda r: r["label"]))


def _with_problems(drawn: str, problems: str) -> str:
    return f"{drawn}\n\n{problems}" if problems else drawn


def _attention(records: list[dict]) -> str:
    head = ["attention", "frames", "references", "kind", "ms (range)", "TFLOP/s", "% of BF16 peak", "peak GiB"]
    head += ["x repeated varlen", "relative error"]
    rows = [
        [
            r["attention"],
            str(r["frames"]),
            str(r["references"]),
            r["kind"],
            _short(r["problem"]) or _range(r["ms"]),
            number(r["tflops"]),
            number(r["percent_of_bf16_peak"]),
            number(r["peak_memory_gib"]),
            number(r["over_varlen"], 2),
            _error(r["relative_error"]),
        ]
        for r in records
    ]
    return _with_problems(table(head, rows), _problems(records, lambda r: f"{r['attention']} ({r['kind']})"))


def _linears(records: list[dict]) -> str:
    head = ["linears alone", "tokens", "ms (range)", "TFLOP/s", "% of BF16 peak", "% of FP8 peak", "% of matmul"]
    rows = [
        [
            r["precision"],
            f"{r['tokens']:,}",
            _short(r["problem"]) or _range(r["ms"]),
            number(r["tflops"]),
            number(r["percent_of_bf16_peak"]),
            number(r["percent_of_fp8_peak"]) if r["precision"] == "fp8" else "-",
            number(r["percent_of_matmul"]),
        ]
        for r in records
    ]
    return _with_problems(table(head, rows), _problems(records, lambda r: r["precision"]))


def _targets(records: list[dict]) -> str:
    rows = [[r["text"], number(r["needed"], 2), number(r["measured"], 2), r["verdict"]] for r in records]
    return table(["target", "at least", "measured", "verdict"], rows)


def to_markdown(report: dict) -> str:
    """The whole report (`Session.report`) as Markdown, readable as plain text too."""
    device, settings = report["device"], report["settings"]
    model = settings["model"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    matmul = report["matmul"]
    parts = [
        f"# Benchmark on {device}, {report['date']}",
        f"`{report['command']}`, commit {report['commit'] or 'unknown'}",
        versions,
        f"{model['num_layers']} dual-stream blocks of width {model['hidden_size']}, {model['num_attention_heads']} "
        f"heads; {settings['height']}x{settings['width']}, {settings['text_tokens']} text tokens, {REFERENCES} "
        "reference. Needed FLOPs only: no padding, no recomputation, no copies of shared tokens, and nothing of the "
        "last block's text stream after its q, k, v, which the peers compute.",
    ]
    if device.startswith("CPU"):
        parts.append("**Measured on a CPU: it shows that everything runs, and says nothing about a GPU.**")
    if matmul:
        parts.append(f"Measured matmul, {matmul['side']} cubed: {number(matmul['tflops'], 3)} TFLOP/s.")
    tables = (("steps", _steps), ("attention", _attention), ("linears", _linears), ("targets", _targets))
    parts += [draw(report[name]) for name, draw in tables if report[name]]
    if report["steps"]:
        parts.append(_notes(report["steps"]))
    if report["rates"]:
        parts.append("Rates for the planner, TFLOP/s: " + ", ".join(f"{k} {v:g}" for k, v in report["rates"].items()))
    return "\n\n".join(parts) + "\n"


def _notes(records: list[dict]) -> str:
    optimizers = ", ".join(sorted({r["optimizer"] for r in records if r["optimizer"]}))
    own, peer = (
        next((r["parameters"] for r in records if r["case"].startswith(kind) and r["parameters"]), None)
        for kind in ("ours", "diffusers")
    )
    parameters = ", ".join(f"{n / 1e6:,.1f}M {who}" for n, who in ((own, "ours"), (peer, "diffusers")) if n)
    return (
        f"Optimizer of all: {optimizers or '-'}. Trained parameters: {parameters or '-'} (a stock block has an adaLN "
        "linear of its own for each stream). The fair peer is the faster of flash and cuDNN without a mask. Relative "
        "errors are against the plain model in fp32, taken before anything was timed."
    )
