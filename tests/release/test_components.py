"""Encoders of a release: copied where nobody else could find them, named where everybody can."""

import dataclasses
import json

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from transformers import AutoModel, AutoTokenizer

from phantom_mega.conditioning.text import load_text_encoder
from phantom_mega.config import ConditioningConfig
from phantom_mega.errors import UserError
from phantom_mega.hf.vision_tower import PhantomVisionTower
from phantom_mega.release.components import write_components

HUB = ConditioningConfig(
    vae="THUDM/CogVideoX-2b", vae_subfolder="vae", text_encoder="Qwen/Qwen2.5-3B-Instruct",
    vision_encoder="ViT-SO400M-14-SigLIP-384", vision_pretrained="webli",
)  # fmt: skip


def test_local_encoders_are_copied_and_load_as_what_they_are(tmp_path):
    index = write_components(ConditioningConfig(), tmp_path, "auto")
    assert index == {
        "conditioning": {},
        "vae": ["linear_vae", "LinearVideoVAE"],
        "text_encoder": ["transformers", "BertModel"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "image_encoder": ["vision_tower", "PhantomVisionTower"],
    }
    ours = load_text_encoder(ConditioningConfig(), "cpu")
    copy = AutoModel.from_pretrained(tmp_path / "text_encoder").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")("a red cube", return_tensors="pt")
    assert torch.equal(copy(**ids).last_hidden_state[0], ours.encode(["a red cube"])[0])
    assert PhantomVisionTower.from_pretrained(tmp_path / "image_encoder").config.embed_dim == 64
    assert (tmp_path / "vae/linear_vae.py").is_file() and (tmp_path / "image_encoder/vision_tower.py").is_file()


def test_encoders_on_the_hub_are_named_and_nothing_is_written(tmp_path):
    for choice in ("auto", "reference"):
        index = write_components(HUB, tmp_path, choice)
        assert all(index[name] == [None, None] for name in ("vae", "text_encoder", "tokenizer", "image_encoder"))
        assert index["conditioning"] == {
            "vae": HUB.vae, "vae_subfolder": "vae", "text_encoder": HUB.text_encoder, "text_encoder_dtype": "float32",
            "vision_encoder": HUB.vision_encoder, "vision_pretrained": "webli",
        }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_vae_in_a_folder_is_copied_with_diffusers_own_class(tmp_path):
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "source/vae")
    mixed = dataclasses.replace(HUB, vae=str(tmp_path / "source"), vae_subfolder="vae")
    index = write_components(mixed, tmp_path, "auto")
    assert index["vae"] == ["diffusers", "AutoencoderKLCogVideoX"] and index["text_encoder"] == [None, None]
    assert "vae" not in index["conditioning"]
    assert json.loads((tmp_path / "vae/config.json").read_text())["latent_channels"] == 4


def test_what_nobody_else_could_find_is_not_only_named(tmp_path):
    with pytest.raises(UserError, match=r"conditioning\.vae=linear lies on this machine alone"):
        write_components(ConditioningConfig(), tmp_path, "reference")
    with pytest.raises(UserError, match="components='none' is unknown; use one of auto, copy, reference"):
        write_components(HUB, tmp_path, "none")
    copied = dataclasses.replace(HUB, vae="linear", vision_encoder="tiny", text_encoder="no-such/model")
    with pytest.raises(UserError, match="'no-such/model' could not be loaded"):
        write_components(copied, tmp_path, "copy")
