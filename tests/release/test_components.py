"""Encoders of an export: copied or referred to, equal to those of training, without this machine's paths."""

import json
import shutil

import pytest
import torch
import transformers
from diffusers import AutoencoderKLCogVideoX

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.conditioning.text import FrozenTextEncoder, load_text_encoder, load_tokenizer
from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig, ModelConfig
from phantom_mega.errors import UserError
from phantom_mega.hf.vision_tower import PhantomVisionTower
from phantom_mega.release.components import referred, write_components
from tests.conditioning.helpers import CAPTIONS, MINILM, save_tiny_qwen, tiny_cogvideox
from tests.release.helpers import run_config

HERE = {
    "vae": ["linear_vae", "LinearVideoVAE"],
    "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizer"],
    "image_encoder": ["vision_tower", "PhantomVisionTower"],
}
ABSENT = [None, None]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Local folders: a Qwen2 with its tokenizer, a CogVideoX VAE inside of a pipeline."""
    folder = tmp_path_factory.mktemp("sources")
    save_tiny_qwen(folder / "qwen")
    tiny_cogvideox().save_pretrained(folder / "cog/vae")
    return folder


def config(**fields):
    """A run's configuration with other encoders, of the widths that they have."""
    sizes = {name: fields.pop(name) for name in ("latent_channels", "text_dim", "clip_dim") if name in fields}
    config = run_config(ModelConfig(**{"latent_channels": 48, **sizes}))
    config.conditioning = ConditioningConfig(**fields)
    return config


def features(model, tokenizer):
    return FrozenTextEncoder(model, tokenizer, "a test").encode(CAPTIONS)


@pytest.mark.parametrize("mode", [None, "copy"])
def test_the_encoders_of_the_tiny_recipe_are_copied_and_encode_the_same(tmp_path, mode):
    entries, conditioning = write_components(tmp_path, config(), mode)
    assert entries == HERE and referred(entries) == []
    assert conditioning["vae"] == "linear" and conditioning["text_encoder"] == MINILM
    vae, shipped = LinearVideoVAE.from_pretrained(tmp_path / "vae"), LinearVideoVAE.shipped()
    assert vae.config.scaling_factor == shipped.config.scaling_factor
    assert all(torch.equal(tensor, shipped.state_dict()[name]) for name, tensor in vae.state_dict().items())
    model = transformers.BertModel.from_pretrained(tmp_path / "text_encoder")
    found = features(model, transformers.BertTokenizer.from_pretrained(tmp_path / "tokenizer"))
    wanted = load_text_encoder(ConditioningConfig(), "cpu").encode(CAPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    tower = PhantomVisionTower.from_pretrained(tmp_path / "image_encoder")
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(tower(pixels), load_vision_tower(ConditioningConfig(), "cpu").model(pixels))
    assert {path.name for path in tmp_path.rglob("*.py")} == {"linear_vae.py", "vision_tower.py"}


def test_what_has_a_name_for_others_is_referred_to_on_request_and_the_rest_is_copied(tmp_path):
    entries, conditioning = write_components(tmp_path, config(), "reference")
    assert entries == {**HERE, "text_encoder": ABSENT, "tokenizer": ABSENT}
    assert referred(entries) == ["text_encoder", "tokenizer"] and conditioning["text_encoder"] == MINILM


def test_names_on_the_hub_are_referred_to_and_not_reached(tmp_path):
    names = dict(vae="THUDM/CogVideoX-2b", vae_subfolder="vae", text_encoder="Qwen/Qwen2.5-3B-Instruct")
    names |= dict(vision_encoder="ViT-SO400M-14-SigLIP-384", vision_pretrained="webli")
    entries, conditioning = write_components(tmp_path, config(**names), None)
    assert set(referred(entries)) == set(HERE) and list(tmp_path.iterdir()) == []
    assert {name: conditioning[name] for name in names} == names


def test_a_hub_name_that_is_to_be_copied_and_cannot_be_reached_is_one_message(tmp_path):
    with pytest.raises(UserError, match=r"the text encoder 'Qwen/Qwen2.5-3B-Instruct' could not be loaded"):
        write_components(tmp_path, config(text_encoder="Qwen/Qwen2.5-3B-Instruct"), "copy")


def test_local_folders_are_copied_and_their_paths_are_told_to_nobody(sources, tmp_path):
    names = dict(vae=str(sources / "cog"), vae_subfolder="vae", text_encoder=str(sources / "qwen"))
    entries, conditioning = write_components(tmp_path, config(**names, latent_channels=4, text_dim=32), None)
    assert entries["vae"] == ["diffusers", "AutoencoderKLCogVideoX"]
    assert entries["text_encoder"] == ["transformers", "Qwen2Model"]
    assert str(sources) not in json.dumps([entries, conditioning]) and conditioning["vae"] is None
    again = AutoencoderKLCogVideoX.from_pretrained(tmp_path / "vae").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in tiny_cogvideox().state_dict().items())
    wanted = load_text_encoder(ConditioningConfig(text_encoder=names["text_encoder"]), "cpu").encode(CAPTIONS)
    tokenizer = getattr(transformers, entries["tokenizer"][1]).from_pretrained(tmp_path / "tokenizer")
    # It has no padding token of its own: training pads with its end token.
    assert tokenizer.pad_token_id == load_tokenizer(names["text_encoder"]).pad_token_id
    found = features(transformers.Qwen2Model.from_pretrained(tmp_path / "text_encoder"), tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_sharded_encoders_come_whole_and_nothing_else_of_their_folder_does(sources, tmp_path):
    split = shutil.copytree(sources / "qwen", tmp_path / "split")
    transformers.Qwen2Model.from_pretrained(split).save_pretrained(split, max_shard_size="20KB")
    (split / "model.safetensors").unlink()
    (split / "secret.py").write_text("raise SystemExit")
    (tmp_path / "out").mkdir()
    write_components(tmp_path / "out", config(text_encoder=str(split), text_dim=32), None)
    copied = {path.name for path in (tmp_path / "out/text_encoder").iterdir()}
    shards = {path.name for path in split.glob("model-*.safetensors")}
    assert len(shards) > 1 and copied == {"config.json", "model.safetensors.index.json", *shards}
    loaded = transformers.Qwen2Model.from_pretrained(tmp_path / "out/text_encoder").state_dict()
    original = transformers.Qwen2Model.from_pretrained(sources / "qwen").state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in loaded.items())


def test_weights_in_another_format_are_saved_as_safetensors(sources, tmp_path):
    old = shutil.copytree(sources / "qwen", tmp_path / "old")
    state = transformers.Qwen2Model.from_pretrained(old).state_dict()
    torch.save(state, old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    (tmp_path / "out").mkdir()
    write_components(tmp_path / "out", config(text_encoder=str(old), text_dim=32), None)
    assert (tmp_path / "out/text_encoder/model.safetensors").is_file()
    found = transformers.Qwen2Model.from_pretrained(tmp_path / "out/text_encoder").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(latent_channels=16), "model.latent_channels is 16, but linear gives 48"),
        (dict(text_dim=100), f"model.text_dim is 100, but {MINILM} gives 384"),
        (dict(clip_dim=8), "model.clip_dim is 8, but tiny gives 64"),
        (dict(clip_tokens=9), "conditioning.clip_tokens is 9, but tiny gives 16"),
        (dict(text_encoder="package:no_such_package/model"), "package no_such_package is not installed"),
    ],
)
def test_an_encoder_that_cannot_be_the_one_of_training_is_refused(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        write_components(tmp_path, config(**fields), None)


def test_folders_that_are_no_encoders_are_refused_by_name(sources, tmp_path):
    empty, escaping = tmp_path / "empty", shutil.copytree(sources / "qwen", tmp_path / "escaping")
    empty.mkdir()
    (escaping / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    for number, (fields, message) in enumerate(
        [
            (dict(text_encoder=str(empty)), "has no empty/config.json"),
            (dict(vae=str(empty)), "the VAE .* has no empty/config.json"),
            (dict(vae=str(sources / "qwen")), "is a None; the VAE must be one of AutoencoderKLCogVideoX"),
            (dict(text_encoder=str(escaping), text_dim=32), r"has no file '../../etc/passwd', which its weights need"),
        ]
    ):
        out = tmp_path / f"out{number}"
        out.mkdir()
        with pytest.raises(UserError, match=message):
            write_components(out, config(**fields), None)
