"""tools/reshard_checkpoint.py on the command line: what it writes, what it refuses, and how much memory it takes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from phantom_mega.checkpoint import integrity
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.config import ModelConfig, RunConfig
from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from tests.checkpoint.helpers import write_checkpoint
from tests.scripts import run_script

REPOSITORY = Path(__file__).parents[2]
MODEL = ModelConfig(num_layers=4, hidden_size=64, num_attention_heads=2, ffn_hidden_size=128)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder / "checkpoints/iter_0000003", MODEL)
    (folder / "checkpoints/latest_checkpointed_iteration.txt").write_text("3")
    return folder


def tool(*words, name="reshard_checkpoint"):
    return run_script(f"tools/{name}.py", *words)


def script():
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("reshard_checkpoint", REPOSITORY / "tools/reshard_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_is_resharded_and_verified_in_one_command(run, tmp_path):
    layout = ["--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2]
    done = tool(run, tmp_path / "new", *layout, "--verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {tmp_path / 'new'}: 4 file(s), verified\n"
    assert "write: 100%" in done.stderr and "verify: 100%" in done.stderr
    parallel = load_run_config(tmp_path / "new/config.yaml").parallel
    assert (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size) == (2, 2)
    assert not integrity.verify(tmp_path / "new")
    same = tool(run, "--compare", tmp_path / "new", name="inspect_checkpoint")
    assert same.returncode == 0 and same.stdout.startswith("equal: ")


@pytest.mark.parametrize(
    "layout, message",
    [
        ((3, 1, None), "model.num_attention_heads=2 is not a multiple of tensor_model_parallel_size=3"),
        ((1, 3, None), "model.num_layers=4 is not a multiple of pipeline_model_parallel_size"),
        ((0, 1, None), "tensor_model_parallel_size=0 must be at least 1"),
        ((1, 1, 2), "needs pipeline_model_parallel_size > 1"),
    ],
)
def test_a_layout_that_the_model_cannot_have_is_refused(layout, message):
    with pytest.raises(UserError, match=message):
        script().target_config(RunConfig(model=MODEL), *layout)


def test_settings_that_cannot_hold_in_the_new_layout_follow_it():
    config = RunConfig(model=MODEL)
    config.parallel.tensor_model_parallel_size, config.parallel.sequence_parallel = 2, True
    config.parallel.recompute_granularity, config.parallel.recompute_num_layers = "full", 4
    config.parallel.cpu_offloading_num_layers = 3
    parallel = script().target_config(config, 1, 2, None).parallel
    assert (parallel.sequence_parallel, parallel.recompute_num_layers) == (False, 2)
    assert parallel.cpu_offloading_num_layers == 2
    assert script().target_config(config, 2, 1, None).parallel == config.parallel
    config.parallel.tensor_model_parallel_size, config.parallel.context_parallel_size = 1, 2
    assert script().target_config(config, 2, 1, None).parallel.context_parallel_size == 1


def test_a_mistake_on_the_command_line_is_one_line_and_writes_nothing(run, tmp_path):
    done = tool(run, tmp_path / "new", "--tensor-model-parallel-size", 3)
    assert done.returncode == 1 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert done.stderr.startswith("reshard_checkpoint: model.num_attention_heads=2") and done.stderr.count("\n") == 1


def test_a_damaged_or_missing_source_is_one_line(run, tmp_path):
    done = tool(tmp_path, tmp_path / "new")
    assert done.returncode == 1 and "holds no checkpoint; name a run's folder" in done.stderr
    damaged = write_checkpoint(tmp_path / "iter_0000003", MODEL)
    with open(damaged / "__0_0.distcp", "r+b") as file:
        file.seek(5000)
        file.write(b"x")
    done = tool(damaged, tmp_path / "new")
    assert done.returncode == 1 and "__0_0.distcp has changed since it was written" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_tensor_and_not_by_the_model(tmp_path):
    """480 MiB of tensors, the largest of them 16 MiB; benchmarks/README.md has the figures of a multi-GB checkpoint."""
    command = [sys.executable, "benchmarks/reshard_memory.py", "--num-layers", "2", "--hidden-size", "1024"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(done.stderr.splitlines()[-1])
    assert found["checkpoint"] > 25 * found["largest"] and found["largest"] == 1024 * 4096 * 4
    # Three times the largest tensor, and what a process of this size does not give back.
    assert max(found["there"], found["back"]) < 3 * found["largest"] + (48 << 20), found


def test_the_reader_opens_what_the_tool_wrote_for_a_finetune(run, tmp_path):
    done = tool(run, tmp_path / "new", "--model-only", "--ema", "--dtype", "bfloat16", "--verify")
    assert done.returncode == 0, done.stderr
    reader = CheckpointReader(tmp_path / "new")
    assert {str(entry.dtype) for entry in reader.tensors.values()} == {"torch.bfloat16"}
    assert not any(key.startswith("optimizer") for key in reader.tensors)
