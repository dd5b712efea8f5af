"""Loading a pipeline from a training checkpoint: the right weights, and no folder that is something else."""

import shutil

import pytest
import torch

from phantom_mega.checkpoint.folder import find_checkpoint
from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.errors import UserError
from phantom_mega.generation.load import load_pipeline
from phantom_mega.hf.naming import fuse_qkv


def core_tensor(pipe, name):
    state = pipe.transformer.state_dict()
    parts = [state[name.replace("linear_qkv", part)] for part in ("to_q", "to_k", "to_v")]
    return fuse_qkv(parts, pipe.transformer.config.num_attention_heads)


def test_the_average_or_the_raw_weights_are_taken_as_asked(run):
    reader, name = CheckpointReader(find_checkpoint(run)), "blocks.1.text.linear_qkv.weight"
    expected = {
        "ema": reader.read(f"optimizer.state.ema.{name}"),
        "raw": reader.read(name),
    }
    assert not torch.equal(expected["ema"], expected["raw"])
    for weights in ("ema", "raw", None):
        pipe, origin = load_pipeline(run, weights=weights)
        assert torch.equal(core_tensor(pipe, name), expected[weights or "ema"])
        assert origin == {"checkpoint": str(find_checkpoint(run)), "weights": weights or "ema"}


def test_the_pipeline_has_the_settings_of_the_run(run):
    pipe, _ = load_pipeline(run, torch.bfloat16)
    assert pipe.transformer.dtype == torch.bfloat16 and not pipe.transformer.training
    assert pipe.transformer.config.num_layers == 2
    assert pipe.config.max_text_tokens == 48 and pipe.config.frame_rate == 30.0
    assert pipe.config.flow["shift_max"] == 5.0 and pipe.config.conditioning["vae"] == "linear"


def test_other_folders_and_damaged_checkpoints_are_refused(run, tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"neither an export .* nor a training run"):
            load_pipeline(folder)
    broken = shutil.copytree(find_checkpoint(run), tmp_path / "iter_0000004")
    data = bytearray((broken / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "__0_0.distcp").write_bytes(data)
    with pytest.raises(UserError, match=r"damaged: __0_0\.distcp has changed"):
        load_pipeline(broken)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="is not that of a Phantom export"):
        load_pipeline(tmp_path)
