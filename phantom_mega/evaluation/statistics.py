"""Statistics of scores: means with intervals, paired tests between two methods, groups of cases. Pure.

Videos of one subject (its prompts, its seeds) resemble each other, and intervals and tests take their values as
independent: give them one value per subject (`group_means`), not one per video, where several show the same subject.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from phantom_mega.errors import UserError

RESAMPLES = 9999
_BATCH = 256  # resamples held in memory at once


@dataclass(frozen=True)
class Interval:
    """A mean with its interval.

    Attributes:
        mean: of the values.
        low, high: ends of the interval; nan where one value tells nothing about its spread.
        count: values.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same cases.

    Attributes:
        difference: mean of a minus b, with its interval.
        p_value: how often chance alone gives a mean difference at least as far from zero; two-sided.
        wins, losses: cases where a is larger, and smaller, than b.
    """

    difference: Interval
    p_value: float
    wins: int
    losses: int


def mean_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean with its BCa bootstrap interval (bias-corrected and accelerated; Efron 1987).

    Where BCa is not defined (every resampled mean on one side of the mean, as with very few values, or values that are
    all equal) the percentile interval stands for it; that of equal values has no width.

    Args:
        values: at least one, finite.
        confidence: of the interval, in (0, 1).
        resamples: bootstrap samples.
        seed: of the resampling; equal seeds give equal intervals.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    values = _finite(values)
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # 0 / 0 of equal values is answered below
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (values,), np.mean, confidence_level=confidence, n_resamples=resamples, batch=_BATCH,
                method=method, rng=np.random.default_rng(seed),
            )  # fmt: skip
        low, high = map(float, found.confidence_interval)
        if np.isfinite([low, high]).all():
            break
    return Interval(mean, low, high, len(values))


def sign_flip_test(differences: Sequence[float] | np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of a paired permutation test: under no difference, each pair's sign is as likely plus as minus.

    Exact where all 2^n signs are no more than `resamples`, else by as many random ones, of which the observed is one
    (so that p is never 0; Phipson and Smyth 2010).

    Args:
        differences: of each pair, at least one, finite.
        resamples: random sign patterns.
        seed: of the signs.

    Raises:
        ValueError: there is no difference, or one is not finite.
    """
    differences = _finite(differences)
    if len(differences) == 1:
        return 1.0  # both signs are as far from zero
    return float(
        stats.permutation_test(
            (differences, np.zeros_like(differences)), lambda a, b, axis: (a - b).mean(axis), vectorized=True,
            permutation_type="samples", n_resamples=resamples, batch=_BATCH, rng=np.random.default_rng(seed),
        ).pvalue
    )  # fmt: skip


def compare(
    a: Mapping[str, float], b: Mapping[str, float], confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare two methods case by case.

    Args:
        a, b: value of each case (or of each subject) by its name.
        confidence, resamples, seed: of `mean_interval` and `sign_flip_test`.

    Raises:
        UserError: they are not of the same cases; names some. A case without a result counts as zero, not as absent.
        ValueError: there is no case, or a value is not finite.
    """
    if a.keys() != b.keys():
        only = sorted(a.keys() ^ b.keys())
        raise UserError(
            f"two methods are compared on the same cases, but {len(only)} are of one alone: {shortened(only)}"
        )
    names = sorted(a)
    differences = _finite([a[name] - b[name] for name in names])
    return Comparison(
        mean_interval(differences, confidence, resamples, seed),
        sign_flip_test(differences, resamples, seed),
        int((differences > 0).sum()),
        int((differences < 0).sum()),
    )


def grouped(values: Mapping[str, float], group_of: Callable[[str], str]) -> dict[str, list[float]]:
    """Values by group, groups and values in the order in which they come.

    Args:
        values: of each case, by its name.
        group_of: a case's name to its group's, such as its subject, its track or its category.
    """
    groups: dict[str, list[float]] = {}
    for name, value in values.items():
        groups.setdefault(group_of(name), []).append(value)
    return groups


def group_means(values: Mapping[str, float], group_of: Callable[[str], str]) -> dict[str, float]:
    """Mean of each group of `grouped`: independent values, where groups are subjects."""
    return {group: float(np.mean(found)) for group, found in grouped(values, group_of).items()}


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names as one text, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError("statistics need at least one value")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are not finite numbers")
    return values
