"""Intervals cover the mean they estimate, tests reject no more than they should, and odd data has an answer."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from phantom_mega.errors import UserError
from phantom_mega.evaluation.statistics import Interval, compare, group_means, grouped, mean_interval, sign_flip_test


def test_intervals_cover_the_true_mean_of_skewed_data_about_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        found = mean_interval(rng.exponential(1.0, 40), confidence=0.9, resamples=400, seed=seed)
        covered += found.low <= 1.0 <= found.high
    assert 0.82 <= covered / 200 <= 0.96


def test_intervals_of_skewed_data_lean_towards_its_tail():
    values = np.random.default_rng(1).exponential(1.0, 60)
    found = mean_interval(values)
    assert found.low < found.mean < found.high and found.mean == pytest.approx(values.mean()) and found.count == 60
    assert found.high - found.mean > 1.1 * (found.mean - found.low)
    plain = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert found.low > plain.low and found.high > plain.high


def test_equal_seeds_give_equal_intervals():
    values = np.random.default_rng(2).normal(size=30)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5) != mean_interval(values, seed=6)


def test_one_value_has_no_interval_and_equal_values_one_of_no_width():
    found = mean_interval([0.7])
    assert (found.mean, found.count) == (0.7, 1) and math.isnan(found.low) and math.isnan(found.high)
    assert mean_interval([0.25] * 8) == Interval(0.25, 0.25, 0.25, 8)


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.0, 1.0], [0.0] * 49 + [1.0], [1e-9, -1e9, 3.0]])
def test_few_and_nearly_equal_values_have_finite_intervals_around_their_mean(values):
    found = mean_interval(values)
    assert math.isfinite(found.low) and math.isfinite(found.high) and found.low <= found.mean <= found.high


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_data_is_refused(values):
    for function in (mean_interval, sign_flip_test):
        with pytest.raises(ValueError, match=r"at least one|not finite"):
            function(values)


def test_small_samples_get_the_exact_p_value():
    differences = np.array([0.3, -0.1, 0.4, 0.2, 0.05, 0.6])
    means = [np.mean(differences * signs) for signs in itertools.product((1, -1), repeat=6)]
    exact = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    assert sign_flip_test(differences) == pytest.approx(exact)
    assert sign_flip_test(-differences) == pytest.approx(exact)


def test_no_difference_is_rejected_as_often_as_the_level_and_a_real_one_nearly_always():
    rng = np.random.default_rng(3)
    null = [sign_flip_test(rng.normal(0, 1, 25), resamples=299, seed=i) for i in range(200)]
    assert 0.01 <= np.mean(np.array(null) <= 0.05) <= 0.10
    real = [sign_flip_test(rng.normal(1, 1, 25), resamples=299, seed=i) for i in range(50)]
    assert np.mean(np.array(real) <= 0.05) > 0.9


def test_equal_methods_and_one_pair_tell_nothing():
    assert sign_flip_test([0.0] * 20) == 1.0
    assert sign_flip_test([0.4]) == 1.0


def test_random_signs_never_give_a_p_value_of_zero():
    assert 0 < sign_flip_test(np.full(40, 0.5), resamples=99) <= 0.03


def test_two_methods_are_paired_by_case_and_not_by_order():
    a = {f"case{i}": 0.1 * i + 0.05 for i in range(12)}
    b = {f"case{i}": 0.1 * i for i in reversed(range(12))}
    found = compare(a, b)
    assert found.difference.mean == pytest.approx(0.05) and (found.wins, found.losses) == (12, 0)
    assert found.p_value == pytest.approx(2 / 2**12)
    assert compare(b, a).difference.mean == pytest.approx(-0.05)


def test_methods_of_different_cases_are_refused_by_name():
    with pytest.raises(UserError, match="2 are of one alone: x, y"):
        compare({"a": 1.0, "x": 1.0}, {"a": 1.0, "y": 0.0})


def test_groups_keep_their_values_and_their_order():
    values = {"cat_1": 0.2, "dog_1": 1.0, "cat_2": 0.4}
    assert list(grouped(values, lambda name: name[:3]).items()) == [("cat", [0.2, 0.4]), ("dog", [1.0])]
    assert group_means(values, lambda name: name[:3]) == pytest.approx({"cat": 0.3, "dog": 1.0})
