"""The trainer: builds everything from a configuration, then iterates until the recipe, a signal or the clock ends it.

Reading order: `Trainer.train`, `Trainer.step`, then `batch.py` (what is trained on) and `optimizer.py` (the update).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer import clip_grads
from megatron.core.optimizer_param_scheduler import get_canonical_lr_for_logging

from phantom_mega.attention import resolve_backend
from phantom_mega.checkpoint.folder import LATEST
from phantom_mega.config import RunConfig
from phantom_mega.config_io import to_yaml
from phantom_mega.core import fused_libraries
from phantom_mega.core.build import build_model, sync_parameters, wrap_ddp
from phantom_mega.core.kernels import kernel_lines
from phantom_mega.core.parallel_config import initialize_distributed
from phantom_mega.core.schedule import StepStats, forward_backward
from phantom_mega.core.specs import resolve_transformer_impl
from phantom_mega.errors import UserError
from phantom_mega.flops import training_flops
from phantom_mega.parallel_layout import check_layout, check_num_microbatches
from phantom_mega.precision import check_precision
from phantom_mega.training import checkpoint
from phantom_mega.training import optimizer as optim
from phantom_mega.training.evaluation import Evaluation
from phantom_mega.training.guard import StepGuard
from phantom_mega.training.log import IterationMetrics, RunLog
from phantom_mega.training.signals import StopSignals
from phantom_mega.training.source import BatchSource, StepData
from phantom_mega.training.watchdog import HangWatch

# The run stopped early, after a checkpoint, because it was told to: start it again to go on (EX_TEMPFAIL).
EXIT_RESUMABLE = 75


class Trainer:
    """One rank of a run.

    Args:
        config: the whole run.

    Raises:
        UserError: anything about the configuration, the data or the checkpoint that cannot work.
    """

    def __init__(self, config: RunConfig):
        self.config, train = config, config.train
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        )
        chunks = build_model(config.model, config.parallel, config.precision, train.seed)
        self.chunks, self.core_config = chunks, chunks[0].config
        self.wrapped = wrap_ddp(chunks, self.core_config, config.parallel)
        self.optimizer = optim.build_optimizer(self.wrapped, config)
        self.scheduler = optim.build_scheduler(self.optimizer, config)
        self.core_config.grad_scale_func = self.optimizer.scale_loss
        self.say("\n".join(self.kernels()))
        self.guard = StepGuard(train.spike_sigma, train.spike_warmup, train.max_skipped_in_a_row)
        self.source = BatchSource(config, self.device)
        check_num_microbatches(config.parallel, train.global_batch_size // self.source.dp_size)
        self.iteration, self.consumed_samples, self.updates, self.bad_samples = 0, 0, 0, 0
        self.folder = Path(train.save) if train.save else None
        self.saver = checkpoint.CheckpointSaver(self.folder, config, self.say) if self.folder else None
        self._saved: int | None = None
        self.watch = HangWatch(60 * config.parallel.distributed_timeout_minutes, self._position)
        self.watch.progress("loading a checkpoint")
        self._load()
        self.watch.progress("preparing the evaluation")
        self.evaluation = Evaluation.of(self)
        self.watch.stop()

    def kernels(self) -> list[str]:
        """Which implementation serves which part of this run, a line each."""
        parallel = self.config.parallel
        return kernel_lines(
            self.core_config,
            resolve_transformer_impl(parallel.transformer_impl),
            resolve_backend(parallel.attention_backend, self.device, self.core_config.params_dtype),
            type(self.optimizer.chained_optimizers[0].optimizer),
            clip_grads.l2_norm_impl,
            fused_libraries.find(),
        )

    # -- checkpoints

    def _load(self) -> None:
        """Resume this run's own newest good checkpoint, else start from the one that `train.load` names."""
        train = self.config.train
        choose = functools.partial(checkpoint.choose_checkpoint, hashes=train.verify_integrity, say=self.say)
        own = choose(self.folder, own=True) if self.folder else None
        source, finetune = (own, False) if own else (None, train.finetune)
        if source is None and train.load:
            source = choose(Path(train.load), own=False)
            if source is None:
                raise UserError(f"train.load={train.load} holds no checkpoint (no {LATEST} there)")
        if source is None:
            return
        self.say(f"loading {source}" + (" (weights and EMA only)" if finetune else ""))
        state = checkpoint.load_checkpoint(
            source, self.chunks, self.optimizer, self.scheduler, self.config, finetune=finetune
        )
        if state:
            self.iteration, self.consumed_samples = state["iteration"], state["consumed_samples"]
            self.updates, self.bad_samples = state["updates"], state["bad_samples"]
            self.guard.load_state_dict(state["guard"])
        if own:
            self._saved = self.iteration

    def save(self) -> None:
        """Write a checkpoint of this iteration, once."""
        if self.saver is None or self._saved == self.iteration:
            return
        state = {
            "consumed_samples": self.consumed_samples,
            "updates": self.updates,
            "bad_samples": self.bad_samples,
            "guard": self.guard.state_dict(),
        }
        self.watch.progress(f"saving the checkpoint of iteration {self.iteration}")
        # With overlap_param_gather the model's weights are stale until the next forward pass.
        sync_parameters(self.wrapped)
        self.saver.save(self.iteration, self.chunks, self.optimizer, self.scheduler, state)
        self._saved = self.iteration

    # -- the run

    def train(self) -> int:
        """Run to the end of the recipe; returns the process's exit code (0, or `EXIT_RESUMABLE`)."""
        train, started, first = self.config.train, time.monotonic(), self.iteration
        missed = self.evaluation is not None and self.evaluation.missed()
        if self.iteration >= train.train_iters and not missed:
            self.say(f"nothing to do: {self.iteration} of {train.train_iters} iterations are done")
            return 0
        self.say(str(self.source.plan.report(0)))
        # From before the first file of the run on, and until the last one is whole: a signal is never a kill.
        with StopSignals() as signals, contextlib.ExitStack() as closing:
            self.log = RunLog(self.folder, train, self.iteration, active=self._writes_log())
            closing.callback(self.log.close)
            closing.callback(self.source.close)
            closing.callback(self.watch.stop)
            if self.evaluation:
                self.evaluation.prepare()
            whole = self.evaluation.run(signals) if missed else True
            self.source.open(self.consumed_samples)
            while self.iteration < train.train_iters:
                self.watch.progress("training")
                self.log.iteration(self.step())
                if self.saver:
                    self.saver.poll()
                last = self.iteration == train.train_iters
                if last or (train.save_interval and self.iteration % train.save_interval == 0):
                    self.save()
                if self.evaluation and self.evaluation.due(self.iteration):
                    self._finish_save()  # it is published whatever becomes of the evaluation
                    whole = self.evaluation.run(signals)
                reason = self._stop_reason(signals, self.iteration - first, time.monotonic() - started)
                if reason and not last:
                    self.save()
                    self._finish_save()
                    self.say(f"stopped at iteration {self.iteration}: {reason}")
                    return EXIT_RESUMABLE
            self._finish_save()
            # A last evaluation that a signal cut short is made up for by the next start.
            return 0 if whole else EXIT_RESUMABLE

    def _finish_save(self) -> None:
        if self.saver:
            self.watch.progress("finishing a checkpoint")
            self.saver.wait()

    def _position(self) -> str:
        """Where this rank is, for the report of a hang."""
        return f"rank {dist.get_rank()} in iteration {self.iteration + 1}"

    def _stop_reason(self, signals: StopSignals, done: int, seconds: float) -> str | None:
        """Why to stop early; the same answer on every rank."""
        train = self.config.train
        if signals.requested(self.device):
            return f"received {signals.received.name if signals.received else 'a signal on another rank'}"
        if train.exit_interval and done >= train.exit_interval:
            return f"train.exit_interval={train.exit_interval}"
        if train.exit_duration_in_mins:
            late = torch.tensor(float(seconds > 60 * train.exit_duration_in_mins), device=self.device)
            dist.all_reduce(late, op=dist.ReduceOp.MAX)
            if late.item():
                return f"train.exit_duration_in_mins={train.exit_duration_in_mins:g}"
        return None

    def step(self) -> IterationMetrics:
        """One iteration: forward and backward over this rank's packs, guarded update, metrics."""
        started = time.monotonic()
        data = self.source.next()
        for chunk in self.wrapped:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        microbatches = [(batch.inputs, batch.target, batch.weight) for batch in data.batches]
        stats = forward_backward(self.wrapped, microbatches, self.core_config)
        grad_norm = optim.gradient_norm(self.optimizer)
        reason = self.guard.check(stats.loss, grad_norm)
        decay = 0.0
        if reason is None:
            self.updates += 1
            self.scheduler.step(1)
            optim.apply_update(self.optimizer, grad_norm, self.config.optimizer.clip_grad)
            if self.config.train.ema_decay > 0:
                decay = optim.update_ema(self.optimizer, self.config.train.ema_decay, self.updates)
        else:
            self.say(f"skipped the update of iteration {self.iteration + 1}: {reason}")
        self.iteration += 1
        self.consumed_samples += self.config.train.global_batch_size
        return self._metrics(stats, data, grad_norm, decay, started)

    # -- numbers

    def _metrics(
        self, stats: StepStats, data: StepData, grad_norm: float, decay: float, started: float
    ) -> IterationMetrics:
        """Reduce what the log shows; a collective call."""
        shapes = [shape for batch in data.batches for shape in batch.inputs.layout.shapes]
        visual = sum(shape.visual_tokens for shape in shapes)
        flops = sum(training_flops(self.config.model, batch.inputs.layout) for batch in data.batches)
        bins = self._timestep_bins(stats)
        # Model-parallel peers hold equal packs and disjoint shares of bad samples; the last stage holds the bins.
        bad = len(data.bad_samples) * self._peers()
        numbers = torch.tensor([visual, flops, bad, data.digest], dtype=torch.float64)
        numbers = torch.cat([numbers, bins.flatten()]).to(self.device)
        dist.all_reduce(numbers)
        visual, flops, bad, digest = (numbers[:4] / self._peers()).tolist()
        sums, counts = numbers[4:].view(2, -1).tolist()
        self._count_bad(data.bad_samples, round(bad))
        elapsed = time.monotonic() - started
        per_gpu = elapsed * dist.get_world_size()
        edges = self.config.train.timestep_bins
        return IterationMetrics(
            iteration=self.iteration,
            consumed_samples=self.consumed_samples,
            loss=stats.loss,
            grad_norm=grad_norm,
            learning_rate=get_canonical_lr_for_logging(self.optimizer.param_groups) or 0.0,
            elapsed=elapsed,
            data_wait=data.waited,
            video_tokens=stats.num_tokens,
            visual_tokens=round(visual),
            tokens_per_second=visual / per_gpu,
            tflops=flops / per_gpu / 1e12,
            skipped=self.guard.skipped,
            nan=self.guard.nan,
            bad_samples=self.bad_samples,
            ema_decay=decay,
            data_digest=round(digest),
            loss_per_timestep={
                f"{i / edges:.2f}-{(i + 1) / edges:.2f}": total / count
                for i, (total, count) in enumerate(zip(sums, counts))
                if count
            },
        )

    def _peers(self) -> int:
        return self.source.mp_size

    def _timestep_bins(self, stats: StepStats) -> torch.Tensor:
        """float64 [2, bins]: loss sums and token counts by timestep; on one rank of the last stage, zeros elsewhere."""
        bins = torch.zeros(2, self.config.train.timestep_bins, dtype=torch.float64)
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            for samples in stats.samples:
                place = (samples.timestep.cpu() * bins.shape[1]).long().clamp(0, bins.shape[1] - 1)
                bins[0].index_add_(0, place, samples.loss_sum.double().cpu())
                bins[1].index_add_(0, place, samples.tokens.double().cpu())
        return bins

    def _count_bad(self, messages: list[str], found: int) -> None:
        """Name and count unreadable samples.

        Raises:
            UserError: more than `data.max_bad_samples` so far; on every rank alike.
        """
        for message in messages:
            print(f"bad sample, skipped: {message}", flush=True)
        self.bad_samples += found
        if self.bad_samples > self.config.data.max_bad_samples:
            raise UserError(
                f"{self.bad_samples} unreadable samples, more than data.max_bad_samples="
                f"{self.config.data.max_bad_samples}; mend the shards named above or raise the limit"
            )

    def _writes_log(self) -> bool:
        return dist.get_rank() == dist.get_world_size() - 1

    def say(self, text: str) -> None:
        """Print a line once for all ranks."""
        if self._writes_log():
            log = getattr(self, "log", None)
            log.message(text) if log else print(text, flush=True)


def prepare(config: RunConfig, write: bool = True) -> RunConfig:
    """Check the layout and create the process groups; call before `Trainer`.

    Args:
        config: as read from recipe and command line.
        write: record the resolved configuration in the run's folder.

    Raises:
        UserError: the layout cannot be built, or not in this precision.
    """
    check_layout(config.model, config.parallel, config.data)
    check_precision(config.precision, config.model, config.parallel, config.data)
    if config.precision.bf16 and not torch.cuda.is_available():
        also = " and precision.fp8 to null" if config.precision.fp8 else ""
        config = dataclasses.replace(config, precision=dataclasses.replace(config.precision, bf16=False, fp8=None))
        print(f"there is no GPU: precision.bf16 is set to false{also}", flush=True)
    initialize_distributed(config.parallel, config.train.seed)
    if write and config.train.save and dist.get_rank() == 0:
        Path(config.train.save).mkdir(parents=True, exist_ok=True)
        (Path(config.train.save) / "config.yaml").write_text(to_yaml(config))
    return config
