"""Locks that processes hold on a run and its units; the system releases them however a process ends."""

import contextlib
import fcntl
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from salign.errors import StageError

# Not one try alone: is_locked may hold a lock for a moment, and a process whose launcher was killed a little longer.
_LOCK_PATIENCE_S = 3.0


@contextlib.contextmanager
def lock(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock while the block runs; the system frees it however the process ends.

    Raises:
        StageError: Another process holds it, and `wait` is not set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _try_lock(file, seconds=math.inf if wait else _LOCK_PATIENCE_S):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise StageError(
                f"{what} is already being worked on by {holder}. Wait for it (python jobs/status.py shows it), or end "
                "that process and try again."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _try_lock(file: IO[str], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        else:
            return True


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
