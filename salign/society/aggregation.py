"""How the opinions of several become one: ratings a number, ballots an order.

A ballot gives each candidate a score, higher is better: what a voter ranks has the scores of its places, and what it
holds equal has equal scores. Voting rules are those of Brandt et al. (eds.), Handbook of Computational Social Choice
(2016), chapters 2 to 4.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import fsum
from statistics import fmean, median

from salign.config import Aggregation, BallotRule
from salign.records import Turn

Ballot = Sequence[float]


def rated(turns: Sequence[Turn], aggregation: Aggregation) -> float | None:
    """The rating that several turns give together; None where none gives one.

    How sure a turn is of its rating, where that weighs, is the probability that it gave one at all (`mass`); what was
    read from words counts as sure.
    """
    there = [(turn.rating, 1.0 if turn.mass is None else turn.mass) for turn in turns if turn.rating is not None]
    return one_rating([rating for rating, _ in there], [weight for _, weight in there], aggregation) if there else None


def one_rating(ratings: Sequence[float], weights: Sequence[float], aggregation: Aggregation) -> float:
    """What several ratings, at least one, are together; the same in any order.

    Args:
        ratings: Each voice's.
        weights: How sure each is, from 0 to 1, where that counts; if nobody is, all count the same.
        aggregation: How they become one.
    """
    match aggregation.ratings:
        case "mean":
            return fmean(ratings)
        case "median":
            return float(median(ratings))
        case "trimmed":
            num = int(aggregation.trimmed_share * len(ratings))
            return fmean(sorted(ratings)[num : len(ratings) - num])
        case "confidence":
            total = fsum(weights)
            if not total:
                return fmean(ratings)
            return fsum(rating * weight for rating, weight in zip(ratings, weights, strict=True)) / total


def places(ballots: Sequence[Ballot], rule: BallotRule, lot: Sequence[int]) -> list[int]:
    """The order in which a rule puts candidates: each one's place, 0 for the best. Equals share a place.

    Args:
        ballots: At least one, each with a score for every candidate.
        rule: How they are counted.
        lot: All candidates in an order drawn by lot, by which ranked pairs decides between majorities of one size.
    """
    strengths = _RULES[rule](ballots, lot)
    order = sorted(set(strengths), reverse=True)
    return [order.index(strength) for strength in strengths]


def winner(places: Sequence[int], lot: Sequence[int]) -> int:
    """The candidate at the first place; of several, the one that the lot names first."""
    return next(candidate for candidate in lot if places[candidate] == 0)


# --- rules: from ballots to the strength of each candidate, higher is better ---------------------

# A strength is a whole number or a fraction wherever it can be: what is equal must come out equal.
Strengths = Sequence[float | Fraction]


def _firsts(ballots: Sequence[Ballot], standing: Sequence[int]) -> dict[int, Fraction]:
    """How many ballots have each of the candidates that stand first; one that holds several equal is divided."""
    firsts = dict.fromkeys(standing, Fraction(0))
    for ballot in ballots:
        best = max(ballot[candidate] for candidate in standing)
        chosen = [candidate for candidate in standing if ballot[candidate] == best]
        for candidate in chosen:
            firsts[candidate] += Fraction(1, len(chosen))
    return firsts


def _margins(ballots: Sequence[Ballot]) -> list[list[int]]:
    """By how many ballots each candidate is preferred to each other: [candidate, other], antisymmetric."""
    candidates = range(len(ballots[0]))
    return [
        [
            sum((ballot[one] > ballot[other]) - (ballot[one] < ballot[other]) for ballot in ballots)
            for other in candidates
        ]
        for one in candidates
    ]


def _plurality(ballots: Sequence[Ballot], lot: Sequence[int]) -> Strengths:
    return list(_firsts(ballots, range(len(lot))).values())


def _borda(ballots: Sequence[Ballot], _: Sequence[int]) -> Strengths:
    """What a candidate wins against all others, less what it loses: Borda's count, ties halved."""
    return [sum(row) for row in _margins(ballots)]


def _range(ballots: Sequence[Ballot], lot: Sequence[int]) -> Strengths:
    return [fsum(ballot[candidate] for ballot in ballots) for candidate in range(len(lot))]


def _minimax(ballots: Sequence[Ballot], _: Sequence[int]) -> Strengths:
    """The fewer ballots by which its worst defeat was lost, the better."""
    margins = _margins(ballots)
    return [min((m for other, m in enumerate(row) if other != one), default=0) for one, row in enumerate(margins)]


def _instant_runoff(ballots: Sequence[Ballot], lot: Sequence[int]) -> Strengths:
    """Whoever has the fewest first places leaves, those with equally few together; the later, the better."""
    strengths, standing = [0] * len(lot), list(range(len(lot)))
    while standing:
        firsts = _firsts(ballots, standing)
        fewest = min(firsts.values())
        left = [candidate for candidate in standing if firsts[candidate] > fewest]
        for candidate in left:
            strengths[candidate] += 1
        standing = left
    return strengths


def _ranked_pairs(ballots: Sequence[Ballot], lot: Sequence[int]) -> Strengths:
    """Majorities hold, the largest first, unless those that hold already say the contrary (Tideman 1987)."""
    margins, candidates = _margins(ballots), range(len(lot))
    drawn = {candidate: position for position, candidate in enumerate(lot)}
    pairs = [(one, other) for one in candidates for other in candidates if margins[one][other] > 0]
    pairs.sort(key=lambda pair: (-margins[pair[0]][pair[1]], drawn[pair[0]], drawn[pair[1]]))
    above = [1 << candidate for candidate in candidates]  # who is above each, itself included, as bits
    for one, other in pairs:
        if not above[one] >> other & 1:
            for candidate in candidates:
                if above[candidate] >> other & 1:
                    above[candidate] |= above[one]
    return [-above[candidate].bit_count() for candidate in candidates]


_RULES: dict[BallotRule, Callable[[Sequence[Ballot], Sequence[int]], Strengths]] = {
    "plurality": _plurality,
    "borda": _borda,
    "instant_runoff": _instant_runoff,
    "minimax": _minimax,
    "ranked_pairs": _ranked_pairs,
    "range": _range,
}
