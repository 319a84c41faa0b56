"""Where questions and answers come from."""

from typing import Annotated, Literal

from pydantic import Field

from salign.config.base import AbsolutePath, FolderOrHub, Section
from salign.config.effects import Effect


class EverydaySource(Section):
    """The embedded set. The split `held_out` is for evaluation alone."""

    kind: Literal["everyday"] = "everyday"
    split: Literal["society", "held_out"] = "society"


class TextSource(Section):
    """One question a line."""

    kind: Literal["text"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class Rows(Section):
    """Rows with columns. A column that is not read is refused by name, but for metadata (see docs/data.md)."""

    ignore_columns: tuple[str, ...] = ()
    """Columns that need not be read."""
    skip_bad: bool = False
    """Malformed rows are skipped, and counted; False: they are an error."""


class FieldsSource(Rows):
    question: str = "question"
    input: str | None = None
    """The field of what the question is about, as Alpaca's rows have one; it may be empty."""
    answer: str = "answer"
    label: str | None = None
    """The field that says `good` or `bad` (or 1 or 0, true or false); None takes every answer for good."""


class JsonSource(FieldsSource):
    """A JSON array or JSON Lines (also .gz), one object a question."""

    kind: Literal["json"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class CsvSource(FieldsSource):
    """A table under a header: CSV, also apart by semicolons, or TSV (also .gz)."""

    kind: Literal["csv"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class ParquetSource(FieldsSource):
    """A Parquet file; needs the extra `datasets`."""

    kind: Literal["parquet"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class HubRows(Section):
    """Which dataset of the Hugging Face hub, or which folder: as downloaded from it, or written by `save_to_disk`."""

    path: Annotated[FolderOrHub, Effect.INPUT]
    split: str = "train"
    name: str | None = None
    """The configuration, where the dataset has several."""
    data_dir: str | None = None
    """The folder inside the dataset that holds the data."""
    revision: str | None = None
    """Of a hub id: a branch, tag or commit; None: the newest that is in the cache or on the hub."""


class DatasetSource(HubRows, FieldsSource):
    """A Hugging Face dataset."""

    kind: Literal["dataset"]


class HHSource(Rows):
    """HH transcripts: the first question; where the replies to it differ, the chosen is good, the rejected bad."""

    kind: Literal["hh"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class MoralStoriesSource(Rows):
    """Moral Stories: situation and intention; the moral action is good, the immoral one bad."""

    kind: Literal["moral_stories"]
    path: Annotated[AbsolutePath, Effect.INPUT]


Source = Annotated[
    EverydaySource
    | TextSource
    | JsonSource
    | CsvSource
    | ParquetSource
    | DatasetSource
    | HHSource
    | MoralStoriesSource,
    Field(discriminator="kind"),
]
