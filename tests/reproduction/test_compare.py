"""Verdicts: a claim agrees only if the interval and every seed say so."""

import numpy as np
import pytest

from phantom_mega.reproduction.compare import AGREES, DISAGREES, UNDECIDED, estimate, verdict

RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 0.1, (3, 40))


def test_a_clear_difference_agrees_with_its_sign_and_disagrees_with_the_other():
    second = RNG.uniform(size=(3, 40))
    first = second + 0.5 + NOISE
    assert verdict(first, second, 1)[0] == AGREES
    assert verdict(first, second, -1)[0] == DISAGREES
    assert verdict(first, second, 1)[1].mean == pytest.approx((first - second).mean())


def test_noise_around_zero_is_undecided():
    second = RNG.uniform(size=(3, 40))
    assert verdict(second + NOISE - NOISE.mean(), second, 1)[0] == UNDECIDED


def test_one_seed_that_goes_the_other_way_leaves_it_undecided():
    first, second = np.full((3, 40), 0.9) + NOISE, np.zeros((3, 40))
    first[2] = -0.2 + NOISE[2]
    decided, difference = verdict(first, second, 1)
    assert difference.low > 0 and decided == UNDECIDED


def test_cases_to_which_a_metric_does_not_apply_are_left_out_not_counted_as_zero():
    values = np.array([[1.0, np.nan, 0.5], [1.0, np.nan, 0.7]])
    found = estimate(values)
    assert found.mean == pytest.approx(0.8) and found.seeds == pytest.approx((0.75, 0.85))
    assert np.isnan(estimate(np.full((2, 3), np.nan)).mean)


def test_equal_values_have_an_interval_of_no_width():
    found = estimate(np.full((3, 5), 0.25))
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
