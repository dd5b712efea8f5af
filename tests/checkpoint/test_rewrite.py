"""A rewritten checkpoint holds the same tensors, cut for its layout, whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from phantom_mega.checkpoint import integrity, rewrite, safe
from phantom_mega.checkpoint.compare import compare, difference
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.rewrite import Content
from phantom_mega.checkpoint.sharding import ModelParallelLayout
from phantom_mega.errors import UserError
from tests.checkpoint.conftest import MODEL
from tests.checkpoint.helpers import write_checkpoint, write_one_wrong_bit

LAYOUT = ModelParallelLayout(MODEL.num_layers, tensor=2, pipeline=2)
REPOSITORY = Path(__file__).resolve().parents[2]


def write(source, target, layout=LAYOUT, content=None, **options):
    return CheckpointReader(rewrite.rewrite(source, target, layout, "config", content, **options))


def test_every_tensor_is_equal_and_every_rank_has_its_parts_in_its_own_file(pristine, tmp_path):
    source, target = CheckpointReader(pristine), write(pristine, tmp_path / "new", verify=True)
    assert list(compare(source, target)) == [] and list(target.tensors) == list(source.tensors)
    assert source.common() == target.common()
    assert sorted(path.name for path in target.folder.glob("*.distcp")) == [f"__{rank}_0.distcp" for rank in range(4)]
    for key, entry in target.tensors.items():
        expected = {(part.offsets, part.sizes, f"__{part.rank}_0.distcp") for part in LAYOUT.parts(key, entry.shape)}
        assert {(chunk.offsets, chunk.sizes, chunk.file) for chunk in entry.chunks} == expected, key
    # torch.save of a view would write all of the tensor that it looks into.
    sizes = [sum(path.stat().st_size for path in folder.glob("*.distcp")) for folder in (source.folder, target.folder)]
    assert sizes[1] < 1.6 * sizes[0]
    safe.check(target.folder)
    assert integrity.verify(target.folder) == []
    assert (target.folder / "config.yaml").read_text() == "config"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_there_and_back_is_the_same_checkpoint(pristine, tmp_path):
    there = write(pristine, tmp_path / "there", ModelParallelLayout(4, tensor=4, pipeline=2, virtual=2))
    back = write(there.folder, tmp_path / "back", ModelParallelLayout(4))
    again = write(pristine, tmp_path / "again", ModelParallelLayout(4))
    assert list(compare(CheckpointReader(pristine), back)) == []
    assert sorted(p.name for p in again.folder.iterdir()) == sorted(p.name for p in back.folder.iterdir())
    for key, entry in back.tensors.items():
        assert entry.shape == again.tensors[key].shape


def test_model_only_leaves_out_optimizer_and_schedule_and_says_so(pristine, tmp_path):
    target = write(pristine, tmp_path / "new", content=Content(model_only=True), verify=True)
    assert target.tensors and not any(key.startswith("optimizer") for key in target.tensors)
    assert target.common() == {"content_metadata": {"version": 1}}
    assert json.loads((target.folder / "trainer_state.json").read_text())["content"] == "model"


def test_ema_takes_the_place_of_the_weights_and_of_their_main_copies(pristine, tmp_path):
    source, target = (
        CheckpointReader(pristine),
        write(pristine, tmp_path / "new", content=Content(ema=True), verify=True),
    )
    key = "blocks.3.visual.mlp.linear_fc2.weight"
    average = source.read(f"optimizer.state.ema.{key}")
    assert not torch.equal(average, source.read(key))
    for name in (key, f"optimizer.state.param.{key}", f"optimizer.state.ema.{key}"):
        assert torch.equal(target.read(name), average), name
    moments = f"optimizer.state.exp_avg.{key}"
    assert torch.equal(target.read(moments), source.read(moments))


def test_a_checkpoint_without_ema_is_refused(pristine, tmp_path):
    model = write(pristine, tmp_path / "model", content=Content(model_only=True))
    with pytest.raises(UserError, match="holds no EMA; leave --ema out"):
        write(model.folder, tmp_path / "new", content=Content(ema=True))


def test_dtype_casts_weights_and_nothing_else(pristine, tmp_path):
    source = CheckpointReader(pristine)
    target = write(pristine, tmp_path / "new", content=Content(ema=True, dtype=torch.bfloat16), verify=True)
    for key, entry in target.tensors.items():
        optimizer = key.startswith("optimizer.")
        assert entry.dtype == (torch.float32 if optimizer else torch.bfloat16), key
        if not optimizer:
            assert torch.equal(target.read(key), source.read(f"optimizer.state.ema.{key}").bfloat16())


def test_verification_sees_a_single_wrong_bit_and_nothing_is_published(pristine, tmp_path, monkeypatch):
    write_one_wrong_bit(monkeypatch, part=50)
    with pytest.raises(UserError, match=r"verification failed: .*: 1 of [\d,]+ values differ"):
        write(pristine, tmp_path / "new", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_targets_in_the_way_are_refused_and_checkpoints_replaced_on_request(pristine, tmp_path):
    first = write(pristine, tmp_path / "new")
    with pytest.raises(UserError, match="is there already; name another folder, or replace it with --overwrite"):
        write(pristine, tmp_path / "new")
    with pytest.raises(UserError, match="is the source"):
        write(first.folder, first.folder, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="is not a checkpoint, so --overwrite does not replace it"):
        write(pristine, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/thesis.txt").exists()
    replaced = write(pristine, tmp_path / "new", ModelParallelLayout(4), overwrite=True)
    assert len(list(replaced.folder.glob("*.distcp"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "new"]


def test_a_full_disk_is_one_message_and_leaves_nothing(pristine, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rewrite._RankFile, "write", full)
    with pytest.raises(UserError, match=r"could not be written: .*No space left on device; nothing was changed"):
        write(pristine, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_rewrite_leaves_no_checkpoint_and_the_next_one_cleans_up(tmp_path):
    from phantom_mega.config import ModelConfig

    model = ModelConfig(num_layers=8, hidden_size=512, num_attention_heads=16, ffn_hidden_size=2048)
    source = write_checkpoint(tmp_path / "source", model, distinct=False)
    command = [sys.executable, "tools/reshard_checkpoint.py", str(source), str(tmp_path / "new"), "--skip-hashes"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(tmp_path.glob(".new.writing-*/*.distcp")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert any(tmp_path.glob(".new.writing-*")) and not (tmp_path / "new").exists()
    write(source, tmp_path / "new", ModelParallelLayout(8, tensor=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "source"]


def test_differences_count_values_and_tell_bits_of_nan_and_zero_apart():
    one = torch.tensor([1.0, 2.0, float("nan"), 0.0])
    assert difference(one, one.clone()) is None
    two = one.clone()
    two[1] += 0.5
    assert difference(one, two) == "1 of 4 values differ, by 0.5 at most"
    assert difference(one, torch.tensor([1.0, 2.0, float("nan"), -0.0])) == "1 of 4 values differ, by 0 at most"
    assert difference(one, one.bfloat16()) == "float32 against bfloat16"
    assert difference(one, one[:3]) == "shape [4] against [3]"
