"""What the society records, and what training reads: frozen, versioned, one JSON object a line.

A rating that is missing is None everywhere: never a number, and never in training data.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from salign.config import Kind
from salign.errors import DataError

INTERACTION_VERSION = 2
MIN_SCORE, MAX_SCORE = 1.0, 7.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A question with an answer to it, as an agent remembers it."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Rating:
    """An observer's opinion of one answer, each in 1..7 or None."""

    alignment: float | None
    engagement: float | None


@dataclass(frozen=True, slots=True)
class Feedback:
    """What one member of the audience says of a draft."""

    agent: int
    rating: float | None
    reason: str
    recalled: Answer | None


@dataclass(frozen=True, slots=True)
class Interaction:
    """One Back-Scatter interaction, led by `agent` in `round` (counted from 1) of `world`.

    `part` names the agent's part of a mixed society. `failure` says why an interaction came to no revision; then
    `revision` is None.
    """

    world: int
    round: int
    agent: int
    part: str | None
    question: str
    recalled: Answer | None
    draft: str | None
    feedback: tuple[Feedback, ...]
    revision: str | None
    draft_rating: Rating
    revision_rating: Rating
    failure: str | None
    num_calls: int
    prompt_tokens: int
    completion_tokens: int
    version: int = INTERACTION_VERSION

    @property
    def key(self) -> tuple[int, int, int]:
        """The canonical order: world, round, agent."""
        return self.world, self.round, self.agent

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Interaction":
        if row.get("version") != INTERACTION_VERSION:
            raise ValueError(f"interaction version {row.get('version')!r}, this code reads {INTERACTION_VERSION}")
        fields = dict(row)
        fields["recalled"] = _answer(row["recalled"])
        fields["feedback"] = tuple(
            Feedback(**{**item, "recalled": _answer(item["recalled"])}) for item in row["feedback"]
        )
        fields["draft_rating"] = Rating(**row["draft_rating"])
        fields["revision_rating"] = Rating(**row["revision_rating"])
        return cls(**fields)


def _answer(row: dict[str, str] | None) -> Answer | None:
    return None if row is None else Answer(**row)


@dataclass(frozen=True, slots=True)
class AlignmentGroup:
    """Responses to one query with a score for each, in 1..7; the shape of the released data, and its kind and origin.

    `query` is plain text; training puts a template around it. `provenance` names the question that it came from and
    the interactions (world, round, agent) behind it.
    """

    query: str
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    kind: Kind | Literal["demonstration"] | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.query.strip():
            raise ValueError("the query is empty")
        if not self.responses or len(self.responses) != len(self.scores):
            raise ValueError(
                f"{len(self.responses)} responses and {len(self.scores)} scores; as many of each are needed"
            )
        if any(not response.strip() for response in self.responses):
            raise ValueError("a response is empty")
        wrong = [score for score in self.scores if not MIN_SCORE <= score <= MAX_SCORE]
        if wrong:
            raise ValueError(f"score {wrong[0]} is outside the scale {MIN_SCORE:g}..{MAX_SCORE:g}")


def to_line(record: Interaction | AlignmentGroup) -> str:
    """A record as one line of JSON, the same bytes for the same record."""
    return to_bytes(record).decode()


def to_bytes(record: Interaction | AlignmentGroup) -> bytes:
    """`to_line`, encoded."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def json_lines(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered objects of a JSON Lines file.

    Raises:
        DataError: A line is no JSON, with file and line.
    """
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: no valid JSON ({error.msg} at column {error.colno})") from None


def read_interactions(path: Path) -> Iterator[Interaction]:
    """The interactions of one shard, in the file's order.

    Raises:
        DataError: A line is malformed, with file and line.
    """
    with path.open(encoding="utf-8") as file:
        for number, row in json_lines(file, path):
            try:
                yield Interaction.from_json(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{path}, line {number}: no interaction ({error!r})") from error
