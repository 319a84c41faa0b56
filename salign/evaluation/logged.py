"""The value of a model on logged answers: what their scores would be, on average, if it had given the answers.

No answer is generated and no judge is asked. The scores are those of another model's answers; each counts by how much
likelier the answer is under the model than under the one that sampled it (self-normalised inverse propensity,
Swaminathan and Joachims 2015; for conversations OCEAN, arXiv 2410.23703).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from salign.evaluation.statistics import CONFIDENCE

_CHUNK = 1000  # resamples in memory at a time
FEWEST = 30.0
"""Below so many effective answers the interval itself cannot be relied on."""


@dataclass(frozen=True)
class LoggedValue:
    """What logged answers say of a model.

    Attributes:
        sampler: The mean score of the answers as they were sampled, each group counted alike.
        value: The model's, as far as these answers tell.
        interval: Of `value`, 95 %, by a bootstrap over groups.
        difference: `value` - `sampler`.
        difference_interval: Of the same draws.
        num_groups: Of answers to one query.
        num_answers: In all of them.
        num_effective: How many answers of equal weight tell as much (Kish 1965): (sum w)^2 / sum w^2.
        largest_share: Of all weight, what the heaviest answer has.
    """

    sampler: float
    value: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    num_groups: int
    num_answers: int
    num_effective: float
    largest_share: float

    def __str__(self) -> str:
        (low, high), (least, most) = self.interval, self.difference_interval
        text = (
            f"value {self.value:.3f} [{low:.3f}, {high:.3f}], the sampler's {self.sampler:.3f}; difference "
            f"{self.difference:+.3f} [{least:+.3f}, {most:+.3f}] ({self.num_answers} answers in {self.num_groups} "
            f"groups, worth {self.num_effective:.1f} of equal weight; the heaviest has {self.largest_share:.0%})"
        )
        if self.num_effective < FEWEST:
            text += (
                f". Fewer than {FEWEST:.0f} effective answers: the model would say other things than these, which tell "
                "little of it; neither value nor interval is to be relied on."
            )
        return text


def logged_value(
    log_weights: Sequence[Sequence[float]], scores: Sequence[Sequence[float]], *, num_resamples: int, seed: int
) -> LoggedValue:
    """Estimates a model's value from answers that another has sampled.

    With w = exp(log weight) / (answers of its group), the value is sum w r / sum w over all answers: biased by a part
    in the number of groups, and never outside the scores that were given, which the plain mean of w r can be.

    Args:
        log_weights: [groups][answers], log p(answer | query) of the model less that of the sampler, in nats.
        scores: [groups][answers], as they were given.
        num_resamples: How many draws of the groups.
        seed: Of the draws.

    Raises:
        ValueError: There is no group, or an entry is missing or not finite.
    """
    if not scores or [len(group) for group in log_weights] != [len(group) for group in scores]:
        raise ValueError("log weights and scores must be of the same answers, in one group or more")
    if not all(math.isfinite(number) for group in (*log_weights, *scores) for number in group):
        raise ValueError("a log weight or a score is not finite")
    highest = max(max(group) for group in log_weights)
    rows: list[tuple[float, float, float]] = []
    heaviest = squares = 0.0
    for logs, given in zip(log_weights, scores, strict=True):
        weights, rated = np.exp(np.asarray(logs, dtype=np.float64) - highest) / len(logs), np.asarray(given, np.float64)
        rows.append((float(weights @ rated), float(weights.sum()), float(rated.mean())))
        squares += float(weights @ weights)
        heaviest = max(heaviest, float(weights.max()))
    sums = np.array(rows)
    total = float(sums[:, 1].sum())
    value, sampler = float(sums[:, 0].sum()) / total, float(sums[:, 2].mean())
    drawn = _resampled(sums, num_resamples, seed)
    return LoggedValue(
        sampler,
        value,
        _interval(drawn[:, 0]),
        value - sampler,
        _interval(drawn[:, 0] - drawn[:, 1]),
        num_groups=len(rows),
        num_answers=sum(map(len, scores)),
        num_effective=total * total / squares,
        largest_share=heaviest / total,
    )


def _resampled(sums: NDArray[np.float64], num_resamples: int, seed: int) -> NDArray[np.float64]:
    """[resamples, (value, sampler's)] of groups drawn with replacement."""
    generator, drawn = np.random.default_rng(seed), []
    for start in range(0, num_resamples, _CHUNK):
        size = (min(_CHUNK, num_resamples - start), len(sums))
        of_draw = sums[generator.integers(len(sums), size=size)].sum(axis=1)
        # A draw may hold no weight that a float has: it says nothing of the model.
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append(np.stack([of_draw[:, 0] / of_draw[:, 1], of_draw[:, 2] / len(sums)], axis=1))
    found: NDArray[np.float64] = np.concatenate(drawn)
    there: NDArray[np.float64] = found[np.isfinite(found).all(axis=1)]
    return there


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
