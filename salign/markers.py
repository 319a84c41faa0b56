"""The markers of a unit's folder: `done.json` says what is complete, `failed.json` why it is not."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from salign.documents import read_json
from salign.errors import DataError, SalignError, StageError, explain_os_error, presentable
from salign.locks import require_held
from salign.machine import this_machine
from salign.storage import sha256, write_atomic

DONE = "done.json"
FAILED = "failed.json"


@dataclass(frozen=True)
class Done:
    """The marker of a complete stage: facts, its files (bytes, sha256) and the digests of its inputs.

    `machine` is where it was made, `took_s` how many seconds its process took for it, or the last one of several; None
    where nobody measured.
    """

    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    machine: dict[str, Any] = field(default_factory=dict)
    took_s: float | None = None

    @property
    def digest(self) -> str:
        """One hash for all of the stage's files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


# When this process began a unit, by its folder.
_begun = dict[Path, float]()


def begin_unit(folder: Path) -> None:
    """Notes the time, for the marker of a unit that this process is about to do."""
    _begun[folder] = time.monotonic()


class _Failure(TypedDict):
    error: str
    exit_code: int


def mark_done(folder: Path, names: list[str], inputs: Mapping[str, str], facts: Mapping[str, Any]) -> Done:
    """Writes the marker of a complete stage, last of all.

    Args:
        folder: The stage's folder.
        names: Its files, relative to the folder.
        inputs: Name to digest of each stage that it was made from.
        facts: Counts and figures.

    Raises:
        StageError: This process has lost the lock of the folder.
    """
    require_held(folder / ".lock")
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    begun = _begun.pop(folder, None)
    took_s = None if begun is None else round(time.monotonic() - begun, 1)
    done = Done(dict(facts), files, dict(inputs), this_machine(), took_s)
    row = json.loads(json.dumps(dataclasses.asdict(done)))  # as it is read: the keys of objects are strings
    write_atomic(folder / DONE, json.dumps({**row, "check": _check(row)}, indent=2) + "\n")
    (folder / FAILED).unlink(missing_ok=True)
    return done


def _check(row: Mapping[str, Any]) -> str:
    """By which a marker is known to be as it was written."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def read_done(folder: Path) -> Done | None:
    """Reads a stage's marker; None if there is none, or if one of its files is missing or has another size."""
    try:
        row = read_json(folder / DONE, str(folder / DONE), dict[str, Any])
        if row.pop("check", None) != _check(row):
            return None
        done = Done(**row)
        sizes = {folder / name: seen["bytes"] for name, seen in done.files.items()}
    except (FileNotFoundError, NotADirectoryError, DataError):
        return None
    whole = all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())
    return done if whole else None


def require_done(folder: Path, what: str, remedy: str) -> Done:
    """Reads the marker of a stage that another needs, and verifies its files by hash.

    Raises:
        StageError: It is not complete, or a file is not what the marker vouches for.
    """
    done = read_done(folder)
    if done is None:
        raise StageError(f"{what} is not complete ({folder / DONE} is missing or does not match its files). {remedy}")
    check_files(folder, done, what)
    return done


def check_files(folder: Path, done: Done, what: str) -> None:
    """Compares the files of a complete stage with what its marker vouches for.

    Raises:
        StageError: One is another.
    """
    for name in damaged(folder, done):
        raise StageError(f"{folder / name} has changed since {what} was done. Remove {folder} and launch again.")


def damaged(folder: Path, done: Done) -> Iterator[str]:
    """The files that are not what the marker vouches for, by hash."""
    return (name for name, seen in done.files.items() if sha256(folder / name) != seen["sha256"])


def forget(folder: Path) -> None:
    """Removes the markers of an earlier try."""
    (folder / FAILED).unlink(missing_ok=True)
    (folder / DONE).unlink(missing_ok=True)


@contextlib.contextmanager
def recording_failure(folder: Path) -> Iterator[None]:
    """Begins a unit anew, without an old marker; where the block raises, leaves `failed.json`. The error goes on."""
    forget(folder)
    try:
        yield
    except (SalignError, OSError) as error:
        record_failure(folder, error)
        raise


def record_failure(folder: Path, error: SalignError | OSError) -> None:
    """Leaves `failed.json`, if there is room for it."""
    with contextlib.suppress(OSError):  # a full disk is already the error being reported
        code = error.exit_code if isinstance(error, SalignError) else 1
        said = (explain_os_error(error) if isinstance(error, OSError) else None) or str(error)
        write_atomic(folder / FAILED, json.dumps({"error": presentable(said), "exit_code": code}) + "\n")


def read_failure(folder: Path) -> tuple[str, int] | None:
    """Reads the error that `recording_failure` left, and its exit code."""
    try:
        failure = read_json(folder / FAILED, str(folder / FAILED), _Failure)
    except (FileNotFoundError, NotADirectoryError, DataError):
        return None
    return failure["error"], failure["exit_code"]
