"""A world: its agents, what they remember after which round, and who listens to whom."""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from salign.config import SocietySection
from salign.records import Interaction, Member, Recalled, Turn
from salign.society.calls import Calls, Speaker, Tally
from salign.society.memory import QuestionTable
from salign.society.notes import Notes
from salign.society.population import initial_memories, labels, parts
from salign.society.prompts import Wording
from salign.society.protocols import protocol_of
from salign.society.protocols.base import Conversation, Query, Seat, State, Update
from salign.society.questions import QuestionOrder
from salign.society.sources import Exemplar
from salign.society.topology import draw_audience, make_topology

_NO_NOTES: Mapping[str, Any] = MappingProxyType({})
_NOTHING = Update()


@dataclass(frozen=True)
class Setting:
    """What the worlds of a shard have in common.

    `num_questions` questions of the table, from its start, are asked; `speakers` are the run's engine, then one for
    each part of a mixed society; the first of them observes, unless there is an `observer`.
    """

    society: SocietySection
    seed: int
    table: QuestionTable
    num_questions: int
    prior: Sequence[Exemplar]
    speakers: Sequence[Speaker]
    observer: Speaker | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """What an agent asks one member; what it takes to answer it on another rank."""

    world: int
    round: int
    agent: int
    member: int
    question: int
    query: Query


@dataclass(frozen=True, slots=True)
class Look:
    """An interaction of a round reads a note of any agent; what it takes to read it on another rank."""

    world: int
    round: int
    member: int
    note: str


class World:
    """One society. Its interactions are a function of seed, number and the engines' replies alone.

    Round r of an agent reads memories as they stood when their owners had finished round r-1 (docs/society.md); it
    may run as soon as they are there.

    Args:
        setting: What it has in common with other worlds.
        number: Its number in the run.
        rank: Which of the ranks this process is.
        num_ranks: Among how many the agents are divided.
    """

    def __init__(self, setting: Setting, number: int, rank: int = 0, num_ranks: int = 1) -> None:
        society, seed = setting.society, setting.seed
        self.number = number
        self.population = society.populations[number % len(society.populations)]
        self._setting = setting
        self._wording = Wording(society)
        self._protocol = protocol_of(society)
        self.topology = make_topology(society.topology, seed, number)
        self.num_agents = self.topology.num_agents
        self.owners = self.topology.owners(num_ranks)
        self._questions = QuestionOrder(setting.num_questions, seed, number)
        self._parts = parts(society.mixture, self.num_agents, seed, number)
        self.own_agents: list[int] = np.flatnonzero(self.owners == rank).tolist()
        everybody = labels(self.population, self.num_agents, seed, number)
        self._labels = {agent: everybody[agent] for agent in self.own_agents}
        mine = self._labels.items()
        self._memories = initial_memories(society, setting.prior, setting.table, mine, seed, number)
        self._notes: dict[int, Notes] = {}  # of those that have any
        # The last round after which an agent's memory is there, and who waits for a later one.
        self._remembers_after = array("i", bytes(4 * self.num_agents))
        self._waiting: dict[tuple[int, int], list[asyncio.Future[None]]] = {}
        self.num_rounds_complete = 0

    @property
    def num_answers(self) -> int:
        """How many own answers the agents here keep, replaced ones included."""
        return sum(memory.num_versions for memory in self._memories.values())

    @property
    def num_notes(self) -> int:
        """How many notes the agents here keep, replaced ones included."""
        return sum(notes.num_versions for notes in self._notes.values())

    def question(self, agent: int, round_: int) -> int:
        """The number of the question that an agent asks in a round."""
        return self._questions.question(agent, round_)

    def _recall(self, agent: int, question: int, after_round: int) -> Recalled | None:
        if "memory" in self._setting.society.without:
            return None
        table = self._setting.table
        memory = self._memories[agent].recall(table, question, after_round)
        if memory is None:
            return None
        return Recalled(table.questions[memory.question], memory.answer, memory.source, memory.distance)

    def _state(self, agent: int, question: int, after_round: int) -> State:
        notes = self._notes.get(agent)
        recalled = self._recall(agent, question, after_round)
        return State(agent, recalled, _NO_NOTES if notes is None else notes.after(after_round))

    def _calls(self, speaker: Speaker, round_: int, agent: int) -> Calls:
        return Calls(self._setting.society, self._wording, speaker, (self._setting.seed, self.number, round_, agent))

    def _speaker(self, agent: int) -> Speaker:
        return self._setting.speakers[self._parts[agent]]

    def _member(self, agent: int) -> Member:
        part = self._parts[agent]
        name = self._setting.society.mixture[part - 1].name if part else None
        return Member(agent, self._labels[agent], name, self._speaker(agent).engine.identity)

    async def _remembers(self, agent: int, after_round: int) -> None:
        """Waits until the agent's memory after a round is there."""
        if self._remembers_after[agent] < after_round:
            published = asyncio.get_running_loop().create_future()
            self._waiting.setdefault((agent, after_round), []).append(published)
            await published

    def _publish(self, agent: int, round_: int, question: int, update: Update) -> None:
        # A round that is complete reads no more; the next reads what stood after it.
        read_after = self.num_rounds_complete
        if update.answer is not None and "memory" not in self._setting.society.without:
            self._memories[agent].remember(question, update.answer, round_, read_after)
        if update.notes:
            self._notes.setdefault(agent, Notes()).write(update.notes, round_, read_after)
        self._remembers_after[agent] = round_
        for published in self._waiting.pop((agent, round_), ()):
            if not published.done():
                published.set_result(None)

    async def answer(self, ask: Ask) -> tuple[Turn, Tally]:
        """What an agent that lives here says when it is asked, as soon as its memory after the round before is there.

        Raises:
            EngineError: The member's engine is at fault.
        """
        await self._remembers(ask.member, ask.round - 1)
        state = self._state(ask.member, ask.question, ask.round - 1)
        calls = self._calls(self._speaker(ask.member), ask.round, ask.agent)
        question = self._setting.table.questions[ask.question]
        return await self._protocol.answer(calls, state, question, ask.query), calls.tally

    async def look(self, look: Look) -> Any:
        """A note of an agent that lives here, as soon as its state after the round before is there."""
        await self._remembers(look.member, look.round - 1)
        notes = self._notes.get(look.member)
        return None if notes is None else notes.read(look.note, look.round - 1)

    async def interact(
        self,
        agent: int,
        round_: int,
        ask: Callable[[Ask | Look], Awaitable[Any]] | None,
        published: Callable[[int, int], None],
    ) -> Interaction:
        """Holds one interaction of an agent that lives here and has finished the round before.

        Args:
            agent: Who leads it.
            round_: Counted from 1.
            ask: How agents that live elsewhere are asked and read; None where all live here.
            published: Told of agent and round when the agent's memory after this round is there.

        Raises:
            EngineError: An engine is at fault.
        """
        setting, number = self._setting, self.question(agent, round_)
        place = (setting.seed, self.number, round_, agent)
        seat = Seat(
            self.number,
            round_,
            (self._member(agent),),
            (self._state(agent, number, round_ - 1),),
            question=setting.table.questions[number],
            audience=draw_audience(setting.society, self.topology, agent, *place),
        )
        here = self.owners[agent]

        async def heard(member: int, query: Query) -> tuple[Turn, Tally]:
            request = Ask(self.number, round_, agent, member, number, query)
            if ask is None or self.owners[member] == here:
                return await self.answer(request)
            answered: tuple[Turn, Tally] = await ask(request)
            return answered

        async def seen(member: int, note: str) -> Any:
            request = Look(self.number, round_, member, note)
            return await (self.look(request) if ask is None or self.owners[member] == here else ask(request))

        def publish(updates: Sequence[Update]) -> None:
            self._publish(agent, round_, number, updates[0] if updates else _NOTHING)
            published(agent, round_)

        observer = self._calls(setting.observer or setting.speakers[0], round_, agent)
        leader = self._calls(self._speaker(agent), round_, agent)
        return await Conversation(self._protocol, seat, (leader,), observer, ask=heard, look=seen).hold(publish)
