"""Jobs on a real Slurm that are stopped, killed or lose a node: they end at the loss of the run that was left alone."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from phantom_mega.metrics import read_metrics
from tests.reliability.helpers import EXACT, ranks_of
from tests.slurm.conftest import SLURMD_TIMEOUT
from tests.slurm.test_scripts import SETTINGS, STAGE1, iterations, latest_checkpoint

ITERATIONS, SAVE_INTERVAL = 60, 7
pytestmark = [pytest.mark.slurm, pytest.mark.slow]


class Job:
    """A stage-1 job on two nodes with two ranks each."""

    def __init__(self, slurm, samples, folder: Path, *arguments: str, options: tuple[str, ...] = ()):
        self.slurm, self.run, self.log = slurm, folder / "run", folder / "job.log"
        settings = {"RECIPE": "tiny_stage1", "RUN_DIR": str(self.run), "DATA_INDEX": str(samples)}
        words = (*SETTINGS, f"train.train_iters={ITERATIONS}", f"train.save_interval={SAVE_INTERVAL}", *arguments)
        self.id = slurm.submit(STAGE1, self.log, *words, options=options, **settings)

    def restarts(self) -> int:
        return int(self.slurm.field(self.id, "Restarts"))

    def done(self) -> int:
        """The last iteration that the log tells of."""
        return max(iterations(self.log), default=0) if self.log.exists() else 0

    def wait_for_iteration(self, number: int) -> None:
        self.slurm.wait(self.id, self.log, lambda: self.done() >= number, f"at iteration {number}")

    def wait_for_restart(self, number: int) -> float:
        """Seconds until the job was requeued."""
        started = time.monotonic()
        self.slurm.wait(self.id, self.log, lambda: self.restarts() >= number, f"restarted {number} times")
        return time.monotonic() - started

    def finish(self) -> list[dict]:
        """Wait for the end; the run's metrics."""
        self.slurm.wait_for_state(self.id, self.log, "COMPLETED")
        assert latest_checkpoint(self.run) == ITERATIONS
        return read_metrics(self.run)


@pytest.fixture(scope="module")
def whole(slurm, samples, tmp_path_factory):
    """Metrics of a job that nobody disturbs."""
    job = Job(slurm, samples, tmp_path_factory.mktemp("whole"))
    metrics = job.finish()
    assert job.restarts() == 0 and [m["iteration"] for m in metrics] == list(range(1, ITERATIONS + 1))
    return metrics


def assert_same_run(metrics, whole):
    for name in EXACT:
        assert [m[name] for m in metrics] == [m[name] for m in whole], name


def test_three_preemptions_lose_no_step_and_end_at_the_exact_loss(slurm, samples, tmp_path, whole):
    # Slurm sends the signal up to a minute early, so some time after the start, as it likes.
    job = Job(slurm, samples, tmp_path, options=("--time=2", "--signal=B:USR1@60"))
    seconds = [job.wait_for_restart(1)]
    slurm.command("scontrol", "update", f"jobid={job.id}", "TimeLimit=60")
    before = latest_checkpoint(job.run) if (job.run / "checkpoints").exists() else 0
    for restart, stop in enumerate((("scancel", "--signal=USR1", "--batch"), ("scontrol", "requeue")), start=2):
        job.wait_for_iteration(before + 3)
        slurm.command(*stop, job.id)
        seconds.append(job.wait_for_restart(restart))
        assert latest_checkpoint(job.run) > before, "every stop saves"
        before = latest_checkpoint(job.run)
    assert_same_run(job.finish(), whole)
    assert iterations(job.log) == list(range(1, ITERATIONS + 1)), "no step is done twice"
    print(f"requeued after {', '.join(f'{s:.0f}' for s in seconds)} s (time limit, scancel --signal, scontrol requeue)")


def test_killed_ranks_cost_the_steps_since_the_last_save_and_nothing_else(slurm, samples, tmp_path, whole):
    job = Job(slurm, samples, tmp_path)
    job.wait_for_iteration(SAVE_INTERVAL + 2)
    os.kill(ranks_of(job.run)[3], signal.SIGKILL)
    seconds = job.wait_for_restart(1)
    assert "the ranks crashed" in job.log.read_text()
    saved = latest_checkpoint(job.run)
    assert saved % SAVE_INTERVAL == 0 and saved > 0
    job.wait_for_iteration(saved + 1)
    assert_same_run(job.finish(), whole)
    done = iterations(job.log)
    repeated = len(done) - ITERATIONS
    assert 0 <= repeated < 2 * SAVE_INTERVAL and sorted(set(done)) == list(range(1, ITERATIONS + 1))
    print(f"requeued {seconds:.0f} s after the kill; {repeated} steps repeated")


def test_a_killed_node_daemon_requeues_the_job_and_it_ends_at_the_exact_loss(slurm, samples, tmp_path, whole):
    job = Job(slurm, samples, tmp_path)
    job.wait_for_iteration(2)
    os.kill(slurm.daemon("127.0.0.2"), signal.SIGKILL)
    seconds = job.wait_for_restart(1)
    slurm.start_daemons()
    assert_same_run(job.finish(), whole)
    assert "Slurm has requeued job" in job.log.read_text()
    print(f"requeued {seconds:.0f} s after the daemon was killed (SlurmdTimeout {SLURMD_TIMEOUT} s)")


def test_a_job_that_cannot_work_is_not_requeued(slurm, samples, tmp_path):
    job = Job(slurm, samples, tmp_path, "model.num_attention_heads=3")
    slurm.wait_for_state(job.id, job.log, "FAILED")
    assert job.restarts() == 0 and slurm.field(job.id, "ExitCode") == "2:0"
    assert re.search(r"error: .*num_attention_heads", job.log.read_text())


def test_a_job_that_crashes_again_and_again_gives_up(slurm, samples, tmp_path):
    job = Job(slurm, samples, tmp_path)
    job.run.mkdir(exist_ok=True)
    # As if two starts had crashed before the first checkpoint.
    (job.run / f".crashes.{job.id}").write_text("none 2")
    slurm.wait(job.id, job.log, lambda: bool(ranks_of(job.run)), "its ranks started")
    os.kill(ranks_of(job.run)[0], signal.SIGKILL)
    slurm.wait_for_state(job.id, job.log, "FAILED")
    assert job.restarts() == 0 and "3 crashes in a row without a new checkpoint" in job.log.read_text()
