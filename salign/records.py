"""What the society records, and what training reads: frozen, versioned, one JSON object per line.

A rating that is missing is None everywhere: never a number, and never in training data.

Records are structs of msgspec, which checks the type of each field while it decodes a line.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from salign.config import Kind
from salign.errors import DataError

INTERACTION_VERSION: Final = 3
MIN_SCORE, MAX_SCORE = 1.0, 7.0


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all records: frozen structs that refuse unknown fields."""


class Recalled(Record, frozen=True, omit_defaults=True):
    """A question and its answer, as an agent remembers them.

    `source` says whether the agent began with it, gave it itself, was told it by an intervention, or heard it in an
    interaction, from the agent `by`; `distance` is the cosine distance of the remembered question from the one that was
    asked. `more` is what else came to its mind with it, in order, and `num_left_out` the tokens for which the prompt
    had no room.
    """

    question: str
    answer: str
    source: Literal["initial", "own", "broadcast", "heard"]
    distance: float
    by: int | None = None
    more: tuple["Recalled", ...] = ()
    num_left_out: int = 0

    @property
    def all(self) -> tuple["Recalled", ...]:
        """All that came to its mind at once."""
        return (self, *self.more)


class Observation(Record, frozen=True):
    """An observer's rating of one turn by one criterion.

    `rating` is on the criterion's scale, or None; `mass` is the probability that the digits had before they were made
    to sum to 1, None where the rating was read from words; `text` is those words.
    """

    rating: float | None
    mass: float | None = None
    text: str = ""


class Turn(Record, frozen=True):
    """One turn of an agent in an interaction.

    `role` is what it says it as (`draft`, `feedback`, `revision`, ...). `about` is the position of the turn that it
    judges, with `rating` in 1..7, None where none can be had, and `mass` as in `Observation`. `observed` holds the
    observers' ratings of this turn by criterion; `flags` what makes the text doubtful, such as `cut`; `data` what else
    the protocol knows of the turn, such as a ballot or a payoff: small, and what JSON can say.
    """

    agent: int
    role: str
    text: str
    about: int | None = None
    rating: float | None = None
    mass: float | None = None
    observed: dict[str, Observation] = msgspec.field(default_factory=dict)
    recalled: Recalled | None = None
    flags: tuple[str, ...] = ()
    data: dict[str, Any] = msgspec.field(default_factory=dict)

    def observed_rating(self, criterion: str) -> float | None:
        """Returns the observers' rating by a criterion; None if there is none."""
        observation = self.observed.get(criterion)
        return None if observation is None else observation.rating


class Member(Record, frozen=True, omit_defaults=True):
    """Who takes part: its label in the population, its part of a mixed society, the model it speaks through.

    `profile` is the number of its profile, of those in the shard's `profiles.jsonl`; a member without one has none in
    the file.
    """

    agent: int
    label: str
    part: str | None
    engine: str
    profile: int | None = None


class Profile(Record, frozen=True):
    """Who an agent is: a row of `society.profiles`, with its number there, counted from 0.

    An agent is told its persona, name and culture in each of its calls; goal and secret, and the question to which it
    alone knows the answer, where the protocol asks for them. Attributes are told to nobody.
    """

    number: int
    persona: str
    name: str | None = None
    culture: str | None = None
    goal: str | None = None
    secret: str | None = None
    question: str | None = None
    answer: str | None = None
    label: Literal["good", "bad"] | None = None
    part: str | None = None
    attributes: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)

    @property
    def facts(self) -> dict[str, str | int | float | bool]:
        """What tells it from others beside its texts, by name; nothing that is private."""
        known = {"culture": self.culture, "label": self.label, "part": self.part, **self.attributes}
        return {name: value for name, value in known.items() if value is not None}


class Interaction(Record, frozen=True):
    """One interaction, led by the first of `agents` in `round` (counted from 1) of `world`.

    `agents` are those whose own interaction it is, not those who are only asked. `topic` is the question. `failure`
    says why an interaction did not come to its end.
    """

    world: int
    round: int
    agents: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1)]
    protocol: str
    topic: str
    turns: tuple[Turn, ...]
    failure: str | None
    num_calls: int
    prompt_tokens: int
    completion_tokens: int
    version: Literal[3] = INTERACTION_VERSION

    @property
    def agent(self) -> int:
        """The number of the agent that leads it."""
        return self.agents[0].agent

    @property
    def key(self) -> tuple[int, int, int]:
        """Its place in the canonical order: world, round, agent."""
        return self.world, self.round, self.agent

    def turns_of(self, role: str) -> tuple[Turn, ...]:
        """Returns the turns of a role, in order."""
        return tuple([turn for turn in self.turns if turn.role == role])

    def turn(self, role: str) -> Turn | None:
        """Returns the last turn of a role; None if there is none."""
        for turn in reversed(self.turns):
            if turn.role == role:
                return turn
        return None


class Message(Record, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class AlignmentGroup(Record, frozen=True):
    """Responses to one query with a score for each, in 1..7; the shape of the released data, and its kind and origin.

    `query` is plain text; training puts a template around it. `context` is what stands before it in a conversation: a
    system text, and earlier turns of user and assistant. `provenance` names the question that the group came from and
    the interactions (world, round, agent) behind it.
    """

    query: str
    responses: tuple[str, ...]
    scores: tuple[float, ...]
    kind: Kind | Literal["demonstration"] | None = None
    provenance: dict[str, Any] = msgspec.field(default_factory=dict)
    context: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if not self.query.strip():
            raise ValueError("the query is empty")
        if not self.responses or len(self.responses) != len(self.scores):
            raise ValueError(
                f"{len(self.responses)} responses and {len(self.scores)} scores; the numbers must be equal"
            )
        # Only a society's agent, sampled for its answer, can be known to have said nothing; a file's may lack it.
        may_be_empty = self.kind not in (None, "demonstration") and any(self.responses)
        if not all(response.strip() or (may_be_empty and not response) for response in self.responses):
            raise ValueError("a response is empty")
        wrong = [score for score in self.scores if not MIN_SCORE <= score <= MAX_SCORE]
        if wrong:
            raise ValueError(f"score {wrong[0]} is outside the scale {MIN_SCORE:g}..{MAX_SCORE:g}")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation that a response answers, as chat templates take it; it ends with the query."""
        turns = (*self.context, Message("user", self.query))
        return [{"role": turn.role, "content": turn.content} for turn in turns]


class ReplayedGroup(AlignmentGroup, frozen=True):
    """A group that an earlier generation made, `age` generations ago; it is in no file as such."""

    age: int = 1


# An interaction has some KB: the default buffer holds two of them.
_BUFFER_BYTES = 1 << 18
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Interaction).decode


def to_line(record: Record) -> str:
    """Writes a record as one line of JSON: the same bytes for the same record."""
    return to_bytes(record).decode()


def to_bytes(record: Record) -> bytes:
    """Writes a record as `to_line` does, encoded."""
    return _encode(record) + b"\n"


def read_interactions(path: Path) -> Iterator[Interaction]:
    """Reads the interactions of one shard in the file's order, one at a time in memory.

    Raises:
        DataError: A line is malformed, with file and line.
    """
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                yield _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: {_mistake(line, error)}") from None


def read_profiles(path: Path) -> dict[int, Profile]:
    """The profiles of a shard by their numbers; none where the society has none.

    Raises:
        DataError: A line is malformed, with file and line.
    """
    profiles = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            profile = msgspec.json.decode(line, type=Profile)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        profiles[profile.number] = profile
    return profiles


class _Versioned(msgspec.Struct):
    version: int


def _mistake(line: bytes, error: Exception) -> str:
    """Why a line is no interaction; another version first, whatever else it leads to."""
    try:
        version = msgspec.json.decode(line, type=_Versioned).version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        version = INTERACTION_VERSION
    if version != INTERACTION_VERSION:
        return (
            f"interaction version {version}, this code reads {INTERACTION_VERSION}: the run was simulated by another "
            "version of salign; simulate it again, or read it with that version"
        )
    return f"not an interaction: {error}"
