"""Rows with the same key as one, wherever they stand in a stream that does not fit into memory."""

import contextlib
import itertools
import os
import tempfile
from array import array
from collections.abc import Iterator
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from salign.errors import StageError

# Rows that are looked up together.
_BATCH = 1 << 12
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, Any]).decode


class Gathering:
    """Groups rows by key in a temporary file; memory holds each row's place and the hash of its key.

    Args:
        file: That file.
        what: What is gathered, for an error.
    """

    def __init__(self, file: IO[bytes], what: str) -> None:
        self._file = file
        self._what = what
        self._hashes = array("q")
        self._starts = array("q", [0])  # and where the next row will
        self._size = 0

    def add(self, key: str, row: Any) -> None:
        """Adds a row that MessagePack can hold; lists and tuples come back as lists."""
        line = _encode((key, row))
        self._hashes.append(hash(key))
        self._size += len(line)
        self._starts.append(self._size)
        try:
            self._file.write(line)
        except OSError as error:
            raise _failed(self._what, error) from error

    def gathered(self) -> Iterator[tuple[str, list[Any]]]:
        """Yields each key with its rows, in the order in which keys first came; no row can be added after that.

        Of two keys with the same hash (one stream in millions has such, of a million rows each) the second comes right
        after the first.
        """
        numbers, sizes = self._order()
        rows = self._read(numbers)
        for size in map(int, sizes):
            by_key: dict[str, list[Any]] = {}
            for key, row in itertools.islice(rows, size):
                by_key.setdefault(key, []).append(row)
            yield from by_key.items()

    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the rows as they come out [rows], and how many have the same hash [hashes]."""
        if not self._hashes:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        hashes = np.frombuffer(self._hashes, np.int64)
        _, first, hash_of, sizes = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
        return np.argsort(first[hash_of], kind="stable"), sizes[np.argsort(first)]

    def _read(self, numbers: NDArray[np.int64]) -> Iterator[tuple[str, Any]]:
        """Key and row of rows by their numbers; those that follow each other in the file are read at once."""
        starts = np.frombuffer(self._starts, np.int64)
        try:
            self._file.flush()
            for batch in range(0, len(numbers), _BATCH):
                rows = numbers[batch : batch + _BATCH]
                begins, ends = starts[rows].tolist(), starts[rows + 1].tolist()
                breaks = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
                for first, last in itertools.pairwise(breaks):
                    base = begins[first]
                    stretch = memoryview(os.pread(self._file.fileno(), ends[last - 1] - base, base))
                    for row in range(first, last):
                        yield _decode(stretch[begins[row] - base : ends[row] - base])
        except OSError as error:
            raise _failed(self._what, error) from error


def _failed(what: str, error: OSError) -> StageError:
    return StageError(
        f"{what} are collected in a temporary file, and writing it failed: {error}. Set TMPDIR to a folder "
        "with room for the data."
    )


@contextlib.contextmanager
def gathering(what: str) -> Iterator[Gathering]:
    """Opens a gathering in a temporary file, which is removed at the end of the block.

    Raises:
        StageError: There is no room for it.
    """
    try:
        file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115 (closed below, whatever it says)
    except OSError as error:
        raise _failed(what, error) from error
    try:
        yield Gathering(file, what)
    finally:
        with contextlib.suppress(OSError):  # what could not be written is of no use any more
            file.close()
