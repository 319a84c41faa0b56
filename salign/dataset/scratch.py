"""Rows with the same key as one, wherever they stand in a stream that does not fit into memory."""

import contextlib
import os
import tempfile
from array import array
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from salign.errors import StageError

# Rows that are looked up together.
_BATCH = 1 << 14
# Bits of an order that tell the rows of a rank apart.
_RANK = 40


class Gathering:
    """Rows in a temporary file in the order in which they come; memory holds where each stands, and a hash of its key.

    Args:
        file: That file.
        what: What is gathered, for an error.
    """

    def __init__(self, file: IO[bytes], what: str) -> None:
        self._file = file
        self._what = what
        self._hashes = array("q")
        self._ranks = array("b")
        self._starts = array("q", [0])  # and where the next row will

    def add(self, rank: int, key: str, row: Any) -> None:
        """Takes up a row that `orjson` can write; rows of a lower rank come out first."""
        line = orjson.dumps((key, row))
        self._hashes.append(hash((rank, key)))
        self._ranks.append(rank)
        self._starts.append(self._starts[-1] + len(line))
        try:
            self._file.write(line)
        except OSError as error:
            raise _failed(self._what, error) from error

    def gathered(self) -> Iterator[tuple[int, str, list[Any]]]:
        """Rank, key and rows, by rank and then by where a key first came; nothing can be added any more.

        Of two keys with the same hash (one stream in millions has such, of a million rows each) the second comes right
        after the first.
        """
        if not self._hashes:
            return
        current, by_key = -1, dict[str, list[Any]]()
        for order, key, row in self._read(self._orders()):
            if order != current:
                for known, rows in by_key.items():
                    yield current >> _RANK, known, rows
                current, by_key = order, {}
            by_key.setdefault(key, []).append(row)
        for known, rows in by_key.items():
            yield current >> _RANK, known, rows

    def _orders(self) -> NDArray[np.int64]:
        """[rows]: what they are sorted by, their rank and the number of the first row with the same key."""
        hashes = np.frombuffer(self._hashes, np.int64)
        _, first, key_of = np.unique(hashes, return_index=True, return_inverse=True)
        orders: NDArray[np.int64] = first[key_of]
        orders += np.frombuffer(self._ranks, np.int8).astype(np.int64) << _RANK
        return orders

    def _read(self, orders: NDArray[np.int64]) -> Iterator[tuple[int, str, Any]]:
        """Order, key and row of all rows, sorted."""
        numbers = np.argsort(orders, kind="stable")
        starts = np.frombuffer(self._starts, np.int64)
        try:
            self._file.flush()
            for batch in range(0, len(numbers), _BATCH):
                rows = numbers[batch : batch + _BATCH]
                spans = zip(orders[rows].tolist(), starts[rows].tolist(), starts[rows + 1].tolist(), strict=True)
                for order, start, end in spans:
                    key, row = orjson.loads(os.pread(self._file.fileno(), end - start, start))
                    yield order, key, row
        except OSError as error:
            raise _failed(self._what, error) from error


def _failed(what: str, error: OSError) -> StageError:
    return StageError(
        f"{what} are collected in a temporary file, and writing it failed: {error}. Set TMPDIR to a folder "
        "with room for the data."
    )


@contextlib.contextmanager
def gathering(what: str) -> Iterator[Gathering]:
    """A gathering in a temporary file, which is gone when the block ends.

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
