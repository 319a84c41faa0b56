"""Where questions and answers come from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from salign.config.base import AbsolutePath, FolderOrHub, Section, unless
from salign.config.effects import Effect


class EverydaySource(Section):
    """The embedded set. The split `held_out` is for evaluation only."""

    kind: Literal["everyday"] = "everyday"
    split: Literal["society", "held_out"] = "society"


class TextSource(Section):
    """One question per line."""

    kind: Literal["text"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class Rows(Section):
    """Rows with columns. A column that would not be read is refused by name, except for metadata (docs/data.md)."""

    ignore_columns: tuple[str, ...] = ()
    """Columns to ignore."""
    skip_bad: bool = False
    """True: malformed rows are skipped and counted; False: they are an error."""


class FieldsSource(Rows):
    question: str = "question"
    input: str | None = None
    """The field with what the question is about, as in Alpaca's rows; it may be empty."""
    answer: str = "answer"
    label: str | None = None
    """The field that says `good` or `bad` (or 1 or 0, true or false); None: every answer counts as good."""
    choices: str | None = None
    """The field with 2 to 9 answers to choose from: a list of texts, or an object of `text` and `label` lists. `answer`
    then holds the right one: its text, its label or letter, or its number counted from 0. Agents are shown them
    numbered from 1, below the question."""

    @model_validator(mode="after")
    def _one_meaning(self) -> "FieldsSource":
        both = self.label is not None and self.choices is not None
        mistake = "label and choices are both given: an answer is labelled, or it is the right one of several"
        return unless(self, [mistake] if both else [])


class JsonSource(FieldsSource):
    """A JSON array or JSON Lines (also .gz), one object per question."""

    kind: Literal["json"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class CsvSource(FieldsSource):
    """A table with a header: CSV (comma or semicolon) or TSV, also .gz."""

    kind: Literal["csv"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class ParquetSource(FieldsSource):
    """A Parquet file; needs the extra `datasets`."""

    kind: Literal["parquet"]
    path: Annotated[AbsolutePath, Effect.INPUT]


class HubRows(Section):
    """A dataset of the Hugging Face hub, or a folder: as downloaded from the hub, or written by `save_to_disk`."""

    path: Annotated[FolderOrHub, Effect.INPUT]
    split: str = "train"
    name: str | None = None
    """The configuration, where the dataset has several."""
    data_dir: str | None = None
    """The folder inside the dataset that holds the data."""
    revision: str | None = None
    """For a hub id: a branch, tag or commit; None: the newest in the cache or on the hub."""


class DatasetSource(HubRows, FieldsSource):
    """A Hugging Face dataset."""

    kind: Literal["dataset"]


class HHSource(Rows):
    """HH transcripts: the first question; where its replies differ, the chosen one is good and the rejected one bad."""

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
