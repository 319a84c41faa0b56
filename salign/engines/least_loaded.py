"""Several servers of one model as one engine."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from salign.config import Sampling
from salign.engines.base import Prompt, PushesBack, RatingReply, Reply
from salign.engines.capabilities import Capabilities, Measurable, Ratings


class _Server(Measurable, PushesBack, Protocol):
    """One of them."""


class LeastLoaded:
    """Several servers of one model as one engine: a call goes to the one with the fewest calls in flight."""

    def __init__(self, engines: Sequence[_Server]) -> None:
        self.engines = engines
        self._num_calls = [0] * len(engines)

    @property
    def identity(self) -> str:
        return self.engines[0].identity

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        with self._chosen() as engine:
            return await engine.generate(prompt, sampling, seed)

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        with self._chosen() as engine:
            return await engine.rate(prompt, seed)

    @property
    def capabilities(self) -> Capabilities:
        """What was measured of the first; the others are like it."""
        return self.engines[0].capabilities

    @capabilities.setter
    def capabilities(self, measured: Capabilities) -> None:
        for engine in self.engines:
            engine.capabilities = measured

    async def probe(self, ratings: Ratings | None) -> Capabilities:
        """Measures what the servers can do; see `Measurable`."""
        return await self.engines[0].probe(ratings)

    def on_push_back(self, report: Callable[[], None]) -> None:
        for engine in self.engines:
            engine.on_push_back(report)

    @property
    def waiting_since(self) -> float | None:
        """Since when none of them serves; None while one does."""
        lost = [engine.waiting_since for engine in self.engines]
        return None if None in lost else max(since for since in lost if since is not None)

    def facts(self) -> dict[str, Any]:
        return self.capabilities.facts()

    @contextlib.contextmanager
    def _chosen(self) -> Iterator[_Server]:
        index = self._num_calls.index(min(self._num_calls))
        self._num_calls[index] += 1
        try:
            yield self.engines[index]
        finally:
            self._num_calls[index] -= 1
