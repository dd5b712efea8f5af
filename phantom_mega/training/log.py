"""What a run tells: Megatron's log line, TensorBoard under Megatron's tags, and one JSON line per iteration.

`eval_log.py` has the same for evaluations.

Only the last rank writes (it holds the loss under pipeline parallelism), as in Megatron-LM.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from phantom_mega.config import TrainConfig
from phantom_mega.metrics import evaluations_path, keep_until, metrics_path
from phantom_mega.training import eval_log


@dataclass
class IterationMetrics:
    """Numbers of one iteration, reduced over all ranks. Times are seconds, throughput is per GPU.

    `data_digest` stands for which samples were trained on, at which size, whatever the layout (`source.pack_digest`).
    """

    iteration: int
    consumed_samples: int
    loss: float
    grad_norm: float
    learning_rate: float
    elapsed: float
    data_wait: float
    video_tokens: int
    visual_tokens: int
    tokens_per_second: float
    tflops: float
    skipped: int
    nan: int
    bad_samples: int
    ema_decay: float = 0.0
    loss_per_timestep: dict[str, float] = field(default_factory=dict)
    data_digest: int = 0


def log_line(metrics: IterationMetrics, train: TrainConfig) -> str:
    """One line in Megatron-LM's form (megatron/training/training.py, training_log)."""
    parts = [
        f"iteration {metrics.iteration:8d}/{train.train_iters:8d}",
        f"consumed samples: {metrics.consumed_samples:12d}",
        f"elapsed time per iteration (ms): {metrics.elapsed * 1000:.1f}",
        f"throughput per GPU (TFLOP/s/GPU): {metrics.tflops:.3g}",
        f"tokens per second per GPU: {metrics.tokens_per_second:.0f}",
        f"learning rate: {metrics.learning_rate:.6E}",
        f"global batch size: {train.global_batch_size:5d}",
        f"flow loss: {metrics.loss:.6E}",
        f"grad norm: {metrics.grad_norm:.3f}",
        f"number of skipped iterations: {metrics.skipped:3d}",
        f"number of nan iterations: {metrics.nan:3d}",
        f"bad samples: {metrics.bad_samples:3d}",
        f"waited for data (ms): {metrics.data_wait * 1000:.1f}",
    ]
    if train.peak_tflops:
        parts.insert(4, f"MFU: {100 * metrics.tflops / train.peak_tflops:.1f}%")
    return f" [{time.strftime('%Y-%m-%d %H:%M:%S')}] {' | '.join(parts)} |"


def scalars(metrics: IterationMetrics) -> dict[str, float]:
    """TensorBoard tag -> value; Megatron-LM's tags where it has one."""
    tags = {
        "flow loss": metrics.loss,
        "learning-rate": metrics.learning_rate,
        "grad-norm": metrics.grad_norm,
        "iteration-time": metrics.elapsed,
        "throughput": metrics.tflops,
        "tokens-per-second": metrics.tokens_per_second,
        "skipped-iterations": metrics.skipped,
        "bad-samples": metrics.bad_samples,
        "data-wait": metrics.data_wait,
    }
    return tags | {f"loss per timestep/{name}": value for name, value in metrics.loss_per_timestep.items()}


class RunLog:
    """Writes the three records of a run into its folder; on ranks that do not write, does nothing.

    Args:
        folder: the run's folder; None keeps to standard output.
        train: iterations, intervals and the progress bar.
        start: iterations already done; later lines of an earlier start are dropped.
        active: whether this rank writes.
    """

    def __init__(self, folder: Path | None, train: TrainConfig, start: int, active: bool):
        self.train, self.active, self.folder, self.writer, self.file = train, active, folder, None, None
        if not active:
            return
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for record in (metrics_path(folder), evaluations_path(folder)):
                keep_until(record, start)
            self.file = open(metrics_path(folder), "a", buffering=1)  # noqa: SIM115 (closed in close)
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        hidden = not (train.progress_bar and sys.stderr.isatty())
        self.bar = tqdm(total=train.train_iters, initial=start, unit="it", disable=hidden, dynamic_ncols=True)

    def message(self, text: str) -> None:
        """Print a line that does not break the progress bar."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def iteration(self, metrics: IterationMetrics) -> None:
        """Record one iteration."""
        if not self.active:
            return
        self.bar.update(1)
        self.bar.set_postfix(loss=f"{metrics.loss:.4f}", refresh=False)
        if self.file is not None:
            self.file.write(json.dumps(dataclasses.asdict(metrics)) + "\n")
        if self.writer is not None:
            for tag, value in scalars(metrics).items():
                self.writer.add_scalar(tag, value, metrics.iteration)
            # Megatron-LM writes the loss against consumed samples too.
            self.writer.add_scalar("flow loss vs samples", metrics.loss, metrics.consumed_samples)
        if metrics.iteration % self.train.log_interval == 0:
            self.message(log_line(metrics, self.train))

    def evaluation(self, evaluated: eval_log.Evaluated) -> None:
        """Record one evaluation."""
        if not self.active:
            return
        if self.folder is not None:
            # Last what decides whether an evaluation is missed: killed in between, it is made again at worst.
            eval_log.to_tensorboard(evaluated, self.writer)
            eval_log.append(evaluated, self.folder)
        for line in eval_log.lines(evaluated):
            self.message(line)

    def close(self) -> None:
        """Flush everything."""
        if not self.active:
            return
        self.bar.close()
        if self.writer is not None:
            self.writer.close()
        if self.file is not None:
            self.file.close()
