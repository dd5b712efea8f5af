"""One run of the benchmark: its parts in order, and the report as far as it has come."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from phantom_mega.benchmark import devices, report, summary
from phantom_mega.benchmark.attention_alone import AttentionBenchmark
from phantom_mega.benchmark.cases import CASES, REFERENCES, attempt
from phantom_mega.benchmark.linears import LinearResult, measure_linears
from phantom_mega.benchmark.steps import StepBenchmark, StepSettings
from phantom_mega.benchmark.workload import FULL
from phantom_mega.config import ParallelConfig
from phantom_mega.core.parallel_config import initialize_distributed
from phantom_mega.files import whole_file
from phantom_mega.planner.gpus import peak_tflops

PARTS = ("attention", "steps", "linears")
# The backend of ours that was fastest in the part `attention`; without that part, `auto`.
FASTEST = "fastest"


class Session:
    """Runs the parts one after another and reports after each.

    Args:
        settings: of the step; length, iterations and deadline serve the other parts too.
        references: counts for attention alone.
        parts: some of `PARTS`.
        json_path, markdown_path: where the report goes; None for nowhere.
        command: as typed.
    """

    def __init__(
        self,
        settings: StepSettings,
        references: tuple[int, ...],
        parts: tuple[str, ...],
        json_path: Path | None,
        markdown_path: Path | None,
        command: str,
    ):
        self.settings, self.references, self.parts = settings, references, parts
        self.paths, self.command = (json_path, markdown_path), command
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.name = devices.device_name(self.device)
        self.started = datetime.datetime.now(datetime.UTC)
        self.versions, self.commit = devices.versions(), devices.commit()
        self.matmul: dict | None = None
        self.steps: StepBenchmark | None = None
        self.attention: AttentionBenchmark | None = None
        self.linears: list[LinearResult] = []

    def say(self, text: str) -> None:
        """Progress, with the seconds since the start."""
        seconds = (datetime.datetime.now(datetime.UTC) - self.started).total_seconds()
        print(f"[{seconds:5.0f} s] {text}", file=sys.stderr, flush=True)

    def run(self) -> dict:
        """All parts; returns the report.

        Raises:
            UserError: a setting that cannot be.
        """
        settings, device = self.settings, self.device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.say(f"on {self.name}")
        self.matmul = devices.measured_matmul(device, dtype, settings.size.matmul)
        self.matmul["ms"] = asdict(self.matmul["ms"])
        if "attention" in self.parts:
            self.attention = AttentionBenchmark(
                settings.size,
                settings.frames,
                self.references,
                settings.iters,
                settings.warmup,
                device,
                settings.deadline,
                self.say,
            )
            self.attention.run()
            self._choose_backends()
            self.save()
        if "steps" in self.parts or "linears" in self.parts:
            initialize_distributed(ParallelConfig())
            self._steps()
        self.save()
        return self.report()

    def _choose_backends(self) -> None:
        """What `fastest` stands for, known once attention alone was measured."""
        for name, windows in (("attention_backend", True), ("full_backend", False)):
            best = summary.fastest_backend(self.attention.results, windows)
            if getattr(self.settings, name) == FASTEST and best:
                self.settings = replace(self.settings, **{name: best})
                self.say(f"{name}: {best} was the fastest")

    def _steps(self) -> None:
        for name in ("attention_backend", "full_backend"):
            if getattr(self.settings, name) == FASTEST:
                self.settings = replace(self.settings, **{name: "auto"})
        settings = self.settings
        if "steps" not in self.parts:
            # The linears are those of these two models.
            needed = tuple(case for case in CASES if case.name in ("ours_windows", "ours_windows_fp8"))
            settings = replace(settings, cases=needed)
        self.steps = StepBenchmark(settings, self.device, self.say, self.save)
        self.steps.prepare()
        self.save()
        if "linears" in self.parts:
            self._linears()
        if "steps" in self.parts:
            self.steps.measure()

    def _linears(self) -> None:
        settings = self.settings
        tokens = settings.size.shape(max(settings.frames), REFERENCES).visual_tokens
        for name, precision in (("ours", self.steps.precision), ("ours_fp8", "fp8")):
            engine = self.steps.engines.get(name)
            if engine is None:
                continue
            _, problem = attempt(engine.unpark)
            result = None
            if problem is None:
                arguments = (engine, precision, tokens, settings.iters, settings.warmup, self.steps.clock)
                result, problem = attempt(measure_linears, *arguments)
                attempt(self.steps.park, engine)
            self.linears.append(result or LinearResult(precision, tokens, problem=problem))
            self.say(f"linears, {precision}: {problem or f'{result.median:.2f} ms'}")
        self.save()

    def report(self) -> dict:
        """Everything that is known so far, ready for JSON."""
        settings, size = self.settings, self.settings.size
        peak_bf16, peak_fp8 = peak_tflops(self.name)
        speeds = {
            "peak_bf16": peak_bf16,
            "peak_fp8": peak_fp8,
            "matmul": self.matmul and self.matmul["tflops"],
        }
        steps = self.steps.results if self.steps and "steps" in self.parts else []
        attention = self.attention.results if self.attention else []
        on_gpu = self.device.type == "cuda"
        found = summary.targets(steps, attention, settings.frames, self.name, peak_bf16, size == FULL)
        return {
            "device": self.name,
            "date": self.started.strftime("%Y-%m-%d %H:%M UTC"),
            "command": self.command,
            "commit": self.commit,
            "versions": self.versions,
            "settings": {
                "model": asdict(size.model),
                "height": size.height,
                "width": size.width,
                "text_tokens": size.text_tokens,
                "frames": list(settings.frames),
                "references": list(self.references),
                "iters": settings.iters,
                "warmup": settings.warmup,
                "attention_backend": settings.attention_backend,
                "full_backend": settings.full_backend,
                "transformer_impl": settings.transformer_impl,
                "compiler": settings.compiler,
                "fp8_recipe": settings.fp8_recipe,
            },
            "full_size": size == FULL,
            "peak_tflops": {"bf16": peak_bf16, "fp8": peak_fp8},
            "matmul": self.matmul,
            "steps": report.step_records(steps, speeds),
            "attention": report.attention_records(attention, speeds),
            "linears": report.linear_records(self.linears, speeds),
            "targets": report.target_records(found),
            # A CPU's speed is of no use to the planner.
            "rates": summary.planner_rates(steps, attention, self.steps.linear_flops) if on_gpu and steps else {},
        }

    def save(self) -> None:
        """Write the files anew, whole: what was measured outlives a run that is cut off."""
        content = self.report()
        for path, text in zip(self.paths, (json.dumps(content, indent=1) + "\n", report.to_markdown(content))):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as temporary:
                    temporary.write_text(text)
