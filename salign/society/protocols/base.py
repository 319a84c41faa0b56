"""The interface of a protocol, one way in which agents interact. Worlds, rounds, shards and data know only this.

Two rules hold for each, and give schedule, shards, ranks and resumption: an interaction of round r reads anybody's
state as it stood after round r-1, and writes the states of its own agents alone, once, when it publishes.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from salign.config import SocietySection
from salign.engines.base import Reply
from salign.engines.meter import Tally
from salign.errors import CallRejectedError
from salign.records import Interaction, Observation, Recalled, Turn
from salign.society.calls import Calls, UnansweredError, together
from salign.society.lived import lived_through
from salign.society.prompts import Judged
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Query, Seat, State, Update
from salign.society.raters import Rankings
from salign.society.replies import flags_of
from salign.society.rules import rating_by_rule
from salign.society.topology import Topology
from salign.society.wordings import reflection
from salign.tracking.metrics import mean


class Relation(NamedTuple):
    """How one thing goes with another over a run: the title of the report's figure, and what is on its axes."""

    title: str
    x: str
    y: str


Section = TypeVar("Section")


class Protocol(ABC, Generic[Section]):
    """One way to interact; a new one is a module here, a section in `config/protocols.py`, and a line in the registry.

    Args:
        society: What it is configured by.
        section: Its own part of that.
    """

    observed: ClassVar[tuple[str, ...]]
    """Roles of the turns that observers rate, in order. A world is measured, and stopped, by the last: its outcome."""
    reminded: ClassVar[tuple[str, ...]]
    """Roles of the turns before which a speaker looks into its memory; the leader's first."""
    heard: ClassVar[tuple[str, ...]] = ()
    """Roles of the turns that the cast remembers, whoever says them, where agents remember what they lived through
    (`society.memory`); `topic` in a turn's data is the question that it is about, if not the interaction's."""
    rates_silence: ClassVar[bool] = False
    """Whether a turn without text is an answer that rules rate, and by other criteria has no rating; else an act."""
    scored: ClassVar[tuple[str, ...]] = ()
    """Criteria by which the protocol itself rates: observers are not asked."""
    figures: ClassVar[Mapping[str, str]] = {}
    """What a round is measured by beside ratings: each figure's name, which ends in `_share` or `_mean`, and what it
    says, as the report's title."""

    relations: ClassVar[Mapping[str, Relation]] = {}
    """What the report draws of all interactions, by name: the mean of one thing at each value of another."""

    def __init__(self, society: SocietySection, section: Section) -> None:
        self.society = society
        self.section = section
        self.criteria = tuple(criterion.name for criterion in society.observed_criteria)
        """By which observers rate; figures compare turns by the first."""
        self.rules = tuple(criterion for criterion in society.observed_criteria if criterion.rule is not None)
        """Those of them that need no observer."""
        ruled = {criterion.name for criterion in self.rules} | {*self.scored}
        self.ranked = tuple(criterion for criterion in society.observed_criteria if criterion.ranked)
        """Those by which an observer ranks all answers of an interaction, with two calls."""
        ruled |= {criterion.name for criterion in self.ranked}
        self.asked = tuple(name for name in self.criteria if name not in ruled)
        """Those that an observer or a scorer is asked by, with a call each."""

    @property
    def outcome(self) -> str:
        """The role of the turn by which a world is measured."""
        return self.observed[-1]

    @property
    @abstractmethod
    def max_calls(self) -> int:
        """Model calls of an interaction at most, without those that are made again."""

    def most_calls(self, num_agents: int) -> int:
        """Model calls of a round of a world at most."""
        survey = self.society.survey
        asked = 0 if survey is None else survey.num_asked(num_agents) * len(survey.questions)
        if self.society.reflection is not None:
            asked += num_agents * (1 + len(reflection.CRITERIA))
        if self.society.stream is not None and self.society.stream.importance == "asked":
            asked += num_agents
        return num_agents // self.society.protocol.cast_size * (self.max_calls + 2 * len(self.ranked)) + asked

    @abstractmethod
    async def interact(self, conversation: "Conversation") -> Sequence[Update]:
        """Holds one interaction.

        Returns:
            What each of the cast carries on, in the cast's order, which is published at once.

        Raises:
            UnansweredError: It cannot be brought to its end.
            CallRejectedError: The engine refuses a call without which it cannot.
            EngineError: The engine itself is at fault.
        """

    async def answer(self, calls: Calls, state: State, question: str, query: Query) -> Turn:
        """What a member that is asked says: a function of its own state and the query.

        It may be held in another process than the interaction. A turn without text leaves it to `interact` whether it
        can go on; without this turn, the interaction fails.

        Args:
            calls: The member's.
            state: The member's.
            question: Of the interaction.
            query: What it is asked.

        Raises:
            UnansweredError: It cannot say what it is asked for.
            CallRejectedError: The engine refuses a call without which it cannot.
            EngineError: The engine itself is at fault.
        """
        raise NotImplementedError(f"{type(self).__name__} asks nobody")

    @abstractmethod
    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """What can be learnt from an interaction, held by this protocol; `learning` says what counts."""

    def task(self, topology: Topology, agent: int, round_: int) -> tuple[int, int]:
        """Whose question of which round an agent is asked in a round: its own, unless the protocol says else."""
        return agent, round_

    def measure(self, interaction: Interaction) -> Iterable[tuple[str, Any]]:
        """Values of an interaction, each with the name of the figure that they are of."""
        return ()

    def relate(self, interaction: Interaction) -> Iterable[tuple[str, float, float]]:
        """Pairs (x, y) of an interaction, each with the name of its relation; x has few values."""
        return ()

    def figure(self, name: str, values: Sequence[Any]) -> float | None:
        """A figure out of its values in a round, which come in any order: their mean, unless the protocol says else."""
        return mean(values)


class Conversation:
    """What an interaction is held with: the leader's calls, its audience, and the turns so far.

    What can run together does: observers rate a turn beside all that follows.

    Args:
        protocol: By which it is held.
        seat: Who, what, and who may be asked.
        agents: The calls of each of the cast.
        observer: The observers' calls.
        ask: Asks one member: what it says, or why it cannot, and what that took.
        look: Reads agents' notes of a name; None where one has none.
        distances: The cosine distances of other questions of the society from this one.
    """

    def __init__(
        self,
        protocol: Protocol[Section],
        seat: Seat,
        agents: Sequence[Calls],
        observer: Calls,
        *,
        ask: Callable[[int, Query], Coroutine[Any, Any, tuple[Turn | str, Tally]]],
        look: Callable[[Sequence[int], str], Coroutine[Any, Any, list[Any]]],
        distances: Callable[[Sequence[str]], list[float]],
    ) -> None:
        self.seat = seat
        self.agents = agents
        self._protocol = protocol
        self._observer = observer
        self._ask = ask
        self._look = look
        self.distances = distances
        """The cosine distances of other questions of the society from this one."""
        self._turns: list[Turn] = []
        self._observed: list[tuple[Turn, str, asyncio.Task[Observation]]] = []
        self._rankings = Rankings(protocol.ranked)
        self._observing: asyncio.TaskGroup
        self._asked = Tally()

    @property
    def agent(self) -> Calls:
        """The leader's calls."""
        return self.agents[0]

    def say(
        self,
        role: str,
        reply: Reply,
        recalled: Recalled | None = None,
        name: str | None = None,
        *,
        by: int = 0,
        data: dict[str, Any] | None = None,
        shown: Judged | None = None,
        criteria: Sequence[str] | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> str:
        """Adds a turn of one of the cast, which observers rate if its role is one that they do; its text.

        Args:
            role: What it is said as.
            reply: What is said.
            recalled: What the speaker was reminded of before.
            name: Tells several turns of one role apart in the names of the observers' calls.
            by: The speaker's place in the cast.
            data: What else is to be known of the turn.
            shown: What observers see, if it is not the question and the text.
            criteria: By which observers rate it, whatever its role; None: by all if its role is one that they rate.
            scores: The protocol's own ratings, by the criteria that it has `scored`.
        """
        speaker = self.seat.cast[by].agent
        turn = Turn(speaker, role, reply.text, recalled=recalled, flags=flags_of(reply), data=data or {})
        turn.observed.update({criterion: Observation(rating) for criterion, rating in (scores or {}).items()})
        self._add(turn, name or role, shown, criteria)
        return reply.text

    def quote(self, turn: Turn) -> None:
        """Adds what somebody said in another interaction; observers do not rate it again."""
        self._turns.append(turn)

    def _add(self, turn: Turn, called: str, shown: Judged | None = None, criteria: Sequence[str] | None = None) -> None:
        self._turns.append(turn)
        if criteria is None and turn.role in self._protocol.observed and (turn.text or self._protocol.rates_silence):
            if not turn.text:
                turn.observed.update(dict.fromkeys(self._protocol.criteria, Observation(None)))
            for rule in self._protocol.rules:
                turn.observed[rule.name] = Observation(rating_by_rule(rule, self.seat.question, turn.text))
            criteria = self._protocol.asked
            self._rankings.add(turn)
        if criteria and turn.text:
            judged = shown or self._observer.judged(self.seat.question, turn.text, called)
            for criterion in criteria:
                task = self._observing.create_task(self._observer.observe(judged, called, criterion))
                self._observed.append((turn, criterion, task))

    async def ask(self, members: Sequence[int], text: str, data: Mapping[str, Any] | None = None) -> list[Turn]:
        """Asks members, all at once, about the turn that was said last; their turns, which are added.

        Observers rate those with a text whose role is one that they do.

        Raises:
            UnansweredError: One of them cannot say what it is asked for; what the others say is added.
        """
        query = Query(text, about=len(self._turns) - 1, data=data or {})
        turns, failures = [], []
        for said, tally in await together(*(self._ask(member, query) for member in members)):
            self._asked.add(tally)
            if isinstance(said, str):
                failures.append(said)
            else:
                self._add(said, f"{said.role}:{said.agent}")
                turns.append(said)
        if failures:
            raise UnansweredError(failures[0])
        return turns

    async def read(self, agents: Sequence[int], note: str) -> list[Any]:
        """Each agent's note of a name, as it stood after the round before; None where it had none.

        No model is called, and nothing is said. Any agent of the world may be read.
        """
        return await self._look(agents, note)

    async def _lived(self, updates: Sequence[Update]) -> Sequence[Update]:
        """The updates, with what each of the cast keeps of the interaction if it remembers that."""
        society, protocol = self._protocol.society, self._protocol
        if society.stream is None:
            return updates
        turns = [turn for turn in self._turns if turn.role in protocol.heard]
        lived = [
            lived_through(turns, update.answer, calls, society, member.agent)
            for member, update, calls in zip(self.seat.cast, updates, self.agents, strict=True)
        ]
        return [replace(update, heard=heard) for update, heard in zip(updates, await together(*lived), strict=True)]

    async def hold(self, publish: Callable[[Sequence[Update]], None]) -> Interaction:
        """Holds the interaction.

        Args:
            publish: Told of what the cast carries on, once, as soon as it is there; of nothing where it failed.

        Returns:
            The record; where it could not be brought to its end, its `failure` says so.

        Raises:
            EngineError: The engine itself is at fault.
        """
        failure = None
        try:
            async with asyncio.TaskGroup() as self._observing:
                updates: Sequence[Update] = ()
                try:
                    updates = await self._lived(await self._protocol.interact(self))
                except (UnansweredError, CallRejectedError) as error:
                    failure = str(error)
                publish(updates)
                self._rankings.begin(self._observing, self._observer, self.seat.question)
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            raise first from first.__cause__
        for turn, criterion, task in self._observed:
            turn.observed[criterion] = task.result()
        self._rankings.write()
        total = self._asked
        for calls in (*self.agents, self._observer):
            total.add(calls.tally)
        return Interaction(
            world=self.seat.world,
            round=self.seat.round,
            agents=self.seat.cast,
            protocol=self._protocol.society.protocol.kind,
            topic=self.seat.question,
            turns=tuple(self._turns),
            failure=failure,
            num_calls=total.num_calls,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
        )
