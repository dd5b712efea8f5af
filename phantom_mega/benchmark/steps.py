"""The training step: every case checked against the plain model, then timed in rounds (A B C, A B C, ...)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from phantom_mega.attention import resolve_backend
from phantom_mega.benchmark import engines
from phantom_mega.benchmark.attention_alone import attention_flops
from phantom_mega.benchmark.cases import REFERENCES, TOLERANCE, Case, Deadline, attempt, check
from phantom_mega.benchmark.engines import Engine
from phantom_mega.benchmark.timing import Clock, Spread, share
from phantom_mega.benchmark.workload import FULL_ATTENTION, Size, layout_of, microbatch, random_weights
from phantom_mega.config import ParallelConfig, PrecisionConfig, model_arguments
from phantom_mega.core.schedule import Microbatch
from phantom_mega.errors import UserError
from phantom_mega.flops import training_flops
from phantom_mega.hf.transformer_phantom import PhantomTransformer3DModel

ROUNDS = 3


@dataclass
class StepResult:
    """What is known of one case at one length.

    Attributes:
        case, frames: which.
        precision: `fp32`, `bf16` or `fp8`.
        backend: of the attention.
        problem: why there is no time; None if there is one.
        error: relative error of the velocity against the plain model in fp32.
        flops: that one step needs.
        parameters: trained ones.
        optimizer: class of the optimizer.
        step, forward_backward, update: milliseconds of every timed iteration.
        peak_memory: most bytes allocated on the device while it was timed; None on a CPU.
    """

    case: Case
    frames: int
    precision: str
    backend: str = ""
    problem: str | None = None
    error: float | None = None
    flops: float = 0.0
    parameters: int = 0
    optimizer: str = ""
    step: list[float] = field(default_factory=list)
    forward_backward: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    peak_memory: int | None = None

    @property
    def median(self) -> float | None:
        """Milliseconds of a step; None where it was not timed to an end."""
        return Spread.of(self.step).median if self.step and self.problem is None else None

    @property
    def forward_backward_median(self) -> float | None:
        """The same without clipping and AdamW."""
        return Spread.of(self.forward_backward).median if self.median is not None else None


@dataclass(frozen=True)
class StepSettings:
    """What the command line chooses; see its help.

    Attributes:
        attention_backend: of our cases with windows; one of `attention.BACKENDS` or `auto`.
        full_backend: of our case with full attention.
        compiler: backend of torch.compile.
        deadline: when to begin nothing more.
    """

    size: Size
    frames: tuple[int, ...]
    cases: tuple[Case, ...]
    iters: int
    warmup: int
    attention_backend: str
    full_backend: str
    transformer_impl: str
    compiler: str
    fp8_recipe: str | None
    deadline: Deadline


class StepBenchmark:
    """Builds the models, checks every case, times the rest.

    Args:
        settings: what to run.
        device: where.
        say: prints a line of progress.
        save: called whenever there is more to report.
    """

    def __init__(
        self, settings: StepSettings, device: torch.device, say: Callable[[str], None], save: Callable[[], None]
    ):
        self.settings, self.device, self.say, self.save = settings, device, say, save
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.precision = "bf16" if device.type == "cuda" else "fp32"
        self.clock = Clock(device)
        self.engines: dict[str, Engine] = {}
        self.batches: dict[tuple[bool, int], Microbatch] = {}
        self.results = [
            StepResult(case, frames, "fp8" if case.engine == "ours_fp8" else self.precision)
            for frames in settings.frames
            for case in settings.cases
        ]
        for result in self.results:
            if device.type == "cpu" and result.case.needs_gpu:
                result.problem = f"not run: {result.case.needs_gpu}"

    def _open(self, engine: str) -> list[StepResult]:
        return [result for result in self.results if result.case.engine == engine and result.problem is None]

    def park(self, engine: Engine) -> None:
        """Make room on the GPU for the next model; on a CPU there is nothing to gain."""
        if self.clock.on_gpu:
            engine.park()

    @property
    def linear_flops(self) -> dict[int, float]:
        """Frames -> FLOPs of all linears of a step, the same for windows and full attention."""
        model, result = self.settings.size.model, {}
        for (_, frames), (inputs, _, _) in self.batches.items():
            grids = [inputs.layout.windows[layer % 2] for layer in range(model.num_layers)]
            result[frames] = training_flops(model, inputs.layout) - attention_flops(grids, model.hidden_size)
        return result

    def prepare(self) -> None:
        """Build each model and check its cases; then it waits in host memory."""
        model = self.settings.size.model
        with torch.device("meta"):
            plain = PhantomTransformer3DModel(**model_arguments(model))
        shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
        weights = random_weights(shapes, self.device, self.dtype)
        expected = self._expected(plain, weights)
        del plain
        for name in dict.fromkeys(case.engine for case in self.settings.cases):
            if not self._open(name) or self.settings.deadline.passed:
                continue
            self.say(f"building {name}")
            engine, problem = attempt(self._build, name, weights)
            if problem is None:
                self.engines[name] = engine
                for result in self._open(name):
                    _, result.problem = attempt(self._check, result, expected)
                    self.say(f"  {_title(result)}: {result.problem or f'equal, relative error {result.error:.2g}'}")
                _, problem = attempt(self.park, engine)
            for result in self._open(name):
                result.problem = problem

    def _expected(
        self, plain: PhantomTransformer3DModel, weights: dict[str, torch.Tensor]
    ) -> dict[tuple[bool, int], torch.Tensor]:
        """The plain model's velocity in fp32 for full attention and windows at every length."""
        plain.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        size, result = self.settings.size, {}
        for windows in sorted({case.windows for case in self.settings.cases}):
            for frames in self.settings.frames:
                shape = size.shape(frames, REFERENCES)
                layout = layout_of(size.model, shape, size.windows if windows else FULL_ATTENTION, self.device)
                batch = self.batches[windows, frames] = microbatch(size.model, shape, layout)
                inputs = batch[0]
                with torch.no_grad():
                    arguments = (inputs.visual, inputs.timestep, inputs.text, inputs.clip, layout)
                    result[windows, frames] = plain(*arguments, return_dict=False)[0]
        return result

    def _build(self, name: str, weights: dict[str, torch.Tensor]) -> Engine:
        settings, model = self.settings, self.settings.size.model
        precision = PrecisionConfig(bf16=self.dtype == torch.bfloat16)
        if name == "diffusers":
            return engines.peer(model, precision, weights, self.device)
        if name == "ours_fp8":
            precision = engines.fp8_precision(settings.fp8_recipe)
        parallel = ParallelConfig(transformer_impl=settings.transformer_impl)
        return engines.ours(model, parallel, precision, weights)

    def _select(self, result: StepResult) -> tuple[Engine, Microbatch]:
        """Make the case's model run its way; returns it and its batch."""
        case, engine = result.case, self.engines[result.case.engine]
        if case.engine == "diffusers":
            engine.chunk.configure(case.kernel, self.settings.compiler if case.compiled else None)
            result.backend = case.kernel or "native with mask"
        else:
            own = self.settings.attention_backend if case.windows else self.settings.full_backend
            name = case.backend or own
            if self.device.type == "cpu" and case.backend:
                name = "sdpa"  # repeats in the same way
            engine.chunk.attention_backend = result.backend = resolve_backend(name, self.device, self.dtype)
        return engine, self.batches[case.windows, result.frames]

    def _check(self, result: StepResult, expected: dict[tuple[bool, int], torch.Tensor]) -> None:
        engine, batch = self._select(result)
        layout = batch[0].layout
        result.flops, result.parameters = training_flops(self.settings.size.model, layout), engine.parameters
        result.optimizer = engine.optimizer_name
        velocity = engine.forward(batch[0])
        key = (result.case.windows, result.frames)
        result.error = check(result.case.label, velocity, expected[key], TOLERANCE[result.precision])

    def measure(self) -> None:
        """Time what passed its check, in rounds over all cases."""
        parts = share(self.settings.iters, ROUNDS)
        for number, iters in enumerate(parts):
            for name, engine in self.engines.items():
                if not self._open(name) or self.settings.deadline.passed:
                    continue
                _, problem = attempt(engine.unpark)
                for result in self._open(name):
                    if problem is not None:
                        result.problem = problem
                    elif not self.settings.deadline.passed:
                        warmup = self.settings.warmup if number == 0 else 1
                        _, result.problem = attempt(self._time, result, warmup, iters)
                        told = result.problem or f"{result.step[-1]:.1f} ms"
                        self.say(f"round {number + 1} of {len(parts)}: {_title(result)}: {told}")
                        self.save()
                attempt(self.park, engine)
        for result in self.results:
            if result.problem is None and not result.step:
                result.problem = "not run: out of time (--budget-seconds)"

    def _time(self, result: StepResult, warmup: int, iters: int) -> None:
        engine, batch = self._select(result)
        for _ in range(warmup):
            engine.step(batch, self.clock)
        if self.clock.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        marks = [engine.step(batch, self.clock) for _ in range(iters)]
        for start, between, end in marks:
            result.forward_backward.append(self.clock.milliseconds(start, between))
            result.update.append(self.clock.milliseconds(between, end))
            result.step.append(self.clock.milliseconds(start, end))
        if self.clock.on_gpu:
            result.peak_memory = max(result.peak_memory or 0, torch.cuda.max_memory_allocated())


def _title(result: StepResult) -> str:
    return f"{result.frames} frames, {result.case.label}"


def choose_cases(names: list[str], cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """The cases of these names, in the order of `cases`; all for no names.

    Raises:
        UserError: an unknown name.
    """
    known = {case.name: case for case in cases}
    for name in names:
        if name not in known:
            raise UserError(f"--cases {name} is unknown; use some of {', '.join(known)}")
    return tuple(case for case in cases if not names or case.name in names)
