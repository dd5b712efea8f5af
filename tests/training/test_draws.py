"""Random draws of training: functions of seed, epoch and sample alone, with the recipe's probabilities."""

import torch

from phantom_mega.config import FlowConfig
from phantom_mega.training.draws import draw_sample

SHAPE = (4, 2, 2, 2)
PIXELS = 256 * 256 * 37


def draw(seed=1, epoch=0, key="clip", flow=None):
    return draw_sample(seed, epoch, key, SHAPE, PIXELS, flow or FlowConfig())


def test_draws_repeat_and_ignore_what_was_drawn_before():
    first = draw()
    torch.manual_seed(99)
    torch.randn(7)
    second = draw()
    assert torch.equal(first.noise, second.noise) and first.timestep == second.timestep


def test_seed_epoch_and_key_each_change_the_noise():
    base = draw().noise
    for other in (draw(seed=2), draw(epoch=1), draw(key="other")):
        assert not torch.equal(base, other.noise)


def test_dropout_rates_are_the_recipes():
    draws = [draw(key=f"k{i}") for i in range(4000)]
    rate = lambda name: sum(getattr(d, name) for d in draws) / len(draws)  # noqa: E731
    assert abs(rate("drop_text") - 0.1) < 0.02
    assert abs(rate("drop_clip") - 0.1) < 0.02
    # references are zero with all image conditions (0.1), and alone in 0.7 of the rest
    assert abs(rate("drop_latents") - (0.1 + 0.9 * 0.7)) < 0.03
    assert all(d.drop_latents for d in draws if d.drop_clip)


def test_timesteps_are_shifted_for_large_videos():
    def mean(pixels):
        return sum(draw_sample(1, 0, f"k{i}", (1,), pixels, FlowConfig()).timestep for i in range(500)) / 500

    assert abs(mean(PIXELS) - 0.5) < 0.03 and mean(1280 * 720 * 145) > 0.7


def test_noise_is_standard_normal():
    noise = draw_sample(0, 0, "a", (16, 4, 32, 32), PIXELS, FlowConfig()).noise
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01


def test_clip_features_alone_can_be_dropped_and_that_changes_no_other_draw():
    without = draw(flow=FlowConfig(clip_reference_dropout=1.0, image_dropout=0.0, vae_reference_dropout=0.0))
    with_clip = draw(flow=FlowConfig(image_dropout=0.0, vae_reference_dropout=0.0))
    assert without.drop_clip and not without.drop_latents and not with_clip.drop_clip
    assert torch.equal(without.noise, with_clip.noise) and without.timestep == with_clip.timestep
