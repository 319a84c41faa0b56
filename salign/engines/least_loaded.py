"""Several servers of one model as one engine."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from salign.engines.proxy import Client, ProxyEngine

T = TypeVar("T")


class LeastLoaded(ProxyEngine):
    """Several servers of one model as one engine: a call goes to the one with the fewest calls in flight."""

    def __init__(self, engines: Sequence[Client]) -> None:
        super().__init__()
        self.identity = engines[0].identity
        self.engines = engines
        self._num_calls = [0] * len(engines)

    def _clients(self) -> Sequence[Client]:
        return self.engines

    @property
    def waiting_since(self) -> float | None:
        """Since when none of them serves; None while one does."""
        lost = [engine.waiting_since for engine in self.engines]
        return None if None in lost else max(since for since in lost if since is not None)

    async def _call(self, call: Callable[[Client], Awaitable[T]]) -> T:
        index = self._num_calls.index(min(self._num_calls))
        self._num_calls[index] += 1
        try:
            return await call(self.engines[index])
        finally:
            self._num_calls[index] -= 1
