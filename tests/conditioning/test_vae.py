"""The frozen VAE: frame counts, normalization, tiling, what can be loaded, and clear refusals."""

import json

import pytest
import torch

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.conditioning.vae import FrozenVAE, load_vae
from phantom_mega.config import ConditioningConfig
from phantom_mega.errors import UserError
from tests.conditioning.helpers import tiny_cogvideox


def video(frames=5, height=16, width=24, batch=1):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


@pytest.fixture(scope="module")
def vae():
    return FrozenVAE(tiny_cogvideox())


@pytest.mark.parametrize("frames", [1, 5, 13, 17, 37])
def test_cogvideox_maps_4k_plus_1_frames_to_k_plus_1_latents_and_back(vae, frames):
    latents = vae.encode(video(frames))
    assert latents.shape == (1, 4, 1 + (frames - 1) // 4, 2, 3) and latents.dtype == torch.float32
    assert vae.decode(latents).shape == (1, 3, frames, 16, 24)


def test_an_even_number_of_latents_decodes_to_the_frames_that_they_begin(vae):
    latents = vae.encode(video(17))
    # The first chunk is 3 latents, that is 9 frames; later ones may only be compared with an equal end.
    torch.testing.assert_close(vae.decode(latents[:, :, :4])[:, :, :9], vae.decode(latents)[:, :, :9])


def test_other_frame_counts_are_refused_with_the_nearest(vae):
    with pytest.raises(UserError, match="nearest counts are 5 and 9"):
        vae.encode(video(7))


@pytest.mark.parametrize(
    "config",
    [{}, {"shift_factor": 0.3}, {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 4.0, 0.5]}],
)
def test_latents_are_normalized_as_the_config_says_and_decoded_back(config):
    vae = FrozenVAE(tiny_cogvideox(scaling_factor=0.7, **config))
    raw = vae.model.encode(video()).latent_dist.mode()
    mean = torch.tensor(config.get("latents_mean", [config.get("shift_factor", 0.0)] * 4)).view(4, 1, 1, 1)
    std = torch.tensor(config.get("latents_std", [1.0] * 4)).view(4, 1, 1, 1)
    latents = vae.encode(video())
    torch.testing.assert_close(latents, (raw - mean) / std * 0.7)
    even = torch.cat([raw, raw[:, :, -1:]], 2)
    torch.testing.assert_close(vae.decode(latents), vae.model.decode(even).sample[:, :, :5].clamp(-1, 1))


def test_nothing_of_it_trains(vae):
    assert not vae.model.training and not any(p.requires_grad for p in vae.model.parameters())
    assert not vae.encode(video().requires_grad_()).requires_grad


def test_only_large_frames_are_tiled_and_tiles_fit_together():
    whole, tiled = FrozenVAE(tiny_cogvideox()), FrozenVAE(tiny_cogvideox(sample_height=32, sample_width=40), 32 * 400)
    tiled.encode(video(1, 32, 400))
    assert not tiled.model.use_tiling and not tiled.model.use_slicing
    image = video(1, 48, 400, batch=2)
    latents = tiled.encode(image)
    assert tiled.model.use_tiling and tiled.model.use_slicing
    assert latents.shape == (2, 4, 1, 6, 50)
    assert (latents - whole.encode(image)).abs().mean() < 0.3 * latents.abs().mean()
    assert tiled.decode(latents).shape == image.shape


def test_a_cogvideox_vae_is_loaded_from_a_folder_and_from_its_subfolder(vae, tmp_path):
    vae.model.save_pretrained(tmp_path / "vae")
    for config in (
        ConditioningConfig(vae=str(tmp_path / "vae")),
        ConditioningConfig(vae=str(tmp_path), vae_subfolder="vae"),
    ):
        loaded = load_vae(config, "cpu", torch.float32)
        assert torch.equal(loaded.encode(video()), vae.encode(video()))
    assert load_vae(config, "cpu", torch.bfloat16).model.dtype == torch.bfloat16
    assert load_vae(config, "cpu", torch.bfloat16).encode(video()).dtype == torch.float32
    with pytest.raises(UserError, match=r"set conditioning\.vae_subfolder=vae"):
        load_vae(ConditioningConfig(vae=str(tmp_path)), "cpu", torch.float32)


def test_linear_names_the_shipped_vae_and_a_folder_may_hold_another(tmp_path):
    shipped = load_vae(ConditioningConfig(vae="linear"), "cpu", torch.float32)
    assert shipped.latent_channels == 48
    LinearVideoVAE(latent_channels=6, scaling_factor=0.5).save_pretrained(tmp_path)
    loaded = load_vae(ConditioningConfig(vae=str(tmp_path)), "cpu", torch.float32)
    assert isinstance(loaded.model, LinearVideoVAE)
    assert torch.equal(loaded.encode(video()), loaded.model.encode(video()).latent_dist.mode() * 0.5)


def test_an_unknown_class_is_refused_by_naming_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match=r"is a AutoencoderKL; .* AutoencoderKLCogVideoX, LinearVideoVAE"):
        load_vae(ConditioningConfig(vae=str(tmp_path)), "cpu", torch.float32)


def test_missing_and_damaged_files_are_one_message(vae, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_vae(ConditioningConfig(vae=str(tmp_path / "nowhere")), "cpu", torch.float32)
    vae.model.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="could not be loaded"):
        load_vae(ConditioningConfig(vae=str(tmp_path)), "cpu", torch.float32)
