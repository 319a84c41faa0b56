"""Where questions and answers come from."""

from typing import Annotated, Literal

from pydantic import Field

from salign.config.base import AbsolutePath, FolderOrHub, Section


class EverydaySource(Section):
    """The embedded set. The split `held_out` is for evaluation alone."""

    kind: Literal["everyday"] = "everyday"
    split: Literal["society", "held_out"] = "society"


class TextSource(Section):
    """One question a line."""

    kind: Literal["text"]
    path: AbsolutePath


class FieldsSource(Section):
    question: str = "question"
    input: str | None = None
    """The field of what the question is about, as Alpaca's rows have one; it may be empty."""
    answer: str = "answer"
    label: str | None = None
    """The field that says `good` or `bad`; None takes every answer for good."""


class JsonSource(FieldsSource):
    """A JSON array or JSON Lines (also .gz), one object a question."""

    kind: Literal["json"]
    path: AbsolutePath


class DatasetSource(FieldsSource):
    """A Hugging Face dataset: hub id, or a folder written by `save_to_disk`."""

    kind: Literal["dataset"]
    path: FolderOrHub
    split: str = "train"


class HHSource(Section):
    """HH transcripts: the first question; where the replies to it differ, the chosen is good, the rejected bad."""

    kind: Literal["hh"]
    path: AbsolutePath


class MoralStoriesSource(Section):
    """Moral Stories: situation and intention; the moral action is good, the immoral one bad."""

    kind: Literal["moral_stories"]
    path: AbsolutePath


Source = Annotated[
    EverydaySource | TextSource | JsonSource | DatasetSource | HHSource | MoralStoriesSource,
    Field(discriminator="kind"),
]
