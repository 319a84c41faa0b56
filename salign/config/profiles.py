"""Who the agents are."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from salign.config.base import AbsolutePath, Section
from salign.config.effects import Effect
from salign.config.sources import HubRows

ProfileField = Literal["persona", "name", "culture", "goal", "secret", "question", "answer", "label", "part"]
PROFILE_FIELDS: tuple[ProfileField, ...] = get_args(ProfileField)


class _Profiles(Section):
    placed: bool = False
    """True: agent n is row n (counted from 0), and there are as many rows as agents. False: rows are drawn by seed,
    each as often as any other, but for a remainder."""


class PeopleProfiles(_Profiles):
    """The embedded set: 64 invented people, each with a goal and a secret."""

    kind: Literal["people"] = "people"


class ProfileRows(_Profiles):
    """One row a person, of whom `persona` must be there. A column that is no field of a person is an attribute."""

    columns: dict[ProfileField, str] = Field(default_factory=dict)
    """Which column holds a field, where it has another name: `persona` (what an agent is told of itself), `name`,
    `culture` (where it is from), `goal` and `secret` (told to nobody else), `question` and `answer` (what it alone
    knows), `label` (`good` or `bad`, which goes before that of `populations`), `part` (of `mixture`, which goes before
    the draw by share)."""
    ignore_columns: tuple[str, ...] = ()
    """Columns that are not to be attributes."""


class JsonProfiles(ProfileRows):
    """A JSON array or JSON Lines (also .gz), one object per person."""

    kind: Literal["json"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class CsvProfiles(ProfileRows):
    """A table with a header: CSV (comma or semicolon) or TSV, also .gz."""

    kind: Literal["csv"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class ParquetProfiles(ProfileRows):
    """A Parquet file; needs the extra `datasets`."""

    kind: Literal["parquet"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class DatasetProfiles(HubRows, ProfileRows):
    """A Hugging Face dataset."""

    kind: Literal["dataset"]


ProfilesSection = Annotated[
    PeopleProfiles | JsonProfiles | CsvProfiles | ParquetProfiles | DatasetProfiles, Field(discriminator="kind")
]
