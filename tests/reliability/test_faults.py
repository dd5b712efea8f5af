"""Faults while training: numbers that are not finite, spikes, a rank that no longer answers."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from phantom_mega.checkpoint import folder as names
from phantom_mega.metrics import read_metrics
from tests.reliability.helpers import ranks_of, start
from tests.training.conftest import BASE, environment

REPOSITORY = Path(__file__).resolve().parents[2]
# No warm-up of the learning rate, so that every update that is not skipped changes the weights.
STEPS = ["optimizer.lr_warmup_iters=0", "train.save_interval=4"]


@pytest.fixture(scope="module")
def faulty(data_set, tmp_path_factory):
    """(folder, results): runs with injected faults, in one start."""
    folder = tmp_path_factory.mktemp("faulty")
    last = 12
    cases = [
        {"run": "nan", "overrides": [*STEPS, "train.train_iters=6"], "inject": {"3": float("nan"), "4": float("inf")}},
        {
            "run": "spike",
            "overrides": [*STEPS, "train.train_iters=10", "train.spike_warmup=4"],
            "inject": {"8": 1000.0},
        },
        {
            "run": "lost",
            "overrides": [*STEPS, f"train.train_iters={last}", "train.max_skipped_in_a_row=3"],
            "inject": {str(i): float("nan") for i in range(6, last)},
        },
        # The same run again: it resumes from its last checkpoint, and the fault is gone.
        {"run": "lost", "name": "lost_resumed", "overrides": [*STEPS, f"train.train_iters={last}"], "inject": {}},
        {"run": "whole", "overrides": [*STEPS, f"train.train_iters={last}"], "inject": {}},
    ]
    return folder, start(folder, 1, data_set, cases)


def test_steps_with_a_loss_that_is_not_finite_are_skipped_and_counted(faulty):
    folder, results = faulty
    weights, metrics = results["nan"]["weights"], read_metrics(folder / "nan")
    assert results["nan"]["code"] == 0
    assert [m["nan"] for m in metrics] == [0, 0, 1, 2, 2, 2] and metrics[-1]["skipped"] == 2
    assert weights["2"] == weights["3"] == weights["4"] != weights["5"]


def test_a_spike_over_six_sigma_is_skipped_and_training_goes_on(faulty):
    folder, results = faulty
    weights, metrics = results["spike"]["weights"], read_metrics(folder / "spike")
    assert [m["skipped"] for m in metrics] == [0] * 7 + [1] * 3 and metrics[-1]["nan"] == 0
    assert metrics[7]["loss"] > 100 * metrics[6]["loss"]
    assert weights["6"] != weights["7"] == weights["8"] != weights["9"]


def test_too_many_skipped_steps_in_a_row_stop_the_run_and_it_can_be_resumed(faulty):
    folder, results = faulty
    assert "3 steps in a row were skipped" in results["lost"]["error"] and results["lost"]["stopped_at"] == 7
    assert results["lost_resumed"]["start"] == 4, "the last checkpoint before the fault"
    resumed, whole = (read_metrics(folder / run) for run in ("lost", "whole"))
    assert [m["loss"] for m in resumed] == [m["loss"] for m in whole]
    assert names.iteration_of(names.find_checkpoint(folder / "lost")) == 12


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job_with_stacks_within_the_timeout_and_nothing_is_lost(data_set, tmp_path):
    """SIGSTOP to one of two ranks: the other waits in a collective for an answer that never comes."""
    timeout = 8.0
    words = [*BASE, f"data.index_path=[{data_set}]", f"train.save={tmp_path}", "train.train_iters=4000"]
    words += ["train.save_interval=5", f"parallel.distributed_timeout_minutes={timeout / 60}"]
    process = subprocess.Popen(
        ["bash", "launchers/run.sh", "launchers/train.py", *words], cwd=REPOSITORY, text=True, start_new_session=True,
        env=environment() | {"GPUS_PER_NODE": "0", "NPROC_PER_NODE": "2"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and names.find_root(tmp_path) is None:
            time.sleep(0.05)
        assert names.find_root(tmp_path), "training never came to its first checkpoint"
        ranks = ranks_of(tmp_path)
        os.kill(ranks[1], signal.SIGSTOP)
        stopped = time.monotonic()
        printed, _ = process.communicate(timeout=150)
        seconds = time.monotonic() - stopped
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode not in (0, 75), printed[-3000:]
    assert re.search(r"rank 0 in iteration \d+ has made no progress for \d+ s \(last: ", printed), printed
    stack = printed[printed.index("made no progress") :]
    assert "most recent call first" in stack and "phantom_mega/training/trainer.py" in stack, stack
    # torchrun gives a rank that does not die 30 s after SIGTERM.
    assert seconds < timeout + 30 + 15, seconds
    print(f"ended {seconds:.0f} s after the rank hung (timeout {timeout:.0f} s)")
    assert names.find_checkpoint(tmp_path)
