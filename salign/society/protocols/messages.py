"""What a world and an interaction tell each other: who is there in which state, what is asked, what is carried on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from salign.records import Member, Profile, Recalled
from salign.society.sources import Choices
from salign.society.stream import Heard
from salign.society.topology import Topology


class State(NamedTuple):
    """What an agent brings to an interaction of round r: its state as it stood after round r-1.

    `recalled` is what it remembers of the question; `notes` are its own, by name, and are not to be changed in place;
    `profile` says who it is, where the society has profiles.
    """

    agent: int
    recalled: Recalled | None
    notes: Mapping[str, Any]
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What an interaction writes into the state of one of its agents.

    `answer` is remembered as the agent's to the question, None where it has none; `notes` replace those of the same
    names: small values that JSON can say, never changed in place afterwards. `heard` is what it lived through, where it
    remembers that.
    """

    answer: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    heard: Sequence[Heard] = ()


@dataclass(frozen=True, slots=True)
class Seat:
    """One interaction before it is held: whose it is in which round, and who may be asked.

    `cast` are those whose interaction it is, the leader first; `states` are theirs. `choices` are the answers that the
    question lists, None where it lists none.
    """

    world: int
    round: int
    cast: tuple[Member, ...]
    states: tuple[State, ...]
    topology: Topology
    question: str
    audience: tuple[int, ...]
    choices: Choices | None = None

    @property
    def leader(self) -> Member:
        return self.cast[0]

    @property
    def recalled(self) -> Recalled | None:
        """What the leader remembers of the question."""
        return self.states[0].recalled

    @property
    def notes(self) -> Mapping[str, Any]:
        """The leader's."""
        return self.states[0].notes


@dataclass(frozen=True, slots=True)
class Query:
    """What a member is asked: of a text, said in the turn at position `about`; `data` is what else it is told."""

    text: str
    about: int
    data: Mapping[str, Any] = field(default_factory=dict)
