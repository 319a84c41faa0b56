"""Which columns of a row are read, which are harmless, and how the others are refused: none is ignored silently."""

import difflib
import functools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from salign.files import RowError

Row = Mapping[str, Any]

METADATA = frozenset(
    {
        *("id", "idx", "index", "key", "uid", "uuid", "guid", "hash", "md5", "sha256", "row"),
        *("source", "sources", "data_source", "dataset", "dataset_name", "origin", "url", "split", "subset", "set"),
        *("date", "time", "timestamp", "created", "created_at", "created_utc", "updated_at"),
        *("license", "licence", "lang", "language", "version"),
        *("model", "models", "model_name", "chosen_model", "rejected_model", "annotator", "annotators", "worker"),
        *("Unnamed: 0", "__index_level_0__"),  # pandas' index
    }
)
"""Columns of any shape that say where a row is from, when it was made and by whom, and not what it means."""
METADATA_ENDINGS = ("_id", "_ids", "_idx", "_index", "_row", "_hash", "_sha256", "_url", "_source")


MAPPING = "Map a column of another name with columns: {NAME: COLUMN}. "


def is_metadata(name: str) -> bool:
    """Whether a column is let through without being read."""
    return name in METADATA or name.lower() in METADATA or name.lower().endswith(METADATA_ENDINGS)


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing: null, an empty text, list or object."""
    return value is None or (isinstance(value, str | list | dict | tuple) and not value)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like a given one, None where none is like it."""
    names = {other.lower(): other for other in known}
    alike = difflib.get_close_matches(name.lower(), list(names), n=1)
    return names[alike[0]] if alike else None


@functools.lru_cache(maxsize=256)
def _unread(names: tuple[str, ...], known: frozenset[str], ignored: frozenset[str]) -> tuple[str, ...]:
    """Rows of a file have the same columns nearly always."""
    return tuple(name for name in names if name not in known and name not in ignored and not is_metadata(name))


def check_columns(
    row: Row, known: frozenset[str], ignored: frozenset[str], *, where: str = "", mapping: str = MAPPING
) -> None:
    """Makes sure that a row has no column that is not read, but for metadata, empty cells and those to be ignored.

    Args:
        row: With the names that its shape gives to columns.
        known: Columns that are read, or known not to matter.
        ignored: Columns that the config says to ignore.
        where: What has the columns, where it is not the row itself.
        mapping: How a column is given another's name; empty where it cannot be.

    Raises:
        RowError: There are, by name, with the remedy.
    """
    unread = _unread(tuple(row), known, ignored)
    if not unread:
        return
    wrong = [name for name in unread if not is_empty(row[name])]
    if not wrong:
        return
    names = []
    for name in wrong:
        near = nearest(name, (other for other in known if other not in row))
        names.append(repr(name) + (f" (meant as {near!r}?)" if near else ""))
    raise RowError(
        f"{where}the {'column' if len(wrong) == 1 else 'columns'} {', '.join(names)} would be left unread, and may "
        f"change what the row means; read are {', '.join(sorted(known))}. {mapping}Leave out by name what is not "
        f"wanted: ignore_columns: [{', '.join(wrong)}]"
    )


class Columns:
    """What the config says of a file's columns.

    Args:
        renamed: The name that a shape gives to a column -> the column in the file.
        ignored: Columns that are not read.
    """

    def __init__(self, renamed: Mapping[str, str], ignored: Collection[str]) -> None:
        self._renamed = renamed
        self._moved = frozenset(renamed.values())
        self.ignored = frozenset(ignored)

    def apply(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row under the names of its shape, without what is ignored.

        Raises:
            RowError: It lacks a column that is mapped, or has one of that name beside it.
        """
        if not self._renamed and not self.ignored:
            return row
        missing = [name for name in self._moved if name not in row]
        if missing:
            raise RowError(
                f"columns maps {', '.join(sorted(missing))}, which the row lacks; it has {', '.join(row) or '(none)'}"
            )
        kept = {name: value for name, value in row.items() if name not in self.ignored and name not in self._moved}
        twice = sorted(name for name in self._renamed if not is_empty(kept.get(name)))
        if twice:
            raise RowError(
                f"columns maps {self._renamed[twice[0]]} to {twice[0]}, and the file has a column {twice[0]} too; "
                f"leave that one out with ignore_columns: [{twice[0]}]"
            )
        return {**kept, **{name: row[column] for name, column in self._renamed.items()}}
