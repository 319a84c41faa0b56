"""Means with bootstrap intervals, and paired differences."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_CHUNK = 1000  # resamples in memory at a time


@dataclass(frozen=True)
class Estimate:
    """A mean of n values with its 95 % interval; `num_missing` values were left out."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    num_missing: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.mean is None or self.low is None or self.high is None:
            return f"none of {self.num_missing} rated"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"


def bootstrap_mean(values: Sequence[float | None], *, num_resamples: int, seed: int) -> Estimate:
    """Computes the mean of the values that are not None, with a percentile bootstrap interval (Efron, Tibshirani 1993).

    Args:
        values: None where one is missing; those are counted and left out.
        num_resamples: How many resamples of the values.
        seed: Of the resampling.
    """
    there = np.array([value for value in values if value is not None], dtype=np.float64)
    missing = len(values) - len(there)
    if not len(there):
        return Estimate(None, None, None, 0, missing)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            there[generator.integers(len(there), size=(min(_CHUNK, num_resamples - start), len(there)))].mean(axis=1)
            for start in range(0, num_resamples, _CHUNK)
        ]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(there.mean()), float(low), float(high), len(there), missing)


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None], *, num_resamples: int, seed: int
) -> Estimate:
    """Computes the mean of second - first over items that have both, with its bootstrap interval.

    Raises:
        ValueError: The two are not of the same items.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be paired")
    differences = [None if a is None or b is None else b - a for a, b in zip(first, second, strict=True)]
    return bootstrap_mean(differences, num_resamples=num_resamples, seed=seed)


def permutation_p(
    first: Sequence[float | None], second: Sequence[float | None], *, num_resamples: int, seed: int
) -> float | None:
    """Computes the two-sided p-value of no paired difference, by random flips of the differences' signs.

    With up to 2^n <= num_resamples it is exact (Good 2005, section 3.3). None where no pair is there.

    Raises:
        ValueError: The two are not of the same items.
    """
    from scipy.stats import permutation_test

    pairs = zip(first, second, strict=True)
    differences = np.array([b - a for a, b in pairs if a is not None and b is not None], dtype=np.float64)
    if not len(differences):
        return None
    if len(differences) < 2 or not differences.any():  # either way round it is as extreme
        return 1.0
    found = permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=_CHUNK,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def spearman(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Computes Spearman's rank correlation over items that have both; None if one of them is constant."""
    from scipy.stats import spearmanr

    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    if len(set(left)) < 2 or len(set(right)) < 2:
        return None
    return float(spearmanr(left, right).statistic)


def krippendorff_alpha(ratings: Sequence[Sequence[float | None]]) -> float | None:
    """Computes Krippendorff's alpha, interval metric (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    alpha = 1 - D_o / D_e: the mean squared difference of ratings of one item over that of any two ratings.

    Args:
        ratings: [judges][items], None where a judge did not rate an item.

    Returns:
        1 for full agreement, 0 for none beyond chance; None where fewer than two items have two ratings, or all ratings
        are the same.
    """
    units = [[value for value in unit if value is not None] for unit in zip(*ratings, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    pooled = np.array([value for unit in units for value in unit], dtype=np.float64)
    if len(units) < 2 or pooled.min() == pooled.max():
        return None

    def squares(values: np.ndarray) -> float:
        """The sum of (a - b)^2 over all ordered pairs."""
        return float(2 * len(values) * (values**2).sum() - 2 * values.sum() ** 2)

    observed = sum(squares(np.array(unit)) / (len(unit) - 1) for unit in units) / len(pooled)
    expected = squares(pooled) / (len(pooled) * (len(pooled) - 1))
    return 1 - observed / expected
