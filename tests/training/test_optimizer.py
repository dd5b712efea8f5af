"""The moving average: its decay schedule, and what it converges to. (Sharding and saving: test_checkpoint.py.)"""

from types import SimpleNamespace

import pytest
import torch

from phantom_mega.training.optimizer import reset_moments, update_ema


def fake_optimizer():
    """What `update_ema` reads of a distributed optimizer: parts with an inner torch optimizer and its state."""
    param = torch.nn.Parameter(torch.ones(3))
    inner = torch.optim.AdamW([param])
    inner.state[param] = {
        "step": torch.tensor(5.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3), "ema": torch.zeros(3),
    }  # fmt: skip
    return SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=inner)]), param, inner.state[param]


def test_decay_grows_from_early_steps_to_its_setting():
    optimizer, _, state = fake_optimizer()
    assert update_ema(optimizer, 0.9999, 1) == pytest.approx(2 / 11)
    torch.testing.assert_close(state["ema"], torch.full((3,), 9 / 11))
    assert update_ema(optimizer, 0.9999, 10**6) == 0.9999
    assert update_ema(optimizer, 0.9, 10**6) == 0.9


def test_average_follows_the_weights():
    optimizer, param, state = fake_optimizer()
    with torch.no_grad():
        param.fill_(4.0)
    for n in range(200):
        update_ema(optimizer, 0.9, n + 1)
    torch.testing.assert_close(state["ema"], torch.full((3,), 4.0))


def test_reset_forgets_moments_and_keeps_weights_and_average():
    optimizer, param, state = fake_optimizer()
    update_ema(optimizer, 0.5, 10)
    ema = state["ema"].clone()
    reset_moments(optimizer)
    assert state["exp_avg"].abs().max() == 0 and state["exp_avg_sq"].abs().max() == 0 and state["step"] == 0
    assert torch.equal(state["ema"], ema) and torch.equal(param.detach(), torch.ones(3))
