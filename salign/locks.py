"""Locks that processes hold on a run and its units; the system releases them however a process ends.

Where a file system has no flock (NFS without lockd, Lustre without its mount option), `salign.leases` stands for it.
"""

import contextlib
import errno
import fcntl
import math
import os
import platform
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from salign import leases
from salign.errors import HeldError, StageError
from salign.launchers import is_in_job, job_here

# Not one try alone: is_locked may hold a lock for a moment, and a process whose launcher was killed a little longer.
PATIENCE_S = 3.0
# In a scheduler's job, which may be started again on another node: a shared file system may keep the lock of a process
# that a dead node had.
PATIENCE_OF_JOB_S = 60.0
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}

# What stands in a lock's file is one line.
_MOST_OF_HOLDER = 200

_leases: dict[Path, leases.Lease] = {}


# Those that whoever runs here has claimed: a thread of its own has others.
_claimed: ContextVar[frozenset[Path]] = ContextVar("claimed locks", default=frozenset())


@contextlib.contextmanager
def claim(path: Path, what: str) -> Iterator[None]:
    """Holds a lock for what is done in the block, which takes the lock itself.

    Raises:
        HeldError: Another process holds it.
        StageError: The file system can keep no locks.
    """
    with lock(path, what, patience_s=PATIENCE_S):
        before = _claimed.set(_claimed.get() | {path})
        try:
            yield
        finally:
            _claimed.reset(before)


@contextlib.contextmanager
def lock(path: Path, what: str, *, wait: bool = False, patience_s: float | None = None) -> Iterator[None]:
    """Holds a lock while the block runs; the system frees it however the process ends.

    Args:
        path: Of its file.
        what: That is locked, for the error.
        wait: As long as it takes.
        patience_s: How long else; None: as one tries where a dead process may have had it.

    Raises:
        HeldError: Another process holds it, and `wait` is not set.
        StageError: The file system can keep no locks.
    """
    if path in _claimed.get():
        yield
        return
    if patience_s is None:
        patience_s = PATIENCE_OF_JOB_S if is_in_job() else PATIENCE_S
    patience_s = math.inf if wait else patience_s
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = f"process {os.getpid()} on {platform.node()}" + (f" (job {job_here()})" if is_in_job() else "")
    with _open(path, os.O_RDWR | os.O_CREAT) as file:
        if not _has_flock(file):
            lease = leases.acquire(path, holder, patience_s=patience_s, what=what)
            _leases[path] = lease
            try:
                yield
            finally:
                del _leases[path]
                lease.release()
            return
        if not _try_lock(file, path, patience_s):
            file.seek(0)
            raise HeldError(leases.held_message(what, file.read().strip() or "another process"))
        file.truncate(0)
        file.write(holder)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def require_held(path: Path) -> None:
    """Before something is declared done: that this process still has a lock which it took.

    Raises:
        StageError: Another process has taken it since.
    """
    lease = _leases.get(path)
    if lease is not None and lease.is_lost():
        raise StageError(
            f"the lock {path} was lost: this process showed no sign of life for a minute, and another one goes on with "
            "the work. Nothing was declared done; wait for that one."
        )


def _open(path: Path, flags: int) -> IO[str]:
    """A lock's file, not through links: whoever can write the folder could have put one to another's file there."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise StageError(f"the lock {path} is a link. Remove it: salign does not write through links.") from None
    return os.fdopen(descriptor, "r+" if flags & os.O_RDWR else "r")


def _has_flock(file: IO[str]) -> bool:
    """Whether the file's file system has flock: asked by a shared lock for a moment, which nobody is kept from."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return False
        raise StageError(
            f"the file system of {file.name} keeps no locks ({error.strerror}), which a run needs. Set run.root, or "
            "SALIGN_CACHE for the cache, to another one."
        ) from error
    return True


def _try_lock(file: IO[str], path: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        else:
            # Another node of the same file system may be without flock.
            return not leases.is_held(path)


def holder_of(path: Path) -> str:
    """Who holds the lock, in words for a user; "" if nobody does, or it is not known."""
    if not is_locked(path):
        return ""
    with _open(path, os.O_RDONLY) as file:
        return file.read(_MOST_OF_HOLDER).strip() or leases.holder_of(path)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock."""
    if not path.exists():
        return False
    with _open(path, os.O_RDONLY) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
    return leases.is_held(path)
