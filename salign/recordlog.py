"""An append-only log of records under keys, checksummed and compressed; what was appended outlives a killed process.

A log is the `journal-NNNNN.*` files of a folder, those of one number written by one process. What is new is appended
to `.new-K` as it is. Once a MiB has gathered, it is compressed into blocks at the end of `.packed`, and `.new-K` is
removed when they are on the disk.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from salign import blocks
from salign.blocks import Batch, Record, read_blocks
from salign.errors import ConfigError
from salign.logfiles import VERSION, files_of, header_of, number_of
from salign.recordindex import RecordIndex
from salign.storage import new_file

_PACK_FROM_BYTES = 1 << 20


def drop_records(folder: Path, is_dropped: Callable[[bytes], bool]) -> int:
    """Removes records by their rows from a log that nobody has open; each of its files changes whole or not at all.

    Returns:
        How many were removed.
    """
    num_dropped = 0
    for path in files_of(folder):
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
        left = [path for path in files_of(folder) if path.stem == self._stem.name and path != self._packed.path]
        self._next = max(map(number_of, left), default=0) + 1
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
        for path in files_of(folder):
            if path.suffix == ".packed":
                _check_same(path, of)
        self._writer = _Writer(folder, of, writer) if writer is not None else None
        self._index = RecordIndex.of(folder)

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
    found = header_of(path)
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
