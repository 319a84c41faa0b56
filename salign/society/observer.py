"""Tests an observer's ratings on labelled pairs of answers, before a run relies on them.

Its prompts are those of the run's observers. What is measured is a rating of one answer at a time: it has no order of
two answers, and so no bias for a place.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

from salign.config import Criterion, ObserverCheck, Scorer, SocietySection
from salign.config.criteria import known
from salign.errors import DataError, StageError
from salign.records import Observation
from salign.society import sources
from salign.society.calls import Calls, Speaker, together
from salign.society.prompts import Wording
from salign.society.raters import rate_answers

logger = logging.getLogger(__name__)

# By what it is asked to rate the pairs: what the labels are of.
_CRITERION = "alignment"
_CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with an answer of each label."""

    question: str
    good: str
    bad: str


def labelled_pairs(check: ObserverCheck | Scorer, place: str = "society.observer_check") -> list[Pair]:
    """The first pairs of the source of a check, or of those by which a scorer's scores are mapped onto the scale.

    Args:
        check: With its source.
        place: Of a check, in the config.

    Raises:
        DataError: It cannot be read, or has no question with an answer of each label.
    """
    answers: dict[str, dict[str, str]] = {}
    for exemplar in sources.load(check.pairs):
        if exemplar.answer is not None and exemplar.label is not None:
            answers.setdefault(exemplar.question, {}).setdefault(exemplar.label, exemplar.answer)
    pairs = [Pair(question, both["good"], both["bad"]) for question, both in answers.items() if len(both) == 2]
    if not pairs:
        if isinstance(check, ObserverCheck):
            raise DataError(
                f"{place}.pairs has no question with both a good and a bad answer, so it tests nobody; name a source "
                f"with labels, such as {{kind: everyday, split: held_out}}, or set {place}=null."
            )
        raise DataError(
            "scorer.pairs has no question with both a good and a bad answer, so scores cannot be mapped onto the "
            "scale; name a source with labels, such as {kind: everyday}."
        )
    return pairs[: check.num_pairs]


def files_of_pairs(section: ObserverCheck | Scorer, place: str = "society.observer_check") -> list[Path]:
    """The files of the labelled pairs, which are read.

    Raises:
        DataError: As `labelled_pairs`.
    """
    labelled_pairs(section, place)
    return sources.files_of(section.pairs)


async def measure(observer: Speaker, society: SocietySection, check: ObserverCheck, seed: int) -> dict[str, Any]:
    """Rates both answers of each pair as the run's observers will.

    Args:
        observer: With the scorers of the society; its journal answers what was asked before.
        society: How it is asked.
        check: On which pairs.
        seed: Of the run.

    Returns:
        What `figures` says of the observer's ratings of alignment, with its model; under `criteria` what it says of
        those of the society's criteria by which a rule, a scorer or a ranking rates.

    Raises:
        DataError: There are no pairs.
        EngineError: The engine is at fault.
        StageError: The agreement is below `min_agreement`.
    """
    others = [one for one in society.observed_criteria if one.ranked or not one.wording]
    criteria = (known(_CRITERION), *others)
    agreement = await agreements(observer, society, criteria, check, seed)
    found = {"model": observer.engine.identity, **agreement.pop(_CRITERION), "criteria": agreement}
    for name, figures_ in agreement.items():
        logger.info("%s %s", name, in_words(figures_))
    require_agreement(found, check)
    return found


async def agreements(
    observer: Speaker, society: SocietySection, criteria: Sequence[Criterion], check: ObserverCheck, seed: int
) -> dict[str, dict[str, Any]]:
    """How far ratings by each criterion agree with the labels of the check's pairs; see `figures`.

    Args:
        observer: With the scorers of the society.
        society: How it is asked.
        criteria: By which.
        check: On which pairs.
        seed: Of the run.

    Raises:
        DataError: There are no pairs.
        EngineError: The engine is at fault.
    """
    pairs, wording = labelled_pairs(check), Wording(society)

    async def agree(criterion: Criterion) -> dict[str, Any]:
        # Rounds begin with 1, so no interaction has this place.
        places = (Calls(society, wording, observer, (seed, 0, 0, number)) for number in range(len(pairs)))
        rated = (
            rate_answers(calls, criterion, pair.question, (pair.good, pair.bad))
            for calls, pair in zip(places, pairs, strict=True)
        )
        given = await together(*rated)
        return figures(pairs, [good for good, _ in given], [bad for _, bad in given])

    return {criterion.name: await agree(criterion) for criterion in criteria}


def figures(pairs: Sequence[Pair], good: Sequence[Observation], bad: Sequence[Observation]) -> dict[str, Any]:
    """How far ratings agree with labels, and what else they follow.

    Args:
        pairs: What was rated.
        good: The observer's of each pair's good answer.
        bad: Of its bad one.

    Returns:
        `agreement`, the share of pairs in which the good answer is rated higher (a tie counts half), with Wilson's
        interval of 95 % and `chance`; the same where the good answer is the shorter and the longer one;
        `length_correlation`, Spearman's of rating and number of words, the mean of that among good and among bad
        answers (so the label has no part in it); the ratings' standard deviation, the number of those that are
        missing, and the median mass of the digits. None where there is nothing to tell it from.
    """
    wins = [win(one.rating, other.rating) for one, other in zip(good, bad, strict=True)]
    rated = [(pair, won) for pair, won in zip(pairs, wins, strict=True) if won is not None]
    shorter = [won for pair, won in rated if _words(pair.good) < _words(pair.bad)]
    longer = [won for pair, won in rated if _words(pair.good) > _words(pair.bad)]
    ratings = [given.rating for given in (*good, *bad) if given.rating is not None]
    masses = [given.mass for given in (*good, *bad) if given.mass is not None]
    return {
        "num_pairs": len(pairs),
        "num_rated_pairs": len(rated),
        "num_missing": 2 * len(pairs) - len(ratings),
        "agreement": _share([won for _, won in rated]),
        "agreement_interval": _interval([won for _, won in rated]),
        "chance": _CHANCE,
        "num_good_shorter": len(shorter),
        "agreement_good_shorter": _share(shorter),
        "num_good_longer": len(longer),
        "agreement_good_longer": _share(longer),
        "length_correlation": _length_correlation(pairs, good, bad),
        "good_mean": _mean([given.rating for given in good if given.rating is not None]),
        "bad_mean": _mean([given.rating for given in bad if given.rating is not None]),
        "rating_sd": round(pstdev(ratings), 4) if ratings else None,
        "digit_mass_median": round(median(masses), 4) if masses else None,
    }


def in_words(found: dict[str, Any]) -> str:
    """The agreement of `measure`, with what chance would give, for a reader."""
    if found["agreement"] is None:
        return f"none of {found['num_pairs']} labelled pairs could be rated"
    low, high = found["agreement_interval"]
    length = found["length_correlation"]
    return (
        f"rates the better answer higher in {found['agreement']:.0%} of {found['num_rated_pairs']} labelled pairs "
        f"(95 % interval {low:.0%} to {high:.0%}; a coin: {found['chance']:.0%}); correlation of rating and length "
        f"{'-' if length is None else format(length, '.2f')}"
    )


def require_agreement(found: dict[str, Any], check: ObserverCheck) -> None:
    """Says what the figures mean for the run.

    Raises:
        StageError: The agreement is below the share that is asked for, or nothing could be rated.
    """
    agreement, interval = found["agreement"], found["agreement_interval"]
    if check.min_agreement is not None and (agreement is None or agreement < check.min_agreement):
        share = "not one pair" if agreement is None else f"{agreement:.0%} of {found['num_rated_pairs']} labelled pairs"
        raise StageError(
            f"the observer {found['model']} rates the good answer higher in {share}; chance is "
            f"{_CHANCE:.0%} (society.observer_check.min_agreement = {check.min_agreement:.0%}). Use a stronger "
            "society.observer, or another society.rating."
        )
    if interval is None or interval[0] <= _CHANCE:
        logger.warning(
            "the observer %s is no better than a coin: of %d labelled pairs it rates the good answer higher in %s "
            "(95 %% interval %s). What the society learns depends on its ratings.",
            found["model"],
            found["num_rated_pairs"],
            "none" if agreement is None else f"{agreement:.0%}",
            "none" if interval is None else f"{interval[0]:.0%} to {interval[1]:.0%}",
        )


def _words(text: str) -> int:
    return len(text.split())


def win(good: float | None, bad: float | None) -> float | None:
    """1 where the first of two answers is rated higher, 0.5 for a tie, None where a rating is missing."""
    return None if good is None or bad is None else (good > bad) + 0.5 * (good == bad)


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 4) if values else None


def _share(wins: Sequence[float]) -> float | None:
    return _mean(wins)


def _interval(wins: Sequence[float]) -> list[float] | None:
    return list(share_interval(sum(wins), len(wins))) if wins else None


def share_interval(won: float, num: int) -> tuple[float, float]:
    """Wilson's interval of 95 % of a share, to four digits.

    Args:
        won: Of how many pairs the right answer is rated higher; ties count half.
        num: Of how many pairs, at least one.
    """
    from scipy.stats import binomtest

    low, high = binomtest(round(won), num).proportion_ci(0.95, "wilson")
    return round(float(low), 4), round(float(high), 4)


def _length_correlation(pairs: Sequence[Pair], good: Sequence[Observation], bad: Sequence[Observation]) -> float | None:
    """Spearman's correlation of rating and length within each label, averaged; None where either is constant."""
    from scipy.stats import spearmanr

    correlations = []
    for texts, given in (([pair.good for pair in pairs], good), ([pair.bad for pair in pairs], bad)):
        both = [(_words(text), one.rating) for text, one in zip(texts, given, strict=True) if one.rating is not None]
        lengths, ratings = [length for length, _ in both], [rating for _, rating in both]
        if len(set(lengths)) < 2 or len(set(ratings)) < 2:
            return None
        correlations.append(float(spearmanr(lengths, ratings).statistic))
    return round(fmean(correlations), 4)
