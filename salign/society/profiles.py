"""Who the agents are: profiles of a file, a dataset or the embedded people, and which agent has which."""

import importlib.resources
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salign.columns import is_empty, nearest
from salign.config import (
    PROFILE_FIELDS,
    CsvProfiles,
    HubRows,
    JsonProfiles,
    ParquetProfiles,
    PeopleProfiles,
    ProfileRows,
    ProfilesSection,
    SocietySection,
)
from salign.errors import ConfigError, DataError
from salign.files import Mistakes, RowError
from salign.records import Profile
from salign.seeds import rng
from salign.society.sources import rows_of

_PEOPLE = "data/people.jsonl"
_MAX_TEXT = 4_000
"""Characters of a field: each call of the agent is that much longer."""


def load_profiles(society: SocietySection) -> list[Profile]:
    """The profiles of a society, in the order of their rows; none where it has none.

    Raises:
        DataError: A file is missing or rows are malformed, with file, row and field; a goal is missing that the
            protocol needs, or is there and would be told to nobody; or there are not as many rows as are placed.
    """
    section = society.population_profiles
    if section is None:
        return []
    if isinstance(section, PeopleProfiles):
        if society.protocol.needs_facts:
            raise DataError(
                "society.protocol.asks_facts needs a question of each agent, to which it alone knows the answer, and "
                "the embedded people have none. Name a file of your own in society.profiles."
            )
        text = importlib.resources.files("salign.society").joinpath(_PEOPLE).read_text(encoding="utf-8")
        return [_profile(number, json.loads(line), _FIELDS) for number, line in enumerate(text.splitlines())]
    return list(_read(society, section))


_FIELDS: dict[str, str] = {field: field for field in PROFILE_FIELDS}


def _read(society: SocietySection, section: ProfileRows) -> Iterator[Profile]:
    assert isinstance(section, JsonProfiles | CsvProfiles | ParquetProfiles | HubRows)
    columns = {**_FIELDS, **{str(field): column for field, column in section.columns.items()}}
    mistakes = Mistakes(section.path, skip=None)
    parts = {part.name for part in society.mixture}
    profiles = []
    for place, (number, row) in enumerate(rows_of(section)):
        try:
            if isinstance(row, RowError):
                raise row
            if not isinstance(row, dict):
                raise RowError(f"it is not an object but {type(row).__name__}")
            kept = {name: value for name, value in row.items() if name not in section.ignore_columns}
            profile = _profile(place, kept, columns)
            _check_use(profile, society, columns, parts)
            profiles.append(profile)
        except RowError as error:
            mistakes.add(number, error)
    mistakes.raise_any()
    if not profiles:
        raise DataError(f"{section.path} contains no profile")
    yield from profiles


def _check_use(profile: Profile, society: SocietySection, columns: dict[str, str], parts: set[str]) -> None:
    """Whether the society can make use of what a row says.

    Raises:
        RowError: It cannot.
    """
    kind = society.protocol.kind
    if society.protocol.needs_goals and profile.goal is None:
        raise RowError(f"no text in the field {columns['goal']!r}: the protocol {kind} needs a goal of each agent")
    for field, value in (("goal", profile.goal), ("secret", profile.secret)):
        if value is not None and not society.protocol.needs_goals:
            raise RowError(
                f"there is a {field} in {columns[field]!r}, and the protocol {kind} tells it to nobody; leave it out "
                f"with ignore_columns: [{columns[field]}]"
            )
    for field, value in (("question", profile.question), ("answer", profile.answer)):
        if society.protocol.needs_facts and value is None:
            raise RowError(
                f"no text in the field {columns[field]!r}: society.protocol.asks_facts needs a question of each agent, "
                "to which it alone knows the answer"
            )
        if value is not None and not society.protocol.needs_facts:
            raise RowError(
                f"there is a text in {columns[field]!r}, and it is told to nobody: set society.protocol to {{kind: "
                f"dialogue, asks_facts: true}}, or leave it out with ignore_columns: [{columns[field]}]"
            )
    if profile.part is not None and profile.part not in parts:
        raise RowError(
            f"the part is {profile.part!r}, and society.mixture has {', '.join(sorted(parts)) or 'no part'}: name "
            "one of them there"
        )


def _profile(number: int, row: dict[str, Any], columns: dict[str, str]) -> Profile:
    """Raises RowError where a field is missing or of no use."""
    given = {field: _text(row, column) for field, column in columns.items()}
    if given["persona"] is None:
        column = columns["persona"]
        near = None if column in row else nearest(column, map(str, row))
        hint = f"; did you mean {near!r}?" if near else ""
        raise RowError(f"no text in the field {column!r}; it has {', '.join(map(str, row))}{hint}")
    label = given["label"]
    if label not in ("good", "bad", None):
        raise RowError(f"the label in {columns['label']!r} is {label!r}; it must be 'good' or 'bad'")
    attributes = {}
    for name, value in row.items():
        if name in columns.values() or is_empty(value):
            continue
        if not isinstance(value, str | int | float | bool) or (isinstance(value, str) and len(value) > _MAX_TEXT):
            what = "a long text" if isinstance(value, str) else type(value).__name__
            raise RowError(
                f"the attribute {name!r} is {what}; one is a text of {_MAX_TEXT:,} characters at most, or a number. "
                f"Leave it out with ignore_columns: [{name}]"
            )
        attributes[str(name)] = value
    return Profile(number, **given, attributes=attributes)  # type: ignore[arg-type]


def _text(row: dict[str, Any], column: str) -> str | None:
    value = row.get(column)
    if is_empty(value) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise RowError(f"the field {column!r} is {type(value).__name__}; it must be a text")
    if len(value) > _MAX_TEXT:
        raise RowError(
            f"the field {column!r} has {len(value):,} characters; at most {_MAX_TEXT:,} can be told an agent"
        )
    return value.strip()


def draw_profiles(section: ProfilesSection | None, num_rows: int, num_agents: int, *place: int | str) -> "array[int]":
    """The number of each agent's profile; empty where there are no profiles.

    Args:
        section: Whether they are placed or drawn.
        num_rows: How many there are.
        num_agents: Of the world.
        *place: What makes the draw this one: run seed, world.

    Raises:
        ConfigError: They are placed, and are not as many as the agents.
    """
    if section is None:
        return array("i")
    if section.placed:
        if num_rows != num_agents:
            raise ConfigError(
                f"society.profiles.placed: there are {num_rows} profiles and {num_agents} agents. Give one row for "
                "each agent, or placed: false to draw them."
            )
        return array("i", range(num_rows))
    generator, drawn = rng(*place, "profiles"), array("i")
    while len(drawn) < num_agents:
        drawn.extend(generator.sample(range(num_rows), min(num_rows, num_agents - len(drawn))))
    return drawn


def files_of(section: ProfilesSection | None) -> list[Path]:
    """The file that profiles are read from, where it is one."""
    return [section.path] if isinstance(section, JsonProfiles | CsvProfiles | ParquetProfiles) else []
