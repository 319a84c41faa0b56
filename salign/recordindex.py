"""Where the records of logs are, by half of their keys: in memory, or in files that processes map into theirs.

What is packed stays where it is. What is new may be packed by its writer meanwhile, and its file removed: it is kept.
"""

import functools
import json
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from salign import blocks
from salign.blocks import KEY_BYTES, Batch, Record, read_blocks
from salign.errors import StageError
from salign.logfiles import files_of

logger = logging.getLogger(__name__)

# Blocks that are kept decompressed, some 50 MB: answers are asked for in about the order in which they were given.
_NUM_KEPT_BLOCKS = 128
# Files that other writers pack while a folder is read; one after another, as each does so once.
_MAX_VANISHED = 1000
# Of a saved index: halves of keys, places, and for each block its file's number and where it begins there.
_KEYS, _PLACES, _BLOCKS, _FILES = "keys.npy", "places.npy", "blocks.npy", "files.json"
# The records that were new when an index was saved; the first of its files.
_NEW = "new.packed"


class _Part(NamedTuple):
    """What one folder has: its packed blocks with the halves of their keys, and its new records."""

    blocks: list[tuple[Path, int]]
    halves: list[NDArray[np.uint64]]
    new: dict[bytes, bytes]


def _half(key: bytes) -> int:
    return int.from_bytes(key[: KEY_BYTES // 2], "little")


def _read(paths: Sequence[Path]) -> _Part:
    part = _Part([], [], {})
    for path in paths:
        for block in read_blocks(path):
            if block.kind == blocks.PLAIN:
                part.new.update(block.records())
            elif block.kind == blocks.PACKED:
                part.halves.append(np.frombuffer(block.keys, "<u8")[::2].astype(np.uint64))
                part.blocks.append((path, block.start))
    return part


def _read_folder(folder: Path) -> _Part:
    for _ in range(_MAX_VANISHED):
        try:
            return _read(files_of(folder))
        except FileNotFoundError:  # its writer has packed it since
            pass
    return _read(files_of(folder))


class RecordIndex:
    """Finds rows by their keys; of two records under one key, the later one.

    Args:
        keys: The halves of all packed keys, sorted.
        places: Of each, its block's number above 32 bits, and its place there below.
        found: Each block's file and where it begins there, by its number.
        new: Records that are kept as they are.
    """

    def __init__(
        self,
        keys: NDArray[np.uint64],
        places: NDArray[np.uint64],
        found: Sequence[tuple[Path, int]],
        new: dict[bytes, bytes],
    ) -> None:
        # Looking into an array costs three times as much.
        self._keys: Sequence[int] = keys.data
        self._places: Sequence[int] = places.data
        self._blocks = found
        self._new = new
        self._read = functools.lru_cache(_NUM_KEPT_BLOCKS)(self._read_block)
        num_packed = int(np.count_nonzero(keys[1:] != keys[:-1])) + bool(len(keys))
        self.num_keys = num_packed + sum(next(self._found(_half(key)), None) is None for key in new)

    @classmethod
    def of(cls, *folders: Path) -> "RecordIndex":
        """Reads the logs of some folders.

        Raises:
            StageError: A log is of an older version.
        """
        parts = [_read_folder(folder) for folder in folders]
        new = {key: row for part in parts for key, row in part.new.items()}
        keys, places = _sorted([halves for part in parts for halves in part.halves])
        return cls(keys, places, [block for part in parts for block in part.blocks], new)

    @classmethod
    def build(cls, target: Path, folders: Sequence[Path]) -> None:
        """Writes the index of some folders' logs into a folder of its own, for `load`.

        Raises:
            StageError: A log is of an older version.
        """
        parts = [_read_folder(folder) for folder in folders]
        records: list[Record] = [record for part in parts for record in part.new.items()]
        (target / _NEW).write_bytes(b"".join(blocks.packed([Batch.of([one]) for one in records])))
        # Last, as what is new was said later than what is packed.
        parts.append(_read([target / _NEW]))
        keys, places = _sorted([halves for part in parts for halves in part.halves])
        files = {path: number for number, path in enumerate(dict.fromkeys(p for part in parts for p, _ in part.blocks))}
        found = [(files[path], start) for part in parts for path, start in part.blocks]
        arrays: dict[str, NDArray[Any]] = {_KEYS: keys, _PLACES: places}
        arrays[_BLOCKS] = np.array(found, np.int64).reshape(-1, 2)
        for name, array in arrays.items():
            np.save(target / name, array)
        # That of its own by its name alone: the folder may be moved.
        names = [path.name if path.parent == target else str(path) for path in files]
        (target / _FILES).write_text(json.dumps(names), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "RecordIndex":
        """The index that `build` wrote, mapped into memory.

        Raises:
            StageError: It is damaged.
        """
        try:
            keys, places, found = (np.load(folder / name, mmap_mode="r") for name in (_KEYS, _PLACES, _BLOCKS))
            files = [folder / name for name in json.loads((folder / _FILES).read_text(encoding="utf-8"))]
            return cls(keys, places, [(files[number], start) for number, start in found.tolist()], {})
        except (OSError, ValueError, TypeError, IndexError, EOFError) as error:
            raise StageError(f"the index {folder} is damaged ({error}). Remove it, and it is made again.") from None

    def _found(self, half: int) -> Iterator[int]:
        """The places of the keys that begin so, the latest first."""
        at = bisect_right(self._keys, half) - 1
        while at >= 0 and self._keys[at] == half:
            yield self._places[at]
            at -= 1

    def find(self, key: bytes) -> bytes | None:
        """The row under a key; None where there is none."""
        row = self._new.get(key)
        if row is not None:
            return row
        for found in self._found(_half(key)):
            number, place = divmod(found, 1 << 32)
            keys, rows = self._read(number) if number < len(self._blocks) else (b"", [])
            if keys.startswith(key, KEY_BYTES * place):
                return rows[place]
        return None

    def _read_block(self, number: int) -> tuple[bytes, list[bytes]]:
        path, start = self._blocks[number]
        block = None
        try:
            with path.open("rb") as file:
                block = blocks.read_block(file, start)
        except FileNotFoundError:  # of another run, which somebody removed
            pass
        rows = block.rows() if block is not None else []
        if block is None or not rows:
            logger.warning("%s is damaged at byte %d: the calls of that block are made again", path, start)
            return b"", []
        return block.keys, rows


def _sorted(halves: list[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The halves of the keys of blocks in their order, sorted, and the place of each; the later of two last."""
    keys = np.concatenate([np.empty(0, np.uint64), *halves])
    places = np.empty(len(keys), np.uint64)
    start = 0
    for number, here in enumerate(halves):
        places[start : start + len(here)] = np.arange(len(here), dtype=np.uint64) + np.uint64(number << 32)
        start += len(here)
    order = np.argsort(keys, kind="stable")
    return keys[order], places[order]
