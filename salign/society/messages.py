"""What the ranks of one shard tell each other. Each message is one of these classes, and receivers match on them."""

from dataclasses import dataclass
from typing import Any

from salign.society.requests import Ask, Join, Look, Published
from salign.society.rounds import Round


@dataclass(frozen=True, slots=True)
class Request:
    """Asks an agent that lives on the receiver's rank. The sender numbers its requests."""

    number: int
    ask: Ask | Look | Join


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to the receiver's request of that number: what `World.respond` returned."""

    number: int
    answer: Any


@dataclass(frozen=True, slots=True)
class RoundPart:
    """All that the sender's agents did in a round; for rank 0."""

    part: Round


@dataclass(frozen=True, slots=True)
class RoundDecided:
    """A round of a world is complete on all ranks, and whether the world ends with it; from rank 0."""

    world: int
    round: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the sender is; for rank 0."""

    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """The sender failed, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender sends nothing after this."""


Message = Request | Response | Published | RoundPart | RoundDecided | Progress | Failure | Goodbye
