"""An engine that hands its calls on to others."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from salign.config import Sampling
from salign.engines.base import Prompt, PushesBack, RatingReply, Reply
from salign.engines.capabilities import Capabilities, Measurable, Ratings

T = TypeVar("T")


class Client(Measurable, PushesBack, Protocol):
    """One of those that answer."""


class ProxyEngine(ABC):
    """Calls are answered by clients that are all alike, and may come and go.

    Attributes:
        identity: Of what they answer with.
    """

    identity: str

    def __init__(self) -> None:
        self._capabilities = Capabilities(rating_way="begun")  # servers of ours can; until it is measured
        self._report_push_back: Callable[[], None] | None = None

    @abstractmethod
    async def _call(self, call: Callable[[Client], Awaitable[T]]) -> T:
        """Makes a call of one of the clients."""

    @abstractmethod
    def _clients(self) -> Iterable[Client]:
        """Those that are there."""

    def _take_in(self, client: Client) -> None:
        """Gives a client that comes what the others have."""
        client.capabilities = self._capabilities
        if self._report_push_back is not None:
            client.on_push_back(self._report_push_back)

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        return await self._call(lambda client: client.generate(prompt, sampling, seed))

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        return await self._call(lambda client: client.rate(prompt, seed))

    @property
    def capabilities(self) -> Capabilities:
        """What was measured of one client; the others are like it, also those that come later."""
        return self._capabilities

    @capabilities.setter
    def capabilities(self, measured: Capabilities) -> None:
        self._capabilities = measured
        for client in self._clients():
            client.capabilities = measured

    async def probe(self, ratings: Ratings | None) -> Capabilities:
        """Measures what a client can do; see `Measurable`."""
        return await self._call(lambda client: client.probe(ratings))

    def on_push_back(self, report: Callable[[], None]) -> None:
        """As `PushesBack` has it, of all clients."""
        self._report_push_back = report
        for client in self._clients():
            client.on_push_back(report)

    def facts(self) -> dict[str, Any]:
        return self.capabilities.facts()
