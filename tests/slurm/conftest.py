"""A real one-machine Slurm cluster, sample data, and jobs to wait for.

The cluster lives in a folder and at ports of its own, so that it meets neither another cluster nor another test run.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.media import write_data_set

REPOSITORY = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("cluster.sh")
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
# Seconds until Slurm counts a silent node as lost; long enough for a busy machine.
SLURMD_TIMEOUT = 20
# A start of four ranks on two cores takes about half a minute, a requeue as long again.
JOB_SECONDS = 420


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that nothing listens on."""
    for first in range(26900, 28900, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(sockets):
                probe.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in sockets:
                probe.close()
    raise RuntimeError("no free ports between 26900 and 28900")


def plain_environment() -> dict[str, str]:
    """The environment without settings that would change what the scripts do."""
    changing = (
        "CONTAINER_",
        "CUDA_VISIBLE",
        "DATA_INDEX",
        "GPUS_",
        "LOAD",
        "MASTER_",
        "MODEL",
        "NPROC_",
        "RECIPE",
        "RUN_DIR",
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*changing, "SLURM", "SBATCH", "SRUN", "TORCHRUN"))}
    # The interpreter that runs these tests also runs the ranks, wherever its environment lies.
    return kept | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


@dataclass
class Slurm:
    """Commands against the test cluster; jobs run from the repository's root, as a user submits them."""

    environment: dict[str, str]

    def command(self, *words: str, **settings: str) -> str:
        """Run a Slurm command and return what it printed.

        Raises:
            AssertionError: it failed; shows its errors.
        """
        done = subprocess.run(
            words, cwd=REPOSITORY, env=self.environment | settings, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, output: Path, *arguments: str, options: tuple[str, ...] = (), **settings: str) -> str:
        """`sbatch` on two nodes without GPUs, two ranks each; settings are environment variables. Returns the job."""
        settings = {"GPUS_PER_NODE": "0", "NPROC_PER_NODE": "2"} | settings
        flags = ("--nodes=2", "--gpus-per-node=0", f"--output={output}", *options)
        return self.command("sbatch", "--parsable", *flags, script, *arguments, **settings)

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`, as `JobState`; asks twice, for the controller is at times too busy."""
        try:
            text = self.command("scontrol", "show", "job", job)
        except (AssertionError, subprocess.TimeoutExpired):
            text = self.command("scontrol", "show", "job", job)
        return re.search(rf"\b{name}=(\S+)", text).group(1)

    def daemon(self, node: str) -> int:
        """Process id of a node's slurmd."""
        return int((Path(self.environment["CLUSTER_DIR"]) / "pid" / f"slurmd.{node}.pid").read_text())

    def start_daemons(self) -> None:
        """Start the daemons that do not run."""
        with (Path(self.environment["CLUSTER_DIR"]) / "cluster.log").open("a") as log:
            subprocess.run([CLUSTER, "up"], env=self.environment, stdout=log, stderr=log, timeout=120, check=True)

    def wait(self, job: str, output: Path, until, what: str) -> None:
        """Poll until `until()` is true; fails with the job's output when it ends without that or takes too long."""
        deadline = time.monotonic() + JOB_SECONDS
        while not until():
            state = self.field(job, "JobState")
            text = output.read_text() if output.exists() else "(no output)"
            assert state not in FINAL_STATES or until(), f"job {job} is {state}, expected {what}:\n{text[-6000:]}"
            assert time.monotonic() < deadline, f"job {job} ({state}): not {what} in {JOB_SECONDS} s:\n{text[-6000:]}"
            time.sleep(0.2)

    def wait_for_state(self, job: str, output: Path, state: str) -> None:
        """Wait until the job is in this state."""
        self.wait(job, output, lambda: self.field(job, "JobState") == state, state)


@pytest.fixture(scope="session")
def slurm():
    """The running cluster; skips with the reason where there can be none."""
    folder = Path(tempfile.mkdtemp(prefix="phantom_mega_slurm."))
    environment = plain_environment() | {"CLUSTER_DIR": str(folder), "PORT": str(free_ports(3)), "NODES": "2"}
    environment["SLURMD_TIMEOUT"] = str(SLURMD_TIMEOUT)
    possible = subprocess.run([CLUSTER, "check"], env=environment, capture_output=True, text=True)
    if possible.returncode == 3:
        shutil.rmtree(folder)
        pytest.skip(f"no Slurm cluster on this machine: {possible.stderr.strip()}")
    log = folder / "cluster.log"
    try:
        # To files: the daemons keep their standard streams, and a pipe would never end.
        with log.open("w") as stream:
            up = subprocess.run([CLUSTER, "up"], env=environment, stdout=stream, stderr=subprocess.STDOUT, timeout=600)
        assert up.returncode == 0, log.read_text()
        yield Slurm(environment | {"SLURM_CONF": str(folder / "etc" / "slurm.conf")})
    finally:
        subprocess.run([CLUSTER, "down"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def samples(tmp_path_factory) -> Path:
    """Folder of a small data set, made once."""
    return write_data_set(tmp_path_factory.mktemp("samples"), count=12, frames=24)
