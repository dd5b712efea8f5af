"""Cached features, encoders and recipes from somebody else may not run code or take the machine's memory.

Data sets: test_safe_loading.py; checkpoints: tests/checkpoint/test_safe.py.
"""

import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from phantom_mega.conditioning.cache import ABOUT, EMPTY_TEXT, INDEX, CachedFeatures, FeatureWriter, write_index
from phantom_mega.conditioning.head import FeatureDims, SampleFeatures
from phantom_mega.conditioning.text import load_text_encoder, load_tokenizer
from phantom_mega.conditioning.vae import load_vae
from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig
from phantom_mega.config_io import load_run_config
from phantom_mega.errors import UserError
from tests.conditioning.helpers import MINILM, planned, tiny_run_config
from tests.reliability.hostile import (  # noqa: F401 (fixtures)
    LYING_TENSORS,
    Payload,
    bounded_fixture,
    marker_fixture,
    tensors,
)

# -- cached features


@pytest.fixture
def cache(tmp_path):
    """A finished cache of one sample, and the settings that it was written for."""
    config, sample = tiny_run_config(), planned()
    writer = FeatureWriter(tmp_path, config, torch.zeros(2, config.model.text_dim))
    sizes = FeatureDims(48, 384, 64).sizes(sample.shape)
    writer.add(sample, SampleFeatures(*(torch.zeros(size) for size in sizes)))
    writer.flush()
    write_index(tmp_path)
    return lambda: CachedFeatures(tmp_path, config).get(sample)


@pytest.mark.parametrize("lie", LYING_TENSORS)
@pytest.mark.parametrize("name", ["features-*", EMPTY_TEXT])
def test_cached_features_whose_headers_lie_are_refused(cache, tmp_path, name, lie):
    assert cache().valid
    next(tmp_path.glob(name)).write_bytes(LYING_TENSORS[lie])
    with pytest.raises(UserError, match="is damaged"):
        cache()


@pytest.mark.parametrize("name", ["features-*", EMPTY_TEXT])
def test_cached_features_of_absurd_size_are_refused_unread(cache, tmp_path, name):
    file = next(tmp_path.glob(name))
    size = 3 << 29  # a file with holes takes a block of the disk; it is mapped twice, and must not be copied
    first, *others = load_file(file)
    about = {first: ([size // 4], 0, size)} | dict.fromkeys(others, ([0], size, size))
    file.write_bytes(tensors(about))
    os.truncate(file, file.stat().st_size + size)
    with pytest.raises(UserError, match=r"other sizes than planned|of the shape"):
        cache()


@pytest.mark.parametrize(
    "about", [b"[" * 100_000, b"[]", b'{"format": 1}', b'{"format": 1, "encoders": []}', b"\xff", b" " * (2 << 20)]
)
def test_a_hostile_description_of_a_cache_is_refused(cache, tmp_path, about):
    (tmp_path / ABOUT).write_bytes(about)
    with pytest.raises(UserError, match=r"damaged|names no encoders"):
        cache()


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "features-../../x.safetensors", None])
def test_a_cache_index_that_names_files_elsewhere_is_refused(cache, tmp_path, shard):
    table = pq.read_table(tmp_path / INDEX)
    at = table.column_names.index("shard")
    pq.write_table(table.set_column(at, "shard", pa.array([shard], pa.string())), tmp_path / INDEX)
    with pytest.raises(UserError, match=r"none of the cache|without a value"):
        cache()


def test_a_cache_index_that_is_none_or_repeats_one_row_is_refused(cache, tmp_path):
    table = pq.read_table(tmp_path / INDEX)
    for hostile in (table.drop(["hash"]), table.take(pa.array([0] * 400_000))):
        pq.write_table(hostile, tmp_path / INDEX)
        with pytest.raises(UserError, match=r"damaged|claims 400000 rows"):
            cache()
    (tmp_path / INDEX).write_bytes(b"PAR1" * 100)
    with pytest.raises(UserError, match="damaged"):
        cache()


# -- encoders and recipes


SMALL_VAE = {
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "down_block_types": ("CogVideoXDownBlock3D",) * 2,
    "up_block_types": ("CogVideoXUpBlock3D",) * 2,
}
SMALL_TOWER = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
SMALL_TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
SMALL_CLIP = {
    "model_cfg": {"embed_dim": 16, "vision_cfg": SMALL_TOWER, "text_cfg": SMALL_TEXT},
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
}


def text_folder(folder):
    """An encoder without weights; names of its configuration, tensors and pickle, and how to load it."""
    BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32).save_pretrained(folder)
    load_tokenizer(MINILM).save_pretrained(folder)
    load = lambda: load_text_encoder(ConditioningConfig(text_encoder=str(folder)), "cpu")  # noqa: E731
    return "config.json", "model.safetensors", "pytorch_model.bin", load


def vae_folder(folder):
    """As `text_folder`."""
    AutoencoderKLCogVideoX(**SMALL_VAE).save_config(folder)
    load = lambda: load_vae(ConditioningConfig(vae=str(folder)), "cpu", torch.float32)  # noqa: E731
    return "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", load


def tower_folder(folder):
    """As `text_folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(SMALL_CLIP))
    load = lambda: load_vision_tower(ConditioningConfig(vision_encoder=str(folder)), "cpu")  # noqa: E731
    return "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin", load


FOLDERS = pytest.mark.parametrize("make", [text_folder, vae_folder, tower_folder])
PICKLES = {
    "pickle": lambda value, path: path.write_bytes(pickle.dumps(value)),
    "torch.save": torch.save,
    "old torch.save": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
}


@FOLDERS
@pytest.mark.parametrize("form", PICKLES)
def test_encoder_weights_in_a_pickle_do_not_run_code(tmp_path, marker, make, form):
    _, _, pickled, load = make(tmp_path / "encoder")
    PICKLES[form](Payload(marker), tmp_path / "encoder" / pickled)
    with pytest.raises(UserError, match="could not be loaded"):
        load()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.npy", "weights.npz"])
def test_a_vision_checkpoint_in_a_pickle_does_not_run_code(tmp_path, marker, name):
    file, payload = tmp_path / name, np.array([Payload(marker)], dtype=object)
    {".pt": torch.save, ".npy": lambda value, path: np.save(path, value), ".npz": lambda v, path: np.savez(path, a=v)}[
        file.suffix
    ](payload, file)
    config = ConditioningConfig(vision_encoder="ViT-B-32", vision_pretrained=str(file))
    with pytest.raises(UserError, match="could not be loaded"):
        load_vision_tower(config, "cpu")
    assert not marker.exists()


@FOLDERS
@pytest.mark.parametrize("lie", LYING_TENSORS)
def test_encoder_weights_whose_headers_lie_are_refused(tmp_path, make, lie):
    _, name, _, load = make(tmp_path / "encoder")
    (tmp_path / "encoder" / name).write_bytes(LYING_TENSORS[lie])
    with pytest.raises(UserError, match="could not be loaded"):
        load()


@FOLDERS
@pytest.mark.parametrize("about", [b"[" * 100_000, b'{"a":' * 50_000, b"[]", b'"x"', b"\xff\xfe\0", b""])
def test_a_hostile_description_of_an_encoder_is_refused(tmp_path, make, about):
    name, weights, _, load = make(tmp_path / "encoder")
    save_file({"a": torch.zeros(1)}, tmp_path / "encoder" / weights, metadata={"format": "pt"})
    (tmp_path / "encoder" / name).write_bytes(about)
    with pytest.raises(UserError, match=r"could not be loaded|is a None"):
        load()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**9, "num_attention_heads": 1},
        {"vocab_size": 10**12},
        {"hidden_size": "x"},
        {"hidden_act": "os.system"},
        {"torch_dtype": "os.system"},
        {"attn_implementation": "somebody/kernel"},  # code from the hub
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
)
def test_an_encoder_of_absurd_settings_is_refused(tmp_path, change):
    name, weights, _, load = text_folder(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / weights, metadata={"format": "pt"})
    (tmp_path / name).write_text(json.dumps(json.loads((tmp_path / name).read_text()) | change))
    with pytest.raises(UserError, match="could not be loaded"):
        load()


@pytest.mark.parametrize("make", [text_folder, vae_folder])
def test_an_encoder_whose_weights_are_not_all_there_is_refused(tmp_path, make):
    _, weights, _, load = make(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="has no weights for"):
        load()


@pytest.mark.parametrize("make", [text_folder, vae_folder])
def test_encoders_that_bring_code_are_not_asked_to_run_it(tmp_path, marker, make):
    name, _, _, load = make(tmp_path)
    (tmp_path / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    about = json.loads((tmp_path / name).read_text())
    classes = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Slow", "code.Fast"]}
    for changed in (about | {"auto_map": classes}, {"model_type": "mine", "auto_map": classes}):
        (tmp_path / name).write_text(json.dumps(changed))
        with pytest.raises(UserError):
            load()
    assert not marker.exists()


@pytest.mark.parametrize("tag", ["os.system", "subprocess.check_call", "builtins.exec"])
def test_yaml_tags_do_not_run_code(tmp_path, marker, tag):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f'train:\n  save: !!python/object/apply:{tag} ["touch {marker}"]\n')
    with pytest.raises(UserError, match="is not valid YAML"):
        load_run_config(str(recipe))
    assert not marker.exists()


def test_a_recipe_reads_no_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "token")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train:\n  save: ${oc.env:SECRET}\n")
    with pytest.raises(UserError, match="write the value out"):
        load_run_config(str(recipe))


def test_yaml_bombs_are_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    recipe.write_text("\n".join(lines))
    with pytest.raises(UserError, match="uses YAML aliases"):
        load_run_config(str(recipe))
    recipe.write_text("[" * 2_000)
    with pytest.raises(UserError):
        load_run_config(str(recipe))
    recipe.write_text("# " + "x" * (2 << 20))
    with pytest.raises(UserError, match="larger than"):
        load_run_config(str(recipe))
