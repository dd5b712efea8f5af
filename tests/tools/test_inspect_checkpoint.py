"""tools/inspect_checkpoint.py: what it prints of a checkpoint, and its exit codes."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from phantom_mega.checkpoint import describe
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.rewrite import Content, rewrite
from phantom_mega.checkpoint.sharding import ModelParallelLayout
from phantom_mega.config import RunConfig
from phantom_mega.config_io import to_yaml
from tests.checkpoint.helpers import write_checkpoint
from tests.tools.test_reshard_checkpoint import MODEL, tool

KEY = "blocks.1.visual.linear_qkv.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("inspect") / "iter_0000003", MODEL)


@pytest.fixture(scope="module")
def split(checkpoint):
    layout, config = ModelParallelLayout(4, tensor=2, pipeline=2), RunConfig(model=MODEL)
    config.parallel.tensor_model_parallel_size = config.parallel.pipeline_model_parallel_size = 2
    config.parallel.context_parallel_size = 4
    return rewrite(checkpoint, checkpoint.parent / "split", layout, to_yaml(config))


def inspect(*words):
    return tool(*words, name="inspect_checkpoint")


def test_the_summary_and_the_list_of_tensors(split):
    done = inspect(split, "--keys", "blocks.1.visual.linear_*")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    facts = {line[:10].strip(): line[12:] for line in lines[:8]}
    reader = CheckpointReader(split)
    weights = sum(entry.numel for key, entry in reader.tensors.items() if not key.startswith("optimizer"))
    assert facts["iteration"] == "3 (6 samples)" and facts["saved at"] == "tensor 2, pipeline 2, context 4"
    assert facts["parameters"] == f"{weights:,} (float32)" and facts["EMA"].startswith("yes")
    assert facts["optimizer"] == "exp_avg, exp_avg_sq, param" and facts["tensors"].endswith("in 4 file(s)")
    assert [line.split()[0] for line in lines[9:]] == [
        f"blocks.1.visual.linear_{name}" for name in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
    ]
    assert lines[9].split()[1:] == ["192x64", "float32", "2", "48.00", "KiB"]


def test_the_shards_of_a_tensor(split):
    lines = inspect(split, "--shards", KEY).stdout.splitlines()
    assert lines[0].split() == ["part", "file", "at", "byte", "bytes"] and len(lines) == 3
    assert lines[1].startswith("[0:96, 0:64]    __0_0.distcp") and lines[2].startswith("[96:192, 0:64]  __1_0.distcp")


def test_the_values_of_a_tensor(checkpoint):
    done = inspect(checkpoint, "--print", KEY)
    tensor = CheckpointReader(checkpoint).read(KEY)
    assert f"mean {float(tensor.double().mean()):.6g}" in done.stdout
    assert f"{float(tensor[0, 0]):.3g}"[:4] in done.stdout and "..." in done.stdout
    assert describe.values("x", torch.tensor([float("nan"), 1.0])).splitlines()[2] == "zeros 0 of 2  not finite 1"
    missing = inspect(checkpoint, "--print", KEY + "s")
    assert missing.returncode == 1 and f"the nearest is '{KEY}'" in missing.stderr


def test_a_comparison_lists_differences_and_exits_1(checkpoint, split, tmp_path):
    equal = inspect(checkpoint, "--compare", split)
    assert (
        equal.returncode == 0 and equal.stdout == f"equal: {len(CheckpointReader(split).tensors)} tensors, to the bit\n"
    )
    averaged = rewrite(
        checkpoint, tmp_path / "averaged", ModelParallelLayout(4), to_yaml(RunConfig()), Content(ema=True)
    )
    other = inspect(checkpoint, "--compare", averaged)
    assert other.returncode == 1
    assert f"{KEY}: 12,288 of 12,288 values differ" in other.stdout and "exp_avg" not in other.stdout


def test_a_check_names_every_bad_file_and_exits_1(checkpoint, tmp_path):
    good = inspect(checkpoint, "--check")
    assert good.returncode == 0 and good.stdout.startswith("good: ")
    bad = Path(shutil.copytree(checkpoint, tmp_path / "bad"))
    os.truncate(bad / "__0_0.distcp", 3000)
    (bad / "metadata.json").unlink()
    torch.save({}, bad / "common.pt")
    done = inspect(bad, "--check")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("bad: ") for line in lines)
    assert all(any(name in line for line in lines) for name in ("__0_0.distcp has 3,000", "metadata.json", "common.pt"))


def test_a_folder_without_checkpoint_is_one_line(tmp_path):
    done = inspect(tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("inspect_checkpoint: ") and done.stderr.count("\n") == 1
