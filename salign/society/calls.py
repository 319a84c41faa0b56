"""The model calls of one interaction: each with a name, by which it is seeded, and counted."""

import asyncio
import random
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from salign.config import Sampling, SocietySection
from salign.engines.base import SHARES, Priority, Prompt, RatingReply, Reply
from salign.engines.meter import MeteredEngine, Tally
from salign.errors import CallRejectedError
from salign.records import Observation
from salign.seeds import derive, rng
from salign.society import frames
from salign.society.prompts import Judged, Wording
from salign.society.replies import parse_rating

# A `Priority` within its round: others wait for the answer, or nobody does. An observation goes with the next round's
# calls, after those.
_AWAITED, OBSERVED = 0, 1


@dataclass(frozen=True, slots=True)
class Speaker:
    """What somebody speaks through, and under which instructions."""

    engine: MeteredEngine
    instructions: str | None = None
    scorers: Mapping[str, MeteredEngine] = field(default_factory=dict)
    """By criterion, of an observer: what rates by it instead."""


class UnansweredError(Exception):
    """An interaction cannot be brought to its end, since what it needs was not said; the run goes on."""


async def together(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Waits for every call; an error that ends the run is raised at once, and ends the other calls.

    One that ends the interaction alone is raised when all have been answered, the first in the order of the calls: else
    it would depend on the engine's speed how many were counted.
    """
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(call) for call in calls]
    left = tasks
    try:
        while left:
            try:
                await asyncio.gather(*left)
                break
            except (UnansweredError, CallRejectedError):
                left = [task for task in left if not _ended_interaction(task)]
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return [task.result() for task in tasks]


def _ended_interaction(task: asyncio.Task[Any]) -> bool:
    over = task.done() and not task.cancelled()
    return over and isinstance(task.exception(), UnansweredError | CallRejectedError)


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
        self._scorers = speaker.scorers
        self._place = place
        self._round = place[2]
        self.tally = Tally()

    async def generate(
        self, prompt: Prompt, sampling: Sampling, name: str, attempt: int = 0, urgency: int = _AWAITED
    ) -> Reply:
        """Asks for a text.

        Args:
            prompt: What is asked.
            sampling: How tokens are drawn.
            name: Of the call within its interaction; its seed derives from place, name and attempt.
            attempt: Counted from 0; a repeated call has another seed.
            urgency: See `Priority`.
        """
        seed = derive(*self._place, name, attempt)
        turn = Priority(self._round + urgency, urgency)
        reply = await self._engine.generate(prompt, sampling, seed, turn, _kind(name))
        self.tally.count(reply)
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
    ) -> tuple[Observation, Reply]:
        """A rating, and the reply that it was read from; its `rating` is None where none can be had.

        By the probabilities of the digits nothing is said; of a reply in words, a rating that cannot be read is asked
        for again. A call that the engine refuses is not.
        """
        in_words = prompt.form == "rating"
        for attempt in range(self.society.num_rating_tries(in_words=in_words)):
            try:
                if in_words:
                    reply = await self.generate(prompt, self.society.feedback, name, attempt, urgency)
                    parsed = parse_rating(reply.text, prompt.scale, judged)
                    if parsed is not None:
                        rating, reason = parsed
                        return Observation(rating, text=reason), reply
                    continue
                seed = derive(*self._place, name, attempt)
                digits = await self._engine.rate(prompt, seed, Priority(self._round + urgency, urgency), _kind(name))
            except CallRejectedError:
                break  # it would be refused again
            self.tally.count(digits)
            if digits.expectation is not None:
                return Observation(digits.expectation, digits.mass), _NOTHING
        return Observation(None), _NOTHING

    async def choice(self, prompt: Prompt, name: str, urgency: int = _AWAITED) -> RatingReply | None:
        """How probable each of the numbers of a prompt's scale is as the choice; None where the engine says none."""
        seed = derive(*self._place, name, 0)
        try:
            digits = await self._engine.rate(prompt, seed, Priority(self._round + urgency, urgency), _kind(name))
        except CallRejectedError:
            return None
        self.tally.count(digits)
        return None if digits.probabilities is None else digits

    async def chosen(self, prompt: Prompt, name: str) -> int | None:
        """One of the numbers of a prompt's scale, drawn by their probabilities or read from words; None: neither."""
        if prompt.form == "rating":
            given, _ = await self.rating(prompt, "", name)
            return None if given.rating is None else int(given.rating)
        digits = await self.choice(prompt, name)
        if digits is None or digits.probabilities is None:
            return None
        low, high = prompt.scale
        return self.draw(name).choices(range(low, high + 1), digits.probabilities)[0]

    @property
    def world(self) -> int:
        """The number of the world that this is in."""
        return self._place[1]

    def draw_for_world(self, name: str) -> random.Random:
        """Chance by name: the same in all interactions of a world."""
        return rng(*self._place[:2], name)

    def draw(self, name: str) -> random.Random:
        """Chance by name: the same in this interaction whoever asks, and when."""
        return rng(*self._place, name)

    async def observe(self, judged: Judged, role: str, criterion: str) -> Observation:
        """An observer's rating of an answer, said as `role`, by a criterion; observers have no memory."""
        if criterion in self._scorers:
            return await self._score(judged, role, criterion)
        asked = self.wording.observe(judged, criterion)
        observation, _ = await self.rating(asked, judged.answer, f"observe:{role}:{criterion}", OBSERVED)
        return observation

    async def _score(self, judged: Judged, role: str, criterion: str) -> Observation:
        """A scorer's share of the scale, as a rating on it."""
        seed = derive(*self._place, f"observe:{role}:{criterion}", 0)
        prompt = Prompt(judged.question, scale=SHARES, scored=judged.answer)
        turn = Priority(self._round + OBSERVED, OBSERVED)
        try:
            share = await self._scorers[criterion].rate(prompt, seed, turn, "observe")
        except CallRejectedError:
            return Observation(None)
        self.tally.count(share)
        there = share.expectation
        return Observation(None if there is None else self.society.criterion(criterion).at_share(there))


def _kind(name: str) -> str:
    """What calls of a name are for: `feedback` of `feedback:3`."""
    return name.partition(":")[0]


def spoken(reply: Reply, role: str) -> Reply:
    """A reply that says something.

    Raises:
        UnansweredError: It is empty.
    """
    if not reply.text.strip():
        cut = " (max_tokens ended it while the model was thinking)" if reply.thinking == "cut" else ""
        raise UnansweredError(f"the {role} is empty{cut}")
    return reply
