"""Files and folders that appear whole or not at all, their digests, and how a full disk is recognised."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from salign.errors import DataError

_NO_ROOM_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 18


def sha256(path: Path) -> str:
    """Computes the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that appears under its name only when the block has written it without an error.

    Raises:
        DataError: As `check_target`.
    """
    with _new_part(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        Path(file.name).replace(path)


def check_target(path: Path) -> None:
    """Whether a file can be written under a name, tried beside it: for what is to be known before it costs anything.

    Raises:
        DataError: Something else than a file has the name: a device, which root could replace for all, or a folder; or
            its folder takes no files.
    """
    with _new_part(path):
        pass


def part_of(path: Path) -> Path:
    """The name under which what is to be at a path is made beside it: nobody else's, on no node and in no thread."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{secrets.token_hex(4)}.part")


@contextlib.contextmanager
def _new_part(path: Path) -> Iterator[IO[bytes]]:
    """A file beside the one that is to be, which is gone after the block unless it was renamed."""
    _check_replaceable(path)
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made here, so not through a link that somebody put there.
        file = part.open("xb", buffering=_BUFFER_BYTES)
    except FileNotFoundError:  # /proc, where nobody makes anything
        raise DataError(f"{path.parent} takes no files: name another file to write") from None
    try:
        with file:
            yield file
    finally:
        part.unlink(missing_ok=True)


def _check_replaceable(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing is there, or what makes the file says why not
        return
    is_link = stat.S_ISLNK(mode) and path.absolute().parent != Path("/dev")  # there, links are devices too
    if not (stat.S_ISREG(mode) or is_link):
        raise DataError(f"{path} is a folder or a device, in whose place no file is put: name another file to write")


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with new_file(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder that appears under its name only when the block has filled it without an error.

    Its files can be read by whom the user lets read files (umask): some libraries make theirs for the user alone.
    """
    for left in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    part = part_of(path)
    part.mkdir(parents=True)
    try:
        yield part
        _apply_umask(part)
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    umask = os.umask(0o077)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(file.stat().st_mode | (0o666 & ~umask))


def full_disk(folder: Path) -> OSError | None:
    """Returns the error of a full disk if the folder's disk is full, else None."""
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
