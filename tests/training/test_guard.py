"""The guard of steps: what is skipped, what is counted, when it gives up."""

import math

import pytest

from phantom_mega.training.guard import StepGuard, TrainingDivergedError


def trained(**settings):
    guard = StepGuard(spike_warmup=20, **settings)
    for i in range(50):
        assert guard.check(1.0 + 0.1 * math.sin(i), 0.5) is None
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_non_finite_steps_are_skipped_and_counted(loss, norm):
    guard = trained()
    assert "not finite" in guard.check(loss, norm)
    assert (guard.skipped, guard.nan) == (1, 1)


def test_spikes_are_skipped_only_over_six_sigma_and_after_the_warm_up():
    guard = trained()
    assert guard.check(1.0 + 0.07 * 4, 0.5) is None
    assert "6 sigma" in guard.check(3.0, 0.5)
    assert (guard.skipped, guard.nan) == (1, 0)
    assert StepGuard(spike_warmup=20).check(1e9, 0.5) is None


def test_a_spike_does_not_move_the_mean():
    guard = trained()
    before = guard.mean
    guard.check(50.0, 0.5)
    assert guard.mean == before


def test_too_many_skipped_in_a_row_stop_the_run_and_one_good_step_forgives():
    guard = trained(max_skipped_in_a_row=3)
    for _ in range(5):
        assert guard.check(math.nan, 1.0)
        assert guard.check(math.nan, 1.0)
        assert guard.check(1.0, 1.0) is None
    guard.check(math.nan, 1.0)
    guard.check(math.nan, 1.0)
    with pytest.raises(TrainingDivergedError, match="3 steps in a row"):
        guard.check(math.nan, 1.0)


def test_state_round_trips_without_the_settings():
    guard = trained()
    fresh = StepGuard(spike_sigma=9.0)
    fresh.load_state_dict(guard.state_dict())
    assert (fresh.mean, fresh.variance, fresh.seen, fresh.spike_sigma) == (guard.mean, guard.variance, guard.seen, 9.0)
