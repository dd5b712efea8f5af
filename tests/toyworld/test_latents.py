"""The VAE of renders: its round trip, its folder, and that more channels keep more."""

import numpy as np
import pytest
import torch

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.toyworld import latents
from phantom_mega.toyworld.render import render
from phantom_mega.toyworld.samples import make_sample


@pytest.fixture(scope="module")
def vae():
    return latents.fit_vae(48, videos=24)


def test_pixels_come_back_from_inputs_exactly():
    video = render(make_sample(1, 0).scene)
    assert np.array_equal(latents.to_pixels(latents.to_input(video)), video)


def test_a_basis_of_renders_beats_the_one_of_photographs_and_more_channels_keep_more(vae):
    fitted = latents.measure_vae(vae, videos=12)
    photographs = latents.measure_vae(LinearVideoVAE.shipped(), videos=12)
    fewer = latents.measure_vae(latents.fit_vae(16, videos=24), videos=12)
    assert fitted["psnr"] > photographs["psnr"]
    assert fitted["psnr"] > fewer["psnr"] + 1
    assert fitted["latent_channels"] == 48 and 0.5 < fitted["latent_variance"] < 2


def test_all_channels_of_a_still_frame_lose_nothing_but_rounding():
    full = latents.fit_vae(192, videos=24)
    image = render(make_sample(1, 0).scene, 1)
    back = latents.round_trip(full, image)
    assert abs(back.astype(int) - image).max() <= 1


def test_a_saved_vae_is_loaded_as_conditioning_loads_it(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    again = LinearVideoVAE.from_pretrained(tmp_path / "vae")
    video = render(make_sample(1, 0).scene)
    assert again.config.scaling_factor == vae.config.scaling_factor
    assert np.array_equal(latents.round_trip(again, video), latents.round_trip(vae, video))


def test_measured_videos_show_subjects_that_fitting_never_saw():
    fitted = list(latents.sample_videos(3, 0, "train"))
    measured = list(latents.sample_videos(3, 0, "validation"))
    assert not any(np.array_equal(a, b) for a in fitted for b in measured)
    assert all(isinstance(latents.to_input(video), torch.Tensor) for video in measured)
