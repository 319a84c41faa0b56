"""How often a world is stopped too early or continues too long: simulated societies whose gain is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import NDArray

from salign.bench.figures import Figure
from salign.bench.validity.context import Context
from salign.config import Stopping
from salign.society.questions import QuestionOrder
from salign.society.stopping import StopRule

_MAX_ROUNDS = 50
_RISING = 20
"""Rounds after which a society that gains at first gains no more."""
_SEED = 20230526

# Ratings: whole numbers from 1 to 7 about what an agent, its question and chance make of the round's mean; SD 1.5.
_SD_AGENT, _SD_QUESTION, _SD_CHANCE = 0.5, 0.75, 1.2
_SD = (_SD_AGENT**2 + _SD_QUESTION**2 + _SD_CHANCE**2) ** 0.5
# Alignment and engagement of one revision come from one observer.
_CORRELATION = 0.5

Rounds = NDArray[np.float64]
"""Ratings of one world: [alignment or engagement, rounds, agents]."""


@dataclass(frozen=True)
class Case:
    """A society: how many agents, how many questions, and the mean rating of each round."""

    name: str
    means: NDArray[np.float64]
    num_agents: int = 100
    num_questions: int = 180
    num_trials: int = 300


def measure(_: Context) -> list[Figure]:
    """The rule's error rates with its defaults, beside those of the best round and three rounds of patience."""
    rounds = np.arange(1, _MAX_ROUNDS + 1, dtype=np.float64)
    flat, rising = np.full(_MAX_ROUNDS, 4.0), 3 + rounds / 25
    just = 3 + rounds * (Stopping().tolerance / Stopping().window)
    ending, ending_late = (3 + np.minimum(np.arange(1, end + 1), _RISING) / 10 for end in (_MAX_ROUNDS, 100))
    figures = []
    for case in (Case("100 agents", flat), Case("9 agents", flat, 9), Case("10 questions", flat, 100, 10)):
        figures.append(_ends(case, "noise alone, {}: stops at round", 0, "soon after min_rounds (20)"))
    for case in (Case("100 agents", rising), Case("9 agents", rising, 9), Case("10 questions", rising, 100, 10)):
        figures.append(_too_early(case, "rises by 2 points in 50 rounds, {}: stopped before", _MAX_ROUNDS))
    for case in (Case("100 agents", just), Case("9 agents", just, 9)):
        figures.append(_too_early(case, "gains just `tolerance` in each window, {}: stopped before", _MAX_ROUNDS))
    for case in (Case("100 agents", ending), Case("9 agents, of 100 rounds", ending_late, 9)):
        figures.append(_too_early(case, "rises by 2 points in 20 rounds, then flat, {}: stopped before", _RISING))
        figures.append(_ends(case, "the same, {}: goes on after the last gain for", _RISING, ""))
    return figures


def _too_early(case: Case, name: str, end: int) -> Figure:
    new, old = (stops(case, rule) for rule in (_new_rule, old_rule))
    share, before = (100 * fmean(last < end for last in lasts) for lasts in (new, old))
    note = f"{case.num_trials} worlds"
    return Figure(f"{name.format(case.name)} round {end}", share, "%", "< 5", f"{before:.1f} by the best round", note)


def _ends(case: Case, name: str, start: int, to_reach: str) -> Figure:
    new, old = (np.subtract(stops(case, rule), start) for rule in (_new_rule, old_rule))
    low, high = np.quantile(new, (0.05, 0.95), method="nearest")
    note = f"median of {case.num_trials} worlds; 90 % from {low:.0f} to {high:.0f}"
    if start:
        note += f" rounds; {np.mean(new == len(case.means) - start):.0%} to the end"
    beside = f"{np.median(old):.0f} by the best round, from {old.min():.0f} to {old.max():.0f}"
    return Figure(name.format(case.name), float(np.median(new)), "rounds" if start else "", to_reach, beside, note)


def stops(case: Case, rule: Callable[[Rounds], int]) -> list[int]:
    """The last round of each world."""
    seeds = np.random.SeedSequence([_SEED, case.num_agents, case.num_questions]).spawn(case.num_trials)
    return [rule(_ratings(case, np.random.default_rng(seed))) for seed in seeds]


def _ratings(case: Case, rng: np.random.Generator) -> Rounds:
    """A world's ratings; agents ask the questions of a real society's order."""
    num_rounds, n = len(case.means), case.num_agents
    order = QuestionOrder(case.num_questions, int(rng.integers(1 << 62)))
    asked = np.array([[order.question(agent, number + 1) for agent in range(n)] for number in range(num_rounds)])
    shared, own = rng.normal(size=(num_rounds, n)), rng.normal(size=(2, num_rounds, n))
    chance = _CORRELATION**0.5 * shared + (1 - _CORRELATION) ** 0.5 * own
    question = rng.normal(0, _SD_QUESTION, (2, case.num_questions))[:, asked]
    agent = rng.normal(0, _SD_AGENT, (2, 1, n))
    means = _before_rounding(case.means)[None, :, None]
    ratings: Rounds = np.clip(np.rint(means + question + agent + _SD_CHANCE * chance), 1, 7)
    return ratings


def _before_rounding(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of what, when it is rounded and cut to 1..7, has the given means."""
    normal = NormalDist(0, _SD)
    grid = np.linspace(0, 8, 801)
    rounded = [1 + sum(normal.cdf(at - score - 0.5) for score in range(1, 7)) for at in grid.tolist()]
    return np.interp(means, rounded, grid)


def _new_rule(ratings: Rounds) -> int:
    num_rounds, num_agents = len(ratings[0]), len(ratings[0, 0])
    rule = StopRule(Stopping(), num_agents, num_rounds)
    for number in range(num_rounds - 1):
        alignment, engagement = (dict(enumerate(values)) for values in ratings[:, number].tolist())
        if rule.after(alignment, engagement) is not None:
            return number + 1
    return num_rounds


def old_rule(ratings: Rounds, tolerance: float = 0.01, patience: int = 3) -> int:
    """What stood here before: the product of the means has not risen over its best for some rounds."""
    products: Sequence[float] = ratings.mean(axis=2).prod(axis=0).tolist()
    best, since = -1.0, 0
    for number, product in enumerate(products, start=1):
        best, since = (product, 0) if product > best + tolerance else (best, since + 1)
        if since == patience:
            return number
    return len(products)
