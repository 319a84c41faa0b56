"""Questions, and answers of either label: the embedded set, and files of the common shapes."""

import gzip
import importlib.resources
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from salign.config import (
    DatasetSource,
    EverydaySource,
    FieldsSource,
    HHSource,
    JsonSource,
    MoralStoriesSource,
    Source,
    TextSource,
)
from salign.errors import DataError
from salign.records import json_lines

if TYPE_CHECKING:
    from datasets import Dataset

Label = Literal["good", "bad"]

# What a damaged file, or one that is no text, leads to while it is read.
UNREADABLE = (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error)

# Every sixth embedded question is held out: 4 of the 24 of each topic.
_HELD_OUT_EVERY = 6


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A question, and where there is one an answer with its label."""

    question: str
    answer: str | None = None
    label: Label | None = None


def open_text(path: Path) -> IO[str]:
    """A text file, also one compressed by gzip.

    Raises:
        DataError: There is none.
    """
    if not path.is_file():
        raise DataError(
            f"no data file {path}. Check the path in the config; a relative one starts at the working folder."
        )
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def read_text(path: Path) -> str:
    """The whole of a text file, also one compressed by gzip.

    Raises:
        DataError: It is missing, damaged or no UTF-8 text.
    """
    try:
        with open_text(path) as file:
            return file.read()
    except UNREADABLE as error:
        raise DataError(f"{path}: no UTF-8 text, or damaged ({error})") from None


def read_rows(path: Path) -> list[tuple[int, Any]]:
    """The numbered rows of a JSON array or a JSON Lines file.

    Raises:
        DataError: There is no such file, or a line is malformed, with file and line.
    """
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return list(json_lines(io.StringIO(text), path))
    try:
        return list(enumerate(json.loads(text), start=1))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no valid JSON ({error.msg} at column {error.colno})") from None


def load(source: Source) -> list[Exemplar]:
    """All exemplars of a source, in its order.

    Raises:
        DataError: A file is missing or a row malformed, with file, row and reason; or there is nothing in it.
    """
    place = f"the embedded set, split {source.split}" if isinstance(source, EverydaySource) else str(source.path)
    exemplars = list(_load(source))
    if not exemplars:
        raise DataError(f"{place} holds no question at all")
    return exemplars


def _load(source: Source) -> Iterable[Exemplar]:
    if isinstance(source, EverydaySource):
        return _everyday(source)
    if isinstance(source, TextSource):
        return [Exemplar(line.strip()) for line in read_text(source.path).splitlines() if line.strip()]
    if isinstance(source, JsonSource):
        return _from_fields(read_rows(source.path), source, source.path)
    if isinstance(source, DatasetSource):
        return _from_fields(enumerate(load_split(source.path, source.split), start=1), source, source.path)
    if isinstance(source, HHSource):
        return _hh(source)
    return _moral_stories(source)


def _everyday(source: EverydaySource) -> Iterator[Exemplar]:
    text = importlib.resources.files("salign.society").joinpath("data/everyday.jsonl").read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if (number % _HELD_OUT_EVERY == 0) == (source.split == "held_out"):
            row = json.loads(line)
            yield Exemplar(row["question"], row["considerate"], "good")
            yield Exemplar(row["question"], row["inconsiderate"], "bad")


def _text(row: Any, field: str, place: str) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        found = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is no object but {type(row).__name__}"
        raise DataError(f"{place}: no text in the field {field!r}; {found}")
    return value.strip()


def _from_fields(rows: Iterable[tuple[int, Any]], source: FieldsSource, path: Path | str) -> Iterator[Exemplar]:
    for number, row in rows:
        place = f"{path}, row {number}"
        question = _text(row, source.question, place)
        if source.input is not None and row.get(source.input):
            question = f"{question}\n\nInput:\n{_text(row, source.input, place)}"
        if source.answer not in row and source.label is None:
            yield Exemplar(question)
            continue
        label = "good" if source.label is None else _text(row, source.label, place)
        if label not in ("good", "bad"):
            raise DataError(f"{place}: the label is {label!r}; it must be 'good' or 'bad'")
        yield Exemplar(question, _text(row, source.answer, place), cast(Label, label))


def load_split(path: str, split: str) -> "Dataset":
    """A split of a Hugging Face dataset: of the hub, or of a folder written by `save_to_disk`.

    Raises:
        DataError: It does not load, or the package datasets is missing.
    """
    try:
        import datasets
    except ImportError:
        raise DataError("data of kind `dataset` needs the package datasets: pip install datasets") from None
    try:
        if Path(path).is_dir():
            loaded = datasets.load_from_disk(path)
            return loaded[split] if isinstance(loaded, dict) else loaded
        return datasets.load_dataset(path, split=split)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the dataset {path} (split {split}) does not load: {error}. Give a hub id, or a folder written by "
            "save_to_disk."
        ) from error


_TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh(source: HHSource) -> Iterator[Exemplar]:
    for number, row in read_rows(source.path):
        place = f"{source.path}, row {number}"
        (question, chosen), (_, rejected) = (_first_exchange(row, field, place) for field in ("chosen", "rejected"))
        if not question:
            continue
        if chosen == rejected:  # the two differ in a later turn, which says nothing about this answer
            yield Exemplar(question)
            continue
        for answer, label in ((chosen, "good"), (rejected, "bad")):
            if answer:
                yield Exemplar(question, answer, cast(Label, label))


def _first_exchange(row: Any, field: str, place: str) -> tuple[str, str]:
    """What the human asks first, and the assistant's reply."""
    # ["", "Human", text, "Assistant", text, ...]
    parts = _TURN.split("\n\n" + _text(row, field, place))
    if parts[1:4:2] != ["Human", "Assistant"]:
        raise DataError(f"{place}: {field!r} is no transcript of the form 'Human: ... Assistant: ...'")
    return parts[2].strip(), parts[4].strip()


def moral_story(row: dict[str, Any], place: str) -> tuple[str, str, str]:
    """A Moral Stories row as a question, the moral and the immoral action."""
    situation, intention = _text(row, "situation", place), _text(row, "intention", place)
    question = f"{situation} {intention} What happens next?"
    return question, _text(row, "moral_action", place), _text(row, "immoral_action", place)


def _moral_stories(source: MoralStoriesSource) -> Iterator[Exemplar]:
    for number, row in read_rows(source.path):
        question, moral, immoral = moral_story(row, f"{source.path}, row {number}")
        yield Exemplar(question, moral, "good")
        yield Exemplar(question, immoral, "bad")


def questions(source: Source) -> list[str]:
    """The distinct questions of a source, in its order."""
    return list(dict.fromkeys(exemplar.question for exemplar in load(source)))
