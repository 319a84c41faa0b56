"""The user's files: text, and the rows of JSON, JSON Lines, CSV, TSV and Parquet, read one at a time."""

import codecs
import csv
import gzip
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from salign.errors import DataError

Format = Literal["text", "json", "csv", "parquet"]

# What a damaged file, or one that is no text, leads to while it is read.
UNREADABLE = (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error)

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
# What stands in a checkout instead of a large file that was not fetched.
_POINTERS = {b"version https://git-lfs.github.com/spec/": "Git LFS", b"/annex/objects/": "git-annex"}
_FETCH = {"Git LFS": "git lfs pull", "git-annex": "git annex get"}
_OTHER_COMPRESSION = {b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "Zstandard", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
# The longer mark first: UTF-16's is the beginning of UTF-32's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ENDINGS: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_MAX_ROW = 1 << 26  # characters
_MAX_TEXT = 1 << 28  # characters
_TOO_LONG = f"has more than {_MAX_ROW:,} characters, which no row has: it may be another kind of file, or damaged"
_HEAD = 512  # bytes by which a file is recognised
CHUNK = 1 << 18  # characters
_BATCH = 256  # rows of a Parquet file
_MAX_MISTAKES = 5  # that are listed
_SPACE = re.compile(r"\s*")


class RowError(ValueError):
    """A row is malformed, for the reason that the text says."""


class Mistakes:
    """The malformed rows of one file: counted where they are skipped, else said together once all are known.

    Args:
        path: The file's, for the error.
        skip: Whether `skip_bad` is set; None: none may be skipped.
    """

    def __init__(self, path: Path | str, *, skip: bool | None) -> None:
        self._path = path
        self._skip = skip
        self._rows: Counter[str] = Counter()
        self._firsts: dict[str, int] = {}

    def add(self, number: int, error: ValueError) -> None:
        """One row is malformed."""
        self._rows[str(error)] += 1
        self._firsts.setdefault(str(error), number)

    @property
    def stops(self) -> bool:
        """Whether what the other rows hold is of no use any more."""
        return bool(self._rows) and not self._skip

    @property
    def num_rows(self) -> int:
        """How many there are."""
        return self._rows.total()

    def raise_any(self) -> None:
        """Raises a DataError that says all of them, with counts, where they are not skipped."""
        if not self.stops:
            return
        parts = [
            f"row {self._firsts[reason]}: {reason}" + (f" ({count} rows)" if count > 1 else "")
            for reason, count in itertools.islice(self._rows.items(), _MAX_MISTAKES)
        ]
        if more := len(self._rows) - len(parts):
            parts.append(f"and {more} more mistakes, in {self.num_rows} rows altogether")
        other = "" if self._skip is None else ", or leave such rows out with skip_bad: true"
        raise DataError(f"{self._path}, {'; '.join(parts)}. Correct the file{other}")


# --- text ----------------------------------------------------------------------------------------


def is_pointer(path: Path) -> str | None:
    """Which program left a pointer where the file's content should be: `Git LFS`, `git-annex`; None for a real file."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return next((name for mark, name in _POINTERS.items() if head.startswith(mark)), None)


def check_file(path: Path) -> None:
    """Makes sure that a path is a file with content of its own.

    Raises:
        DataError: It does not exist, is a folder, or is the pointer that Git LFS or git-annex leaves.
    """
    if path.is_dir():
        raise DataError(
            f"no data file {path}: it is a folder. Name a file; a dataset's folder is read by kind: dataset."
        )
    if not path.is_file():
        raise DataError(
            f"no data file {path}. Check the path in the config; a relative one starts at the working folder."
        )
    if (program := is_pointer(path)) is not None:
        raise DataError(f"{path} is a {program} pointer, not the data: fetch the content with `{_FETCH[program]}`.")


def _head_of(path: Path) -> tuple[bytes, bool]:
    """The first bytes of a file, unpacked, and whether it is compressed by gzip."""
    check_file(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    compressed = path.suffix == ".gz" or head.startswith(_GZIP)
    if compressed and head:
        with gzip.open(path) as packed:
            head = packed.read(_HEAD)
    return head, compressed


def format_of(path: Path) -> Format:
    """What a file holds, by its name without `.gz` and, for Parquet, by its first bytes; `text` for any other.

    Raises:
        DataError: There is no such file, or it is damaged.
    """
    try:
        head, _ = _head_of(path)
    except UNREADABLE as error:
        raise DataError(f"{path}: not UTF-8 text, or damaged ({error})") from None
    if head.startswith(_PARQUET):
        return "parquet"
    return _ENDINGS.get(Path(path.name.removesuffix(".gz")).suffix.lower(), "text")


def open_text(path: Path, newline: str | None = None) -> IO[str]:
    """A text file, also one compressed by gzip: UTF-8, or UTF-16 and UTF-32 with a byte order mark.

    Args:
        path: The file.
        newline: As for `open`.

    Raises:
        DataError: There is none, or it is no text.
    """
    head, compressed = _head_of(path)
    for magic, name in _OTHER_COMPRESSION.items():
        if head.startswith(magic):
            raise DataError(f"{path}: not UTF-8 text, but {name} data; unpack it, or compress it with gzip")
    encoding = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")
    if encoding in ("utf-8", "utf-8-sig") and b"\0" in head:
        raise DataError(
            f"{path}: not UTF-8 text, or damaged (it holds NUL bytes: UTF-16 without a byte order mark, or no text)"
        )
    if compressed:
        return gzip.open(path, "rt", encoding=encoding, newline=newline)
    return path.open(encoding=encoding, newline=newline)


def read_text(path: Path) -> str:
    """The whole of a text file, see `open_text`.

    Raises:
        DataError: It is missing, damaged or no text.
    """
    try:
        with open_text(path) as file:
            text = file.read(_MAX_TEXT)
    except UNREADABLE as error:
        raise DataError(f"{path}: not UTF-8 text, or damaged ({error})") from None
    if len(text) == _MAX_TEXT:
        raise DataError(f"{path}: more than {_MAX_TEXT:,} characters, unpacked, which is more than is read at once")
    return text


# --- rows ----------------------------------------------------------------------------------------


def stream_rows(path: Path) -> Iterator[tuple[int, object]]:
    """The numbered rows of a file, one at a time.

    JSON Lines are numbered by line, the elements of a JSON array and Parquet's rows from 1, those of CSV and TSV as a
    spreadsheet numbers them: the header is row 1. An empty cell is None. A row that cannot be read comes as the
    RowError that says why.

    Raises:
        DataError: There is no such file, it is damaged, or what holds its rows together is malformed.
    """
    format_ = format_of(path)
    if format_ == "parquet":
        yield from _parquet_rows(path)
        return
    try:
        if format_ == "csv":
            yield from _csv_rows(path)
        else:
            yield from _json_rows(path)
    except UNREADABLE as error:
        raise DataError(f"{path}: not UTF-8 text, or damaged ({error})") from None


def read_rows(path: Path) -> list[tuple[int, Any]]:
    """All rows of a file; see `stream_rows`.

    Raises:
        DataError: As there, or a row cannot be read.
    """
    rows = []
    for number, row in stream_rows(path):
        if isinstance(row, RowError):
            raise DataError(f"{path}, line {number}: {row}")
        rows.append((number, row))
    return rows


def _json_rows(path: Path) -> Iterator[tuple[int, object]]:
    with open_text(path) as file:
        line, first = 1, file.read(1)
        while first.isspace():
            line += first == "\n"
            first = file.read(1)
        if first == "[":
            yield from _elements(file, path, line)
            return
        if first:
            yield line, _decoded(first + next(_lines(file, path, line), ""))
        for number, text in enumerate(_lines(file, path, line + 1), start=line + 1):
            if text.strip():
                yield number, _decoded(text)


def _lines(file: IO[str], path: Path, number: int) -> Iterator[str]:
    """The lines of a file from where it stands, the first of which has that number.

    Raises:
        DataError: One is longer than any row.
    """
    while line := file.readline(_MAX_ROW):
        if len(line) == _MAX_ROW:
            raise DataError(f"{path}: line {number} {_TOO_LONG}")
        yield line
        number += 1


def _decoded(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass  # for what the standard library's reader alone takes, and its better words
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return RowError(f"not valid JSON ({error.msg} at column {error.colno})")
    except ValueError:
        return RowError("not valid JSON (a number of thousands of digits)")
    except RecursionError:
        return RowError("not valid JSON (too deeply nested)")


def _elements(file: IO[str], path: Path, line: int) -> Iterator[tuple[int, object]]:
    """The elements of a JSON array whose opening bracket, in that line, is read already."""
    decode = json.JSONDecoder().raw_decode
    # `text` is what of the file is in hand, `start` where in it to go on.
    text, start, number, size = "", 0, 0, CHUNK
    while True:
        error = "the array does not end"
        try:
            start = _after_space(text, start)
            if number == 0 and text.startswith("]", start):
                start += 1
                break
            row, end = decode(text, start)
            end = _after_space(text, end)
            if end < len(text):  # else a number might go on
                if text[end] not in ",]":
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
                number += 1
                yield number, row
                start = end + 1
                if text[end] == "]":
                    break
                continue
        except RecursionError:
            raise DataError(f"{path}: not valid JSON (row {number + 1} is too deeply nested)") from None
        except json.JSONDecodeError as found:
            error = f"{found.msg} in row {number + 1}"
            wrong_line = line + found.lineno - 1
        except ValueError:
            raise DataError(f"{path}: not valid JSON (row {number + 1} has a number of thousands of digits)") from None
        else:
            wrong_line = line + text.count("\n")
        if len(text) - start > _MAX_ROW:
            raise DataError(f"{path}: row {number + 1} {_TOO_LONG}")
        more = file.read(size)
        if not more:
            raise DataError(f"{path}, line {wrong_line}: not valid JSON ({error})")
        size = 2 * size if text and start == 0 else CHUNK  # so that one long row is not begun too often
        line += text.count("\n", 0, start)
        text, start = text[start:] + more, 0
    if text[start:].strip() or file.read().strip():
        raise DataError(f"{path}: there is more after the end of the array; give one JSON array, or JSON Lines")


def _after_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    assert found is not None
    return found.end()


def _csv_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Rows under a header; cells are apart by commas, semicolons or tabs, whichever the header has most of."""
    csv.field_size_limit(_MAX_ROW)  # the limit of 131,072 characters is the process's own, and texts are longer
    with open_text(path, newline="") as file:
        lines = _lines(file, path, 1)
        first = next(lines, "")
        delimiter = max(",;\t", key=first.count)
        reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            _check_header(header, path)
            for number, cells in enumerate(reader, start=2):
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield number, RowError(f"{len(cells)} cells, and the header names {len(header)} columns")
                else:
                    yield number, {name: cell or None for name, cell in zip(header, cells, strict=True)}
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def _check_header(header: list[str], path: Path) -> None:
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise DataError(f"{path}: the header names the column {twice[0]!r} twice; give each column a name of its own")


def _parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} is a Parquet file, which needs pyarrow: pip install 'salign[datasets]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: no Parquet file, or damaged after row {number} ({error})") from None
