"""Locks for file systems without flock: a file that its holder shows signs of life in, and loses when it shows none.

Each holder makes a file with a number of its own, one above the last, and only one process can make it. Who finds that
the newest file has not changed for a minute, by its own clock, may make the next; whoever had it sees that and ends.
"""

import contextlib
import errno
import json
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from salign.errors import HeldError

logger = logging.getLogger(__name__)

BEAT_S = 5.0
# Without a sign of life for so long a holder has lost it: many beats, for a file system or a process may stall.
LIFE_S = 60.0
# Clocks of machines differ: who only looks once, and does not watch, believes a holder for longer.
_BELIEVED_S = 3 * LIFE_S
_FREE = b"free"
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class _State:
    """The newest file of a lock: its number, 0 if there is none, and what its holder wrote."""

    number: int
    text: bytes

    @property
    def is_free(self) -> bool:
        return self.number == 0 or self.text.startswith(_FREE) or self._has_ended()

    @property
    def holder(self) -> str:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(self.text)["holder"])
        return "another process"

    def _has_ended(self) -> bool:
        """Whether the holder was a process of this very machine that is there no more."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(self.text)
            is_here = row["machine"] == _machine() != ""
            return bool(is_here and row["begun"] != _begun(int(row["process"])))
        return False


def _machine() -> str:
    """What tells machines and their process numbers apart; "" where that is unknown."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _begun(process: int) -> str:
    """When a process began, so that another of the same number is not taken for it; "" if it is not there."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _numbers(path: Path) -> list[int]:
    beginning = f"{path.name}."
    with contextlib.suppress(FileNotFoundError):
        with os.scandir(path.parent) as entries:
            names = [entry.name.removeprefix(beginning) for entry in entries if entry.name.startswith(beginning)]
        return sorted(int(name) for name in names if name.isdigit())
    return []


def _look(path: Path) -> _State:
    while numbers := _numbers(path):
        with contextlib.suppress(FileNotFoundError):  # the next holder has removed it
            return _State(numbers[-1], _file(path, numbers[-1]).read_bytes())
    return _State(0, b"")


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock, as far as one look can tell."""
    state = _look(path)
    if state.is_free:
        return False
    with contextlib.suppress(FileNotFoundError):
        return time.time() - _file(path, state.number).stat().st_mtime < _BELIEVED_S
    return True  # it has just changed hands


def holder_of(path: Path) -> str:
    """Who took the lock last, in words for a user; "" if nobody has it."""
    state = _look(path)
    return "" if state.is_free else state.holder


class Lease:
    """A lock that this process holds, until it is released or lost.

    Args:
        path: Of the lock; its files have a number after this name.
        number: Of this lease.
        descriptor: Of its file, which nobody else had made.
        holder: Who holds it, for the messages of others.
    """

    def __init__(self, path: Path, number: int, descriptor: int, holder: str) -> None:
        self._path, self._number, self._descriptor = path, number, descriptor
        self._row = {"holder": holder, "process": os.getpid(), "begun": _begun(os.getpid()), "machine": _machine()}
        self._num_beats = 0
        self._ended = threading.Event()
        self._beat()
        for older in _numbers(path):
            if older < number:
                _file(path, older).unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        self._num_beats += 1
        text = json.dumps(self._row | {"beat": f"{self._num_beats:012d}"}) + "\n"
        os.pwrite(self._descriptor, text.encode(), 0)
        os.fsync(self._descriptor)

    def is_lost(self) -> bool:
        """Whether another process has taken the lock, as this one had shown no sign of life."""
        try:
            there = _file(self._path, self._number).stat()
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ESTALE)
        own = os.fstat(self._descriptor)
        return (there.st_ino, there.st_dev) != (own.st_ino, own.st_dev) or _numbers(self._path)[-1:] != [self._number]

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_S):
            if self.is_lost():
                logger.error("the lock %s was lost: this process showed no sign of life for %g s", self._path, LIFE_S)
                os.kill(os.getpid(), signal.SIGTERM)  # an orderly end, before it disturbs who has the lock now
                return
            with contextlib.suppress(OSError):  # the file system may be back at the next beat
                self._beat()

    def release(self) -> None:
        """Lets the next one have it."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # others will wait a little longer
            os.pwrite(self._descriptor, _FREE, 0)
            os.ftruncate(self._descriptor, len(_FREE))
        os.close(self._descriptor)


def acquire(path: Path, holder: str, *, patience_s: float, what: str) -> Lease:
    """Takes the lock, if need be from a holder that shows no sign of life for a minute.

    Args:
        path: Of the lock.
        holder: Who takes it, for the messages of others.
        patience_s: How long to wait for a holder that is alive.
        what: It is about, for the message.

    Raises:
        HeldError: Another process holds it, and has shown that it is alive.
    """
    began = time.monotonic()
    seen, since, is_alive = _look(path), began, False
    while True:
        now, state = time.monotonic(), _look(path)
        if state != seen:
            seen, since, is_alive = state, now, True
        if (state.is_free or now - since >= LIFE_S) and (lease := _take(path, state.number + 1, holder)) is not None:
            return lease
        if is_alive and now - began >= patience_s:
            raise HeldError(held_message(what, state.holder))
        time.sleep(_LOOK_EVERY_S)


def held_message(what: str, holder: str) -> str:
    """Who has a lock, and what to do."""
    return (
        f"{what} is already being worked on by {holder}. Wait for it (python jobs/status.py shows it), or end that "
        "process and try again."
    )


def _take(path: Path, number: int, holder: str) -> Lease | None:
    """Makes the file of that number; None if another process was faster."""
    file = _file(path, number)
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return None
    if _numbers(path)[-1] != number:  # what this process saw was old
        os.close(descriptor)
        file.unlink(missing_ok=True)
        return None
    return Lease(path, number, descriptor, holder)
