"""What the society records, and what training reads: frozen, versioned, one JSON object per line.

A rating that is missing is None everywhere: never a number, and never in training data.

The parts of an interaction have no slots: a row that was read becomes the dictionary of its object, which saves half of
the time of reading.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson

from salign.config import Kind
from salign.errors import DataError

INTERACTION_VERSION = 3
MIN_SCORE, MAX_SCORE = 1.0, 7.0

_Part = TypeVar("_Part")
_new, _set = object.__new__, object.__setattr__


@dataclass(frozen=True)
class Recalled:
    """A question with an answer to it, as an agent remembers it.

    `source` says whether the agent began with it or gave it itself; `distance` is the cosine distance of the remembered
    question from the one that was asked.
    """

    question: str
    answer: str
    source: Literal["initial", "own"]
    distance: float


@dataclass(frozen=True)
class Observation:
    """What an observer says of one turn by one criterion.

    `rating` is in 1..7 or None; `mass` is the probability that the digits had before they were made to sum to 1, None
    where the rating was read from words; `text` is those words.
    """

    rating: float | None
    mass: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Turn:
    """What one agent says in an interaction.

    `role` is what it says it as (`draft`, `feedback`, `revision`, ...). `about` is the position of the turn that it
    judges, with `rating` in 1..7, None where none can be had, and `mass` as in `Observation`. `observed` holds the
    observers' ratings of this turn by criterion; `flags` what makes the text doubtful, such as `cut`.
    """

    agent: int
    role: str
    text: str
    about: int | None = None
    rating: float | None = None
    mass: float | None = None
    observed: dict[str, Observation] = dataclasses.field(default_factory=dict)
    recalled: Recalled | None = None
    flags: tuple[str, ...] = ()

    def observed_rating(self, criterion: str) -> float | None:
        """The observers' rating by a criterion; None where there is none."""
        observation = self.observed.get(criterion)
        return None if observation is None else observation.rating


@dataclass(frozen=True)
class Member:
    """Who takes part: its label in the population, its part of a mixed society, the model it speaks through."""

    agent: int
    label: str
    part: str | None
    engine: str


@dataclass(frozen=True)
class Interaction:
    """One interaction, led by the first of `agents` in `round` (counted from 1) of `world`.

    `agents` are those whose own interaction it is, not those who are only asked. `topic` is the question. `failure`
    says why an interaction did not come to its end.
    """

    world: int
    round: int
    agents: tuple[Member, ...]
    protocol: str
    topic: str
    turns: tuple[Turn, ...]
    failure: str | None
    num_calls: int
    prompt_tokens: int
    completion_tokens: int
    version: int = INTERACTION_VERSION

    @property
    def agent(self) -> int:
        """Who leads it."""
        return self.agents[0].agent

    @property
    def key(self) -> tuple[int, int, int]:
        """The canonical order: world, round, agent."""
        return self.world, self.round, self.agent

    def turns_of(self, role: str) -> tuple[Turn, ...]:
        """The turns of one role, in order."""
        return tuple([turn for turn in self.turns if turn.role == role])

    def turn(self, role: str) -> Turn | None:
        """The last turn of a role; None where it did not come to one."""
        for turn in reversed(self.turns):
            if turn.role == role:
                return turn
        return None

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Interaction":
        """The interaction of a decoded row, which it takes over."""
        if row.get("version") != INTERACTION_VERSION:
            raise ValueError(
                f"interaction version {row.get('version')!r}, this code reads {INTERACTION_VERSION}: the run was "
                "simulated by another version of salign; simulate it again, or read it with that version"
            )
        if not row["agents"]:
            raise ValueError("agents is empty")
        row["agents"] = tuple([_taken_over(Member, member) for member in row["agents"]])
        row["turns"] = tuple(map(_turn, row["turns"]))
        return _taken_over(cls, row)


_FIELDS: dict[type, set[str]] = {
    part: {field.name for field in dataclasses.fields(part)}
    for part in (Recalled, Observation, Turn, Member, Interaction)
}


def _turn(row: dict[str, Any]) -> Turn:
    observed, recalled = row["observed"], row["recalled"]
    if observed:
        for criterion, observation in observed.items():
            observed[criterion] = _taken_over(Observation, observation)
    if recalled is not None:
        row["recalled"] = _taken_over(Recalled, recalled)
    row["flags"] = tuple(row["flags"])
    return _taken_over(Turn, row)


def _taken_over(part: type[_Part], row: dict[str, Any]) -> _Part:
    """An object whose fields are a decoded row, without copying them; TypeError where those are not its fields."""
    if row.keys() != _FIELDS[part]:
        return part(**row)
    made = _new(part)
    _set(made, "__dict__", row)
    return made


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class AlignmentGroup:
    """Responses to one query with a score for each, in 1..7; the shape of the released data, and its kind and origin.

    `query` is plain text; training puts a template around it. `context` is what stands before it in a conversation: a
    system text, and earlier turns of user and assistant. `provenance` names the question that the group came from and
    the interactions (world, round, agent) behind it.
    """

    query: str
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    kind: Kind | Literal["demonstration"] | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    context: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if not self.query.strip():
            raise ValueError("the query is empty")
        if not self.responses or len(self.responses) != len(self.scores):
            raise ValueError(
                f"{len(self.responses)} responses and {len(self.scores)} scores; the numbers must be equal"
            )
        if not all(map(str.strip, self.responses)):
            raise ValueError("a response is empty")
        wrong = [score for score in self.scores if not MIN_SCORE <= score <= MAX_SCORE]
        if wrong:
            raise ValueError(f"score {wrong[0]} is outside the scale {MIN_SCORE:g}..{MAX_SCORE:g}")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation that a response answers, as chat templates take it; it ends with the query."""
        turns = (*self.context, Message("user", self.query))
        return [{"role": turn.role, "content": turn.content} for turn in turns]


def to_line(record: Interaction | AlignmentGroup) -> str:
    """A record as one line of JSON, the same bytes for the same record."""
    return to_bytes(record).decode()


def to_bytes(record: Interaction | AlignmentGroup) -> bytes:
    """`to_line`, encoded."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def read_interactions(path: Path) -> Iterator[Interaction]:
    """The interactions of one shard, in the file's order, of which one at a time is in memory.

    Raises:
        DataError: A line is malformed, with file and line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield Interaction.from_json(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno})"
                ) from None
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}, line {number}: not an interaction ({error!r})") from error
