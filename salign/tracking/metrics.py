"""Metrics as JSON Lines: the truth, of which everything that is shown is a copy."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Annotated, Any

import msgspec

from salign.errors import DataError

Row = dict[str, Any]

WAITING_S = "sim/waiting_s"
"""For how long a shard's engine has answered nobody and is waited for; 0 where it answers."""


class MetricsLog:
    """Appends rows to a `metrics.jsonl`; each is flushed, and has the time (s since the epoch)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"time": round(time.time(), 3), **row}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path, last_bytes: int | None = None) -> list[Row]:
    """Reads the rows of a `metrics.jsonl`; skips a torn last line, as a killed process leaves it.

    Values are numbers, texts or null, each name's of one kind; `time` is in each row.

    Args:
        path: The file; one that is not there yet has no rows.
        last_bytes: Reads only the rows that are whole within this many bytes at the end.

    Raises:
        DataError: A line is no row of metrics.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # One byte more: a row begins there if it is the end of the row before.
            start = max(0, size - last_bytes - 1) if last_bytes is not None else 0
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    return [_row(line, path) for line in lines[1 if start else 0 : -1] if line.strip()]


_Value = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | float | str | bool | None
# Of the values of all others one can make a mean.
_TEXTS = ("sim/stop",)


def _row(line: bytes, path: Path) -> Row:
    try:
        row: Row = msgspec.convert(json.loads(line), dict[str, _Value])
        texts = [name for name, value in row.items() if isinstance(value, str) and name not in _TEXTS]
        if texts or not isinstance(row["time"], float | int):
            raise TypeError(f"{', '.join(texts) or 'time'} is no number")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{path}: {line[:80]!r} is not a row of metrics ({said}). Remove the line.") from None
    return row


def keep_rows(path: Path, keep: Callable[[Row], bool]) -> None:
    """Removes the rows that a restart writes again."""
    rows = [row for row in read_metrics(path) if keep(row)]
    if path.exists():
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        part.replace(path)


def mean(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are not None, exactly rounded and so the same in any order."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None
