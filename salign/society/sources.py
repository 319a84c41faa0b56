"""Questions, and answers of either label: the embedded set, and files of the common shapes."""

import functools
import importlib.resources
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from salign.columns import check_columns, is_empty, nearest
from salign.config import (
    CsvProfiles,
    CsvSource,
    DatasetSource,
    EverydaySource,
    FieldsSource,
    HHSource,
    HubRows,
    JsonProfiles,
    JsonSource,
    MoralStoriesSource,
    ParquetProfiles,
    ParquetSource,
    ProfileRows,
    Source,
    TextSource,
)
from salign.errors import DataError
from salign.files import Mistakes, RowError, format_of, read_text, stream_rows
from salign.hub import HubDataset

logger = logging.getLogger(__name__)

Label = Literal["good", "bad"]

# Every sixth embedded question is held out: 4 of the 24 of each topic.
_HELD_OUT_EVERY = 6


@dataclass(frozen=True, slots=True)
class Choices:
    """The answers that a question leaves to choose from, and the place of the right one, None where nobody says.

    `stem` is the question without them.
    """

    stem: str
    texts: tuple[str, ...]
    right: int | None


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A question, and where there is one an answer with its label; `choices` are those that the question lists."""

    question: str
    answer: str | None = None
    label: Label | None = None
    choices: Choices | None = None


def load(source: Source) -> list[Exemplar]:
    """All exemplars of a source, in its order.

    Raises:
        DataError: A file is missing or rows are malformed, with file, row and reason; or there is nothing in it.
    """
    if isinstance(source, EverydaySource):
        return list(_everyday(source))
    exemplars = _questions_of_text(source.path) if isinstance(source, TextSource) else _from_rows(source)
    if not exemplars:
        raise DataError(f"{source.path} contains no question")
    return exemplars


def _questions_of_text(path: Path) -> list[Exemplar]:
    format_ = format_of(path)
    lines = [] if format_ != "text" else [line.strip() for line in read_text(path).split("\n")]
    lines = [line for line in lines if line]
    if format_ == "text" and lines and _is_json(lines[0]):
        format_ = "json"
    if format_ != "text":
        raise DataError(
            f"{path} holds {format_.upper() if format_ != 'parquet' else 'Parquet'}, and a source of kind text is one "
            f"question a line. Say {{kind: {format_}, path: ..., question: COLUMN}}."
        )
    return [Exemplar(line) for line in lines]


def _is_json(line: str) -> bool:
    """Whether the first line of a file is that of JSON or of JSON Lines."""
    if line in ("[", "{"):
        return True
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


_RowsSource = JsonSource | CsvSource | ParquetSource | DatasetSource | HHSource | MoralStoriesSource


def _from_rows(source: _RowsSource) -> list[Exemplar]:
    convert, known = _reader_of(source)
    ignored = frozenset(source.ignore_columns)
    mapping = "Name the columns with question, input, answer and label. " if isinstance(source, FieldsSource) else ""
    mistakes, exemplars = Mistakes(source.path, skip=source.skip_bad), list[Exemplar]()
    for number, row in rows_of(source):
        try:
            if isinstance(row, RowError):
                raise row
            if not isinstance(row, dict):
                raise RowError(f"it is not an object but {type(row).__name__}")
            converted = list(convert(row))
            check_columns(row, known, ignored, mapping=mapping)
            exemplars += converted
        except RowError as error:
            mistakes.add(number, error)
    mistakes.raise_any()
    if mistakes.num_rows:
        logger.warning("%d malformed rows of %s were skipped (skip_bad)", mistakes.num_rows, source.path)
    return exemplars


def _reader_of(source: _RowsSource) -> tuple[Callable[[dict[str, Any]], Iterator[Exemplar]], frozenset[str]]:
    """What makes exemplars of a row, and the columns that it knows."""
    if isinstance(source, FieldsSource):
        fields = (source.question, source.input, source.answer, source.label, source.choices)
        return functools.partial(_fields, source=source), frozenset(field for field in fields if field is not None)
    if isinstance(source, HHSource):
        return _hh, frozenset({"chosen", "rejected"})
    return _moral_stories, frozenset({*MORAL_STORY, *MORAL_STORY_UNREAD})


def rows_of(
    source: _RowsSource | JsonProfiles | CsvProfiles | ParquetProfiles | HubRows,
) -> Iterator[tuple[int, object]]:
    """The rows of a file or dataset with their numbers; a RowError where one cannot be read.

    Raises:
        DataError: There is none, or it is of another kind.
    """
    if isinstance(source, HubRows):
        return open_dataset(source).rows()
    if isinstance(source, FieldsSource | ProfileRows):
        format_, wanted = format_of(source.path), str(source.kind)
        # A name without a known ending is taken for JSON.
        if format_ != wanted and not (format_ == "text" and wanted == "json"):
            raise DataError(f"{source.path} is of kind {format_}, and the config says kind: {wanted}")
    return stream_rows(source.path)


def open_dataset(section: HubRows) -> HubDataset:
    """The dataset that a section names.

    Raises:
        DataError: It does not load.
    """
    return HubDataset(section.path, section.split, section.name, section.data_dir, section.revision)


def _everyday(source: EverydaySource) -> Iterator[Exemplar]:
    text = importlib.resources.files("salign.society").joinpath("data/everyday.jsonl").read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if (number % _HELD_OUT_EVERY == 0) == (source.split == "held_out"):
            row = json.loads(line)
            yield Exemplar(row["question"], row["considerate"], "good")
            yield Exemplar(row["question"], row["inconsiderate"], "bad")


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        near = None if field in row else nearest(field, map(str, row))
        hint = f"; did you mean {near!r}?" if near else ""
        raise RowError(f"no text in the field {field!r}; it has {', '.join(map(str, row))}{hint}")
    return value.strip()


_LABELS: dict[str, Label] = {"good": "good", "1": "good", "true": "good", "bad": "bad", "0": "bad", "false": "bad"}


def _fields(row: dict[str, Any], source: FieldsSource) -> Iterator[Exemplar]:
    label: Label | None
    question = _text(row, source.question)
    if source.input is not None and not is_empty(row.get(source.input)):
        question = f"{question}\n\nInput:\n{_text(row, source.input)}"
    if source.choices is not None:
        choices = _choices(question, row, source.choices, source.answer)
        listed = "\n".join(f"{number}. {text}" for number, text in enumerate(choices.texts, start=1))
        answer, label = (None, None) if choices.right is None else (choices.texts[choices.right], "good")
        yield Exemplar(f"{question}\n{listed}", answer, label, choices)
        return
    if source.answer not in row and source.label is None:
        yield Exemplar(question)
        return
    label = "good"
    if source.label is not None:
        if source.label not in row:
            raise RowError(f"no text in the field {source.label!r}; it has {', '.join(map(str, row))}")
        given = row[source.label]
        if str(given).lower() not in _LABELS:
            raise RowError(f"the label is {given!r}; it must be 'good' or 'bad', or 1 or 0")
        label = _LABELS[str(given).lower()]
    yield Exemplar(question, _text(row, source.answer), label)


_MAX_CHOICES = 9  # each has a digit by which it is chosen


def _choices(stem: str, row: dict[str, Any], field: str, answer: str) -> Choices:
    given = row.get(field)
    labels = None
    if isinstance(given, dict) and set(given) == {"text", "label"}:
        given, labels = given["text"], given["label"]
    if not isinstance(given, list) or not all(isinstance(text, str) and text.strip() for text in given):
        raise RowError(f"{field!r} must be a list of texts, or an object with the lists 'text' and 'label'")
    texts = tuple(text.strip() for text in given)
    if not 2 <= len(texts) <= _MAX_CHOICES:
        raise RowError(f"{len(texts)} choices in {field!r}; there must be 2 to {_MAX_CHOICES}")
    if len(set(texts)) < len(texts):
        raise RowError(f"two of the choices in {field!r} are the same")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(texts)):
        raise RowError(f"{field!r} has {len(texts)} texts, and not as many labels")
    return Choices(stem, texts, None if is_empty(row.get(answer)) else _right(row[answer], texts, labels, answer))


def _right(value: Any, texts: tuple[str, ...], labels: list[Any] | None, field: str) -> int:
    """Which of the choices the right answer is."""
    if isinstance(value, str):
        said = value.strip()
        named = [str(label) for label in labels] if labels is not None else list("ABCDEFGHI"[: len(texts)])
        for names in (texts, named):
            if said in names:
                return names.index(said)
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return value
    raise RowError(f"{field!r} is {value!r}: neither the text, the letter nor the number (from 0) of a choice")


_TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh(row: dict[str, Any]) -> Iterator[Exemplar]:
    (question, chosen), (_, rejected) = (_first_exchange(row, field) for field in ("chosen", "rejected"))
    if not question:
        return
    if chosen == rejected:  # the two differ in a later turn, which says nothing about this answer
        yield Exemplar(question)
        return
    if chosen:
        yield Exemplar(question, chosen, "good")
    if rejected:
        yield Exemplar(question, rejected, "bad")


def _first_exchange(row: dict[str, Any], field: str) -> tuple[str, str]:
    """What the human asks first, and the assistant's reply."""
    # ["", "Human", text, "Assistant", text, ...]
    parts = _TURN.split("\n\n" + _text(row, field))
    if parts[1:4:2] != ["Human", "Assistant"]:
        raise RowError(f"{field!r} is not a transcript of the form 'Human: ... Assistant: ...'")
    return parts[2].strip(), parts[4].strip()


MORAL_STORY = ("situation", "intention", "moral_action", "immoral_action")
"""Columns that are read of a story of Moral Stories."""
MORAL_STORY_UNREAD = ("ID", "norm", "moral_consequence", "immoral_consequence", "label")
"""Its other columns: the norm would give the answer away, and consequences come after it."""


def moral_story(row: dict[str, Any]) -> tuple[str, str, str]:
    """A Moral Stories row as a question, the moral and the immoral action.

    Raises:
        RowError: One of its texts is missing.
    """
    situation, intention, moral, immoral = (_text(row, field) for field in MORAL_STORY)
    return f"{situation} {intention} What happens next?", moral, immoral


def _moral_stories(row: dict[str, Any]) -> Iterator[Exemplar]:
    question, moral, immoral = moral_story(row)
    yield Exemplar(question, moral, "good")
    yield Exemplar(question, immoral, "bad")


def questions(source: Source) -> list[str]:
    """The distinct questions of a source, in its order."""
    return distinct(load(source))


def distinct(exemplars: Sequence[Exemplar]) -> list[str]:
    """Their questions, each once, in order."""
    return list(dict.fromkeys(exemplar.question for exemplar in exemplars))


def files_of(source: Source) -> list[Path]:
    """The file that a source reads, where it reads one: neither the embedded set nor a hub's dataset is a file."""
    return [] if isinstance(source, EverydaySource | DatasetSource) else [source.path]
