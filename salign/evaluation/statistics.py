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
    num_seeds: int = 1

    @property
    def visible(self) -> float | None:
        """The smallest difference from 0 that is found in 80 % of such samples, by a two-sided test at 5 %.

        2.80 standard errors (Cohen 1988), and the interval is 3.92 of them wide.
        """
        return None if self.low is None or self.high is None else 2.80 * (self.high - self.low) / 3.92

    def to_json(self) -> dict[str, Any]:
        """Its fields; of one seed, which is no number of seeds, without it."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("num_seeds", 1)}

    def __str__(self) -> str:
        if self.mean is None or self.low is None or self.high is None:
            return f"none of {self.num_missing} rated"
        seeds = f", {self.num_seeds} seeds" if self.num_seeds > 1 else ""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n}{seeds})"


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


Table = Sequence[Sequence[float | None]]
"""Values [seeds][items], None where one is missing."""


def nested_mean(values: Table, *, num_resamples: int, seed: int) -> Estimate:
    """Computes the mean over seeds and items, with an interval over both."""
    return _nested([(1, values)], num_resamples=num_resamples, seed=seed)


def nested_difference(first: Table, second: Table, *, num_resamples: int, seed: int) -> Estimate:
    """Computes the mean of second - first, paired by item and not by seed, with an interval over seeds and items."""
    return _nested([(-1, first), (1, second)], num_resamples=num_resamples, seed=seed)


def means_over_seeds(values: Table) -> list[float | None]:
    """Averages each item's values; None where one is missing."""
    columns = list(zip(*values, strict=True))
    return [None if None in column else sum(column) / len(column) for column in columns]


def _nested(sides: Sequence[tuple[int, Table]], *, num_resamples: int, seed: int) -> Estimate:
    """A bootstrap on two levels: items are drawn for all sides together, seeds for each side by itself.

    k seeds vary among themselves by (k - 1) / k of their variance, so what a draw of them changes is scaled up by
    sqrt(k / (k - 1)) (Davison and Hinkley 1997, section 3.8): with three seeds intervals would be too narrow otherwise.

    Args:
        sides: A sign, and values of the same items.
        num_resamples: How many draws.
        seed: Of the draws.
    """
    num_items = len(sides[0][1][0])
    if any(len(row) != num_items for _, values in sides for row in values):
        raise ValueError("values of different items cannot be paired")
    tables = [(sign, np.array(values, dtype=np.float64)) for sign, values in sides]  # None becomes nan
    there = np.all([~np.isnan(table).any(axis=0) for _, table in tables], axis=0)
    tables = [(sign, table[:, there]) for sign, table in tables]
    n, num_seeds = int(there.sum()), max(len(table) for _, table in tables)
    if not n:
        return Estimate(None, None, None, 0, num_items, num_seeds)
    generator, drawn = np.random.default_rng(seed), list[np.ndarray]()
    for start in range(0, num_resamples, _CHUNK):
        size = min(_CHUNK, num_resamples - start)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=size)
        total = np.zeros(size)
        for sign, table in tables:
            by_seed, k = counts @ table.T / n, len(table)
            middle = by_seed.mean(axis=1)
            chosen = np.take_along_axis(by_seed, generator.integers(k, size=(size, k)), axis=1)
            scale = (k / (k - 1)) ** 0.5 if k > 1 else 0.0
            total += sign * (middle + scale * (chosen.mean(axis=1) - middle))
        drawn.append(total)
    low, high = np.quantile(np.concatenate(drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    mean = float(sum(sign * table.mean() for sign, table in tables))
    return Estimate(mean, float(low), float(high), n, num_items - n, num_seeds)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects p-values for their number (Holm 1979); None stays None, and does not count."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected, highest = list[float | None]([None] * len(p_values)), 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[place] = highest
    return corrected


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
