"""A world: its agents, what they remember after which round, and who listens to whom."""

import asyncio
import dataclasses
from array import array
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from salign.config import StreamMemory
from salign.errors import CallRejectedError
from salign.records import Interaction, Member, Profile, Recalled
from salign.society.asides import SELF, Reflected, described, opinions, reflect, with_asides
from salign.society.calls import Calls, Speaker, UnansweredError, together
from salign.society.casts import Casts
from salign.society.frames import draw_key
from salign.society.notes import Notes
from salign.society.phases import Phase, Setting
from salign.society.population import initial_memories, labels, parts
from salign.society.profiles import draw_profiles
from salign.society.prompts import persona
from salign.society.protocols.base import Conversation
from salign.society.protocols.messages import Seat, State, Update
from salign.society.questions import QuestionOrder
from salign.society.requests import Ask, Elsewhere, Join, Look, Published
from salign.society.stream import Stream, within
from salign.society.topology import draw_audience, make_topology

_NOTHING = Update()


class World:
    """One society. Its interactions are a function of seed, number and the engines' replies alone.

    Round r of an agent reads states as they stood when their agents had finished round r-1 (docs/society.md); it may
    run as soon as they are there.

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
        self._rank = rank
        self.topology = make_topology(society.topology, seed, number)
        self.num_agents = self.topology.num_agents
        self.owners = self.topology.owners(num_ranks)
        self._is_here = (self.owners == rank).tobytes()  # a byte for each agent, which is read faster than an array
        self._questions = QuestionOrder(setting.num_questions, seed, number)
        self.casts = Casts(self.topology, society.protocol.cast_size, seed, number)
        self._parts = parts(society.mixture, self.num_agents, seed, number)
        self.own_agents: list[int] = np.flatnonzero(self.owners == rank).tolist()
        self._labels = labels(self.population, self.num_agents, seed, number)
        section = society.population_profiles
        self.profiles = draw_profiles(section, len(setting.profiles), self.num_agents, seed, number)
        self._settle(setting.profiles)
        mine = [(agent, self._labels[agent]) for agent in self.own_agents]
        self._memories = initial_memories(society, setting.prior, setting.table, mine, seed, number)
        self._phase = Phase(setting, self._labels, number)
        # Those of other runs with which it begins, each with its last round, the latest run's first.
        self._earlier: list[tuple[Phase, int]] = []
        while setting.before is not None:
            setting, last = setting.before
            self._earlier.append((Phase(setting, self._labels, number), last))
        self._notes: dict[int, Notes] = {}  # of those that have any
        # The last round after which an agent's state is there, and who waits for a later one.
        self._there_after = array("i", bytes(4 * self.num_agents))
        self._waiting: dict[tuple[int, int], list[asyncio.Future[None]]] = {}
        self._num_own: dict[int, int] = {}
        self.num_rounds_complete = 0

    def _at(self, round_: int) -> Phase:
        """How the world goes on in a round."""
        phase = self._phase
        for earlier, last in self._earlier:
            if round_ > last:
                break
            phase = earlier
        return phase

    def complete(self, round_: int) -> None:
        """Takes note that a round is complete on all ranks: what was read in it is read no more."""
        self.num_rounds_complete = round_
        self.casts.forget(round_ - 1)

    @property
    def num_answers(self) -> int:
        """How many own answers the agents here keep, replaced ones included."""
        return sum(memory.num_versions for memory in self._memories.values())

    @property
    def num_notes(self) -> int:
        """How many notes the agents here keep, replaced ones included."""
        return sum(notes.num_versions for notes in self._notes.values())

    def _settle(self, profiles: Sequence[Profile]) -> None:
        """Labels and parts that profiles name go before those that were drawn."""
        positions = {part.name: place for place, part in enumerate(self._setting.society.mixture, start=1)}
        for agent, number in enumerate(self.profiles):
            profile = profiles[number]
            if profile.label is not None:
                self._labels[agent] = profile.label
            if profile.part is not None:
                self._parts[agent] = positions[profile.part]

    def profile(self, agent: int) -> Profile | None:
        """Who an agent is, if the society has profiles."""
        return self._setting.profiles[self.profiles[agent]] if self.profiles else None

    def used_profiles(self) -> list[Profile]:
        """Each profile that some agent of the world has, on whatever rank, once."""
        return [self._setting.profiles[number] for number in sorted(set(self.profiles))]

    def num_interactions(self, round_: int) -> int:
        """Of a round, on all ranks."""
        return self.num_agents if self.casts.size == 1 else len(self.casts.of_round(round_).casts)

    def num_own_interactions(self, round_: int) -> int:
        """Of a round, those that agents here lead."""
        if self.casts.size == 1:
            return len(self.own_agents)
        number = self._num_own.get(round_)
        if number is None:
            leaders = [cast[0] for cast in self.casts.of_round(round_).casts]
            number = self._num_own[round_] = int((self.owners[leaders] == self._rank).sum())
        return number

    def own_resting(self, round_: int) -> list[int]:
        """The agents here that have no interaction in a round."""
        if self.casts.size == 1:
            return []
        places = self.casts.of_round(round_).places
        return [agent for agent in self.own_agents if places[agent] < 0]

    def question(self, agent: int, round_: int) -> int:
        """The number of the question that an agent asks in a round."""
        return self._questions.question(*self._phase.protocol.task(self.topology, agent, round_))

    def _recall(self, agent: int, question: int, after_round: int, told: int) -> Recalled | None:
        if "memory" in self._setting.society.without:
            return None
        table = self._setting.table
        section, memory = self._setting.society.memory, self._memories[agent]
        if isinstance(memory, Stream):
            assert isinstance(section, StreamMemory)
            recalled = memory.recall(section, table, question, after_round)
        elif (found := memory.recall(table, question, after_round)) is not None:
            recalled = Recalled(table.questions[found.question], found.answer, found.source, found.distance)
            if section.max_tokens is not None:
                recalled = within((recalled,), section.max_tokens)
        else:
            recalled = None
        return self._at(told).studies.recall(agent, table, question, told, recalled)

    def _state(self, agent: int, question: int, after_round: int, told: int | None = None) -> State:
        notes = self._notes.get(agent)
        recalled = self._recall(agent, question, after_round, after_round + 1 if told is None else told)
        noted = {} if notes is None else notes.after(after_round)
        return State(agent, recalled, noted, self.profile(agent))

    def _calls(self, speaker: Speaker, round_: int, agent: int) -> Calls:
        phase = self._at(round_)
        place = (self._setting.seed, self.number, round_, agent)
        return Calls(phase.setting.society, phase.wording, speaker, place)

    def _calls_of(self, state: State, round_: int, agent: int) -> Calls:
        """The calls of an agent in the interaction that another, or it, leads: as it describes itself, if it does."""
        speaker = self._speaker(state.agent, round_)
        if SELF in state.notes:
            key = draw_key(self._setting.seed, self.number, round_, agent, f"{SELF}:{state.agent}")
            speaker = Speaker(speaker.engine, described(speaker.instructions, state, key))
        return self._calls(speaker, round_, agent)

    def _speaker(self, agent: int, round_: int) -> Speaker:
        speaker = self._at(round_).studies.speaker(agent, round_, self._parts[agent])
        profile = self.profile(agent)
        return speaker if profile is None else Speaker(speaker.engine, persona(profile, speaker.instructions))

    def _member(self, agent: int, round_: int) -> Member:
        phase = self._at(round_)
        part = phase.studies.part(agent, round_, self._parts[agent])
        name = phase.setting.society.mixture[part - 1].name if part else None
        engine = phase.setting.speakers[part].engine.identity
        return Member(agent, self._labels[agent], name, engine, self.profiles[agent] if self.profiles else None)

    async def _is_there(self, agent: int, after_round: int) -> None:
        """Waits until the agent's state after a round is there."""
        written = after_round
        while self._there_after[agent] < written and not self.casts.cast(agent, written):
            written -= 1  # where it rested, nothing was written
        if self._there_after[agent] < written:
            published = asyncio.get_running_loop().create_future()
            self._waiting.setdefault((agent, written), []).append(published)
            await published
        self._there_after[agent] = max(self._there_after[agent], after_round)

    def take(self, news: Published) -> None:
        """Writes into the state of an agent that lives here; whoever waits for it goes on."""
        agent, round_, update = news.agent, news.round, news.update
        # A round that is complete reads no more; the next reads what stood after it.
        read_after = self.num_rounds_complete
        memory = self._memories[agent]
        if isinstance(memory, Stream):
            assert isinstance(self._setting.society.memory, StreamMemory)
            number = self._setting.table.number
            about = [news.question if one.about is None else number[one.about] for one in update.heard]
            memory.remember(update.heard, about, round_, self._setting.society.memory.max_kept, read_after)
        elif update.answer is not None and "memory" not in self._setting.society.without:
            memory.remember(news.question, update.answer, round_, read_after)
        if update.notes:
            self._notes.setdefault(agent, Notes()).write(update.notes, round_, read_after)
        self._there_after[agent] = round_
        for published in self._waiting.pop((agent, round_), ()):
            if not published.done():
                published.set_result(None)

    async def respond(self, request: Ask | Look | Join) -> Any:
        """What is asked of an agent that lives here, as soon as its state after the round before is there.

        Returns:
            Of `Ask` the turn, or why there is none, and what it took; of `Look` the note or None; of `Join` the agent's
            state.

        Raises:
            EngineError: The member's engine is at fault.
        """
        member, after_round = request.member, request.round - 1
        if self._there_after[member] < after_round:
            await self._is_there(member, after_round)
        match request:
            case Ask():
                state = self._state(member, request.question, after_round)
                calls = self._calls_of(state, request.round, request.agent)
                question = self._setting.table.questions[request.question]
                try:
                    protocol = self._at(request.round).protocol
                    return await protocol.answer(calls, state, question, request.query), calls.tally
                except (UnansweredError, CallRejectedError) as error:
                    return str(error), calls.tally
            case Look():
                return self._note(member, request.note, after_round)
            case Join():
                return self._state(member, request.question, after_round, request.told)

    async def _look(self, members: Sequence[int], note: str, round_: int, elsewhere: Elsewhere) -> list[Any]:
        """Each member's note of a name as it stood before a round; None where it had none."""
        found, after_round = [], round_ - 1
        for member in members:
            if not self._is_here[member]:
                found.append(await elsewhere.ask(Look(self.number, round_, member, note)))
                continue
            # Nearly all are there already: that alone is asked for, since a feed reads many.
            if self._there_after[member] < after_round:
                await self._is_there(member, after_round)
            notes = self._notes.get(member)
            found.append(None if notes is None else notes.read(note, after_round))
        return found

    def _note(self, member: int, note: str, after_round: int) -> Any:
        notes = self._notes.get(member)
        return None if notes is None else notes.read(note, after_round)

    async def interact(
        self, agent: int, round_: int, elsewhere: Elsewhere, published: Callable[[int, int], None]
    ) -> Interaction:
        """Holds one interaction that an agent leads which lives here.

        Args:
            agent: Who leads it: the first of its cast.
            round_: Counted from 1.
            elsewhere: The agents of other ranks.
            published: Told of each agent here, with the round, when its state after this round is there.

        Raises:
            EngineError: An engine is at fault.
        """
        phase, number = self._at(round_), self.question(agent, round_)
        setting = phase.setting

        def ask(request: Ask | Look | Join) -> Coroutine[Any, Any, Any]:
            return self.respond(request) if self._is_here[request.member] else elsewhere.ask(request)

        cast = self.casts.cast(agent, round_)
        question = setting.table.questions[number]
        if len(cast) == 1:
            states = [self._state(agent, number, round_ - 1)]
        else:
            states = [await ask(Join(self.number, round_, member, number)) for member in cast]
        seat = self._seat(cast, states, round_, question)

        def publish(updates: Sequence[Update]) -> None:
            for place, (member, update) in enumerate(zip(cast, updates or [_NOTHING] * len(cast), strict=True)):
                if reflected and (note := reflected[place].note) is not None:
                    update = dataclasses.replace(update, notes={**update.notes, SELF: note})  # noqa: PLW2901
                news = Published(self.number, round_, member, number, update)
                if self._is_here[member]:
                    self.take(news)
                    published(member, round_)
                else:
                    elsewhere.tell(news)

        observer = self._calls(setting.observer or setting.speakers[0], round_, agent)
        calls = [self._calls_of(state, round_, agent) for state in states]
        reflected: list[Reflected] = []
        if setting.society.reflection is not None and round_ % setting.society.reflection.every == 0:
            pairs = zip(calls, states, strict=True)
            reflected = await together(*(reflect(one, observer, state, question) for one, state in pairs))
        conversation = Conversation(
            phase.protocol,
            seat,
            calls,
            observer,
            ask=lambda member, query: ask(Ask(self.number, round_, agent, member, number, query)),
            look=lambda members, note: self._look(members, note, round_, elsewhere),
            distances=lambda others: setting.table.between(number, others),
        )
        interaction = await conversation.hold(publish)
        if reflected:
            interaction = with_asides(interaction, [one.turn for one in reflected])
        asked = [member for member in cast if phase.studies.is_asked(member, round_)]
        return await self._survey(interaction, asked, ask) if asked else interaction

    def _seat(self, cast: tuple[int, ...], states: Sequence[State], round_: int, question: str) -> Seat:
        phase, agent = self._at(round_), cast[0]
        setting = phase.setting
        links = phase.studies.topology(agent, round_, self.topology)
        audience = draw_audience(setting.society, links, agent, setting.seed, self.number, round_, agent)
        return Seat(
            self.number,
            round_,
            tuple([self._member(member, round_) for member in cast]),
            tuple(states),
            topology=self.topology,
            question=question,
            choices=setting.choices.get(question),
            audience=audience if len(cast) == 1 else tuple([member for member in audience if member not in cast]),
        )

    async def _survey(
        self,
        interaction: Interaction,
        asked: Sequence[int],
        ask: Callable[[Join], Coroutine[Any, Any, State]],
    ) -> Interaction:
        """The interaction with the opinions of some of its cast, as they are after its round."""
        round_, agent = interaction.round, interaction.agents[0].agent
        setting = self._at(round_).setting

        async def state_of(member: int, asked: str) -> tuple[State, Calls]:
            # As it is after this round, before the interventions of the next.
            state = await ask(Join(self.number, round_ + 1, member, setting.table.number[asked], told=round_))
            return state, self._calls_of(state, round_, agent)

        survey = setting.society.survey
        assert survey is not None
        return with_asides(interaction, *await opinions(survey, asked, state_of))

    @property
    def interventions(self) -> dict[str, int]:
        """On how many agents each intervention is."""
        return self._phase.studies.num_on()
