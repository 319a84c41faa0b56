"""The scheduler of interactions: which one is held when. The result does not depend on it.

An agent's next interaction may start when its own state is there; it waits for the states of the others of its cast,
and each member that is asked waits for its own. Of all that may start, the oldest round goes first, and so many are
alive at a time; one that is older than all of these is started beside them. So there is no standstill: what belongs to
the oldest round that is not over waits for nobody, and is alive.
"""

import asyncio
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from salign.config import SocietySection
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
from salign.society.ranks import Alone, Ranks
from salign.society.requests import Ask, Join, Look, Published
from salign.society.rounds import Round, Validity
from salign.society.spool import Spool
from salign.society.stopping import Stop
from salign.society.verdicts import Verdict, Verdicts
from salign.society.world import World

logger = logging.getLogger(__name__)

# How long a rank that failed waits before it ends all ranks, so that the others can record the reason.
_LAST_WORDS_S = 1.0


class _Course:
    """How far one world has come, as this rank knows it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rounds: dict[int, Round] = {}
        self.last_round: int | None = None


class _Elsewhere:
    """The agents of other ranks, asked and told by messages.

    Args:
        ranks: The processes.
        courses: Of the worlds, by number, which know who lives where.
    """

    def __init__(self, ranks: Ranks, courses: Mapping[int, _Course]) -> None:
        self._ranks = ranks
        self._courses = courses
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._num_asked = 0

    def _home(self, world: int, agent: int) -> int:
        return int(self._courses[world].world.owners[agent])

    async def ask(self, request: Ask | Look | Join) -> Any:
        self._num_asked += 1
        number = self._num_asked
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._ranks.send(self._home(request.world, request.member), Request(number, request))
            return await answer
        finally:
            del self._asked[number]

    def answered(self, response: Response) -> None:
        """Hands an answer on to whoever waits for it."""
        asked = self._asked.get(response.number)
        if asked is not None and not asked.done():
            asked.set_result(response.answer)

    def tell(self, news: Published) -> None:
        self._ranks.send(self._home(news.world, news.agent), news)


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
        self._verdicts = Verdicts(society, worlds) if self._ranks.rank == 0 else None
        self._ready: list[tuple[int, int, int]] = []  # round, world, agent
        self._alive: dict[asyncio.Task[Interaction], tuple[int, int]] = {}  # world, round
        self._rounds_alive: Counter[int] = Counter()  # how many of each
        self._serving: set[asyncio.Task[None]] = set()
        self._elsewhere = _Elsewhere(self._ranks, self._courses)
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
                self._begin(course, 1)
                self._report_if_complete(course, 1)  # a rank may own nobody of a small world
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

    def _begin(self, course: _Course, round_: int) -> None:
        """All rounds before this are complete: with `lockstep`, and at the start, all may go on.

        Otherwise each agent went on by itself, but one that rests in this round, and is ready for the next.
        """
        world = course.world
        is_first = round_ == 1
        if is_first or self._society.schedule == "lockstep":
            for agent in world.own_agents:
                heapq.heappush(self._ready, (round_, world.number, agent))
        if self._society.schedule == "dependency" and round_ < self._society.max_rounds:
            for agent in world.own_resting(round_):
                heapq.heappush(self._ready, (round_ + 1, world.number, agent))

    def _fill(self) -> None:
        """Starts what is ready, the oldest first, as far as the window allows."""
        while self._ready and not self._over.done():
            if len(self._alive) >= self._society.max_alive and self._ready[0][0] >= min(self._rounds_alive):
                return
            round_, number, agent = heapq.heappop(self._ready)
            course = self._courses[number]
            if course.last_round is not None and round_ > course.last_round:
                continue
            if course.world.casts.cast(agent, round_)[:1] != (agent,):
                continue  # another leads, or it rests
            task = asyncio.create_task(course.world.interact(agent, round_, self._elsewhere, self._published(course)))
            self._alive[task] = number, round_
            self._rounds_alive[round_] += 1
            task.add_done_callback(self._held)

    def _published(self, course: _Course) -> Callable[[int, int], None]:
        def published(agent: int, round_: int) -> None:
            if self._society.schedule == "dependency" and round_ < self._society.max_rounds:
                heapq.heappush(self._ready, (round_ + 1, course.world.number, agent))
                self._fill()

        return published

    def _held(self, task: "asyncio.Task[Interaction]") -> None:
        number, round_ = self._alive.pop(task)
        self._rounds_alive[round_] -= 1
        if not self._rounds_alive[round_]:
            del self._rounds_alive[round_]
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
        if part.num_interactions < world.num_own_interactions(part.number):
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
        course.world.complete(round_)
        if not decided.is_last:
            self._report_if_complete(course, round_ + 1)  # where nobody here leads one
            self._begin(course, round_ + 1)
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

    async def _serve(self, asker: int, request: Request) -> None:
        answer = await self._courses[request.ask.world].world.respond(request.ask)
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
                self._elsewhere.answered(message)
            case Published():
                course = self._courses[message.world]
                course.world.take(message)
                self._published(course)(message.agent, message.round)
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
