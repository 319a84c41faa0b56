"""The files of a log of records: which they are, and what their headers say; `salign.recordlog` writes them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salign import blocks
from salign.blocks import Record, read_blocks
from salign.errors import StageError

VERSION = 3
"""Of the records, and of the header."""


def files_of(folder: Path) -> list[Path]:
    """A log's files. Of two records under one key the later counts, so of one writer the oldest come first.

    Raises:
        StageError: The log is of an older version.
    """
    for old in folder.glob("journal-*.jsonl"):
        raise _of_other_version(old, "2 or older")
    packed, new = folder.glob("journal-*.packed"), folder.glob("journal-*.new-*")
    return [*sorted(packed), *sorted(new, key=lambda path: (path.stem, number_of(path)))]


def number_of(path: Path) -> int:
    """Which of its writer's files of new records one is."""
    return int(path.suffix.removeprefix(".new-"))


def _of_other_version(path: Path, version: object) -> StageError:
    return StageError(
        f"{path} is a journal of version {version}; this version of salign reads version {VERSION}. Choose another "
        f"run.name, or remove {path.parent} to begin again."
    )


def header_of(path: Path) -> dict[str, Any] | None:
    """What a packed file says of itself; None where nothing was written whole, empty where that alone is damaged.

    Raises:
        StageError: It is no log, or of another version.
    """
    first = next(read_blocks(path, say=False), None)
    if first is None:
        with path.open("rb") as file:
            begin = file.read(len(blocks.MARK))
        if not blocks.MARK.startswith(begin):
            raise StageError(f"{path} is not a journal: it does not begin as one. Remove it to begin again.")
        return None
    if first.kind != blocks.HEADER:
        return {}
    header: dict[str, Any] = json.loads(first.content)
    if header["journal"] != VERSION:
        raise _of_other_version(path, repr(header["journal"]))
    return header


def read_header(folder: Path) -> dict[str, Any] | None:
    """The header of a folder's log; None where there is no log, or none whose header is whole."""
    for path in files_of(folder):
        header = header_of(path) if path.suffix == ".packed" else None
        if header:
            return {name: value for name, value in header.items() if name != "journal"}
    return None


def read_records(folder: Path) -> Iterator[Record]:
    """All records of a folder's log; of two under one key the later counts."""
    for path in files_of(folder):
        for block in read_blocks(path):
            if block.kind != blocks.HEADER:
                yield from block.records()
