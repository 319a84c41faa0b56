"""Back-Scatter, the protocol of one interaction (paper, section 3.2): draft, feedback, revision, observation."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from salign.config import Sampling, SocietySection
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.meter import MeteredEngine
from salign.errors import CallRejectedError
from salign.records import Interaction, Member, Observation, Recalled, Turn
from salign.seeds import derive
from salign.society import prompts
from salign.society.prompts import Wording
from salign.society.replies import parse_rating

PROTOCOL = "back_scatter"
CRITERIA = ("alignment", "engagement")
# What the turns of an interaction are said as, in order.
DRAFT, FEEDBACK, REVISION = "draft", "feedback", "revision"
# Of the calls that wait for their turn, the oldest round's go first, and those first that others wait for: an
# observation goes with the next round's calls.
_AWAITED, _OBSERVED = 0, 1


@dataclass(frozen=True, slots=True)
class Speaker:
    """What somebody speaks through, and under which instructions."""

    engine: MeteredEngine
    instructions: str | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """One interaction before it is held: who leads it in which round, and who listens.

    `recalled` is what the leader remembers of the question.
    """

    world: int
    round: int
    leader: Member
    question: str
    recalled: Recalled | None
    audience: tuple[int, ...]


@dataclass(slots=True)
class Tally:
    """Calls and tokens of one interaction."""

    num_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: "Tally | Reply | RatingReply") -> None:
        self.num_calls += other.num_calls if isinstance(other, Tally) else 1
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens


class _FailedError(Exception):
    """The interaction cannot be brought to its end; the run goes on."""


async def together(*calls: Awaitable[Any]) -> list[Any]:
    """Waits for every call. The first error, which ends the run, is raised at once and ends the other calls."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class Calls:
    """The model calls that one speaker makes in one interaction: seeds them by place, name and attempt, counts them."""

    def __init__(
        self, society: SocietySection, wording: Wording, speaker: Speaker, place: tuple[int, int, int, int]
    ) -> None:
        self.society = society
        self.wording = wording
        self.instructions = speaker.instructions
        self._engine = speaker.engine
        self._place = place
        self._round = place[2]
        self.tally = Tally()

    async def generate(
        self, prompt: Prompt, sampling: Sampling, name: str, attempt: int = 0, urgency: int = _AWAITED
    ) -> str:
        seed = derive(*self._place, name, attempt)
        reply = await self._engine.generate(prompt, sampling, seed, (self._round + urgency, urgency))
        self.tally.add(reply)
        return reply.text

    async def reason(self, prompt: Prompt, name: str, attempt: int = 0, urgency: int = _AWAITED) -> str:
        """What an agent says of another's answer; nothing where the engine refuses the call."""
        try:
            return await self.generate(prompt, self.society.feedback, name, attempt, urgency)
        except CallRejectedError:
            return ""

    async def rating(self, prompt: Prompt, name: str, urgency: int = _AWAITED) -> Observation:
        """A rating, and what was said with it; its `rating` is None where none can be had.

        By the probabilities of the digits nothing is said; of a reply in words, a rating that cannot be read is asked
        for again.
        """
        for attempt in range(1 + self.society.num_rating_retries):
            if self.society.rating == "parse":
                parsed = parse_rating(await self.reason(prompt, name, attempt, urgency))
                if parsed is not None:
                    return Observation(parsed[0], text=parsed[1])
                continue
            try:
                seed = derive(*self._place, name, attempt)
                reply = await self._engine.rate(prompt, seed, (self._round + urgency, urgency))
            except CallRejectedError:
                break
            self.tally.add(reply)
            if reply.expectation is not None:
                return Observation(reply.expectation, reply.mass)
        return Observation(None)


async def give_feedback(calls: Calls, member: int, question: str, draft: str, recalled: Recalled | None) -> Turn:
    """What one member of the audience says of a draft.

    Args:
        calls: The member's.
        member: Its number.
        question: What was asked.
        draft: What is judged.
        recalled: What the member remembers of the question.

    Raises:
        EngineError: The member's engine is at fault.
    """
    about = (question, draft, recalled, calls.instructions)
    wanted = "feedback_text" not in calls.society.without
    if calls.society.rating == "logprob" and wanted:
        given, reason = await together(
            calls.rating(calls.wording.feedback_rating(*about), f"rating:{member}"),
            calls.reason(calls.wording.feedback_reason(*about), f"reason:{member}"),
        )
    else:
        given = await calls.rating(calls.wording.feedback_rating(*about), f"feedback:{member}")
        reason = given.text
    return Turn(
        member,
        FEEDBACK,
        reason if wanted else "",
        about=0,  # the draft is an interaction's first turn
        rating=given.rating,
        mass=given.mass,
        recalled=recalled,
    )


async def _observe(calls: Calls, question: str, answer: str, role: str) -> dict[str, Observation]:
    """An observer's ratings of the draft or the revision; observers have no memory."""
    given = await together(
        *(
            calls.rating(calls.wording.observe(question, answer, criterion), f"observe:{role}:{criterion}", _OBSERVED)
            for criterion in CRITERIA
        )
    )
    return dict(zip(CRITERIA, given, strict=True))


def _spoken(text: str, role: str) -> str:
    if not text.strip():
        raise _FailedError(f"the {role} is empty")
    return text


async def interact(
    seat: Seat,
    agent: Calls,
    observer: Calls,
    ask: Callable[[int, str], Awaitable[tuple[Turn, Tally]]],
    publish: Callable[[str | None], None],
) -> Interaction:
    """Holds one interaction.

    What can run together does: the feedback of the whole audience, each member's as soon as its memory is there; the
    observers' ratings beside that. Others may go on as soon as the revision is published.

    Args:
        seat: Who, what, and who listens.
        agent: The centre agent's calls.
        observer: The observers' calls.
        ask: Asks one member of the audience for feedback of a draft.
        publish: Told of the revision, once, before it is observed; None where there is none.

    Returns:
        The record. Where the draft or the revision is refused or empty, or not one rating of the audience can be had,
        its `failure` says so and it has no revision. Any other rating that cannot be had is None.

    Raises:
        EngineError: The engine itself is at fault.
    """
    society, wording = agent.society, agent.wording
    leader, failure = seat.leader.agent, None
    turns: list[Turn] = []
    observed: dict[str, asyncio.Task[dict[str, Observation]]] = {}
    total = Tally()
    try:
        async with asyncio.TaskGroup() as observing:

            def speak(role: str, text: str, recalled: Recalled | None = None) -> None:
                turns.append(Turn(leader, role, text, recalled=recalled))
                observed[role] = observing.create_task(_observe(observer, seat.question, text, role))

            revision = None
            try:
                asked = prompts.draft(seat.question, seat.recalled, agent.instructions)
                draft = _spoken(await agent.generate(asked, society.draft, DRAFT), DRAFT)
                speak(DRAFT, draft, seat.recalled)
                heard = await together(*(ask(member, draft) for member in seat.audience))
                feedback = [turn for turn, _ in heard]
                turns += feedback
                for _, tally in heard:
                    total.add(tally)
                if feedback and all(turn.rating is None for turn in feedback):
                    raise _FailedError("no rating of the audience could be read")
                asked = wording.revision(seat.question, draft, feedback, agent.instructions)
                revision = _spoken(await agent.generate(asked, society.revision, REVISION), REVISION)
            except (_FailedError, CallRejectedError) as error:
                failure = str(error)
            publish(revision)
            if revision is not None:
                speak(REVISION, revision)
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__
    total.add(agent.tally)
    total.add(observer.tally)
    return Interaction(
        world=seat.world,
        round=seat.round,
        agents=(seat.leader,),
        protocol=PROTOCOL,
        topic=seat.question,
        turns=tuple(
            dataclasses.replace(turn, observed=observed[turn.role].result()) if turn.role in observed else turn
            for turn in turns
        ),
        failure=failure,
        num_calls=total.num_calls,
        prompt_tokens=total.prompt_tokens,
        completion_tokens=total.completion_tokens,
    )
