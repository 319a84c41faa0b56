"""Limits the calls in flight of an engine to what it can take.

Two signs say that it takes no more. It pushes calls back (429, 503, a time-out): then the limit falls by 30 %, once for
each round trip, and comes back by one for each `limit` good calls, as TCP's congestion window does. Or its latency
rises: then the limit falls by 10 %, after the idea of Gradient2 in Netflix's concurrency-limits (the latency of late
against the best that was seen, slowly forgotten). An engine that was never seen faster is not slow: calls that queue
inside it from the beginning cost nothing but their place in the queue.
"""

import asyncio
import heapq
import time
from dataclasses import dataclass

from salign.engines.base import FIRST, Call, Engine, Priority, RatingReply, Reply

_PUSHED_BACK = 0.7
_SLOW = 0.9
_SLOW_FACTOR = 2.0
_FORGET = 0.03
_MIN_WINDOW = 32
# Latency alone never lowers the limit below this share of the most: it is a weaker sign than a refusal.
_SLOW_SHARE = 16


@dataclass(slots=True)
class _Window:
    """Calls of one size: the seconds per token of those since the last look, and the best mean of late."""

    num_calls: int = 0
    total: float = 0.0
    best: float | None = None

    def close(self) -> bool:
        """Begins the next window; True if this one was slow."""
        mean = self.total / self.num_calls
        self.num_calls, self.total = 0, 0.0
        if self.best is None or mean <= self.best:
            self.best = mean
            return False
        slow = mean > _SLOW_FACTOR * self.best
        # An engine that stays slower (longer prompts, another tenant) is in the end taken as it is.
        self.best += _FORGET * (mean - self.best)
        return slow


class Gate:
    """Bounds the calls in flight within one event loop, lowest priority first.

    `limit` is how many may be in flight now, `in_flight` how many are, `num_pushbacks` how often the engine said no.
    """

    def __init__(self, most: int, adaptive: bool) -> None:
        """Opens the gate.

        Args:
            most: The limit at the beginning, and its upper bound.
            adaptive: Whether the limit follows what the engine takes.
        """
        self.limit = most
        self.in_flight = 0
        self.num_pushbacks = 0
        self._most = most
        self._adaptive = adaptive
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._num_waited = 0
        # Of the calls that were in flight when the limit was last lowered, those whose end is not seen yet: they say
        # nothing about the lowered limit.
        self._num_unsettled = 0
        self._num_good = 0
        self._slow = False
        # Apart by size (powers of two of tokens), so that a phase of short calls, which are mostly prompt, does not
        # look like an engine that became slow.
        self._windows: dict[int, _Window] = {}

    def try_enter(self) -> bool:
        """Takes a slot, which `leave` gives back, where one is free."""
        # Whoever could be let in is let in at once, so a free slot means that nobody waits.
        if self.in_flight >= self.limit:
            return False
        self.in_flight += 1
        return True

    async def enter(self, priority: Priority = FIRST) -> None:
        """Waits for a slot, which `leave` gives back. Returns at once, without suspending, where one is free."""
        if self.try_enter():
            return
        admitted = asyncio.get_running_loop().create_future()
        self._num_waited += 1
        heapq.heappush(self._waiting, (priority, self._num_waited, admitted))
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():  # the slot was already this call's
                self.in_flight -= 1
                self._admit()
            raise

    def leave(self, seconds: float | None = None, tokens: int = 0) -> None:
        """Gives the slot back.

        Args:
            seconds: How long the engine took; None for a call without an answer, from which nothing is learned.
            tokens: Completion tokens of the answer; 0 if they are not known.
        """
        self.in_flight -= 1
        if self._adaptive:
            if self._num_unsettled > 0:
                self._num_unsettled -= 1
            elif seconds is not None:
                self._learn(seconds, tokens)
        if self._waiting:
            self._admit()

    def pushed_back(self) -> None:
        """Notes that the engine refused a call for its load, or did not answer in time."""
        self.num_pushbacks += 1
        if not self._adaptive:
            return
        if self._num_unsettled > 0:
            self._num_unsettled -= 1
        else:
            self._lower(int(self.limit * _PUSHED_BACK), 1)

    def _learn(self, seconds: float, tokens: int) -> None:
        size = tokens.bit_length()
        window = self._windows.get(size)
        if window is None:
            window = self._windows[size] = _Window()
        window.num_calls += 1
        window.total += seconds / max(tokens, 1)
        if window.num_calls >= max(_MIN_WINDOW, self.limit):
            self._slow = window.close()
            if self._slow:
                self._lower(int(self.limit * _SLOW), self._most // _SLOW_SHARE)
                return
        # Calls far below the limit do not show that more would be taken. This one has left already.
        if self.limit < self._most and not self._slow and 2 * (self.in_flight + 1) >= self.limit:
            self._num_good += 1
            if self._num_good >= self.limit:
                self._num_good = 0
                self.limit += 1

    def _lower(self, limit: int, least: int) -> None:
        self.limit = min(self.limit, max(limit, least, 1))
        self._num_good = 0
        self._num_unsettled = self.in_flight

    def _admit(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            admitted = heapq.heappop(self._waiting)[2]
            if not admitted.done():  # cancelled while it waited
                self.in_flight += 1
                admitted.set_result(None)


class Gated:
    """Keeps a call until the gate has a slot for it, and notes how long the engine took."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self._engine = engine
        self._gate = gate

    async def handle(self, call: Call) -> Reply | RatingReply:
        """The engine's answer."""
        gate = self._gate
        if not gate.try_enter():  # at most times there is a slot, and no need for a coroutine
            await gate.enter(call.priority)
        start = time.monotonic()
        reply: Reply | RatingReply
        try:
            if call.sampling is None:
                reply = await self._engine.rate(call.prompt, call.seed)
            else:
                reply = await self._engine.generate(call.prompt, call.sampling, call.seed)
        except BaseException:
            call.seconds = time.monotonic() - start
            gate.leave()
            raise
        call.seconds = time.monotonic() - start
        gate.leave(call.seconds, reply.completion_tokens)
        return reply
