"""The errors that a user can cause, and how an entry point shows them.

An error says the value, the place and the remedy in one paragraph. Anything else that is raised is a bug and keeps its
traceback.
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from salign.shown import as_called, neutral, redact, shortened

# Exit code of a process that was asked to stop, saved, and is to be started again (EX_TEMPFAIL).
REQUEUE = 75
# Names a file that a Slurm job which fails of an error leaves: unlike one that a signal ended, it is not started again.
_FAILED_FLAG = "SALIGN_FAILED"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
# What a place may be at fault for: its permissions, its name, what is there instead, or its file system.
_OF_A_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}
_OF_A_PLACE |= {errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EIO, errno.ESTALE, errno.EMLINK}


class SalignError(Exception):
    """An error with a remedy. An entry point exits with `exit_code`: 2 for the user's input, 1 for a failure."""

    exit_code = 1


class ConfigError(SalignError):
    """The configuration, the command line or the environment asks for something impossible."""

    exit_code = 2


class DataError(SalignError):
    """An input file is missing or malformed."""

    exit_code = 2


class EngineError(SalignError):
    """An engine is unreachable, or answers with something that is no answer."""


class EngineUnavailableError(EngineError):
    """The engine cannot be reached, or is too busy: it says nothing of what it can do."""


class CallRejectedError(EngineError):
    """The engine refuses this one call (too long, filtered); other calls may well succeed."""


class StageError(SalignError):
    """A stage of the pipeline cannot go on."""


class HeldError(StageError):
    """Another process holds the lock of what is to be done, and shows that it is alive."""


def presentable(message: str) -> str:
    """An error's message as it is shown or written: what it quotes is neutral and bounded, and holds no secret."""
    return neutral(shortened(redact(message)))


def explain_os_error(error: OSError) -> str | None:
    """One paragraph for a full disk or a place that cannot be read or written; None for any other OSError."""
    place = error.filename or "the run's folder"
    if error.errno in NO_ROOM:
        return (
            f"no space left on the disk while writing {place}. No partial file counts as done: free some space "
            "(or set run.root to a larger disk) and launch again; what is complete is kept."
        )
    if error.errno in _OF_A_PLACE:
        return (
            f"{place} cannot be read or written ({error.strerror}). Check the path and its permissions; run.root says "
            "where runs are, and SALIGN_CACHE where the cache is."
        )
    return None


def exit_code_of(main: Callable[[], None]) -> int:
    """Runs it; a SalignError becomes one paragraph and its exit code, without a traceback."""
    try:
        main()
    except SalignError as error:
        return _say(str(error), error.exit_code)
    except OSError as error:
        explanation = explain_os_error(error)
        if explanation is None:
            raise
        return _say(explanation, 1)
    except KeyboardInterrupt:
        print("interrupted; launch again to continue from what is complete", file=sys.stderr)
        return 130
    return 0


def _say(text: str, code: int) -> int:
    print(f"error: {as_called(presentable(text))}", file=sys.stderr, flush=True)
    if flag := os.environ.get(_FAILED_FLAG):
        with contextlib.suppress(OSError):  # the error itself is what counts
            Path(flag).touch()
    return code


def run_main(main: Callable[[], None]) -> NoReturn:
    """Runs an entry point, and ends with its exit code; see `exit_code_of`."""
    sys.exit(exit_code_of(main))


def end_on_signals() -> None:
    """Makes SIGTERM and SIGUSR2 an orderly end of this process, the second with the exit code `REQUEUE`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(REQUEUE))
