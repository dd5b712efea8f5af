"""Rectified flow: the path, the target, the shift, the loss."""

import pytest
import torch

from phantom_mega.flow import flow_loss, interpolate, resolution_shift, sample_timesteps, shift_timestep, velocity


def test_path_runs_from_data_to_noise_with_constant_velocity():
    x0, noise = torch.randn(2, 5)
    assert torch.equal(interpolate(x0, noise, 0.0), x0) and torch.equal(interpolate(x0, noise, 1.0), noise)
    step = interpolate(x0, noise, 0.7) - interpolate(x0, noise, 0.2)
    torch.testing.assert_close(step, 0.5 * velocity(x0, noise))


def test_shift_is_one_at_256p_and_five_at_720p_and_linear_between():
    low, high = 256 * 256 * 37, 1280 * 720 * 145
    assert resolution_shift(low) == 1.0 and resolution_shift(high) == pytest.approx(5.0)
    assert resolution_shift((low + high) // 2) == pytest.approx(3.0, abs=1e-6)


def test_shift_moves_timesteps_towards_noise_and_keeps_the_ends():
    t = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(shift_timestep(t, 5.0), torch.tensor([0.0, 5 / 6, 1.0]))
    assert torch.equal(shift_timestep(t, 1.0), t)


def test_timesteps_are_logit_normal():
    t = sample_timesteps(20000, torch.Generator().manual_seed(0))
    logits = torch.logit(t.double())
    assert abs(logits.mean()) < 0.03 and abs(logits.std() - 1) < 0.03
    shifted = sample_timesteps(20000, torch.Generator().manual_seed(0), logit_mean=1.0, logit_std=0.5)
    torch.testing.assert_close(torch.logit(shifted.double()), logits * 0.5 + 1.0, rtol=1e-3, atol=1e-3)


def test_loss_reads_only_weighted_tokens_and_survives_rubbish_elsewhere():
    prediction, target = torch.tensor([[1.0, 3.0], [float("nan"), 0.0]]), torch.zeros(2, 2)
    loss = flow_loss(prediction, target, torch.tensor([1.0, 0.0]))
    assert loss.tolist() == [5.0, 0.0]


def test_loss_of_bfloat16_predictions_is_computed_in_float32():
    loss = flow_loss(torch.ones(1, 3, dtype=torch.bfloat16), torch.full((1, 3), 0.999), torch.ones(1))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1e-6, rel=0.01)
