"""Ratings of answers to one question by a criterion, whoever gives them: a rule, a scorer, or an observer.

An observer rates each answer alone, or ranks all of them beside each other: in a random order and in its reverse, so
that a liking for a place that grows from place to place cancels.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

from salign.config import Criterion
from salign.engines.base import Prompt
from salign.errors import CallRejectedError
from salign.records import Interaction, Observation, Turn
from salign.society.calls import OBSERVED, Calls, together
from salign.society.prompts import judging
from salign.society.replies import without_reasoning
from salign.society.rules import rating_by_rule
from salign.society.wordings import ballots

RANKED = "ranked"
"""In a turn's `data`: by criterion, its share of the scale in the random order and in the reverse."""

_BY = """\
Judge each of the answers by this question: {subject}
"""
# Less than any probability that a float32 softmax gives; its logarithm is finite.
_LEAST = 1e-30


class Ranked(NamedTuple):
    """What a ranking says of each answer: its rating, and its shares of the scale in the two orders."""

    observation: Observation
    shares: tuple[float, float] | None


async def rate_answers(calls: Calls, criterion: Criterion, question: str, answers: Sequence[str]) -> list[Observation]:
    """Rates answers to one question; None in an observation where a rating cannot be had.

    Args:
        calls: The observers', with the scorers of the society.
        criterion: By which.
        question: What was answered.
        answers: At least one; at least two where the criterion is ranked.
    """
    if criterion.rule is not None:
        return [Observation(rating_by_rule(criterion, question, answer)) for answer in answers]
    if criterion.ranked:
        return [one.observation for one in await rank(calls, criterion, question, answers)]
    named = [(f"answer:{number}", answer) for number, answer in enumerate(answers)]
    given = (calls.observe(calls.judged(question, answer, name), name, criterion.name) for name, answer in named)
    return await together(*given)


async def rank(calls: Calls, criterion: Criterion, question: str, answers: Sequence[str]) -> list[Ranked]:
    """Ranks answers beside each other, in a random order and in its reverse.

    By the probabilities of the answers' numbers, these are the worths of Plackett and Luce's model, whose logarithms
    are averaged over the two orders; an answer's share of the scale is its mean chance of being better than another of
    them. Read from words, it is the share of the others that it is ranked above, ties halved: Borda's count. Where
    either order gives no ranking, nobody has a rating.

    Args:
        calls: The observers'.
        criterion: By which.
        question: What was answered.
        answers: From 2 to 9; of another number nobody has a rating.
    """
    nothing = [Ranked(Observation(None), None)] * len(answers)
    if not 2 <= len(answers) <= ballots.MAX_CANDIDATES:
        return nothing
    drawn = list(range(len(answers)))
    calls.draw(f"rank:{criterion.name}").shuffle(drawn)
    asked = (_worths(calls, criterion, question, answers, order) for order in (drawn, drawn[::-1]))
    first, reverse = await together(*asked)
    if first is None or reverse is None:
        return nothing
    in_words = calls.society.rating == "parse"
    both = [_shares(worths, in_words=in_words) for worths in (first, reverse)]
    if in_words:
        shares = [fmean(pair) for pair in zip(*both, strict=True)]
    else:
        shares = _shares([fmean(pair) for pair in zip(first, reverse, strict=True)], in_words=False)
    return [
        Ranked(Observation(criterion.at_share(share)), (round(one, 6), round(other, 6)))
        for share, one, other in zip(shares, *both, strict=True)
    ]


class Rankings:
    """The rankings of an interaction's turns.

    Args:
        criteria: By which turns are ranked.
    """

    def __init__(self, criteria: Sequence[Criterion]) -> None:
        self._criteria = criteria
        self._tasks: dict[str, asyncio.Task[list[Ranked]]] = {}
        self._turns: list[Turn] = []

    def add(self, turn: Turn) -> None:
        """Takes up a turn; one without text is ranked by nobody."""
        if turn.text:
            self._turns.append(turn)

    def begin(self, group: asyncio.TaskGroup, calls: Calls, question: str) -> None:
        """Has observers rank the turns that there are, by each criterion."""
        texts = [turn.text for turn in self._turns]
        for criterion in self._criteria if texts else ():
            self._tasks[criterion.name] = group.create_task(rank(calls, criterion, question, texts))

    def write(self) -> None:
        """Writes the rankings, which are there, into the turns."""
        for criterion, task in self._tasks.items():
            for turn, one in zip(self._turns, task.result(), strict=True):
                turn.observed[criterion] = one.observation
                if one.shares is not None:
                    turn.data.setdefault(RANKED, {})[criterion] = one.shares


async def _worths(
    calls: Calls, criterion: Criterion, question: str, answers: Sequence[str], order: Sequence[int]
) -> list[float] | None:
    """Each answer's worth when they are shown in an order, higher is better; None where there is no ranking."""
    name = f"rank:{criterion.name}:{'-'.join(map(str, order))}"
    key = calls.key(name)
    shown = ballots.shown(question, [answers[place] for place in order], (), key)
    text, system = shown + _BY.format(subject=criterion.subject), judging(None, key)
    if calls.society.rating == "parse":
        found = await _ballot(calls, Prompt(text + ballots.rank(reasoned=False), system, len(shown)), name, len(order))
    else:
        prompt = Prompt(text + ballots.choose(len(order)), system, len(shown), scale=(1, len(order)))
        digits = await calls.choice(prompt, name, OBSERVED)
        chances = None if digits is None else digits.probabilities
        found = None if chances is None else [math.log(max(chance, _LEAST)) for chance in chances]
    return None if found is None else [found[order.index(answer)] for answer in range(len(answers))]


async def _ballot(calls: Calls, prompt: Prompt, name: str, num: int) -> Sequence[float] | None:
    """The scores of a ranking in words, by the numbers of the answers."""
    for attempt in range(calls.society.num_rating_tries(in_words=True)):
        try:
            reply = await calls.generate(prompt, calls.society.feedback, name, attempt, OBSERVED)
        except CallRejectedError:
            return None
        vote = ballots.read_vote(without_reasoning(reply.text), num)
        if vote is not None:
            return vote.ballot
    return None


def _shares(worths: Sequence[float], *, in_words: bool) -> list[float]:
    """Each answer's mean chance of being better than another: exp(w) / (exp(w) + exp(v)), or 1, 1/2 or 0 by rank."""

    def better(one: float, other: float) -> float:
        if in_words or abs(one - other) > 500:
            return (one > other) + 0.5 * (one == other)
        return 1 / (1 + math.exp(other - one))

    return [
        fmean(better(one, other) for number, other in enumerate(worths) if number != place)
        for place, one in enumerate(worths)
    ]


def agreement(rankings: Sequence[tuple[float, float]]) -> float:
    """The share of pairs of answers that both orders rank the same way; a tie in one of them counts half."""
    return fmean(
        0.5 if one[0] == other[0] or one[1] == other[1] else float((one[0] > other[0]) == (one[1] > other[1]))
        for one, other in combinations(rankings, 2)
    )


def agreements(interaction: Interaction) -> Iterator[float]:
    """The agreement of the two orders by each criterion that the interaction's answers were ranked by."""
    by_criterion: dict[str, list[tuple[float, float]]] = {}
    for turn in interaction.turns:
        for name, (first, reverse) in turn.data.get(RANKED, {}).items():
            by_criterion.setdefault(name, []).append((first, reverse))
    yield from map(agreement, by_criterion.values())
