"""Evaluation while a run trains: held-out loss, sample videos, their metrics. It changes nothing of the training.

`held_out.py` has the loss, `samples.py` the videos, `eval_log.py` what is told.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from phantom_mega.config import TrainConfig
from phantom_mega.core.build import sync_parameters
from phantom_mega.errors import UserError
from phantom_mega.metrics import read_evaluations
from phantom_mega.training.collective import Pulse, on_first_rank
from phantom_mega.training.eval_log import Evaluated
from phantom_mega.training.held_out import HeldOutSet
from phantom_mega.training.samples import Samples, SampleVideos
from phantom_mega.training.signals import StopSignals

if TYPE_CHECKING:
    from phantom_mega.training.trainer import Trainer


def check_settings(train: TrainConfig) -> None:
    """Refuse what cannot be evaluated.

    Raises:
        UserError: names the setting and what it may be.
    """
    for name, least in (("eval_interval", 0), ("eval_iters", 1), ("eval_videos", 0), ("eval_video_steps", 1)):
        if getattr(train, name) < least:
            raise UserError(f"train.{name}={getattr(train, name)} must be at least {least}")
    timesteps = train.eval_timesteps
    if not timesteps or len(set(timesteps)) < len(timesteps) or not all(0 < t < 1 for t in timesteps):
        raise UserError(
            f"train.eval_timesteps={timesteps} must be different numbers between 0 (data) and 1 (noise), both excluded"
        )


class Evaluation:
    """Evaluates a run every `train.eval_interval` iterations and at its end.

    Args:
        trainer: model, optimizer and source are read.

    Raises:
        UserError: settings, the held-out data set or a metric cannot be used.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.train = trainer, trainer.config.train
        with random_state_kept(trainer.device):
            self.held_out = HeldOutSet(trainer.config, trainer.source)
            plan = self.held_out.plan
            self.samples = SampleVideos(trainer.config, plan, trainer.source) if self.train.eval_videos else None
        shared, rows = self.held_out.also_trained_on(), len(plan.index)
        if shared:
            trainer.say(f"warning: {shared} of {rows} samples of data.valid_index_path are in data.index_path too")

    @classmethod
    def of(cls, trainer: Trainer) -> Evaluation | None:
        """The run's evaluation; None, with a line that says so, where there is none.

        Raises: as `Evaluation`.
        """
        train, held_out = trainer.config.train, trainer.config.data.valid_index_path
        check_settings(train)
        if train.eval_interval and held_out:
            return cls(trainer)
        if train.eval_interval:
            trainer.say("no evaluation: data.valid_index_path names no held-out samples")
        elif held_out:
            trainer.say("no evaluation: train.eval_interval=0, though data.valid_index_path is set")
        return None

    def describe(self) -> str:
        """What is evaluated, in one line."""
        train, packs = self.train, len(self.held_out.packs)
        samples = sum(map(len, self.held_out.packs))
        text = (
            f"every {train.eval_interval} iterations: loss on {samples} held-out samples in {packs} packs "
            f"at {len(train.eval_timesteps)} timesteps"
        )
        if self.samples is None:
            return text + ", no sample videos"
        made, ranks = self.samples, ", ".join(map(str, self.samples.ranks))
        sizes = sorted({f"{case.width}x{case.height}x{case.num_frames}" for case in made.cases})
        return (
            f"{text}; {len(made.cases)} sample videos ({', '.join(sizes)}) in {train.eval_video_steps} steps by "
            f"{made.weights} weights, on rank{'s' * (len(made.ranks) > 1)} {ranks}, which hold the whole model for it; "
            f"metrics {', '.join(train.eval_metrics) or 'none'}"
        )

    def prepare(self) -> None:
        """Encode the held-out samples; before threads of the training use the encoders."""
        with random_state_kept(self.trainer.device):
            self.held_out.encode(self.trainer.watch.progress)

    def due(self, iteration: int) -> bool:
        """Whether there is an evaluation after so many iterations."""
        return iteration > 0 and (iteration % self.train.eval_interval == 0 or iteration == self.train.train_iters)

    def missed(self) -> bool:
        """Whether the iteration that the run goes on from should have been evaluated, and was not: a signal came."""
        trainer = self.trainer
        if trainer.folder is None or not self.due(trainer.iteration):
            return False
        done = on_first_rank(lambda: [one["iteration"] for one in read_evaluations(trainer.folder)])
        return trainer.iteration not in done

    def run(self, signals: StopSignals) -> bool:
        """Evaluate now and log it; a collective call.

        Returns:
            False where a signal came: the rest was left out, and nothing is logged or written.
        """
        trainer, started = self.trainer, time.monotonic()

        def proceed(what: str) -> bool:
            trainer.watch.progress(what)
            return not signals.requested(trainer.device)

        with random_state_kept(trainer.device):
            # With overlap_param_gather the model's weights are stale until the next forward pass.
            sync_parameters(trainer.wrapped)
            loss = self.held_out.loss(trainer.wrapped, trainer.core_config, proceed)
            samples, cut = None, loss is None
            if self.samples is not None and not cut:
                samples, cut = self._make_samples(signals)
        if cut:
            trainer.say(f"the evaluation at iteration {trainer.iteration} is left out: a signal came")
            return False
        seconds = time.monotonic() - started
        trainer.log.evaluation(Evaluated(trainer.iteration, trainer.consumed_samples, loss, samples, seconds))
        return True

    def _make_samples(self, signals: StopSignals) -> tuple[Samples | None, bool]:
        """(the videos, or None where there are none; whether a signal cut them short)."""
        trainer = self.trainer
        pulse = Pulse(
            trainer.device, lambda: trainer.watch.progress("making sample videos"), lambda: signals.received is not None
        )
        folder = samples_folder(trainer.folder, trainer.iteration) if trainer.folder else None
        try:
            with trainer.source.paused():
                return self.samples.make(trainer.chunks, trainer.optimizer, folder, pulse), pulse.stopped
        except UserError as error:  # the same on all ranks: a full disk is no reason to stop training
            trainer.say(f"no sample videos at iteration {trainer.iteration}: {error}")
            return None, False


def samples_folder(run: Path, iteration: int) -> Path:
    """Where the sample videos of an iteration are."""
    return run / "samples" / f"iter_{iteration:07d}"


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Random generators of torch, NumPy and Python are afterwards as they were before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
