"""A temporary database for what does not fit into memory."""

import contextlib
import sqlite3
from collections.abc import Iterator

from salign.errors import StageError


@contextlib.contextmanager
def scratch_database(holds: str) -> Iterator[sqlite3.Connection]:
    """A database in a temporary file.

    Args:
        holds: What is gathered there, for an error.

    Raises:
        StageError: There is no room for it.
    """
    try:
        with contextlib.closing(sqlite3.connect("")) as database:
            yield database
    except sqlite3.OperationalError as error:
        raise StageError(
            f"{holds} are collected in a temporary file, and writing it failed: {error}. Set TMPDIR to a folder "
            "with room for the data."
        ) from error
