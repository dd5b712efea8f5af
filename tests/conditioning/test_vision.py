"""The frozen vision tower: patch tokens before pooling for CLIP and timm towers, white padding, no random weights."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from phantom_mega.conditioning import vision as vision_module
from phantom_mega.conditioning.vision import load_vision_tower
from phantom_mega.config import ConditioningConfig
from phantom_mega.errors import UserError

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
TOWERS = {
    "clip": {"image_size": 32, "layers": 2, "width": 24, "head_width": 12, "patch_size": 8},
    # Register and class tokens come before its patches; SigLIP's trunks are of the same class of timm.
    "timm": {
        "timm_model_name": "vit_wee_patch16_reg1_gap_256",
        "timm_pool": "",
        "timm_proj": "none",
        "image_size": 256,
    },
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Name -> (open_clip model name, model, checkpoint file, folder as a hub repository)."""
    made = {}
    for name, vision in TOWERS.items():
        folder = tmp_path_factory.mktemp(name)
        config = {"embed_dim": 256 if name == "timm" else 16, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"tiny-{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"tiny-{name}.json")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = open_clip.create_model(f"tiny-{name}").eval()
        torch.save(model.state_dict(), folder / "weights.pt")
        hub = folder / "hub"
        hub.mkdir()
        preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5]}
        (hub / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
        save_file({key: value.contiguous() for key, value in model.state_dict().items()},
                  hub / "open_clip_model.safetensors")  # fmt: skip
        made[name] = (f"tiny-{name}", model, str(folder / "weights.pt"), str(hub))
    return made


def load(encoder, pretrained=None):
    return load_vision_tower(ConditioningConfig(vision_encoder=encoder, vision_pretrained=pretrained), "cpu")


def images(count=3):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + 9 * i, 40 - 7 * i, 3), dtype=np.uint8) for i in range(count)]


def test_clip_features_are_the_normed_patch_tokens_without_the_class_token(towers):
    name, model, weights, _ = towers["clip"]
    tower = load(name, weights)
    assert (tower.tokens, tower.dim) == (16, 24)
    pixels = torch.stack([tower.preprocess(image) for image in images()])
    seen = []
    handle = model.visual.transformer.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        model.visual(pixels)
        handle.remove()
        expected = model.visual.ln_post(seen[0])[:, 1:]
    torch.testing.assert_close(tower.encode(images()), expected)


def test_timm_features_are_the_trunks_patch_tokens_without_prefix_tokens(towers):
    name, model, weights, _ = towers["timm"]
    tower = load(name, weights)
    assert (tower.tokens, tower.dim) == (256, 256)
    pixels = torch.stack([tower.preprocess(image) for image in images()])
    with torch.no_grad():
        expected = model.visual.trunk.forward_features(pixels)
    prefix = expected.shape[1] - 256
    assert prefix == model.visual.trunk.num_prefix_tokens == 1
    torch.testing.assert_close(tower.encode(images()), expected[:, prefix:])


@pytest.mark.parametrize("name", ["clip", "timm"])
def test_a_folder_brings_weights_and_its_own_normalization(towers, name):
    model_name, _, weights, hub = towers[name]
    by_file, by_folder = load(model_name, weights), load(hub)
    assert by_folder.mean.flatten().tolist() == [0.5, 0.5, 0.5] and by_folder.std.flatten().tolist() == [0.25, 0.5, 0.5]
    pixels = torch.zeros(1, 3, *by_file.size)
    assert torch.equal(by_file._features(pixels), by_folder._features(pixels))


def test_a_siglip_checkpoint_file_gets_siglips_normalization(tmp_path):
    (tmp_path / "weights.safetensors").touch()
    found = vision_module._check_named_model("ViT-SO400M-14-SigLIP-384", str(tmp_path / "weights.safetensors"))
    assert found == {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B/32"])
def test_weights_of_another_activation_are_refused_with_the_right_name(name):
    with pytest.raises(UserError, match=r"another activation than the weights 'openai'.*use ViT-B-32-quickgelu$"):
        load(name, "openai")


def test_an_image_does_not_depend_on_its_neighbours(towers, monkeypatch):
    tower = load(*towers["clip"][::2])
    alone = torch.cat([tower.encode([image]) for image in images(5)])
    monkeypatch.setattr(vision_module, "BATCH_IMAGES", 2)
    torch.testing.assert_close(tower.encode(images(5)), alone)
    assert tower.encode([]).shape == (0, tower.tokens, tower.dim)


@pytest.mark.parametrize("shape", [(10, 40, 3), (40, 10, 3), (30, 30, 3)])
def test_a_reference_is_padded_with_white_and_never_cropped(towers, shape):
    tower = load(*towers["clip"][::2])
    pixels = tower.preprocess(np.zeros(shape, dtype=np.uint8)) * tower.std + tower.mean
    assert pixels.shape == (3, 32, 32)
    black = (pixels.mean(0) < 0.5).float().mean().item()
    assert black == pytest.approx(shape[0] * shape[1] / max(shape) ** 2, abs=0.05)
    if shape[0] != shape[1]:
        assert pixels[:, 0, 0].tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_towers_that_are_not_square_get_images_of_their_aspect():
    tower = load("tiny")
    tower.model.register_to_config(image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    wide = vision_module.FrozenVisionTower(tower.model)
    wide.size = (32, 64)
    pixels = wide.preprocess(np.zeros((20, 40, 3), dtype=np.uint8))
    assert pixels.shape == (3, 32, 64) and torch.equal(pixels, torch.full_like(pixels, -1.0))


def test_the_tiny_tower_is_the_same_everywhere_and_disturbs_no_generator():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = load("tiny")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = load("tiny")
    assert torch.equal(first.encode(images()), second.encode(images()))
    assert (first.tokens, first.dim) == (16, 64)


@pytest.mark.slow
def test_the_tiny_tower_has_the_same_weights_in_a_fresh_process():
    code = (
        "import sys, torch; torch.rand(3); from phantom_mega.conditioning.vision import _tiny_tower; "
        "torch.save(_tiny_tower().state_dict(), sys.stdout.buffer)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    theirs, ours = torch.load(io.BytesIO(done.stdout)), vision_module._tiny_tower().state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_nothing_of_it_trains_and_calls_are_counted():
    tower = load("tiny")
    assert not tower.model.training and not any(p.requires_grad for p in tower.model.parameters())
    assert not tower.encode(images()).requires_grad and tower.calls == 3


@pytest.mark.parametrize(
    "encoder, pretrained, message",
    [
        ("ViT-B-32", None, "random weights; give a checkpoint file or one of .*openai"),
        ("ViT-B32", "openai", "did you mean ViT-B-32"),
        ("ViT-B-32", "no_such_tag", "could not be loaded"),
        ("local-dir:/no/such/folder", None, "/no/such/folder"),
    ],
)
def test_what_cannot_be_loaded_is_one_message(encoder, pretrained, message):
    with pytest.raises(UserError, match=message) as raised:
        load(encoder, pretrained)
    assert len(str(raised.value)) < 800


def test_a_folder_without_weights_is_refused(towers, tmp_path):
    shutil.copy(towers["clip"][3] + "/open_clip_config.json", tmp_path)
    with pytest.raises(UserError, match="could not be loaded"):
        load(str(tmp_path))


def test_a_tower_without_patch_tokens_is_refused(towers):
    with pytest.raises(UserError, match="use a vision transformer"):
        load(*towers["resnet"][::2])
