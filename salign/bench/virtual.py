"""Virtual time, and servers in it."""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from salign.config import Sampling
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.capabilities import Capabilities, Ratings
from salign.errors import EngineUnavailableError

# Stated. A server: vLLM's on one node, 16 replies at a time of 45 tokens in the median, 20 ms a token each.
SLOTS, S_PER_TOKEN, MEDIAN_TOKENS, SIGMA = 16, 0.020, 45, 0.6


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time: the clock jumps to when somebody wakes."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@dataclass(eq=False)
class Use:
    """Slots of servers that are up, and those of them that work, over time; work that was lost counts as none."""

    slots: int = 0
    busy: int = 0
    slot_s: float = 0.0
    busy_s: float = 0.0
    lost_s: float = 0.0
    since: float = 0.0

    def change(self, now: float, slots: int = 0, busy: int = 0) -> None:
        """From now on there are so many more."""
        self.slot_s += self.slots * (now - self.since)
        self.busy_s += self.busy * (now - self.since)
        self.since, self.slots, self.busy = now, self.slots + slots, self.busy + busy


class Server:
    """A server with slots and a queue; it may fail, and what it was asked then is lost."""

    def __init__(self, use: Use) -> None:
        self._use = use
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[asyncio.Future[None], float]] = deque()
        self._at_work: dict[asyncio.Future[None], float] = {}
        self.is_up = False

    def come(self) -> None:
        self.is_up = True
        self._use.change(self._loop.time(), slots=SLOTS)

    def fail(self) -> None:
        """Goes without a word."""
        now, self.is_up = self._loop.time(), False
        self._use.lost_s += sum(now - began for began in self._at_work.values())
        self._use.change(now, slots=-SLOTS, busy=-len(self._at_work))
        for answered in (*self._at_work, *(answered for answered, _ in self._waiting)):
            if not answered.done():
                answered.set_exception(EngineUnavailableError("it went"))
        self._at_work.clear()
        self._waiting.clear()

    def ask(self, seconds: float) -> "asyncio.Future[None]":
        """A call of so many seconds of a slot."""
        if not self.is_up:
            raise EngineUnavailableError("nobody is there")
        answered = self._loop.create_future()
        self._waiting.append((answered, seconds))
        self._fill()
        return answered

    def _fill(self) -> None:
        while self._waiting and len(self._at_work) < SLOTS:
            answered, seconds = self._waiting.popleft()
            now = self._loop.time()
            self._at_work[answered] = now
            self._use.change(now, busy=1)
            self._loop.call_later(seconds, self._answer, answered)

    def _answer(self, answered: "asyncio.Future[None]") -> None:
        if self._at_work.pop(answered, None) is None:
            return  # it failed meanwhile
        self._use.change(self._loop.time(), busy=-1)
        if not answered.done():
            answered.set_result(None)
        self._fill()


class Core:
    """The core of a shard's process, which does one thing at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._free = 0.0

    async def work(self) -> None:
        """Of one call."""
        now = asyncio.get_running_loop().time()
        self._free = max(now, self._free) + self._seconds
        await asyncio.sleep(self._free - now)


class Client:
    """Asks a server, as `salign.engines.openai` does through HTTP."""

    def __init__(self, server: Server, core: Core) -> None:
        self.identity = "virtual"
        self.waiting_since: float | None = None
        self.capabilities = Capabilities()
        self._server = server
        self._core = core

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        draw = random.Random(seed)
        tokens = max(4, min(256, int(draw.lognormvariate(math.log(MEDIAN_TOKENS), SIGMA))))
        await self._core.work()
        await self._server.ask(tokens * S_PER_TOKEN)
        word = f"{seed:x}"[:8]
        rating = f"Rating: {draw.randint(1, 7)} ### Reason: {word}" if "Rating:" in prompt.user else word
        return Reply(rating, 0, tokens)

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        raise NotImplementedError  # ratings are asked for in words

    async def probe(self, ratings: Ratings | None) -> Capabilities:
        return self.capabilities

    def on_push_back(self, report: Callable[[], None]) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        pass
