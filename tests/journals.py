"""Journals as tests look into them and change them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from salign.blocks import Record
from salign.logfiles import read_header, read_records
from salign.recordlog import RecordLog


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal-*"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files_of(folder)}


def records_of(folder: Path) -> list[Record]:
    """Its records, one for each key; also of a journal that a process writes."""
    while True:
        try:
            return list(dict(read_records(folder)).items())
        except FileNotFoundError:  # what was new is packed meanwhile
            continue


def write_records(folder: Path, header: dict[str, Any], records: Iterable[Record], writer: int = 0) -> None:
    log = RecordLog(folder, header, writer)
    log.append(list(records))
    log.close()


def rewrite(folder: Path, records: Iterable[Record]) -> None:
    """Makes the journal that of one writer with these records alone."""
    header = read_header(folder)
    assert header is not None
    for path in files_of(folder):
        path.unlink()
    write_records(folder, header, records)
