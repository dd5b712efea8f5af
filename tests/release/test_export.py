"""Exports: every tensor in its place at any layout, files as diffusers names them, whole or absent."""

import inspect
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from phantom_mega.checkpoint.reader import CheckpointReader
from phantom_mega.checkpoint.rewrite import Content, rewrite
from phantom_mega.checkpoint.sharding import ModelParallelLayout
from phantom_mega.config import ModelConfig
from phantom_mega.errors import UserError
from phantom_mega.generation.load import load_pipeline
from phantom_mega.hf import PhantomTransformer3DModel
from phantom_mega.hf.naming import core_name, fuse_qkv, hf_names
from phantom_mega.release.export import PIPELINE_CLASS, Options, export, new_folder, open_checkpoint
from tests.checkpoint.helpers import all_weights, write_checkpoint

MODEL = ModelConfig(num_layers=4, hidden_size=64, num_attention_heads=2, ffn_hidden_size=128, latent_channels=48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints/iter_0000003"
    return write_checkpoint(folder, MODEL, shapes=all_weights(MODEL))


def exported(checkpoint, folder, **options):
    """(folder, all tensors of the transformer)."""
    folder.mkdir()
    origin = export(checkpoint, folder, Options(**options))
    files = sorted((folder / "transformer").glob("*.safetensors"))
    return origin, {name: tensor for path in files for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("weights", ["ema", "raw", None])
def test_every_tensor_is_that_of_the_checkpoint(checkpoint, tmp_path, weights):
    origin, tensors = exported(checkpoint, tmp_path / "out", weights=weights)
    reader = CheckpointReader(checkpoint)
    prefix = {"ema": "optimizer.state.ema.", "raw": "optimizer.state.param."}[weights or "ema"]
    assert origin.weights == (weights or "ema")
    cores = {core_name(name) for name in tensors}
    assert cores == {key for key in reader.tensors if not key.startswith("optimizer.")}
    for core in cores:
        parts = [tensors[name] for name in hf_names(core)]
        found = parts[0] if len(parts) == 1 else fuse_qkv(parts, MODEL.num_attention_heads)
        assert torch.equal(found, reader.read(prefix + core)), core


def test_it_loads_strictly_in_diffusers_and_in_the_generator(checkpoint, tmp_path):
    _, tensors = exported(checkpoint, tmp_path / "out")
    model, found = PhantomTransformer3DModel.from_pretrained(tmp_path / "out/transformer", output_loading_info=True)
    assert not any(found.values())
    state = model.state_dict()
    assert state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)
    pipe, origin = load_pipeline(tmp_path / "out")
    assert torch.equal(pipe.transformer.state_dict()["final_proj.bias"], state["final_proj.bias"])
    assert pipe.vae is not None and pipe.image_encoder is not None and origin["checkpoint"].endswith("out")
    with pytest.raises(UserError, match="is an export: which weights it holds was chosen then"):
        load_pipeline(tmp_path / "out", weights="raw")


def test_config_and_index_name_every_argument(checkpoint, tmp_path):
    exported(checkpoint, tmp_path / "out")
    config = json.loads((tmp_path / "out/transformer/config.json").read_text())
    arguments = set(inspect.signature(PhantomTransformer3DModel.__init__).parameters) - {"self"}
    assert arguments <= config.keys() and config["_class_name"] == "PhantomTransformer3DModel"
    assert config["num_layers"] == 4 and config["rope_axes_dim"] == MODEL.rope_axes_dim
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "PhantomPipeline"] and index["flow"]["shift_max_pixels"] == 133632000
    assert index["transformer"] == ["transformer_phantom", "PhantomTransformer3DModel"]
    assert index["conditioning"] == {}, "nothing is left to load, so no path of this machine is told"
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler["use_dynamic_shifting"] and scheduler["time_shift_type"] == "linear"


def test_another_layout_gives_the_same_bytes(checkpoint, tmp_path):
    text = (checkpoint / "config.yaml").read_text()
    cut = rewrite(checkpoint, tmp_path / "iter_0000003", ModelParallelLayout(4, 2, 2), text, Content())
    exported(checkpoint, tmp_path / "one", max_shard_size="300KB")
    exported(cut, tmp_path / "two", max_shard_size="300KB")
    for path in sorted((tmp_path / "one/transformer").iterdir()):
        assert path.read_bytes() == (tmp_path / "two/transformer" / path.name).read_bytes(), path.name


def test_shards_hold_at_most_what_is_asked_and_the_index_finds_every_tensor(checkpoint, tmp_path):
    _, whole = exported(checkpoint, tmp_path / "one")
    exported(checkpoint, tmp_path / "many", max_shard_size="300KB")
    folder = tmp_path / "many/transformer"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names[0] == f"diffusion_pytorch_model-00001-of-{len(names):05d}.safetensors" and len(names) > 3
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name in names:
        shard = load_file(folder / name)
        assert sum(tensor.nbytes for tensor in shard.values()) <= 300_000
        for key, tensor in shard.items():
            assert index["weight_map"][key] == name and torch.equal(tensor, whole[key])
    assert index["weight_map"].keys() == whole.keys()
    model = PhantomTransformer3DModel.from_pretrained(folder)
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())
    single = [path.name for path in (tmp_path / "one/transformer").glob("*.safetensors*")]
    assert single == ["diffusion_pytorch_model.safetensors"]


def test_a_cast_rounds_once(checkpoint, tmp_path):
    _, wide = exported(checkpoint, tmp_path / "wide")
    _, half = exported(checkpoint, tmp_path / "half", dtype=torch.bfloat16)
    assert all(torch.equal(half[name], wide[name].bfloat16()) for name in wide)


def test_a_checkpoint_of_another_model_than_its_config_is_refused(checkpoint, tmp_path):
    other = write_checkpoint(tmp_path / "iter_0000003", MODEL, shapes=all_weights(MODEL))
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("num_layers: 4", "num_layers: 5"))
    with pytest.raises(UserError, match=r"holds 4 blocks, but its config.yaml says model.num_layers=5"):
        exported(other, tmp_path / "out")
    with pytest.raises(UserError, match=r"damaged: config.yaml has changed"):
        open_checkpoint(other)


def test_an_average_that_is_not_there_is_refused(checkpoint, tmp_path):
    text = (checkpoint / "config.yaml").read_text()
    bare = rewrite(checkpoint, tmp_path / "bare", ModelParallelLayout(4), text, Content(model_only=True))
    with pytest.raises(UserError, match="holds no EMA; use raw weights"):
        exported(bare, tmp_path / "out", weights="ema")
    origin, _ = exported(bare, tmp_path / "raw")
    assert origin.weights == "raw"


def test_a_folder_gets_its_name_only_when_it_is_whole(tmp_path):
    target = tmp_path / "export"
    with pytest.raises(RuntimeError), new_folder(target, False) as folder:
        (folder / "half").write_text("")
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".export.writing-killed").mkdir()
    with new_folder(target, False) as folder:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": PIPELINE_CLASS}))
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    with pytest.raises(UserError, match="is there already"), new_folder(target, False):
        pass
    with new_folder(target, True) as folder:
        (folder / "model_index.json").write_text("2")
    assert (target / "model_index.json").read_text() == "2" and os.listdir(tmp_path) == ["export"]


def test_overwrite_replaces_exports_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1").write_text("")
    refused = pytest.raises(UserError, match="is not an export, so --overwrite does not replace it")
    with refused, new_folder(tmp_path / "thesis", True):
        pass
    (tmp_path / "thesis/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="is not an export"), new_folder(tmp_path / "thesis", True):
        pass
    assert (tmp_path / "thesis/chapter1").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), new_folder(tmp_path / "file/export", False):
        pass
