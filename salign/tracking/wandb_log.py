"""Reads W&B's own logs (`.wandb`): LevelDB's log format, blocks of 32 KiB, one protobuf record each.

A log whose writer was killed ends in the middle of a record; what stands whole before it is read.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from salign.errors import DataError

_BLOCK = 32768
_FILE_HEAD = struct.Struct("<4sHB")
_HEAD = struct.Struct("<IHB")  # checksum, length, and which part of a record follows
_WHOLE, _FIRST, _LAST = 1, 2, 4


def records(path: Path) -> Iterator[Any]:
    """Reads the records of a `.wandb` file, in order.

    Raises:
        DataError: It is no such file.
    """
    from wandb.proto import wandb_internal_pb2  # its classes are made at import

    with path.open("rb") as file:
        head = file.read(_FILE_HEAD.size)
        if head[:4] != b":W&B"[: len(head)]:
            raise DataError(f"{path} is not a W&B log")
        parts = b""
        for kind, part in _parts(file):
            parts = part if kind in (_WHOLE, _FIRST) else parts + part
            if kind in (_WHOLE, _LAST):
                record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
                record.ParseFromString(parts)
                yield record


def _parts(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    while True:
        left = _BLOCK - file.tell() % _BLOCK
        if left < _HEAD.size:
            file.read(left)  # no room for a head
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        _, length, kind = _HEAD.unpack(head)
        part = file.read(length)
        if kind == 0 or len(part) < length:
            return
        yield kind, part


def history(path: Path, name: str) -> list[Any]:
    """Returns the logged values of one metric."""
    return [row[name] for row in history_rows(path) if name in row]


def history_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Returns the logged rows, with internal values."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


@dataclass
class Artifact:
    """An artifact as a log describes it.

    `missing` are files to be uploaded that are no longer there; an artifact by reference has none, but the files that
    it refers to may be lost.
    """

    name: str
    missing: list[Path]
    num_lost: int


@dataclass
class Fragment:
    """One log file: a W&B run, or the part of it that one process logged.

    `ended` says whether its process came to its end.
    """

    path: Path
    id: str = ""
    project: str = ""
    entity: str = ""
    num_rows: int = 0
    ended: bool = False
    artifacts: list[Artifact] = field(default_factory=list)

    @property
    def is_offline(self) -> bool:
        return self.path.parent.name.startswith("offline-")

    @property
    def is_synced(self) -> bool:
        """Whether wandb's mark of a sent log stands beside it."""
        return self.path.with_name(self.path.name + ".synced").exists()


def read_fragment(path: Path) -> Fragment:
    """Reads a log file.

    Raises:
        DataError: It is not a W&B log.
    """
    found = Fragment(path)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.id, found.project, found.entity = record.run.run_id, record.run.project, record.run.entity
        elif kind == "history":
            found.num_rows += 1
        elif kind == "exit":
            found.ended = True
        elif kind == "artifact":
            found.artifacts.append(_artifact(record.artifact))
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found.artifacts.append(_artifact(record.request.log_artifact.artifact))
    return found


def _artifact(record: Any) -> Artifact:
    """Bytes that are to be uploaded lie in a staging folder, which others may have emptied."""
    staged = {Path(entry.local_path): entry.size for entry in record.manifest.contents if entry.local_path}
    missing = [path for path, size in staged.items() if not path.is_file() or path.stat().st_size != size]
    listed = record.manifest.manifest_file_path  # of an artifact of many files
    if listed and not Path(listed).is_file():
        missing.append(Path(listed))
    refs = [urlsplit(entry.ref) for entry in record.manifest.contents]
    lost = [unquote(ref.path) for ref in refs if ref.scheme == "file" and not Path(unquote(ref.path)).exists()]
    return Artifact(record.name, missing, len(lost))
