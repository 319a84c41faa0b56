"""What is asked of agents beside an interaction: how they would describe themselves, and what they think.

Both stand at the end of the interaction's turns. A description is written into the agent's state; an opinion is not.
"""

from collections.abc import Callable, Coroutine, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from msgspec.structs import replace

from salign.config import Survey
from salign.engines.meter import Tally
from salign.records import Interaction, Turn
from salign.society import prompts
from salign.society.calls import OBSERVED, Calls, together
from salign.society.frames import frame
from salign.society.protocols.messages import State
from salign.society.replies import flags_of
from salign.society.studies import SURVEY
from salign.society.wordings import reflection as wordings

REFLECTION = "reflection"
SELF = "self"
"""The note in which an agent has its description, with its mean rating."""


class Reflected(NamedTuple):
    """What came of it: the turn, and the new note, if the description is kept."""

    turn: Turn
    note: dict[str, Any] | None


def described(instructions: str | None, state: State, key: str) -> str | None:
    """The system text of an agent, with its description of itself if it has one."""
    note = state.notes.get(SELF)
    return instructions if note is None else wordings.knowing(instructions, note["text"], key)


async def reflect(calls: Calls, observer: Calls, state: State, question: str) -> Reflected:
    """An agent describes itself anew; that is kept if its observers rate it higher than the one before, on average.

    Without a readable rating by each criterion, the description is not kept.

    Args:
        calls: The agent's.
        observer: The observers'.
        state: The agent's.
        question: Such as it is asked.
    """
    name = f"{REFLECTION}:{state.agent}"
    asked = wordings.describe(question, state.recalled, calls.instructions, calls.key(name))
    reply = await calls.reason(asked, name)
    ratings: dict[str, float | None] = {}
    text, kept = reply.text.strip(), False
    if text:
        key = observer.key(f"{name}:rated")
        shown, system = frame(f"Description: {text}", key), prompts.judging(None, key)
        given = await together(
            *(
                observer.rating(observer.wording.rate(shown, system, criterion), text, f"{name}:{criterion.name}")
                for criterion in wordings.CRITERIA
            )
        )
        ratings = {one.name: observation.rating for one, (observation, _) in zip(wordings.CRITERIA, given, strict=True)}
        before = state.notes.get(SELF)
        there = [rating for rating in ratings.values() if rating is not None]
        kept = len(there) == len(ratings) and (before is None or fmean(there) > before["rating"])
    flags = flags_of(reply)
    turn = Turn(
        state.agent, REFLECTION, text, recalled=state.recalled, flags=flags, data={"ratings": ratings, "kept": kept}
    )
    note = {"text": text, "rating": fmean(value for value in ratings.values() if value is not None)} if kept else None
    return Reflected(turn, note)


async def opinions(
    survey: Survey, asked: Sequence[int], state_of: Callable[[int, str], Coroutine[Any, Any, tuple[State, Calls]]]
) -> tuple[list[Turn], Tally]:
    """What agents answer to the questions of a survey, in order; and what that took.

    Args:
        survey: What is asked.
        asked: Whom.
        state_of: What an agent remembers of a question, and its calls.
    """
    tally = Tally()

    async def opinion(member: int, number: int) -> Turn:
        question = survey.questions[number]
        state, calls = await state_of(member, question.subject)
        name = f"{SURVEY}:{member}:{question.name}"
        prompt = calls.wording.opinion(question, state.recalled, calls.instructions, calls.key(name))
        given, reply = await calls.rating(prompt, "", name, OBSERVED)
        tally.add(calls.tally)
        flags = flags_of(reply, given.text)
        data = {"question": question.name, "opinion": given.rating}
        return Turn(member, SURVEY, given.text, mass=given.mass, recalled=state.recalled, flags=flags, data=data)

    turns = await together(*(opinion(member, number) for member in asked for number in range(len(survey.questions))))
    return turns, tally


def with_asides(interaction: Interaction, turns: Sequence[Turn], *tallies: Tally) -> Interaction:
    """The interaction with more turns, and what they took."""
    total = Tally(interaction.num_calls, interaction.prompt_tokens, interaction.completion_tokens)
    for tally in tallies:
        total.add(tally)
    return replace(
        interaction,
        turns=(*interaction.turns, *turns),
        num_calls=total.num_calls,
        prompt_tokens=total.prompt_tokens,
        completion_tokens=total.completion_tokens,
    )
