"""The two Slurm scripts under a real Slurm, 2 nodes x 2 ranks on CPU, and by hand without one.

Jobs train the tiny recipe for a few iterations: what is tested is how runs start, follow each other, stop and go on.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from phantom_mega.config_io import load_run_config
from tests.slurm.conftest import JOB_SECONDS, REPOSITORY, plain_environment

STAGE1, STAGE2 = "slurm/stage1_256p.sh", "slurm/stage2_720p.sh"
# As on a cluster: tensor parallel inside a node, data parallel over the nodes. A log line for every iteration.
SETTINGS = ("parallel.tensor_model_parallel_size=2", "train.log_interval=1", "optimizer.lr_warmup_iters=0")


def iterations(log: Path) -> list[int]:
    """Numbers of the iterations that a log tells of, in order."""
    return [int(number) for number in re.findall(r"\biteration\s+(\d+)/\s*\d+ \|", log.read_text())]


def latest_checkpoint(run: Path) -> int:
    """The iteration of a run's last checkpoint, whose folder must be there."""
    number = int((run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    assert (run / "checkpoints" / f"iter_{number:07d}").is_dir()
    return number


def run_by_hand(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    """A script without Slurm, to its end."""
    environment = plain_environment() | settings
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=JOB_SECONDS,
    )


@pytest.mark.slurm
@pytest.mark.slow
def test_stage2_waits_for_stage1_and_starts_from_its_last_good_checkpoint(slurm, samples, tmp_path):
    runs = [tmp_path / "stage1", tmp_path / "stage2"]
    logs = [tmp_path / "stage1.log", tmp_path / "stage2.log"]
    common = {"DATA_INDEX": str(samples)}
    first = slurm.submit(
        STAGE1,
        logs[0],
        *SETTINGS,
        "train.train_iters=3",
        "train.save_interval=2",
        RECIPE="tiny_stage1",
        RUN_DIR=str(runs[0]),
        **common,
    )
    second = slurm.submit(
        STAGE2,
        logs[1],
        *SETTINGS,
        "--train-iters",
        "5",
        options=(f"--dependency=afterok:{first}", "--hold"),
        RECIPE="tiny_stage2",
        RUN_DIR=str(runs[1]),
        LOAD=str(runs[0] / "checkpoints"),
        **common,
    )
    slurm.wait_for_state(first, logs[0], "COMPLETED")
    assert iterations(logs[0]) == [1, 2, 3]
    assert latest_checkpoint(runs[0]) == 3
    # One byte of the last checkpoint goes bad on the disk while stage 2 waits.
    damaged = runs[0] / "checkpoints/iter_0000003/__0_0.distcp"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:9999] + bytes([data[9999] ^ 1]) + data[10000:])
    slurm.command("scontrol", "release", second)
    slurm.wait_for_state(second, logs[1], "COMPLETED")
    # Iterations go on where stage 1 ended, unless the recipe counts its own (train.finetune).
    assert re.search(
        r"iter_0000003 is damaged: __0_0.distcp has changed.*\n.*loading \S+iter_0000002", logs[1].read_text()
    )
    first_iteration = 1 if load_run_config("tiny_stage2").train.finetune else 4
    assert iterations(logs[1]) == list(range(first_iteration, 6))
    assert latest_checkpoint(runs[1]) == 5


@pytest.mark.slow
def test_script_without_slurm_stops_on_sigterm_with_75_and_then_finishes(samples, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    settings = {"RECIPE": "tiny_stage1", "GPUS_PER_NODE": "0", "NPROC_PER_NODE": "2"}
    environment = plain_environment() | settings | {"RUN_DIR": str(run), "DATA_INDEX": str(samples)}
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["bash", STAGE1, *SETTINGS, "train.train_iters=2000"],
            cwd=REPOSITORY,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + JOB_SECONDS
            while not iterations(log):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 75, log.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    stopped_at = latest_checkpoint(run)
    assert stopped_at == iterations(log)[-1]

    total = stopped_at + 2
    done = run_by_hand(
        STAGE1, *SETTINGS, f"train.train_iters={total}", **settings, RUN_DIR=str(run), DATA_INDEX=str(samples)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert latest_checkpoint(run) == total


def printed_command(script: str, *arguments: str, **settings: str) -> str:
    """What a script would start (PRINT_ONLY=1)."""
    done = run_by_hand(script, *arguments, PRINT_ONLY="1", **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\", "")


def test_settings_and_arguments_reach_the_trainer_in_this_order(tmp_path):
    (tmp_path / "index.parquet").touch()
    command = printed_command(
        STAGE1,
        "--lr",
        "2e-4",
        "train.seed=7",
        DATA_INDEX=str(tmp_path),
        RUN_DIR=str(tmp_path / "run"),
        MODEL="phantom_7b",
        NPROC_PER_NODE="3",
        GPUS_PER_NODE="8",
        TORCHRUN_ARGS="--log-dir logs",
    )
    recipe = tmp_path / "run" / "recipe.yaml"
    expected = (
        f"train.py --config {recipe} train.save={recipe.parent} data.index_path=[{tmp_path}] --lr 2e-4 train.seed=7"
    )
    assert expected in command
    assert "--nproc-per-node=3" in command and "--log-dir logs" in command
    assert 'base: ["stage1_256p", "model/phantom_7b"]' in recipe.read_text()


def test_held_out_samples_reach_the_trainer_and_are_looked_for(tmp_path):
    for name in ("train", "held_out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.parquet").touch()
    data = {"DATA_INDEX": str(tmp_path / "train"), "RUN_DIR": str(tmp_path / "run")}
    held_out = f"{tmp_path / 'held_out'},{tmp_path / 'train'}"
    command = printed_command(STAGE1, "--lr", "1", VALID_INDEX=held_out, **data)
    assert f"data.index_path=[{tmp_path / 'train'}] data.valid_index_path=[{held_out}] --lr 1" in command
    done = run_by_hand(STAGE1, VALID_INDEX="/no/such/data", **data)
    assert done.returncode == 2 and "VALID_INDEX: no data set at '/no/such/data'" in done.stderr


def test_a_run_starts_from_a_folder_of_checkpoints_or_from_one_of_any_name(tmp_path):
    """tools/import_hf.py writes the latter."""
    (tmp_path / "index.parquet").touch()
    settings = {"DATA_INDEX": str(tmp_path), "RUN_DIR": str(tmp_path / "run"), "MODEL": "seedvr_7b"}
    for folder, file in (("run1", "checkpoints/latest_checkpointed_iteration.txt"), ("seedvr", "trainer_state.json")):
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).write_text("{}")
        command = printed_command(STAGE1, "train.finetune=true", LOAD=str(tmp_path / folder), **settings)
        assert f"train.load={tmp_path / folder} train.finetune=true" in command
    (tmp_path / "iter_0000007").mkdir()
    done = run_by_hand(STAGE1, LOAD=str(tmp_path / "iter_0000007"), **settings)
    assert done.returncode == 2 and "LOAD: no checkpoint in" in done.stderr


def test_in_an_allocation_one_torchrun_a_node_is_started_in_the_container(tmp_path):
    (tmp_path / "index.parquet").touch()
    allocation = {"SLURM_JOB_ID": "123", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "n[1-4]", "MASTER_ADDR": "n1"}
    container = {"CONTAINER_IMAGE": "nvcr.io/nvidia/pytorch", "CONTAINER_MOUNTS": "/models:/models"}
    command = printed_command(STAGE1, DATA_INDEX=str(tmp_path), **allocation, **container)
    assert command.startswith("srun --nodes=4 --ntasks=4 --ntasks-per-node=1 ")
    assert "--container-image=nvcr.io/nvidia/pytorch" in command
    mounts = re.search(r"--container-mounts=(\S+)", command).group(1).split(",")
    assert mounts == [f"{REPOSITORY}:{REPOSITORY}", "/models:/models", f"{tmp_path}:{tmp_path}"]


@pytest.mark.parametrize(
    ("script", "settings", "message"),
    [
        (STAGE1, {}, "DATA_INDEX is not set"),
        (STAGE1, {"DATA_INDEX": "/no/such/data"}, "no data set at '/no/such/data'"),
        (STAGE1, {"DATA_INDEX": "", "MODEL": "phantom_8b"}, "DATA_INDEX is not set"),
        (STAGE2, {"RECIPE": "my.yaml"}, "LOAD is not set"),
        (STAGE2, {"DATA_INDEX": "{data}", "LOAD": "/no/such/run"}, "no checkpoint in '/no/such/run'"),
        (STAGE1, {"DATA_INDEX": "{data}", "MODEL": "phantom_8b"}, "no preset 'phantom_8b' (there are: "),
        (STAGE1, {"DATA_INDEX": "{data}", "NPROC_PER_NODE": "two"}, "NPROC_PER_NODE must be a number"),
        (STAGE1, {"DATA_INDEX": "{data}", "GPUS_PER_NODE": "2", "NPROC_PER_NODE": "4"}, "the node has 2 GPU(s)"),
    ],
)
def test_wrong_settings_are_told_before_anything_starts(script, settings, message, tmp_path):
    (tmp_path / "index.parquet").touch()
    settings = {name: value.format(data=tmp_path) for name, value in settings.items()}
    done = run_by_hand(script, **{"RUN_DIR": str(tmp_path / "run")} | settings)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", [STAGE1, STAGE2])
def test_folder_of_the_batch_output_is_part_of_the_repository(script):
    output = re.search(r"^#SBATCH --output=(\S+)", (REPOSITORY / script).read_text(), re.MULTILINE).group(1)
    # sbatch makes no folders: a job whose output cannot be opened fails without a word.
    tracked = subprocess.run(
        ["git", "ls-files", "--", str(Path(output).parent)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert tracked.returncode != 0 or tracked.stdout.strip()
