"""What interactions ask of agents and write into their states, wherever these live."""

from dataclasses import dataclass
from typing import Any, Protocol

from salign.society.protocols.messages import Query, Update


@dataclass(frozen=True, slots=True)
class Ask:
    """What an interaction that `agent` leads asks one member."""

    world: int
    round: int
    agent: int
    member: int
    question: int
    query: Query


@dataclass(frozen=True, slots=True)
class Look:
    """An interaction of a round reads a note of any agent."""

    world: int
    round: int
    member: int
    note: str


@dataclass(frozen=True, slots=True)
class Join:
    """An interaction of a round begins, of whose cast the member is: with what state?

    `told` is the last round whose interventions count; None: this one.
    """

    world: int
    round: int
    member: int
    question: int
    told: int | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """What an interaction of a round writes into the state of an agent."""

    world: int
    round: int
    agent: int
    question: int
    update: Update


class Elsewhere(Protocol):
    """The agents that live on other ranks."""

    async def ask(self, request: Ask | Look | Join) -> Any:
        """What `World.respond` returns where the member lives."""

    def tell(self, news: Published) -> None:
        """Has `World.take` told, where the agent lives."""
