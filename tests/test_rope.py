"""Rotary embedding: angles, norms, and what the attention score may depend on."""

import torch

from phantom_mega.rope import apply_rope, rope_table

AXES = [4, 6, 6]


def rotated(x, position):
    return apply_rope(x[None, None], *rope_table(torch.tensor([position]), AXES, 10000.0))[0, 0]


def test_position_zero_rotates_nothing():
    x = torch.randn(16)
    assert torch.equal(rotated(x, [0, 0, 0]), x)


def test_rotation_keeps_the_norm_of_every_channel_pair():
    x = torch.randn(16, dtype=torch.float64)
    y = rotated(x, [3, 5, 2])
    torch.testing.assert_close(x.view(-1, 2).norm(dim=1), y.view(-1, 2).norm(dim=1), rtol=1e-6, atol=1e-6)


def test_scores_depend_on_the_relative_position_of_all_three_axes():
    q, k = torch.randn(2, 16, dtype=torch.float64)
    near = rotated(q, [1, 2, 3]) @ rotated(k, [4, 1, 5])
    far = rotated(q, [6, 7, 8]) @ rotated(k, [9, 6, 10])
    torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-5)
    for axis in range(3):
        moved = [4, 1, 5]
        moved[axis] += 1
        assert abs(rotated(q, [1, 2, 3]) @ rotated(k, moved) - near) > 1e-6


def test_first_channels_turn_with_time_only():
    x = torch.randn(16)
    assert torch.equal(rotated(x, [0, 3, 4])[:4], x[:4]) and torch.equal(rotated(x, [7, 0, 0])[4:], x[4:])


def test_angle_of_the_first_pair_is_the_position_in_radians():
    cos, sin = rope_table(torch.tensor([[2, 0, 0]]), AXES, 10000.0)
    torch.testing.assert_close(cos[0, 0], torch.tensor(2.0).cos())
    torch.testing.assert_close(sin[0, 1], torch.tensor(2.0 * 10000.0**-0.5).sin())
