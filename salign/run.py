"""A run's folder: every path, atomic writes, locks, and the markers that say what is complete."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from salign import compose
from salign.config import NOT_FREE, Config
from salign.errors import NO_ROOM, ConfigError, SalignError, StageError, explain_os_error, redact

DONE = "done.json"
FAILED = "failed.json"
# Not one try alone: is_locked may hold a lock for a moment, and a process whose launcher was killed a little longer.
_LOCK_PATIENCE_S = 3.0
_NO_ROOM_BYTES = 1 << 20


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when the block has written it without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with new_file(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block has filled it without an error."""
    for left in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def full_disk(folder: Path) -> OSError | None:
    """The error of a full disk, where the folder's disk is full."""
    if shutil.disk_usage(folder).free >= _NO_ROOM_BYTES:
        return None
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@contextlib.contextmanager
def noticing_full_disk(folder: Path) -> Iterator[None]:
    """Turns whatever a library raises in the block into the OSError of a full disk, where the disk is full."""
    try:
        yield
    except Exception as error:
        if (full := full_disk(folder)) is not None:
            raise full from error
        raise


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


@dataclass(frozen=True)
class Done:
    """What a complete stage vouches for: facts, its files (bytes, sha256) and the digests of what it was made from.

    `machine` is where it was made, empty in the markers of older versions.
    """

    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One hash for all of the stage's files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def mark_done(folder: Path, names: list[str], inputs: Mapping[str, str], facts: Mapping[str, Any]) -> Done:
    """Declares a stage complete; written last.

    Args:
        folder: The stage's folder.
        names: Its files, relative to the folder.
        inputs: Name to digest of each stage that it was made from.
        facts: Counts and figures.
    """
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    done = Done(dict(facts), files, dict(inputs), this_machine())
    text = json.dumps(dataclasses.asdict(done), indent=2) + "\n"
    write_atomic(folder / DONE, text)
    (folder / FAILED).unlink(missing_ok=True)
    return done


def read_done(folder: Path) -> Done | None:
    """The stage's marker; None where there is none, or where one of its files is missing or has another size."""
    try:
        row = json.loads((folder / DONE).read_text())
        done = Done(row["facts"], row["files"], row["inputs"], row.get("machine", {}))
        sizes = {folder / name: seen["bytes"] for name, seen in done.files.items()}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())
    return done if whole else None


def require_done(folder: Path, what: str, remedy: str) -> Done:
    """The marker of a stage that another needs, its files verified by hash.

    Raises:
        StageError: It is not complete, or a file is not what the marker vouches for.
    """
    done = read_done(folder)
    if done is None:
        raise StageError(f"{what} is not complete ({folder / DONE} is missing or does not match its files). {remedy}")
    for name, seen in done.files.items():
        if sha256(folder / name) != seen["sha256"]:
            raise StageError(f"{folder / name} has changed since {what} was done. Remove {folder} and launch again.")
    return done


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
        write_atomic(folder / FAILED, json.dumps({"error": redact(said), "exit_code": code}) + "\n")


def read_failure(folder: Path) -> tuple[str, int] | None:
    """The error that `recording_failure` left, and its exit code."""
    try:
        row = json.loads((folder / FAILED).read_text())
        return str(row["error"]), int(row["exit_code"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def dataset(self) -> Path:
        return self.path / "dataset"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def code(self) -> Path:
        """Snapshots of this package, which Slurm's jobs import."""
        return self.path / "code"

    @property
    def slurm(self) -> Path:
        """What was submitted, by job, and the jobs' logs."""
        return self.path / "slurm"

    @property
    def launch_lock(self) -> Path:
        return self.path / ".launch.lock"

    def is_of_a_beginning(self, path: Path) -> bool:
        """Whether something in the folder is what another launch has made of the run before its config stands there.

        So it is where the tasks of an array begin at the same time.
        """
        return path in (self.launch_lock, self.logs, self.config_file) or path.name.startswith(
            f".{self.config_file.name}."
        )

    def shard(self, index: int) -> Path:
        return self.path / "simulate" / f"shard-{index:05d}"

    def stage(self, name: str) -> Path:
        return self.path / "train" / name

    def model(self, name: str) -> Path:
        return self.stage(name) / "model"

    def evaluation(self, model: str) -> Path:
        return self.path / "evaluate" / model

    def config(self) -> Config:
        """The run's resolved config.

        Raises:
            ConfigError: The folder is no run.
        """
        if not self.config_file.is_file():
            raise ConfigError(
                f"{self.path} is no run's folder: it has no config.yaml. Give the folder that `python jobs/launch.py` "
                "made (runs/NAME)."
            )
        config = compose.load(self.config_file)
        # The folder may have been moved or copied since.
        here = config.run.model_copy(update={"root": self.path.parent, "name": self.path.name})
        return config.model_copy(update={"run": here})


def open_run(path: Path) -> RunDir:
    """The run at a path that the user named.

    Raises:
        ConfigError: There is none.
    """
    run = RunDir(Path(os.path.abspath(path)))
    run.config()
    return run


def check_run(config: Config) -> RunDir:
    """The run that a config names, not created yet, or one of the same config to go on with.

    A run in which nothing is complete yet may still change its config.

    Raises:
        ConfigError: The place holds a run of another config, or something that is no run.
    """
    run = RunDir(config.run.root / config.run.name)
    if run.config_file.exists():
        changed = compose.differences(run.config(), config, *NOT_FREE)
        if changed and next(run.path.rglob(DONE), None) is not None:
            raise ConfigError(
                f"{run.path} holds a run of another config; it differs in {', '.join(changed)}. Choose another "
                f"run.name, or remove that folder to begin again."
            )
    elif run.path.exists() and not (run.path.is_dir() and all(map(run.is_of_a_beginning, run.path.iterdir()))):
        raise ConfigError(f"{run.path} exists and is no run's folder; choose another run.name or run.root.")
    return run


@contextlib.contextmanager
def claim_run(config: Config, *, wait: bool = False) -> Iterator[RunDir]:
    """Makes the run's folder, or goes on with one of the same config (see `check_run`), and holds its lock.

    Args:
        config: The run's.
        wait: For another launch that holds it, as tasks of an array do that all begin with this.

    Raises:
        ConfigError: As `check_run`, or the folder cannot be written.
        StageError: Another launch of the run is at work.
    """
    run = check_run(config)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(run.launch_lock, f"the run {run.path}", wait=wait))
            check_run(config)  # another launch may have changed it until now
            run.logs.mkdir(parents=True, exist_ok=True)
            write_atomic(run.config_file, compose.dump(config))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            raise ConfigError(
                f"the run's folder {run.path} cannot be written ({error.strerror}). Check its permissions, or set "
                "run.root elsewhere."
            ) from error
        yield run


def create_run(config: Config) -> RunDir:
    """Makes the run's folder without starting anything; see `claim_run`."""
    with claim_run(config) as run:
        return run


def this_machine() -> dict[str, Any]:
    """Where this process runs: host, cores and, as NVIDIA's driver names them, GPUs."""
    gpus = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        named = re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE)
        gpus.append(named.group(1) if named else "GPU")
    return {"host": platform.node(), "cores": os.cpu_count(), "gpus": gpus}
