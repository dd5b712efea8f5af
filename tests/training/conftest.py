"""A small real data set, and runs of `launchers/train.py` as a user starts them."""

import os
import shutil
import sys

import pytest

from tests.media import write_data_set
from tests.scripts import REPOSITORY, run_script

# Every option that the tests share: small, a few iterations, no progress bar.
BASE = [
    *("--config", "tiny_stage1", "model.num_layers=2", "model.hidden_size=64", "model.num_attention_heads=2"),
    *("model.ffn_hidden_size=128", "model.rope_axes_dim=[8,12,12]", "train.train_iters=8", "train.save_interval=4"),
    *("train.log_interval=1", "optimizer.lr_warmup_iters=2", "data.packing_lookahead=2", "data.seq_length=448"),
]


@pytest.fixture(scope="session")
def data_set(tmp_path_factory):
    """Six VP9 and image samples in two shards."""
    return write_data_set(tmp_path_factory.mktemp("data_set"))


@pytest.fixture(scope="session")
def valid_set(tmp_path_factory):
    """Five held-out samples."""
    return write_data_set(tmp_path_factory.mktemp("valid_set"), count=5, frames=24, prefix="held_out")


def damage_first_clip(data, folder):
    """A copy of a data set, the first clip of which cannot be read."""
    shutil.copytree(data, folder)
    shard = folder / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    place = content.index(b"\x1a\x45\xdf\xa3")  # its EBML header
    content[place : place + 512] = bytes(512)
    shard.write_bytes(content)
    return folder


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def arguments(data, save, *overrides):
    """The launcher and what it is told."""
    words = [*BASE, f"data.index_path=[{data}]", *overrides]
    return [str(REPOSITORY / "launchers/train.py"), *words, *([f"train.save={save}"] if save else [])]


def command(data, save, *overrides, ranks=1):
    """The command line of a run; several ranks by torchrun."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*start, *arguments(data, save, *overrides)]


def train(data, save, *overrides, ranks=1, code=0):
    """Run to the end; returns what was printed."""
    done = run_script(*arguments(data, save, *overrides), env=environment(), ranks=ranks)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr
