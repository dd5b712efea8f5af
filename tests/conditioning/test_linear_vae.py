"""LinearVideoVAE: the promises that the trainer and the decoder of a tiny run rely on."""

import pytest
import torch

from phantom_mega.conditioning.linear_vae import LinearVideoVAE
from phantom_mega.data.samples import decode_video, source_video
from phantom_mega.errors import UserError


@pytest.fixture(scope="module")
def vae():
    return LinearVideoVAE.shipped()


@pytest.fixture(scope="module")
def carphone():
    """The clip that the shipped basis was not fitted on: [1, 3, 17, 144, 176] in [-1, 1]."""
    frames = torch.from_numpy(decode_video(source_video("carphone"))[:17].copy())
    return frames.movedim(-1, 0)[None].float() / 127.5 - 1


def noise(frames=9, height=16, width=24, batch=1, seed=0):
    return torch.randn(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_latents_are_48_channels_at_a_quarter_of_the_frames_and_an_eighth_of_the_sides(vae, frames):
    video = noise(frames, batch=2)
    latents = vae.encode(video).latent_dist.mode()
    assert latents.shape == (2, 48, (frames + 3) // 4, 2, 3)
    assert vae.decode(latents).sample.shape == video.shape


def test_a_latent_frame_depends_on_no_later_pixel_frame(vae):
    video = noise(13)
    latents = vae.encode(video).latent_dist.mode()
    for t in range(4):
        changed = video.clone()
        changed[:, :, 4 * t + 1 :] = 0.7
        torch.testing.assert_close(vae.encode(changed).latent_dist.mode()[:, :, : t + 1], latents[:, :, : t + 1])
        if t < 3:
            assert (vae.encode(changed).latent_dist.mode()[:, :, t + 1] != latents[:, :, t + 1]).any()


@pytest.mark.parametrize(("frames", "nearest"), [(2, 1), (4, 5), (8, 9), (18, 17)])
def test_a_frame_count_other_than_4k_plus_1_names_the_nearest(vae, frames, nearest):
    with pytest.raises(UserError, match=rf"{frames} frames.* nearest is {nearest}$"):
        vae.encode(noise(frames))


def test_a_size_that_is_no_multiple_of_8_names_the_nearest(vae):
    with pytest.raises(UserError, match=r"18x30.*nearest 16x32"):
        vae.encode(noise(5, 18, 30))


def test_both_bases_are_orthonormal(vae):
    for basis in (vae.frame_basis, vae.group_basis):
        torch.testing.assert_close(basis.T @ basis, torch.eye(48), atol=1e-5, rtol=0)


def test_encoding_what_was_decoded_gives_the_latents_back(vae):
    latents = torch.randn(1, 48, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    again = vae.encode(vae.decode(latents).sample).latent_dist
    torch.testing.assert_close(again.mode(), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.sample(), latents, atol=1e-5, rtol=1e-5)


def test_save_and_load_give_the_same_model(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    loaded = LinearVideoVAE.from_pretrained(tmp_path / "vae")
    assert loaded.config.scaling_factor == vae.config.scaling_factor
    assert loaded.config.latent_channels == vae.config.latent_channels == 48
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_still_video_has_nearly_equal_first_and_later_latents(vae, carphone):
    still = vae.encode(carphone[:, :, :1].expand(-1, -1, 9, -1, -1)).latent_dist.mode()
    torch.testing.assert_close(still[:, :, 1], still[:, :, 2])
    assert (still[:, :, 0] - still[:, :, 1]).norm() < 0.08 * still[:, :, 1].norm()


def test_a_reference_image_has_the_latents_of_a_clip_that_starts_with_it(vae, carphone):
    alone = vae.encode(carphone[:, :, :1]).latent_dist.mode()
    torch.testing.assert_close(alone[:, :, 0], vae.encode(carphone).latent_dist.mode()[:, :, 0])


def test_a_held_out_clip_survives_a_round_trip_at_30_db_with_latents_near_unit_variance(vae, carphone):
    latents = vae.encode(carphone).latent_dist.mode()
    back = vae.decode(latents).sample.clamp(-1, 1)
    assert -10 * ((back - carphone) / 2).square().mean().log10() > 30
    assert 0.5 < (latents * vae.config.scaling_factor).var() < 2


def test_a_fit_keeps_what_lies_in_the_leading_subspace_and_beats_the_untrained_basis(carphone):
    fitted = LinearVideoVAE.fit([carphone[0]])
    more = LinearVideoVAE.fit([carphone[0]], latent_channels=96)
    errors = [(model(carphone).sample - carphone).square().mean() for model in (more, fitted, LinearVideoVAE(48))]
    assert errors[0] < errors[1] < 0.05 * errors[2]
    variance = fitted.encode(carphone).latent_dist.mode()[:, :, 1:].var(dim=(0, 2, 3, 4))
    assert variance.argmax() == 0 and variance[:8].sum() > 0.9 * variance.sum()  # PCA order; the spectrum is kept


def test_fitting_again_gives_the_shipped_basis(vae, carphone):
    videos = [decode_video(source_video(name), 144) for name in ("bigbuckbunny", "bikes")]
    videos = [frames[: (len(frames) - 1) // 4 * 4 + 1, :, : frames.shape[2] // 8 * 8] for frames in videos]
    fitted = LinearVideoVAE.fit([torch.from_numpy(v.copy()).movedim(-1, 0).float() / 127.5 - 1 for v in videos])
    assert fitted.config.scaling_factor == pytest.approx(vae.config.scaling_factor, rel=1e-3)
    torch.testing.assert_close(fitted.mean, vae.mean, atol=1e-3, rtol=0)
    shipped, again = (model.encode(carphone).latent_dist.mode() for model in (vae, fitted))
    for t in (0, 1):  # the bases of first and of later frames; not to the bit: decoders round by CPU
        assert (again[:, :, t] - shipped[:, :, t]).norm() < 0.01 * shipped[:, :, t].norm()
