"""Back-Scatter, the protocol of one interaction (paper, section 3.2): draft, feedback, revision, observation."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from salign.config import Flag, Sampling, SocietySection
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.meter import MeteredEngine
from salign.errors import CallRejectedError
from salign.records import Interaction, Member, Observation, Recalled, Turn
from salign.seeds import derive
from salign.society import frames, prompts
from salign.society.prompts import Judged, Wording
from salign.society.replies import flags_of, parse_rating

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


_NOTHING = Reply("", 0, 0)


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
    ) -> Reply:
        seed = derive(*self._place, name, attempt)
        reply = await self._engine.generate(prompt, sampling, seed, (self._round + urgency, urgency))
        self.tally.add(reply)
        return reply

    def key(self, role: str) -> str:
        """The key of the frames in what is shown as `role` in this interaction."""
        return frames.draw_key(*self._place, role)

    def judged(self, question: str, answer: str, role: str) -> Judged:
        """An answer in the frame that it is shown in here as `role`."""
        return Judged(question, answer, self.key(role))

    async def reason(self, prompt: Prompt, name: str, attempt: int = 0, urgency: int = _AWAITED) -> Reply:
        """What an agent says of another's answer; nothing where the engine refuses the call."""
        try:
            return await self.generate(prompt, self.society.feedback, name, attempt, urgency)
        except CallRejectedError:
            return _NOTHING

    async def rating(
        self, prompt: Prompt, judged: str, name: str, urgency: int = _AWAITED
    ) -> tuple[Observation, tuple[Flag, ...]]:
        """A rating, what was said with it and the flags of that; its `rating` is None where none can be had.

        By the probabilities of the digits nothing is said; of a reply in words, a rating that cannot be read is asked
        for again.
        """
        for attempt in range(self.society.num_rating_tries):
            if self.society.rating == "parse":
                reply = await self.reason(prompt, name, attempt, urgency)
                parsed = parse_rating(reply.text, judged=judged)
                if parsed is not None:
                    rating, reason = parsed
                    return Observation(rating, text=reason), flags_of(dataclasses.replace(reply, text=reason))
                continue
            try:
                seed = derive(*self._place, name, attempt)
                digits = await self._engine.rate(prompt, seed, (self._round + urgency, urgency))
            except CallRejectedError:
                break
            self.tally.add(digits)
            if digits.expectation is not None:
                return Observation(digits.expectation, digits.mass), ()
        return Observation(None), ()


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
    about = (calls.judged(question, draft, DRAFT), recalled, calls.instructions)
    wanted = "feedback_text" not in calls.society.without
    if calls.society.rating == "logprob" and wanted:
        (given, _), reply = await together(
            calls.rating(calls.wording.feedback_rating(*about), draft, f"rating:{member}"),
            calls.reason(calls.wording.feedback_reason(*about), f"reason:{member}"),
        )
        reason, flags = reply.text, flags_of(reply)
    else:
        given, flags = await calls.rating(calls.wording.feedback_rating(*about), draft, f"feedback:{member}")
        reason = given.text
    return Turn(
        member,
        FEEDBACK,
        reason if wanted else "",
        about=0,  # the draft is an interaction's first turn
        rating=given.rating,
        mass=given.mass,
        recalled=recalled,
        flags=flags if wanted else (),
    )


async def _observe(calls: Calls, question: str, answer: str, role: str) -> dict[str, Observation]:
    """An observer's ratings of the draft or the revision; observers have no memory."""
    judged = calls.judged(question, answer, role)
    given = await together(
        *(
            calls.rating(calls.wording.observe(judged, criterion), answer, f"observe:{role}:{criterion}", _OBSERVED)
            for criterion in CRITERIA
        )
    )
    return {criterion: observation for criterion, (observation, _) in zip(CRITERIA, given, strict=True)}


def _spoken(reply: Reply, role: str) -> Reply:
    if not reply.text.strip():
        cut = " (max_tokens ended it while the model was thinking)" if reply.thinking == "cut" else ""
        raise _FailedError(f"the {role} is empty{cut}")
    return reply


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

            def speak(role: str, reply: Reply, recalled: Recalled | None = None) -> str:
                turns.append(Turn(leader, role, reply.text, recalled=recalled, flags=flags_of(reply)))
                observed[role] = observing.create_task(_observe(observer, seat.question, reply.text, role))
                return reply.text

            revision = None
            try:
                asked = prompts.draft(seat.question, seat.recalled, agent.instructions, agent.key(frames.DRAFTING))
                draft = speak(DRAFT, _spoken(await agent.generate(asked, society.draft, DRAFT), DRAFT), seat.recalled)
                heard = await together(*(ask(member, draft) for member in seat.audience))
                feedback = [turn for turn, _ in heard]
                turns += feedback
                for _, tally in heard:
                    total.add(tally)
                if feedback and all(turn.rating is None for turn in feedback):
                    raise _FailedError("no rating of the audience could be read")
                drafted = agent.judged(seat.question, draft, frames.REVISING)
                asked = wording.revision(drafted, feedback, agent.instructions)
                revision = _spoken(await agent.generate(asked, society.revision, REVISION), REVISION)
            except (_FailedError, CallRejectedError) as error:
                failure = str(error)
            publish(None if revision is None else revision.text)
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
