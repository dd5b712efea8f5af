"""Curation as a Slurm job: Ray on two nodes makes the bytes of a plain run, also when the job is stopped between."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.curation.clips import noise, real, write_video
from tests.slurm.conftest import JOB_SECONDS, REPOSITORY, plain_environment

SCRIPT = "slurm/curate.sh"
SETTINGS = {"RECIPE": "tiny", "CPUS_PER_NODE": "1"}
STAGES = ("files", "videos", "shots", "clips", "measures", "selected")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A small folder of videos, one of them broken."""
    folder = tmp_path_factory.mktemp("films")
    for name in ("bikes", "carphone", "bigbuckbunny"):
        real(folder, name)
    for seed in range(3):
        write_video(folder / f"made {seed}.mp4", noise(seed, 60, 180, 320))
    (folder / "broken.mp4").write_text("no video")
    return folder


def tables(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def plain(films, tmp_path_factory):
    """Tables of a run without the script."""
    output = tmp_path_factory.mktemp("plain")
    words = ["--input", str(films), "--output", str(output), "--config", "tiny", "engine.num_cpus=2"]
    command = [sys.executable, "launchers/curate.py", *words]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=plain_environment(), capture_output=True, text=True, timeout=JOB_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert {name.split("/")[1] for name in tables(output)} >= set(STAGES)
    return tables(output)


def submit(slurm, films, folder: Path, *arguments, options=(), **settings):
    """(job, its output file)."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS | {"INPUT": str(films), "OUTPUT": str(folder / "out")} | settings
    return slurm.submit(SCRIPT, folder / "log", *arguments, options=options, **settings), folder / "log"


def past_videos(log: Path) -> bool:
    """Whether a run's stage `videos` is done."""
    return log.exists() and re.search(r"^videos: \d+ of", log.read_text(), re.MULTILINE) is not None


def leftovers(job: str) -> list[Path]:
    """What the Ray nodes of a job left on the machine."""
    return list(Path("/tmp").glob(f"ray.{job}.*"))


@pytest.mark.slurm
@pytest.mark.slow
def test_a_stopped_job_of_two_nodes_goes_back_into_the_queue_and_ends_with_the_bytes_of_a_plain_run(
    slurm, films, plain, tmp_path
):
    job, log = submit(slurm, films, tmp_path)
    slurm.wait(job, log, lambda: past_videos(log), "past its first stages")
    slurm.command("scancel", "--signal=USR1", "--batch", job)
    slurm.wait(job, log, lambda: slurm.field(job, "Restarts") == "1", "requeued")
    text = log.read_text()
    assert "SIGUSR1 received" in text and "stopped early; requeueing job" in text and "Traceback" not in text
    assert tables(tmp_path / "out").keys() < plain.keys(), "it was stopped before its end"
    slurm.wait_for_state(job, log, "COMPLETED")
    text = log.read_text()
    assert slurm.field(job, "Restarts") == "1" and "videos: done before" in text
    assert text.count("Ray on 2 nodes, 2 CPUs, 0 GPUs") == 2 and "unreadable 1" in text
    assert tables(tmp_path / "out") == plain
    assert not leftovers(job)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_killed_cluster_is_a_crash_that_is_tried_again_and_jobs_on_one_machine_do_not_meet(
    slurm, films, plain, tmp_path
):
    """Each of the two jobs has one node, which is this machine."""
    one = {"options": ("--nodes=1",)}
    killed, log = submit(slurm, films, tmp_path / "killed", **one)
    other, other_log = submit(slurm, films, tmp_path / "other", **one)
    slurm.wait(killed, log, lambda: past_videos(log), "past its first stages")
    assert slurm.field(other, "JobState") == "RUNNING"
    for pid in raylets(killed):
        os.kill(pid, signal.SIGKILL)
    slurm.wait(killed, log, lambda: slurm.field(killed, "Restarts") == "1", "requeued")
    assert "the run ended with exit code" in log.read_text()
    for job, path in ((killed, log), (other, other_log)):
        slurm.wait_for_state(job, path, "COMPLETED")
        assert tables(path.parent / "out") == plain and not leftovers(job)
    assert slurm.field(other, "Restarts") == "0"


def raylets(job: str) -> list[int]:
    """Processes of the Ray nodes of a job."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words[0].endswith("raylet/raylet") and any(f"/ray.{job}." in word for word in words):
            found.append(int(entry.parent.name))
    assert found, f"no raylet of job {job}"
    return found


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "arguments", "code", "message"),
    [
        ({}, ("shots.min_klip=2",), "2:0", "unknown field shots.min_klip; did you mean shots.min_clip?"),
        ({"RAY_START_SECONDS": "1"}, (), "71:0", "did not start within 1 s"),
        ({"INPUT": "/no/such/films"}, (), "2:0", "INPUT: there is nothing at '/no/such/films'"),
    ],
)
def test_a_job_that_cannot_work_ends_with_one_message(slurm, films, tmp_path, settings, arguments, code, message):
    job, log = submit(slurm, films, tmp_path, *arguments, **{"REQUEUE": "0"} | settings)
    slurm.wait_for_state(job, log, "FAILED")
    text = log.read_text()
    assert slurm.field(job, "ExitCode") == code and slurm.field(job, "Restarts") == "0"
    assert text.count(message) == 1 and "Traceback" not in text
    assert not leftovers(job)


def by_hand(*arguments, **settings):
    environment = {k: v for k, v in plain_environment().items() if k not in ("INPUT", "OUTPUT")} | settings
    return subprocess.Popen(
        ["bash", SCRIPT, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_without_slurm_a_signal_ends_the_run_with_75_and_another_run_finishes_it(films, plain, tmp_path):
    settings = SETTINGS | {"INPUT": str(films), "OUTPUT": str(tmp_path / "out")}
    process = by_hand("engine.num_cpus=2", **settings)
    deadline = time.monotonic() + JOB_SECONDS
    while not (tmp_path / "out/tables/videos").is_dir():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "SIGTERM received; what is done is kept" in text
    process = by_hand("engine.num_cpus=2", **settings)
    text, _ = process.communicate(timeout=JOB_SECONDS)
    assert process.returncode == 0, text
    assert tables(tmp_path / "out") == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "INPUT is not set"),
        ({"INPUT": "/no/such/films"}, "INPUT: there is nothing at '/no/such/films'"),
        ({"INPUT": "docs"}, "OUTPUT is not set"),
        ({"INPUT": "docs", "OUTPUT": "setup.cfg/out"}, "OUTPUT: 'setup.cfg/out' cannot be made"),
        (
            {"INPUT": "docs", "OUTPUT": "{out}", "RECIPE": "tinny"},
            "RECIPE: no recipe 'tinny' (there are: default sample tiny)",
        ),
        ({"INPUT": "docs", "OUTPUT": "{out}", "OBJECT_STORE_MB": "lots"}, "OBJECT_STORE_MB must be a number from 1"),
        ({"INPUT": "docs", "OUTPUT": "{out}", "RAY_TMP": "/tmp/" + "x" * 40}, "is too long for the paths of sockets"),
        ({"INPUT": "docs", "OUTPUT": "{out}", "PYTHON": "/no/python"}, "no environment at /no/python"),
        ({"INPUT": "docs", "OUTPUT": "{out}", "CONTAINER_IMAGE": "x"}, "only the training scripts start in containers"),
    ],
)
def test_wrong_settings_are_told_before_anything_starts(settings, message, tmp_path):
    settings = {name: value.format(out=tmp_path / "out") for name, value in settings.items()}
    process = by_hand(**settings)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and message in text
    assert len(text.strip().splitlines()) <= 2 and not (tmp_path / "out/tables").exists()


def test_help_tells_the_settings():
    text, _ = by_hand("--help").communicate(timeout=60)
    assert "INPUT=/data/films OUTPUT=/data/curated sbatch slurm/curate.sh" in text and "#SBATCH" not in text
