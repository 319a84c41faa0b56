"""An append-only log of records under keys, checksummed and compressed; what was appended outlives a killed process.

A log is the `journal-NNNNN.*` files of a folder, those of one number written by one process. What is new is appended
to `.new-K` as it is. Once a MiB has gathered, it is compressed into blocks at the end of `.packed`, and `.new-K` is
removed when they are on the disk.
"""

import contextlib
import functools
import json
import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salign import blocks
from salign.blocks import KEY_BYTES, Batch, Record, read_blocks
from salign.errors import ConfigError, StageError
from salign.storage import new_file

logger = logging.getLogger(__name__)

VERSION = 3

_PACK_FROM_BYTES = 1 << 20
# Blocks that are kept decompressed, some 50 MB: answers are asked for in about the order in which they were given.
_NUM_KEPT_BLOCKS = 128
# Files that other writers pack while a log is opened; one after another, as each does so once.
_MAX_VANISHED = 1000


def _files(folder: Path) -> list[Path]:
    """A log's files. Of two records under one key the later counts, so of one writer the oldest come first."""
    for old in folder.glob("journal-*.jsonl"):
        raise _of_other_version(old, "2 or older")
    packed, new = folder.glob("journal-*.packed"), folder.glob("journal-*.new-*")
    return [*sorted(packed), *sorted(new, key=lambda path: (path.stem, _number(path)))]


def _number(path: Path) -> int:
    return int(path.suffix.removeprefix(".new-"))


def _of_other_version(path: Path, version: object) -> StageError:
    return StageError(
        f"{path} is a journal of version {version}; this version of salign reads version {VERSION}. Choose another "
        f"run.name, or remove {path.parent} to begin again."
    )


def _header_of(path: Path) -> dict[str, Any] | None:
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
    for path in _files(folder):
        header = _header_of(path) if path.suffix == ".packed" else None
        if header:
            return {name: value for name, value in header.items() if name != "journal"}
    return None


def read_records(folder: Path) -> Iterator[Record]:
    """All records of a folder's log; of two under one key the later counts."""
    for path in _files(folder):
        for block in read_blocks(path):
            if block.kind != blocks.HEADER:
                yield from block.records()


def drop_records(folder: Path, is_dropped: Callable[[bytes], bool]) -> int:
    """Removes records by their rows from a log that nobody has open; each of its files changes whole or not at all.

    Returns:
        How many were removed.
    """
    num_dropped = 0
    for path in _files(folder):
        with new_file(path) as file:
            for block in read_blocks(path):
                if block.kind == blocks.HEADER:
                    file.write(blocks.to_block(blocks.HEADER, block.content))
                    continue
                records = list(block.records())
                kept = [record for record in records if not is_dropped(record[1])]
                num_dropped += len(records) - len(kept)
                if kept:
                    batch = Batch.of(kept)
                    file.writelines([batch.to_plain()] if block.kind == blocks.PLAIN else blocks.packed([batch]))
    return num_dropped


def _half(key: bytes) -> int:
    return int.from_bytes(key[: KEY_BYTES // 2], "little")


class _Index:
    """Where each packed record is: its block's number above 32 bits, its place there below, by half of its key.

    What is new is kept as it is: its writer may pack it meanwhile, and remove the file.
    """

    def __init__(self, folder: Path) -> None:
        for is_last in [False] * _MAX_VANISHED + [True]:
            try:
                keys, places = self._scan(folder)
            except FileNotFoundError:  # its writer has packed it since
                if is_last:
                    raise
            else:
                break
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        # Looking into an array costs three times as much.
        self._keys: Sequence[int] = keys.data
        self._places: Sequence[int] = places[order].data
        self._read = functools.lru_cache(_NUM_KEPT_BLOCKS)(self._read_block)
        num_packed = int(np.count_nonzero(keys[1:] != keys[:-1])) + bool(len(keys))
        self.num_keys = num_packed + sum(next(self._found(_half(key)), None) is None for key in self._new)

    def _scan(self, folder: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The halves of all packed keys, and their places."""
        self._blocks: list[tuple[Path, int]] = []
        self._new: dict[bytes, bytes] = {}
        halves, places = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for path in _files(folder):
            for block in read_blocks(path):
                if block.kind == blocks.PLAIN:
                    self._new.update(block.records())
                elif block.kind == blocks.PACKED:
                    found = np.frombuffer(block.keys, "<u8")[::2].astype(np.uint64)
                    halves.append(found)
                    places.append(np.arange(len(found), dtype=np.uint64) + np.uint64(len(self._blocks) << 32))
                    self._blocks.append((path, block.start))
        return np.concatenate(halves), np.concatenate(places)

    def _found(self, half: int) -> Iterator[int]:
        """The places of the keys that begin so, the latest first."""
        at = bisect_right(self._keys, half) - 1
        while at >= 0 and self._keys[at] == half:
            yield self._places[at]
            at -= 1

    def find(self, key: bytes) -> bytes | None:
        row = self._new.get(key)
        if row is not None:
            return row
        for found in self._found(_half(key)):
            number, place = divmod(found, 1 << 32)
            keys, rows = self._read(number)
            if keys.startswith(key, KEY_BYTES * place):
                return rows[place]
        return None

    def _read_block(self, number: int) -> tuple[bytes, list[bytes]]:
        path, start = self._blocks[number]
        with path.open("rb") as file:
            block = blocks.read_block(file, start)
        rows = block.rows() if block is not None else []
        if block is None or not rows:
            logger.warning("%s is damaged at byte %d: the calls of that block are made again", path, start)
            return b"", []
        return block.keys, rows


class _File:
    """A file that grows by whole pieces: what does not fit is cut off again."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Opens a file, cut to so many bytes."""
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.ftruncate(self.descriptor, size)
        os.lseek(self.descriptor, size, os.SEEK_SET)
        self.size = size

    def append(self, piece: bytes) -> None:
        left = memoryview(piece)
        try:
            while left:
                left = left[os.write(self.descriptor, left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.size += len(piece)


class _Writer:
    """One writer's files: what an earlier process left is packed, then more is appended."""

    def __init__(self, folder: Path, header: Mapping[str, Any], number: int) -> None:
        self._stem = folder / f"journal-{number:05d}"
        self._error: OSError | None = None
        self._syncing = threading.Lock()
        self._fresh: list[Batch] = []
        self._fresh_bytes = 0
        self._new: _File | None = None
        folder.mkdir(parents=True, exist_ok=True)
        path = self._stem.with_suffix(".packed")
        self._packed = _File(path, max((block.end for block in read_blocks(path)), default=0) if path.exists() else 0)
        if not self._packed.size:
            self._packed.append(blocks.to_block(blocks.HEADER, json.dumps(header).encode()))
        left = [path for path in _files(folder) if path.stem == self._stem.name and path != self._packed.path]
        self._next = max(map(_number, left), default=0) + 1
        for path in left:
            self._fresh += [Batch(block.keys, block.content) for block in read_blocks(path)]
        # Files of what is in the packed one too; the next `sync` removes them.
        self._old = [_File(path, path.stat().st_size) for path in left]
        self._pack()
        self.sync()

    def append(self, records: Sequence[Record]) -> None:
        """Hands records to the system: they outlive this process, but not the machine (see `sync`)."""
        self.check()
        if not records:
            return
        try:
            if self._new is None:
                self._new = _File(self._stem.with_suffix(f".new-{self._next}"))
                self._next += 1
            batch = Batch.of(records)
            self._new.append(batch.to_plain())
            self._fresh.append(batch)
            self._fresh_bytes += len(batch.content)
            if self._fresh_bytes >= _PACK_FROM_BYTES:
                self._pack()
        except OSError as error:
            self._error = error
            raise

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def _pack(self) -> None:
        for block in blocks.packed(self._fresh):
            self._packed.append(block)
        self._fresh, self._fresh_bytes = [], 0
        if self._new is not None:
            self._old.append(self._new)
            self._new = None

    def sync(self) -> None:
        """Waits until all that was appended is on the disk itself; may be called by another thread."""
        self.check()
        with self._syncing:
            # What is packed meanwhile comes behind these; no file is closed but here.
            num_old, new = len(self._old), self._new
            os.fsync(self._packed.descriptor)
            if new is not None:
                os.fsync(new.descriptor)
            for _ in range(num_old):
                self._old[0].path.unlink(missing_ok=True)
                os.close(self._old.pop(0).descriptor)

    def close(self) -> None:
        """Packs what is new, and ends."""
        try:
            if self._error is None:
                self._pack()
            self.sync()
        finally:
            with self._syncing:
                for file in (self._packed, *([self._new] if self._new else []), *self._old):
                    os.close(file.descriptor)


class RecordLog:
    """Finds the records of all files of a folder, and appends to those of one writer.

    Args:
        folder: Where the files are.
        header: Of what the log is; JSON can say it.
        writer: The number of the files that this process appends to; None for reading alone.

    Raises:
        ConfigError: The log is of something else; what differs is named.
        StageError: A file is no log, or of another version.
        OSError: As for a full disk.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], writer: int | None) -> None:
        of: dict[str, Any] = json.loads(json.dumps({"journal": VERSION, **header}))
        for path in _files(folder):
            if path.suffix == ".packed":
                _check_same(path, of)
        self._writer = _Writer(folder, of, writer) if writer is not None else None
        self._index = _Index(folder)

    def __len__(self) -> int:
        """Keys that an earlier process has left."""
        return self._index.num_keys

    @property
    def is_written(self) -> bool:
        """Whether it was opened to append to it, and is not closed."""
        return self._writer is not None

    def check(self) -> None:
        """Raises the OSError of a record that could not be written."""
        if self._writer is not None:
            self._writer.check()

    def find(self, key: bytes) -> bytes | None:
        """The row that an earlier process left under a key; None where there is none."""
        return self._index.find(key) if self._index.num_keys else None

    def append(self, records: Sequence[Record]) -> None:
        """Appends records, unless the log is only read: they outlive this process, but not the machine (see `sync`).

        Raises:
            OSError: As for a full disk. The files are cut back to whole records, and nothing more is written.
        """
        if self._writer is not None:
            self._writer.append(records)

    def sync(self) -> None:
        """Waits until all that was appended is on the disk itself; may be called by another thread.

        Raises:
            OSError: Something could not be written.
        """
        if self._writer is not None:
            self._writer.sync()

    def close(self) -> None:
        """Compresses what is new, and closes the files.

        Raises:
            OSError: Something could not be written.
        """
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


def _check_same(path: Path, header: dict[str, Any]) -> None:
    found = _header_of(path)
    if not found:
        return
    changed = [
        f"{name} ({there!r} there, {here!r} now)"
        for name in sorted(header | found)
        if (there := found.get(name)) != (here := header.get(name))
    ]
    if changed:
        raise ConfigError(
            f"{path} is the journal of another simulation; it differs in {'; '.join(changed)}. Restore "
            f"that, choose another run.name, or remove {path.parent} to begin the shard again."
        )
