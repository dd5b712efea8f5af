"""Jobs on a real Slurm that are stopped, killed or lose a node: they end at the loss of the run that was left alone."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from phantom_mega.metrics import read_metrics
from tests.reliability.helpers import EXACT, ranks_of
from tests.slurm.test_scripts import SETTINGS, STAGE1, iterations, latest_checkpoint

# Of a job that is to be stopped: more than it can do, however fast the machine is.
ENDLESS = 100_000
SAVE_INTERVAL = 5
pytestmark = [pytest.mark.slurm, pytest.mark.slow]


class Job:
    """A stage-1 job on two nodes with two ranks each; its learning rate does not depend on where it ends."""

    def __init__(
        self, slurm, samples, folder: Path, *arguments: str, iterations: int = ENDLESS, options: tuple[str, ...] = ()
    ):
        self.slurm, self.run, self.log = slurm, folder / "run", folder / "job.log"
        self.iterations = iterations
        folder.mkdir(exist_ok=True)
        settings = {"RECIPE": "tiny_stage1", "RUN_DIR": str(self.run), "DATA_INDEX": str(samples)}
        words = (*SETTINGS, f"train.train_iters={iterations}", f"train.save_interval={SAVE_INTERVAL}", *arguments)
        self.id = slurm.submit(STAGE1, self.log, *words, options=options, **settings)

    def restarts(self) -> int:
        return int(self.slurm.field(self.id, "Restarts"))

    def done(self) -> int:
        """The last iteration that the log tells of."""
        return max(iterations(self.log), default=0) if self.log.exists() else 0

    def wait_for_iteration(self, number: int) -> None:
        self.slurm.wait(self.id, self.log, lambda: self.done() >= number, f"at iteration {number}")

    def wait_for_restart(self, number: int) -> float:
        """Seconds until the job was requeued and all of it had ended."""
        started = time.monotonic()
        self.slurm.wait(self.id, self.log, lambda: self.requeued(number), f"requeued {number} times")
        return time.monotonic() - started

    def requeued(self, number: int) -> bool:
        # Slurm counts `scontrol requeue` at once, when the ranks have yet to save.
        return self.restarts() >= number and self.slurm.field(self.id, "JobState") != "COMPLETING"

    def finish(self) -> list[dict]:
        """Wait for the end; the run's metrics."""
        self.slurm.wait_for_state(self.id, self.log, "COMPLETED")
        assert latest_checkpoint(self.run) == self.iterations
        return read_metrics(self.run)


@dataclass
class Stop:
    """How a job was stopped.

    Attributes:
        kind: what was done to it.
        seconds: until it was requeued.
        done: the last iteration that the log told of by then.
        saved: the latest checkpoint by then.
    """

    kind: str
    seconds: float
    done: int
    saved: int


@pytest.fixture(scope="module")
def disturbed(slurm, samples, tmp_path_factory):
    """(metrics, log, stops) of one job that is stopped in six ways and always goes on."""
    # Slurm sends the signal up to a minute early, so some time after the start, as it likes.
    options = ("--time=2", "--signal=B:USR1@60")
    job = Job(slurm, samples, tmp_path_factory.mktemp("disturbed"), options=options)
    ways = {
        "time limit": lambda: None,
        "scancel --signal=USR1": lambda: slurm.command("scancel", "--signal=USR1", "--batch", job.id),
        "scontrol requeue": lambda: slurm.command("scontrol", "requeue", job.id),
        "killed node daemon": lambda: os.kill(slurm.daemon("127.0.0.2"), signal.SIGKILL),
        "killed rank": lambda: os.kill(ranks_of(job.run)[3], signal.SIGKILL),
    }
    stops = []
    for restart, (kind, stop) in enumerate(ways.items(), start=1):
        if kind == "killed node daemon":
            # At the start of the ranks: the job must not be done before Slurm misses the daemon.
            slurm.wait(job.id, job.log, lambda: len(ranks_of(job.run)) == 4, "its ranks started")
        elif kind != "time limit":
            # Further than any start before, and some steps past a periodic checkpoint.
            job.wait_for_iteration((stops[-1].done // SAVE_INTERVAL + 1) * SAVE_INTERVAL + 2)
        stop()
        seconds = job.wait_for_restart(restart)
        stops.append(Stop(kind, seconds, job.done(), latest_checkpoint(job.run)))
        if kind == "time limit":
            slurm.command("scontrol", "update", f"jobid={job.id}", "TimeLimit=60")
        slurm.start_daemons()
    job.wait_for_iteration(stops[-1].done + 2)
    slurm.command("scancel", job.id)
    slurm.wait(job.id, job.log, lambda: slurm.field(job.id, "JobState") == "CANCELLED", "cancelled")
    # Its ranks may still be saving.
    wait_until(lambda: "was cancelled, so it is not requeued" in job.log.read_text(), job.log)
    stops.append(Stop("scancel", 0.0, job.done(), latest_checkpoint(job.run)))
    assert slurm.field(job.id, "JobState") == "CANCELLED" and job.restarts() == len(ways)
    job = Job(slurm, samples, job.run.parent, iterations=stops[-1].saved + 5)  # somebody submits it again
    metrics = job.finish()
    assert job.restarts() == 0
    print("requeued after", ", ".join(f"{stop.seconds:.0f} s ({stop.kind})" for stop in stops[:-1]))
    return metrics, job.log, stops


@pytest.fixture(scope="module")
def whole(slurm, samples, disturbed, tmp_path_factory):
    """Metrics of a job of as many iterations as the disturbed one did, that nobody disturbs."""
    job = Job(slurm, samples, tmp_path_factory.mktemp("whole"), iterations=len(disturbed[0]))
    metrics = job.finish()
    assert job.restarts() == 0 and [m["iteration"] for m in metrics] == list(range(1, job.iterations + 1))
    return metrics


def wait_until(condition, log: Path) -> None:
    """Poll; fails with the log when it takes more than a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


@pytest.mark.exhaustive
def test_a_job_that_is_stopped_in_six_ways_ends_at_the_exact_loss_of_one_that_is_not(disturbed, whole):
    metrics, *_ = disturbed
    for name in EXACT:
        assert [m[name] for m in metrics] == [m[name] for m in whole], name


@pytest.mark.exhaustive
def test_a_chain_of_three_preemptions_loses_no_step(disturbed):
    _, log, stops = disturbed
    for stop in stops[:3]:
        assert stop.saved == stop.done, stop
    third = stops[2].done
    done = iterations(log)
    assert done[:third] == list(range(1, third + 1)), "no step is done twice"


@pytest.mark.exhaustive
def test_a_killed_rank_costs_the_steps_since_the_last_save_and_nothing_else(disturbed):
    _, log, stops = disturbed
    killed = next(stop for stop in stops if stop.kind == "killed rank")
    assert killed.saved % SAVE_INTERVAL == 0 and stops[2].saved < killed.saved < killed.done
    # Without some lines that the killed daemon took along before; `metrics.jsonl` has all.
    done = iterations(log)
    repeated = sorted({number for number in done if done.count(number) > 1})
    assert set(range(killed.saved + 1, killed.done + 1)) <= set(repeated)
    assert "the ranks crashed" in log.read_text()
    print(f"{len(repeated)} steps repeated: {repeated}")


@pytest.mark.exhaustive
def test_a_cancelled_job_saves_and_is_told_from_one_that_slurm_requeued(disturbed):
    _, log, stops = disturbed
    assert stops[-1].kind == "scancel" and stops[-1].saved == stops[-1].done
    assert log.read_text().count("was cancelled, so it is not requeued") == 1
    assert log.read_text().count("Slurm has requeued job") == 2  # `scontrol requeue` and the lost node


def test_a_job_that_is_signalled_goes_back_into_the_queue_and_ends_at_the_exact_loss(slurm, samples, tmp_path):
    stopped = Job(slurm, samples, tmp_path / "stopped", iterations=20)
    stopped.wait_for_iteration(2)
    slurm.command("scancel", "--signal=USR1", "--batch", stopped.id)
    stopped.wait_for_restart(1)
    assert latest_checkpoint(stopped.run) == stopped.done() < 20
    whole = Job(slurm, samples, tmp_path / "whole", iterations=20)
    metrics, expected = stopped.finish(), whole.finish()
    assert (stopped.restarts(), whole.restarts()) == (1, 0)
    for name in EXACT:
        assert [m[name] for m in metrics] == [m[name] for m in expected], name


def test_a_job_that_cannot_work_is_not_requeued(slurm, samples, tmp_path):
    job = Job(slurm, samples, tmp_path, "train.global_batch_size=3")
    slurm.wait_for_state(job.id, job.log, "FAILED")
    assert job.restarts() == 0 and slurm.field(job.id, "ExitCode") == "2:0"
    assert "error: train.global_batch_size=3 is not a multiple of the data-parallel size 2" in job.log.read_text()


def test_a_job_that_crashes_again_and_again_gives_up(slurm, samples, tmp_path):
    job = Job(slurm, samples, tmp_path)
    job.run.mkdir(exist_ok=True)
    # As if two starts had crashed before the first checkpoint.
    (job.run / f".crashes.{job.id}").write_text("none 2")
    slurm.wait(job.id, job.log, lambda: bool(ranks_of(job.run)), "its ranks started")
    os.kill(ranks_of(job.run)[0], signal.SIGKILL)
    slurm.wait_for_state(job.id, job.log, "FAILED")
    assert job.restarts() == 0 and "3 crashes in a row without progress" in job.log.read_text()
