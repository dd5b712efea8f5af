"""What counts as agreement: paired differences over cases, their bootstrap interval, and the sign in every seed. Pure.

Values of a condition are an array [S, N]: S trainings (seeds), N cases, the same cases everywhere; NaN where a metric
does not apply to a case.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from phantom_mega.evaluation.statistics import mean_interval

AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "undecided"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and cases, with the 95% BCa bootstrap interval over cases (each averaged over its seeds).

    Attributes:
        mean, low, high: of the metric.
        seeds: mean of every seed.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


def estimate(values: np.ndarray) -> Estimate:
    """Mean and interval of [S, N] values; all NaN where no case has a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing are NaN, which is what is meant
        cases, seeds = np.nanmean(values, axis=0), np.nanmean(values, axis=1)
    cases = cases[~np.isnan(cases)]
    if not len(cases):
        return Estimate(np.nan, np.nan, np.nan, tuple(seeds.tolist()))
    interval = mean_interval(cases)
    return Estimate(interval.mean, interval.low, interval.high, tuple(seeds.tolist()))


def verdict(first: np.ndarray, second: np.ndarray, sign: int) -> tuple[str, Estimate]:
    """Whether `first` is above (`sign` 1) or below (-1) `second`.

    `agrees`: the interval of the paired differences lies on the expected side of zero, and so does the mean of every
    seed. `disagrees`: the interval lies on the other side. `undecided`: all else.

    Args:
        first, second: [S, N].
        sign: expected.

    Returns:
        the verdict, and the estimate of `first - second`.
    """
    difference = estimate(first - second)
    if sign * difference.low > 0 and sign * difference.high > 0:
        agrees = all(sign * seed > 0 for seed in difference.seeds)
        return (AGREES if agrees else UNDECIDED), difference
    if sign * difference.low < 0 and sign * difference.high < 0:
        return DISAGREES, difference
    return UNDECIDED, difference
