"""When a world stops: once its gain from one window of rounds to the next is shown to be negligible.

A test of "no gain" would stop a world whenever too little is known; a world whose best round was a lucky one would seem
to have stopped to gain. So the question is turned round, as in a test of equivalence: a world stops where even the most
that its gain may be, by the upper end of a confidence interval, is less than `tolerance`.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import fsum, prod, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from salign.config import Stopping

Ratings = Mapping[int, float | None]
"""Of one round: each agent's rating, None where it is missing."""

ERROR_RATE = 0.05
"""Chance that a world which still gains `tolerance` from window to window is stopped, in all rounds together."""

# Agents of a larger society are compared in so many blocks of neighbours: the state does not grow with the society, and
# what neighbours have in common is inside a block.
_MAX_BLOCKS = 1024
# Windows grow with the rounds that are there, up to so many times the first.
_MAX_GROWTH = 5


@dataclass(frozen=True)
class Gain:
    """What a world gained from one window of rounds to the next.

    The gain is of the geometric mean of the criteria's mean ratings (alignment and engagement, unless the config names
    others), in points of a rating: it rises where their product does.
    """

    window: int
    """Rounds in each of the two windows."""
    points: float
    standard_error: float
    """Of the differences between agents' own windows; questions differ, and their variance is in it."""
    most: float
    """Upper end of the confidence interval."""
    tolerance: float
    """The gain that matters, over this many rounds."""
    num_compared: int
    """Agents (or blocks of agents) that were rated in both windows."""

    def metrics(self) -> dict[str, Any]:
        """For a round's row of metrics."""
        return {f"sim/gain_{name}": value for name, value in self.facts().items()}

    def facts(self) -> dict[str, Any]:
        """For a marker."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Stop:
    """Why and when a world ended; `gain` is the last that was measured."""

    world: int
    round: int
    why: Literal["no improvement", "no ratings", "max_rounds"]
    gain: Gain | None = None

    def facts(self) -> dict[str, Any]:
        """For the marker of the shard."""
        gain = {} if self.gain is None else {"gain": self.gain.facts()}
        return {"world": self.world, "round": self.round, "why": self.why, **gain}


class StopRule:
    """Takes a world's rounds one by one, and knows whether it should go on.

    Each agent's mean over the last window is compared with its own over the window before. Windows are as short as
    `window` where that is enough to see a gain of `tolerance`, and longer where agents are few or their ratings noisy;
    what counts as a gain grows with them.

    Args:
        stopping: The config's; None: there is no rule, only a last round.
        num_agents: Of the world, numbered from 0.
        max_rounds: When it ends anyway.
        num_criteria: By how many an agent is rated, each on a scale from 1 to 7.
    """

    def __init__(self, stopping: Stopping | None, num_agents: int, max_rounds: int, num_criteria: int = 2) -> None:
        self._stopping = stopping
        self._max_rounds = max_rounds
        self._num_agents = num_agents
        self._block = np.arange(num_agents) * min(num_agents, _MAX_BLOCKS) // max(num_agents, 1)
        self._num_rounds = 0
        longest = 0 if stopping is None else _MAX_GROWTH * stopping.window
        # After each round: sums and counts of ratings so far, [criteria, sum and count, blocks].
        self._sums: deque[NDArray[np.float64]] = deque(maxlen=2 * longest + 1)
        self._sums.append(np.zeros((num_criteria, 2, min(num_agents, _MAX_BLOCKS))))
        self.gain: Gain | None = None
        """From the last two windows; None before `min_rounds`, and where nothing could be compared."""

    def after(self, *ratings: Ratings) -> Literal["no improvement", "no ratings"] | None:
        """Takes the ratings of a round's outcomes by each criterion.

        Says why the world should stop, None where it should go on.
        The same whatever the order in which agents stand in the mappings.
        """
        self._num_rounds += 1
        self.gain = None
        if self._stopping is None:
            return None
        of_round = np.stack([self._by_block(by_agent) for by_agent in ratings])
        self._sums.append(self._sums[-1] + of_round)
        if self._num_rounds < self._stopping.min_rounds:
            return None
        last = self._sums[-1] - self._sums[-1 - self._stopping.window]
        if not last[:, 1].any(axis=-1).all():
            return "no ratings"
        self.gain = self._measure()
        return "no improvement" if self.gain is not None and self.gain.most < self.gain.tolerance else None

    def _by_block(self, ratings: Ratings) -> NDArray[np.float64]:
        """[2, blocks]: sums and counts of the ratings that are there, added in the order of the agents."""
        values = np.full(self._num_agents, np.nan)
        values[np.fromiter(ratings.keys(), np.int64, len(ratings))] = np.array(list(ratings.values()), np.float64)
        rated = ~np.isnan(values)
        num_blocks = self._sums[-1].shape[1]
        sums = np.bincount(self._block, np.where(rated, values, 0.0), num_blocks)
        return np.stack([sums, np.bincount(self._block, rated, num_blocks)])

    def _measure(self) -> Gain | None:
        """The gain over the shortest windows that can see half of what matters, else over the longest there are."""
        assert self._stopping is not None
        gain = None
        for window in range(self._stopping.window, (len(self._sums) - 1) // 2 + 1):
            gain = self._over(window) or gain
            # Only the standard error chooses the window. It says nothing of the gain, so that there is no choosing of
            # a window in which the gain happens to be small.
            if gain is not None and gain.most - gain.points <= gain.tolerance / 2:
                break
        return gain

    def _over(self, window: int) -> Gain | None:
        assert self._stopping is not None
        now, middle, start = (self._sums[-1 - back] for back in (0, window, 2 * window))
        last, before = now - middle, middle - start
        compared = ((last[:, 1] > 0) & (before[:, 1] > 0)).all(axis=0)
        n = int(compared.sum())
        if n < 2:
            return None
        last, before = last[:, :, compared], before[:, :, compared]
        means, means_before = last[:, 0] / last[:, 1], before[:, 0] / before[:, 1]
        # The geometric mean of the criteria's means, about the middle of the two windows.
        middles = [(fsum(now) + fsum(then)) / (2 * n) for now, then in zip(means, means_before, strict=True)]
        geometric = prod(middles) ** (1 / len(middles))
        weights = np.array([geometric / (len(middles) * middle) for middle in middles])
        gains = (weights[:, None] * (means - means_before)).sum(axis=0)
        points = fsum(gains) / n
        error = sqrt(fsum((gains - points) ** 2) / (n - 1) / n)
        looks = max(1, self._max_rounds - self._stopping.min_rounds + 1)
        tolerance = self._stopping.tolerance * window / self._stopping.window
        return Gain(window, points, error, points + _quantile(n - 1, looks) * error, tolerance, n)


@lru_cache
def _quantile(num_free: int, num_looks: int) -> float:
    """Student's t that a world is over by chance with `ERROR_RATE`, shared out to all of its looks (Bonferroni)."""
    from scipy.special import stdtrit

    return float(stdtrit(num_free, 1 - ERROR_RATE / num_looks))
