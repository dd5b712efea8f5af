"""tools/export_hf.py killed, on a full disk, and short of memory: an export is whole or absent."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phantom_mega.config import ModelConfig
from tests.checkpoint.helpers import all_weights, write_checkpoint
from tests.training.conftest import REPOSITORY, environment

V1_LIMIT = "memory.limit_in_bytes"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """80 MiB of weights."""
    model = ModelConfig(num_layers=6, hidden_size=512, num_attention_heads=16, ffn_hidden_size=2048, latent_channels=48)
    folder = tmp_path_factory.mktemp("run") / "iter_0000003"
    return write_checkpoint(folder, model, distinct=False, shapes=all_weights(model))


def command(*words):
    return [sys.executable, "tools/export_hf.py", *map(str, words), "--skip-verify", "--skip-hashes"]


def test_a_killed_export_leaves_no_folder_and_the_next_one_cleans_up(checkpoint, tmp_path):
    words = command(checkpoint, tmp_path / "out", "--max-shard-size", "4MB")
    process = subprocess.Popen(words, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(tmp_path.glob(".out.writing-*/transformer/*.safetensors")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert any(tmp_path.glob(".out.writing-*")) and not (tmp_path / "out").exists()
    done = subprocess.run(
        command(checkpoint, tmp_path / "out"), cwd=REPOSITORY, env=environment(), capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_takes_no_more_is_one_message_and_leaves_nothing(checkpoint, tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))

    done = subprocess.run(
        command(checkpoint, tmp_path / "out"),
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=240, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"export_hf: {tmp_path / 'out'} could not be written: " in done.stderr
    assert done.stderr.endswith("; nothing was changed\n") and list(tmp_path.iterdir()) == []


@pytest.fixture
def small_group():
    """A cgroup of 2 GiB, of the version that this machine has."""
    root = Path("/sys/fs/cgroup")
    root, limit = (root, "memory.max") if (root / "cgroup.controllers").is_file() else (root / "memory", V1_LIMIT)
    if not (root / "cgroup.procs").is_file():
        pytest.skip("no cgroups here")
    group = root / f"export_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(2 << 30))
    except OSError as error:
        pytest.skip(f"no cgroups to be made here ({error.strerror})")
    yield group
    group.rmdir()


@pytest.mark.slow
def test_a_check_that_memory_does_not_suffice_for_is_left_out_with_a_word(checkpoint, tmp_path, small_group):
    """In a cgroup, as Slurm makes one for each job, with too little memory for the model."""
    words = [word for word in command(checkpoint, tmp_path / "out") if word != "--skip-verify"]
    start = ["sh", "-c", f'echo $$ > {small_group}/cgroup.procs && exec "$@"', "sh", *words]
    done = subprocess.run(start, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not checked: the check takes about 2 GiB of memory, which is not free here" in done.stdout
    assert (tmp_path / "out/model_index.json").is_file()
