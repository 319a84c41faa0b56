"""What stands between the agents and an engine: the journal, the gate, and counts of what went through."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from salign.config import Sampling
from salign.engines.base import Engine, Prompt, RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.journal import CallKeys, Journal
from salign.engines.sentences import shorten
from salign.errors import CallRejectedError

R = TypeVar("R", Reply, RatingReply)


class MeteredEngine:
    """An engine with a bound on concurrent calls and counts of what went through it.

    With a journal, what was answered once is answered from it, at once and for nothing.

    Attributes:
        num_cut: Replies that `max_tokens` ended, as far as the engine says it.
        num_thinking: Replies from which thinking was taken off.
        num_thinking_cut: Those of them that were cut off while the model thought, which leaves them without text.
    """

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self._engine = engine
        self.gate = gate
        self.journal: Journal | None = None
        self._keys = CallKeys(engine.identity)
        self._start = time.monotonic()
        self.num_calls = 0
        self.num_journaled = 0
        self.num_refused = 0
        self.num_cut = 0
        self.num_thinking = 0
        self.num_thinking_cut = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.prompt_characters = 0
        self.shared_characters = 0
        self.served: Counter[str] = Counter()

    def counted_apart(self) -> "MeteredEngine":
        """The same engine, gate and journal with counts of its own, for calls that are no part of the society."""
        apart = MeteredEngine(self._engine, self.gate)
        apart.journal = self.journal
        return apart

    @property
    def identity(self) -> str:
        return self._engine.identity

    @property
    def calls_per_s(self) -> float:
        return self.num_calls / max(time.monotonic() - self._start, 1e-9)

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int, priority: tuple[int, ...] = ()) -> Reply:
        """Samples one reply; of the calls that wait for their turn, the lowest priority goes first."""
        key = None
        if self.journal is not None:
            key = self._keys.of(prompt, sampling, seed)
            found = self._found(key, Reply)
            if found is not None:
                return self._count(prompt, shorten(found, sampling.max_sentences))
        reply = await self._call(key, prompt, lambda: self._engine.generate(prompt, sampling, seed), priority)
        return self._count(prompt, shorten(reply, sampling.max_sentences))

    async def rate(self, prompt: Prompt, seed: int, priority: tuple[int, ...] = ()) -> RatingReply:
        """Asks for one digit of 1..7."""
        key = None
        if self.journal is not None:
            key = self._keys.of(prompt, None, seed)
            found = self._found(key, RatingReply)
            if found is not None:
                return self._count(prompt, found)
        return self._count(prompt, await self._call(key, prompt, lambda: self._engine.rate(prompt, seed), priority))

    def _found(self, key: bytes, kind: type[R]) -> R | None:
        assert self.journal is not None
        answer = self.journal.find(key)
        if answer is None:
            return None
        self.num_journaled += 1
        if isinstance(answer, CallRejectedError):
            self._refuse()
            raise answer
        assert isinstance(answer, kind)
        return answer

    async def _call(
        self, key: bytes | None, prompt: Prompt, call: Callable[[], Awaitable[R]], priority: tuple[int, ...]
    ) -> R:
        await self.gate.enter(priority)
        start = time.monotonic()
        try:
            reply = await call()
        except BaseException as error:
            self.gate.leave()
            if isinstance(error, CallRejectedError):
                if key is not None and self.journal is not None:
                    self.journal.append(key, error, time.monotonic() - start)
                self._refuse()
            raise
        seconds = time.monotonic() - start
        self.gate.leave(seconds, reply.completion_tokens)
        if key is not None and self.journal is not None:
            self.journal.append(key, reply, seconds)
        return reply

    def _refuse(self) -> None:
        self.num_calls += 1
        self.num_refused += 1

    def _count(self, prompt: Prompt, reply: R) -> R:
        self.num_calls += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.prompt_characters += len(prompt.user)
        self.shared_characters += prompt.num_shared
        if reply.served is not None:
            self.served[reply.served] += 1
        if isinstance(reply, Reply):
            self.num_cut += reply.finish == "length"
            self.num_thinking += reply.thinking != "none"
            self.num_thinking_cut += reply.thinking == "cut"
        return reply

    def facts(self) -> dict[str, Any]:
        """What the engine measured of itself when it opened."""
        return self._engine.facts()

    async def close(self) -> None:
        await self._engine.close()
