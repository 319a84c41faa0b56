"""What an agent keeps of an interaction that was its own, and how much that matters to it."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from salign.config import SCALE, Scale, SocietySection
from salign.records import Turn
from salign.society import prompts
from salign.society.calls import Calls
from salign.society.frames import frame
from salign.society.stream import Heard
from salign.society.wordings.stream import MATTERS

_IMPORTANCE = "importance"
_HALFWAY = 0.5


async def lived_through(
    turns: Sequence[Turn],
    answer: str | None,
    calls: Calls,
    society: SocietySection,
    agent: int,
) -> list[Heard]:
    """What an agent keeps: what was said, in order, and at last what it answers.

    Args:
        turns: Those that it remembers.
        answer: None where it has none.
        calls: The agent's.
        society: Where their importance comes from.
        agent: Its number.
    """
    scales = {criterion.name: criterion.scale for criterion in society.observed_criteria}
    kept = [
        Heard(turn.text, None if turn.agent == agent else turn.agent, _weight(turn, scales), turn.data.get("topic"))
        for turn in turns
        if turn.text.strip()
    ]
    if answer is not None and answer.strip():
        judged = [turn.rating for turn in turns if turn.rating is not None]
        weight = _far_from_middle(fmean(judged), SCALE) if judged else _HALFWAY
        kept = [one for one in kept if (one.by, one.text) != (None, answer)]  # it is kept once
        kept.append(Heard(answer, None, weight))
    if society.stream is not None and society.stream.importance == "asked" and kept:
        weight = await _asked([one.text for one in kept], calls, agent)
        kept = [one._replace(importance=weight) for one in kept]
    return kept


def _weight(turn: Turn, scales: Mapping[str, Scale]) -> float:
    """How far a rating that stands with a turn already, given in it or to it, is from the middle of its scale."""
    if turn.rating is not None:
        return _far_from_middle(turn.rating, SCALE)
    given = [
        _far_from_middle(one.rating, scales.get(name, SCALE))
        for name, one in turn.observed.items()
        if one.rating is not None
    ]
    return fmean(given) if given else _HALFWAY


def _far_from_middle(rating: float, scale: Scale) -> float:
    low, high = scale
    return abs(2 * (rating - low) / (high - low) - 1)


async def _asked(texts: Sequence[str], calls: Calls, agent: int) -> float:
    """How much an interaction matters, as the agent itself says; halfway where that cannot be read."""
    name = f"{_IMPORTANCE}:{agent}"
    key = calls.key(name)
    shown = "\n".join(frame(text, key) for text in texts)
    system = prompts.judging(calls.instructions, key)
    given, _ = await calls.rating(calls.wording.rate(shown, system, MATTERS), "", name)
    low, high = MATTERS.scale
    return _HALFWAY if given.rating is None else (given.rating - low) / (high - low)
