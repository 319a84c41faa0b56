"""Locks that processes hold on a run and its units; the system releases them however a process ends."""

import contextlib
import errno
import fcntl
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from salign.errors import StageError
from salign.launchers import is_in_job

# Not one try alone: is_locked may hold a lock for a moment, and a process whose launcher was killed a little longer.
_LOCK_PATIENCE_S = 3.0
# In a scheduler's job, which may be started again on another node: a shared file system may keep the lock of a process
# that a dead node had.
_LOCK_PATIENCE_OF_JOB_S = 60.0


@contextlib.contextmanager
def lock(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock while the block runs; the system frees it however the process ends.

    Raises:
        StageError: Another process holds it, and `wait` is not set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    patience_s = _LOCK_PATIENCE_OF_JOB_S if is_in_job() else _LOCK_PATIENCE_S
    with _open(path, os.O_RDWR | os.O_CREAT) as file:
        if not _try_lock(file, seconds=math.inf if wait else patience_s):
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


def _open(path: Path, flags: int) -> IO[str]:
    """A lock's file, not through links: whoever can write the folder could have put one to another's file there."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise StageError(f"the lock {path} is a link. Remove it: salign does not write through links.") from None
    return os.fdopen(descriptor, "r+" if flags & os.O_RDWR else "r")


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
    with _open(path, os.O_RDONLY) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
