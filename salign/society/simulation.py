"""The scheduler of interactions: which one is held when. The result does not depend on it.

An agent's next interaction may start when its own memory is there; each member's feedback waits for that member's. Of
all that may start, the oldest round goes first, and so many are alive at a time. That cannot come to a standstill: an
interaction of a later round is started only where none of an earlier one was ready, so the agents that it waits for
were alive themselves, and have their turn before any other when they are ready again.
"""

import asyncio
import heapq
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from salign.config import SCALE, Criterion, SocietySection
from salign.errors import SalignError, StageError
from salign.records import Interaction
from salign.society.messages import (
    Failure,
    Goodbye,
    Message,
    Progress,
    Request,
    Response,
    RoundDecided,
    RoundPart,
)
from salign.society.protocols import protocol_of
from salign.society.protocols.base import Protocol
from salign.society.ranks import Alone, Ranks
from salign.society.rounds import Round, Validity
from salign.society.spool import Spool
from salign.society.stopping import Gain, Stop, StopRule
from salign.society.world import Ask, Look, World

logger = logging.getLogger(__name__)

# How long a rank that failed waits before it ends all ranks, so that the others can record the reason.
_LAST_WORDS_S = 1.0


class _Course:
    """How far one world has come, as this rank knows it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rounds: dict[int, Round] = {}
        self.last_round: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A round that is complete, the gain that was measured after it, and its world's end if this is it."""

    protocol: Protocol[Any]
    round: Round
    gain: Gain | None
    stop: Stop | None

    def metrics(self) -> dict[str, Any]:
        """The round in figures; `sim/stop` says, in a world's last, why it ended."""
        gain = {} if self.gain is None else self.gain.metrics()
        stop = {} if self.stop is None else {"sim/stop": self.stop.why}
        return {**self.round.metrics(self.protocol), **gain, **stop}


class _Verdicts:
    """Rank 0's part: puts the ranks' rounds together and decides, round after round, whether a world stops."""

    def __init__(self, society: SocietySection, worlds: Sequence[World]) -> None:
        self._protocol = protocol_of(society)
        self._max_rounds = society.max_rounds
        self._num_agents = {world.number: world.num_agents for world in worlds}
        self._rules = {
            world.number: StopRule(
                society.stopping, world.num_agents, society.max_rounds, len(society.stopping_criteria)
            )
            for world in worlds
        }
        self._rounds: dict[tuple[int, int], Round] = {}
        self._decided = dict.fromkeys(self._num_agents, 0)
        self.stops: dict[int, Stop] = {}
        self.validity = Validity.of(self._protocol)

    def take(self, part: Round) -> list[Verdict]:
        """Takes a rank's part of a round; a verdict on each round that it completes."""
        world = part.world
        if world in self.stops:
            return []  # another rank's part of a round that was held ahead of the end
        whole = self._rounds.setdefault((world, part.number), Round(world, part.number))
        whole.merge(part)
        verdicts: list[Verdict] = []
        while True:
            number = self._decided[world] + 1
            round_ = self._rounds.get((world, number))
            if round_ is None or round_.num_interactions < self._num_agents[world]:
                return verdicts
            del self._rounds[world, number]
            self._decided[world] = number
            self.validity.add(round_)
            rule = self._rules[world]
            ratings = (self._ratings(round_, criterion) for criterion in self._protocol.society.stopping_criteria)
            why = rule.after(*ratings) or ("max_rounds" if number == self._max_rounds else None)
            stop = None if why is None else Stop(world, number, why, rule.gain)
            verdicts.append(Verdict(self._protocol, round_, rule.gain, stop))
            if stop is not None:
                self.stops[world] = stop
                return verdicts

    def _ratings(self, round_: Round, criterion: Criterion) -> dict[int, float | None]:
        """Each agent's outcome by a criterion, on the scale from 1 to 7."""
        given = round_.by_agent(self._protocol.outcome, criterion.name)
        if criterion.scale == SCALE:
            return given
        return {agent: None if value is None else criterion.on_common_scale(value) for agent, value in given.items()}


class Simulation:
    """Holds the interactions of some worlds, or of this rank's agents in them.

    Args:
        society: Schedule, window, rounds, stopping.
        worlds: Made with this rank's number.
        spool: Takes each interaction as it ends.
        ranks: The processes that simulate the worlds together.
        complete: Told, on rank 0, of each round when all of it is held and counts.
        told: Given, on rank 0, what another rank says of its progress.
    """

    def __init__(
        self,
        society: SocietySection,
        worlds: Sequence[World],
        spool: Spool,
        *,
        ranks: Ranks | None = None,
        complete: Callable[[Verdict], None] = lambda verdict: None,
        told: Callable[[int, Any], None] = lambda rank, figures: None,
    ) -> None:
        self._society = society
        self._protocol = protocol_of(society)
        self._courses = {world.number: _Course(world) for world in worlds}
        self._spool = spool
        self._ranks = ranks or Alone()
        self._complete = complete
        self._told = told
        self._verdicts = _Verdicts(society, worlds) if self._ranks.rank == 0 else None
        self._ready: list[tuple[int, int, int]] = []  # round, world, agent
        self._alive: dict[asyncio.Task[Interaction], tuple[int, int]] = {}  # world, round
        self._serving: set[asyncio.Task[None]] = set()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._num_asked = 0
        self.num_held = 0
        self.num_discarded = 0
        self._over: asyncio.Future[None]
        self._failed_elsewhere = False

    @property
    def validity(self) -> Validity:
        """How much came back usable, of all that counts; known on rank 0."""
        assert self._verdicts is not None
        return self._verdicts.validity

    @property
    def stops(self) -> list[Stop]:
        """Why and when each world ended, by its number; known on rank 0."""
        assert self._verdicts is not None
        return [stop for _, stop in sorted(self._verdicts.stops.items())]

    @property
    def last_rounds(self) -> dict[int, int]:
        """Each world's number and last round, when the simulation is over."""
        return {number: course.last_round or 0 for number, course in self._courses.items()}

    @property
    def num_alive(self) -> int:
        """Interactions that are being held now."""
        return len(self._alive)

    async def run(self) -> None:
        """Runs every world to its stop.

        Raises:
            EngineError: An engine is at fault.
            StageError: Another rank failed.
            OSError: The spool cannot be written.
        """
        self._over = asyncio.get_running_loop().create_future()
        receiving = asyncio.create_task(self._ranks.receive(self._received))
        receiving.add_done_callback(self._check)
        try:
            for course in self._courses.values():
                for agent in course.world.own_agents:
                    self._ready.append((1, course.world.number, agent))
                self._report_if_complete(course, 1)  # a rank may own nobody of a small world
            heapq.heapify(self._ready)
            self._fill()
            await self._over
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._ranks.size > 1 and not self._failed_elsewhere:
                if not isinstance(error, SalignError | OSError):
                    # A bug: this process may be ended before its traceback is shown.
                    logger.exception("rank %d failed", self._ranks.rank)
                for rank in range(self._ranks.size):
                    if rank != self._ranks.rank:
                        self._ranks.send(rank, Failure(str(error) or type(error).__name__))
                await asyncio.sleep(_LAST_WORDS_S)
            raise
        finally:
            tasks = [receiving, *self._alive, *self._serving]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._ranks.part(self._received)

    def _fail(self, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    def _check(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # --- this rank's interactions ----------------------------------------------------------------

    def _fill(self) -> None:
        """Starts what is ready, the oldest first, as far as the window allows."""
        while self._ready and len(self._alive) < self._society.max_alive and not self._over.done():
            round_, number, agent = heapq.heappop(self._ready)
            course = self._courses[number]
            if course.last_round is not None and round_ > course.last_round:
                continue
            ask = self._ask if self._ranks.size > 1 else None
            task = asyncio.create_task(course.world.interact(agent, round_, ask, self._published(course)))
            self._alive[task] = number, round_
            task.add_done_callback(self._held)

    def _published(self, course: _Course) -> Callable[[int, int], None]:
        def published(agent: int, round_: int) -> None:
            if self._society.schedule == "dependency" and round_ < self._society.max_rounds:
                heapq.heappush(self._ready, (round_ + 1, course.world.number, agent))
                self._fill()

        return published

    def _held(self, task: "asyncio.Task[Interaction]") -> None:
        number, round_ = self._alive.pop(task)
        if task.cancelled():
            self._fill()
            return
        course = self._courses[number]
        try:
            interaction = task.result()
            self._spool.add(interaction)
            self.num_held += 1
            course.rounds.setdefault(round_, Round(number, round_)).add(interaction, self._protocol)
            self._report_if_complete(course, round_)
        except BaseException as error:  # noqa: BLE001 (a callback has nobody to raise to)
            self._fail(error)
            return
        self._fill()

    def _report_if_complete(self, course: _Course, round_: int) -> None:
        world = course.world
        part = course.rounds.get(round_) or Round(world.number, round_)
        if part.num_interactions < len(world.own_agents):
            return
        course.rounds.pop(round_, None)
        if self._ranks.rank == 0:
            self._take(part)
        else:
            self._ranks.send(0, RoundPart(part))

    # --- what the ranks agree on -----------------------------------------------------------------

    def _take(self, part: Round) -> None:
        assert self._verdicts is not None
        for verdict in self._verdicts.take(part):
            self._complete(verdict)
            decided = RoundDecided(verdict.round.world, verdict.round.number, is_last=verdict.stop is not None)
            for rank in range(1, self._ranks.size):
                self._ranks.send(rank, decided)
            self._decided(decided)

    def _decided(self, decided: RoundDecided) -> None:
        """A round is complete on all ranks: the world ends with it, or goes on."""
        number, round_ = decided.world, decided.round
        course = self._courses[number]
        course.world.num_rounds_complete = round_
        if not decided.is_last:
            if not course.world.own_agents:
                self._report_if_complete(course, round_ + 1)
            if self._society.schedule == "lockstep":
                for agent in course.world.own_agents:
                    heapq.heappush(self._ready, (round_ + 1, number, agent))
                self._fill()
            return
        course.last_round = round_
        # What ran ahead of the decision does not count.
        ahead = [task for task, (world, later) in self._alive.items() if world == number and later > round_]
        for task in ahead:
            task.cancel()
        self.num_discarded += len(ahead)
        for (world, later), (agents, _, _) in self._spool.index.items():
            if world == number and later > round_:
                self.num_discarded += len(agents)
        if all(other.last_round is not None for other in self._courses.values()) and not self._over.done():
            self._over.set_result(None)

    async def _ask(self, ask: Ask | Look) -> Any:
        """Asks the rank on which an agent lives."""
        self._num_asked += 1
        request = Request(self._num_asked, ask)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[request.number] = answer
        try:
            self._ranks.send(int(self._courses[ask.world].world.owners[ask.member]), request)
            return await answer
        finally:
            del self._asked[request.number]

    async def _serve(self, asker: int, request: Request) -> None:
        world, ask = self._courses[request.ask.world].world, request.ask
        answer = await (world.answer(ask) if isinstance(ask, Ask) else world.look(ask))
        self._ranks.send(asker, Response(request.number, answer))

    def _received(self, sender: int, message: Message) -> None:
        match message:
            case Request():
                if self._over.done():
                    return  # all worlds have ended, and the asker has not been told yet
                task = asyncio.create_task(self._serve(sender, message))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
                task.add_done_callback(self._check)
            case Response():
                asked = self._asked.get(message.number)
                if asked is not None and not asked.done():
                    asked.set_result(message.answer)
            case RoundPart():
                self._take(message.part)
            case RoundDecided():
                self._decided(message)
            case Progress():
                self._told(sender, message.figures)
            case Failure():
                self._failed_elsewhere = True
                self._fail(StageError(f"rank {sender} of this shard failed: {message.reason}"))
            case Goodbye():
                raise AssertionError("the ranks take note of goodbyes themselves")
            case _:
                assert_never(message)
