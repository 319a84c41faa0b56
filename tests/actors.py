"""What the tests of the society share: virtual time, an engine that acts as it is told, and worlds that live by it."""

import asyncio
import functools
import gc
import hashlib
import pickle
import random
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from msgspec.structs import replace

from salign.config import SCALE, Sampling, Scale, SocietySection
from salign.engines import opening
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.journal import CallKeys
from salign.engines.meter import MeteredEngine
from salign.engines.scripted import ScriptedEngine
from salign.records import Interaction, Member, Observation, Recalled, Turn, read_interactions
from salign.seeds import derive
from salign.society import calls
from salign.society.calls import Speaker
from salign.society.memory import QuestionTable
from salign.society.messages import Goodbye
from salign.society.phases import Setting
from salign.society.profiles import load_profiles
from salign.society.recall import question_table
from salign.society.rounds import Round
from salign.society.simulation import Simulation
from salign.society.sources import Exemplar
from salign.society.spool import Spool, write_sorted
from salign.society.studies import questions_of
from salign.society.verdicts import Verdict
from salign.society.world import World

T = TypeVar("T")

SMALL_RUN = {
    "num_worlds": 2,
    "topology": {"kind": "grid", "size": 3},
    "max_rounds": 2,
    "audience_size": 2,
    "num_initial_memories": 6,
    "rating": "parse",
    "stopping": None,
    "observer_check": None,
}
"""A section of two worlds and two rounds, for runs that are simulated whole."""

# --- time ----------------------------------------------------------------------------------------


class _VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock goes on when nobody has anything left to do; where nobody waits for the clock, that is a standstill."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and not self._stopping:
            alarms = self._scheduled[:1]  # a heap
            if alarms and alarms[0].cancelled():
                alarms = [handle for handle in self._scheduled if not handle.cancelled()]
            assert alarms, "a standstill: everybody waits for somebody"
            self._now = max(self._now, min(handle.when() for handle in alarms))
        super()._run_once()


# Of each seed: run seed, world, round, agent, step, attempt.
_PLACES: dict[int, tuple[Any, ...]] = {}


def _noted(*parts: int | str) -> int:
    seed = derive(*parts)
    _PLACES[seed] = parts
    return seed


def now() -> float:
    return asyncio.get_running_loop().time()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs it in virtual time. No task may be left when it ends, and no error that nobody has seen."""
    unseen: list[dict[str, Any]] = []
    left: set[Any] = set()

    async def whole() -> T:
        try:
            return await coroutine
        finally:
            left.update(asyncio.all_tasks() - {asyncio.current_task()})

    with (
        mock.patch.object(calls, "derive", _noted),
        asyncio.Runner(loop_factory=_VirtualLoop) as runner,
    ):
        runner.get_loop().set_exception_handler(lambda loop, context: unseen.append(context))
        try:
            return runner.run(whole())
        except BaseException:
            gc.collect()  # what holds an error in a circle says now that nobody has seen it
            raise
        finally:
            assert not left, f"tasks that go on: {left}"
            assert not unseen, f"errors that nobody has seen: {unseen}"


# --- a record ---------------------------------------------------------------------------------


class Rating(NamedTuple):
    """What observers say of an answer."""

    alignment: float | None
    engagement: float | None


class Feedback(NamedTuple):
    """What a member of the audience says of a draft."""

    agent: int
    rating: float | None
    reason: str
    recalled: Recalled | None = None


ODD_TEXT = 'Line one\nline "two" \u2028 \U0001f642 {} \\ é'


REMEMBERED = Recalled("Why not?", ODD_TEXT, "own", 0.25)
HEARD = (Feedback(4, 5.25, ODD_TEXT, Recalled("q", "a", "initial", 0.0)), Feedback(5, None, ""))


def interaction(
    *,
    world: int = 1,
    round: int = 2,
    agent: int = 3,
    label: str = "good",
    part: str | None = "sceptics",
    question: str = "Why?",
    recalled: Recalled | None = REMEMBERED,
    draft: str | None = ODD_TEXT,
    feedback: Sequence[Feedback] = HEARD,
    revision: str | None = "Better.",
    draft_rating: Rating = Rating(3.0, None),  # noqa: B008 (a tuple)
    revision_rating: Rating = Rating(6.5, 7.0),  # noqa: B008
    **fields: Any,
) -> Interaction:
    """A Back-Scatter record with something in every field."""

    def spoken(role: str, text: str | None, rating: Rating, memory: Recalled | None = None) -> list[Turn]:
        if text is None:
            return []
        observed = {name: Observation(value) for name, value in rating._asdict().items()}
        return [Turn(agent, role, text, observed=observed, recalled=memory)]

    turns = [
        *spoken("draft", draft, draft_rating, recalled),
        *(
            Turn(member, "feedback", reason, about=0, rating=rating, recalled=memory)
            for member, rating, reason, memory in feedback
        ),
        *spoken("revision", revision, revision_rating),
    ]
    whole = Interaction(
        world=world,
        round=round,
        agents=(Member(agent, label, part, "actor"),),
        protocol="back_scatter",
        topic=question,
        turns=tuple(turns),
        failure=None,
        num_calls=14,
        prompt_tokens=1000,
        completion_tokens=200,
    )
    return replace(whole, **fields)


def text_of(record: Interaction, role: str) -> str | None:
    """What was said as the draft or the revision."""
    turn = record.turn(role)
    return None if turn is None else turn.text


def observed_of(record: Interaction, role: str) -> Rating:
    """The observers' ratings of the draft or the revision."""
    turn = record.turn(role)
    return Rating(None, None) if turn is None else Rating(*map(turn.observed_rating, Rating._fields))


def memory_of(record: Interaction) -> Recalled | None:
    """What the leader remembered of the question."""
    turn = record.turn("draft")
    return None if turn is None else turn.recalled


def audience_of(record: Interaction) -> tuple[Feedback, ...]:
    """What the audience said."""
    return tuple(Feedback(turn.agent, turn.rating, turn.text, turn.recalled) for turn in record.turns_of("feedback"))


# --- an engine -----------------------------------------------------------------------------------


def certain(digit: int, scale: Scale = SCALE) -> RatingReply:
    low, high = scale
    return RatingReply(tuple(float(digit == other) for other in range(low, high + 1)), 1.0, 10, 0, lowest=low)


NO_DIGIT = RatingReply(None, 0.0, 10, 0)


@dataclass(eq=False)
class Call:
    """One call of an engine; `sampling` is None for a rating by probabilities, `end` while it goes on or was ended."""

    world: int
    round: int
    agent: int
    step: str
    attempt: int
    prompt: Prompt
    sampling: Sampling | None
    seed: int
    start: float
    end: float | None = None

    @property
    def place(self) -> tuple[int, int, int]:
        return self.world, self.round, self.agent


def _digest(prompt: Prompt, seed: int) -> bytes:
    shown = ", ".join(f"{name}={getattr(prompt, name)!r}" for name in ("user", "system", "num_shared", "form"))
    return hashlib.blake2b(f"Prompt({shown}){seed}".encode()).digest()


class Actor:
    """An engine whose replies are a function of prompt and seed, unless it is told what to say. It notes every call.

    Args:
        told: What to say: a text, a rating or an error; None: what comes to its mind.
        delay: How long a call takes, in virtual seconds.
    """

    identity = "actor"

    def __init__(
        self, told: Callable[[Call], Any] = lambda call: None, delay: Callable[[Call], float] = lambda call: 0.0
    ) -> None:
        self._told = told
        self._delay = delay
        self.calls: list[Call] = []

    async def _say(self, prompt: Prompt, sampling: Sampling | None, seed: int) -> Any:
        call = Call(*_PLACES[seed][1:], prompt=prompt, sampling=sampling, seed=seed, start=now())
        self.calls.append(call)
        seconds = self._delay(call)
        if seconds:
            await asyncio.sleep(seconds)
        said = self._told(call)
        call.end = now()
        if isinstance(said, Exception):
            raise said
        return said

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        said = await self._say(prompt, sampling, seed)
        if said is None:
            digest = _digest(prompt, seed)
            # In words, one rating of eight cannot be read.
            low, high = prompt.scale
            said = (f"Rating: {low + digest[0] % (high - low + 1)} Reason: " if digest[1] % 8 else "") + digest.hex()[
                :8
            ]
        return Reply(said, len(prompt.user), len(said))

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        said = await self._say(prompt, None, seed)
        if said is None:
            digest, (low, high) = _digest(prompt, seed), prompt.scale
            said = certain(low + digest[0] % (high - low + 1), prompt.scale) if digest[1] % 8 else NO_DIGIT
        return said

    def facts(self):
        return {}


def random_delay(seed: int, longest: float = 1.0) -> Callable[[Call], float]:
    """Another delay for each call, some of them none."""
    generator = random.Random(seed)
    return lambda call: max(0.0, generator.uniform(-0.3, longest))


def metered(engine: Actor, gate: int = 64) -> MeteredEngine:
    return opening.metered(engine, Gate(gate, adaptive=False))


# --- worlds --------------------------------------------------------------------------------------

PRIOR = [
    Exemplar(f"prior question on topic{n:02d}", f"{label} {n}", label) for n in range(20) for label in ("good", "bad")
]
QUESTIONS = [f"what about subject{number:02d}" for number in range(12)]
SMALL = {
    "topology": {"size": 3},
    "audience_size": 4,
    "max_rounds": 3,
    "stopping": None,
    "num_initial_memories": 4,
    "num_rating_retries": 1,
}


class _Mail:
    """Ranks within one event loop. A message takes a random time, but does not overtake another of its sender."""

    def __init__(self, rank: int, boxes: Sequence["asyncio.Queue[Any]"], delays: random.Random) -> None:
        self.rank, self.size = rank, len(boxes)
        self._boxes = boxes
        self._delays = delays
        self._last = 0.0
        self._gone = 0

    def send(self, to: int, message: Any) -> None:
        assert to != self.rank
        self._last = max(self._last, now() + self._delays.random() * 0.1)
        letter = pickle.loads(pickle.dumps((self.rank, message)))
        asyncio.get_running_loop().call_at(self._last, self._boxes[to].put_nowait, letter)

    async def _take(self, handle: Callable[[int, Any], None]) -> None:
        sender, message = await self._boxes[self.rank].get()
        if isinstance(message, Goodbye):
            self._gone += 1
        else:
            handle(sender, message)

    async def receive(self, handle: Callable[[int, Any], None]) -> None:
        while True:
            await self._take(handle)

    async def part(self, handle: Callable[[int, Any], None]) -> None:
        for rank in range(self.size):
            if rank != self.rank:
                self.send(rank, Goodbye())
        while self._gone < self.size - 1:
            await self._take(handle)


@dataclass
class Life:
    """What came of it: the file as it is written, its interactions, the rounds that were told of, and who held it."""

    file: bytes
    interactions: list[Interaction]
    rounds: list[Round]
    simulation: Simulation
    worlds: list[World]

    def of_round(self, number: int) -> list[Interaction]:
        return [item for item in self.interactions if item.round == number]


@functools.lru_cache(maxsize=8)
def _table(section: str, seed: int, questions: tuple[str, ...], prior: tuple[Exemplar, ...]) -> QuestionTable:
    society = SocietySection.model_validate_json(section)
    return question_table(society, seed, questions, prior, also=questions_of(society))[0]


def make_setting(
    speakers, *, society=None, seed=0, questions=QUESTIONS, prior=PRIOR, observer=None, choices=None, **settings
) -> Setting:
    """Of a whole section of a config, or of settings that differ from `SMALL`."""
    society = society or SocietySection(**{**SMALL, **settings})
    # Made once for the many ways in which a society may be held.
    decides = society.model_dump_json(exclude={"schedule", "max_alive"})
    table = _table(decides, seed, tuple(questions), tuple(prior))
    profiles = load_profiles(society)
    return Setting(society, seed, table, len(questions), prior, speakers, observer, choices or {}, profiles)


async def simulate(
    engine: Actor,
    *,
    numbers: Sequence[int] = (0,),
    gate: int = 64,
    num_ranks: int = 1,
    speakers: Sequence[Speaker] | None = None,
    watch: Callable[[Simulation], None] = lambda simulation: None,
    complete: Callable[[Verdict], None] = lambda verdict: None,
    **settings: Any,
) -> Life:
    """The life of some worlds, by one process or by ranks."""
    boxes: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(num_ranks)]
    delays = random.Random(num_ranks)
    told: list[Round] = []

    def noted(verdict: Verdict) -> None:
        told.append(verdict.round)
        complete(verdict)

    with tempfile.TemporaryDirectory() as name:
        spools, simulations = [], []
        for rank in range(num_ranks):
            setting = make_setting(speakers or [Speaker(metered(engine, gate))], **settings)
            worlds = [World(setting, number, rank, num_ranks) for number in numbers]
            spools.append(Spool(Path(name) / f"{rank}.part"))
            ranks = _Mail(rank, boxes, delays) if num_ranks > 1 else None
            simulations.append(Simulation(setting.society, worlds, spools[-1], ranks=ranks, complete=noted))
            watch(simulations[-1])
        try:
            results = await asyncio.gather(*(one.run() for one in simulations), return_exceptions=num_ranks > 1)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            for spool in spools:
                spool.flush()
            lasts = {number: last for one in simulations for number, last in one.last_rounds.items()}
            assert all(one.last_rounds == lasts for one in simulations)
            rounds = [(number, round_) for number in sorted(lasts) for round_ in range(1, lasts[number] + 1)]
            path = Path(name) / "interactions.jsonl"
            write_sorted(path, [(spool.path, spool.index) for spool in spools], rounds)
            return Life(path.read_bytes(), list(read_interactions(path)), told, simulations[0], worlds)
        finally:
            for spool in spools:
                spool.remove()


def live(engine: Actor, **how: Any) -> Life:
    """`simulate`, in virtual time."""
    return run(simulate(engine, **how))


class Asked:
    """Counts, by the journal's key, what the scripted engine is asked."""

    def __init__(self, monkeypatch):
        self.keys: list[str] = []
        keys = CallKeys("scripted")
        generate, rate = ScriptedEngine.generate, ScriptedEngine.rate

        async def counted_generate(engine, prompt, sampling, seed):
            self.keys.append(keys.of(prompt, sampling, seed).hex())
            return await generate(engine, prompt, sampling, seed)

        async def counted_rate(engine, prompt, seed):
            self.keys.append(keys.of(prompt, None, seed).hex())
            return await rate(engine, prompt, seed)

        monkeypatch.setattr(ScriptedEngine, "generate", counted_generate)
        monkeypatch.setattr(ScriptedEngine, "rate", counted_rate)
