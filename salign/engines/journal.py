"""The journal: every model call's answer, append-only, under the hash of what was asked. Resume is replay.

A journal is a folder's `journal-NNNNN.jsonl` files, one for each process that writes. Each begins with a header that
says of which models and config it is; each further line is one answer. A line that was torn when its process was
killed is dropped; nothing else ever is.
"""

import asyncio
import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson

from salign.config import SCALE, Sampling
from salign.engines.base import Call, Handler, Prompt, RatingReply, Reply
from salign.errors import CallRejectedError, ConfigError, StageError

JOURNAL_VERSION = 2
_KEY_BYTES = 16
_TAIL_BYTES = 1 << 16
# A society has a handful of samplings.
_MAX_BEGUN = 64
_BEGIN = b'{"key":"'
_KEY_START = len(_BEGIN)
_KEY_END = _KEY_START + 2 * _KEY_BYTES

Answer = Reply | RatingReply | CallRejectedError


class CallKeys:
    """Hashes of one model's calls: identity, kind of call, sampling, seed, form, scale, system text, user text."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        # By `id`: hashing and comparing the fields costs more than all else. Each is kept, so that no other object gets
        # its id.
        self._begun: dict[int, tuple[Sampling | None, Any]] = {}

    def of(self, prompt: Prompt, sampling: Sampling | None, seed: int) -> bytes:
        """The key of a call; `sampling` is None for a rating by the digits' probabilities."""
        _, begun = self._begun.get(id(sampling)) or self._begin(sampling)
        hasher = begun.copy()
        # The user's text last: nothing in it can be taken for another part.
        form: str = prompt.form
        if prompt.scale is not SCALE and prompt.scale != SCALE:
            form = f"{form}_{prompt.scale[0]}_{prompt.scale[1]}"
        hasher.update(f"\0{seed}\0{form}\0{prompt.system!r}\0{prompt.user}".encode("utf-8", "surrogatepass"))
        digest: bytes = hasher.digest()
        return digest

    def _begin(self, sampling: Sampling | None) -> tuple[Sampling | None, Any]:
        asked = None if sampling is None else list(sampling.model_dump().values())
        text = json.dumps([JOURNAL_VERSION, self._identity, asked])
        if len(self._begun) >= _MAX_BEGUN:
            self._begun.clear()
        begun = self._begun[id(sampling)] = sampling, hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES)
        return begun


def _record(key: bytes, answer: Answer, seconds: float) -> bytes:
    row: dict[str, Any] = {"key": key.hex(), "seconds": round(seconds, 4)}
    if isinstance(answer, CallRejectedError):
        row["refused"] = str(answer)
    else:
        if isinstance(answer, Reply):
            row["text"] = answer.text
            if answer.finish is not None:
                row["finish"] = answer.finish
            if answer.thinking != "none":
                row["thinking"] = answer.thinking
        else:
            row["probabilities"], row["mass"] = answer.probabilities, answer.mass
            if answer.lowest != SCALE[0]:
                row["lowest"] = answer.lowest
        row["tokens"] = [answer.prompt_tokens, answer.completion_tokens]
        if answer.served is not None:
            row["served"] = answer.served
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def _answer(row: Mapping[str, Any]) -> Answer:
    if "refused" in row:
        return CallRejectedError(row["refused"])
    prompt_tokens, completion_tokens = row["tokens"]
    if "text" in row:
        return Reply(
            row["text"],
            prompt_tokens,
            completion_tokens,
            row.get("served"),
            row.get("finish"),
            row.get("thinking", "none"),
        )
    weights = row["probabilities"]
    probabilities = None if weights is None else tuple(weights)
    served, lowest = row.get("served"), row.get("lowest", SCALE[0])
    return RatingReply(probabilities, row["mass"], prompt_tokens, completion_tokens, served, lowest)


def _end_of_last_line(file: IO[bytes]) -> int:
    start = file.seek(0, os.SEEK_END)
    while start > 0:
        end, start = start, max(0, start - _TAIL_BYTES)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
    return 0


class _File:
    """One journal file, mapped into memory; its whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            # Its writer may be another process that cuts a torn end off now: what is cut off while it is mapped is a
            # SIGBUS where it is read.
            self.num_bytes = _end_of_last_line(file)
            # Nothing cannot be mapped.
            self._bytes: mmap.mmap | bytes = (
                mmap.mmap(file.fileno(), self.num_bytes, access=mmap.ACCESS_READ) if self.num_bytes else b""
            )
        self.header_bytes = self._bytes.find(b"\n") + 1

    def header(self) -> dict[str, Any] | None:
        """What the file says of itself; None where not even that was written whole."""
        if not self.header_bytes:
            return None
        try:
            header = json.loads(self._bytes[: self.header_bytes])
        except ValueError:
            header = None
        if not isinstance(header, dict) or "journal" not in header:
            raise StageError(
                f"{self.path} is not a journal: its first line is not a journal's header. Remove it to "
                "begin the shard again."
            )
        if header["journal"] != JOURNAL_VERSION:
            raise StageError(
                f"{self.path} is a journal of version {header['journal']!r}; this version of salign reads version "
                f"{JOURNAL_VERSION}. Choose another run.name, or remove {self.path.parent} to begin the shard again."
            )
        return header

    def index(self) -> Iterator[tuple[bytes, int]]:
        """Key and offset of each record."""
        start, mapped = self.header_bytes, self._bytes
        while start < self.num_bytes:
            try:
                key = bytes.fromhex(mapped[start + _KEY_START : start + _KEY_END].decode())
            except ValueError:
                key = b""
            if len(key) != _KEY_BYTES or mapped[start : start + _KEY_START] != _BEGIN:
                raise self._damaged(start)
            yield key, start
            start = mapped.find(b"\n", start) + 1

    def read(self, start: int) -> Answer:
        try:
            return _answer(orjson.loads(self._bytes[start : self._bytes.find(b"\n", start)]))
        except (ValueError, KeyError, TypeError):
            raise self._damaged(start) from None

    def _damaged(self, start: int) -> StageError:
        return StageError(
            f"{self.path} is damaged at byte {start}: there is no valid record of a call there. Truncate the file "
            f"(truncate -s {start} FILE): the calls after that point are made again; or remove the file."
        )


class Journal:
    """The calls that a shard has paid for.

    Args:
        folder: Where the journal's files are.
        header: Of which models and config it is.
        writer: Which of the files this process appends to; None for reading alone.

    Raises:
        ConfigError: The journal is of other models or another config; what differs is named.
        StageError: A file is damaged other than by a torn end.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], writer: int | None) -> None:
        self._header = json.loads(json.dumps({"journal": JOURNAL_VERSION, **header}))
        self._files: list[_File] = []
        self._index: dict[bytes, tuple[_File, int]] = {}
        for path in sorted(folder.glob("journal-*.jsonl")):
            file = _File(path)
            found = file.header()
            if found is not None:
                self._check(path, found)
                self._files.append(file)
                self._index.update((key, (file, start)) for key, start in file.index())
        self._waiting: list[bytes] = []
        self._error: OSError | None = None
        self._descriptor: int | None = None
        if writer is not None:
            self._open(folder / f"journal-{writer:05d}.jsonl")

    def __len__(self) -> int:
        """Calls that an earlier process has left."""
        return len(self._index)

    def _check(self, path: Path, found: Mapping[str, Any]) -> None:
        changed = [
            f"{name} ({there!r} there, {here!r} now)"
            for name in sorted(self._header | found)
            if (there := found.get(name)) != (here := self._header.get(name))
        ]
        if changed:
            raise ConfigError(
                f"{path} is the journal of another simulation; it differs in {'; '.join(changed)}. Restore "
                f"that, choose another run.name, or remove {path.parent} to begin the shard again."
            )

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = next((file.num_bytes for file in self._files if file.path == path), 0)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._descriptor, whole)
        self._size = os.lseek(self._descriptor, 0, os.SEEK_END)
        self._path = path
        if not whole:
            self._waiting.append((json.dumps(self._header, ensure_ascii=False) + "\n").encode())
            self.write()

    def find(self, key: bytes) -> Answer | None:
        """The answer that was recorded; None where there is none.

        A refusal counts in a replay alone: it was paid with nothing, and its reason may be gone.
        """
        place = self._index.get(key)
        if place is None:
            return None
        answer = place[0].read(place[1])
        return None if isinstance(answer, CallRejectedError) and self._descriptor is not None else answer

    def append(self, key: bytes, answer: Answer, seconds: float) -> None:
        """Records an answer. It is in the file when the event loop has come round once.

        Raises:
            OSError: An earlier record could not be written.
        """
        if self._error is not None:
            raise self._error
        if self._descriptor is None:
            return
        if not self._waiting:
            # All that is answered in one turn of the loop is one write.
            asyncio.get_running_loop().call_soon(self._write_later)
        self._waiting.append(_record(key, answer, seconds))

    def _write_later(self) -> None:
        if self._descriptor is None:  # closed since, and written then
            return
        with contextlib.suppress(OSError):  # kept in _error: the next call says it
            self.write()

    def write(self) -> None:
        """Hands what waits to the system: it outlives this process, but not the machine (see `sync`).

        Raises:
            OSError: As for a full disk. The file is cut back to its last whole record.
        """
        if self._error is not None:
            raise self._error
        assert self._descriptor is not None
        block = memoryview(b"".join(self._waiting))
        self._waiting.clear()
        try:
            written = 0
            while written < len(block):
                written += os.write(self._descriptor, block[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            self._error = OSError(error.errno, error.strerror, str(self._path))
            raise self._error from error
        self._size += len(block)

    async def sync(self) -> None:
        """Waits until all that was appended is on the disk itself.

        Raises:
            OSError: Something could not be written.
        """
        if self._descriptor is not None:
            self.write()
            await asyncio.to_thread(os.fsync, self._descriptor)

    def close(self) -> None:
        """Writes what waits, and closes the file.

        Raises:
            OSError: Something could not be written.
        """
        if self._descriptor is not None:
            try:
                self.write()
            finally:
                os.close(self._descriptor)
                self._descriptor = None


def written_header(folder: Path) -> dict[str, Any]:
    """The header of a folder's journal.

    Raises:
        StageError: There is no journal.
    """
    for path in sorted(folder.glob("journal-*.jsonl")):
        header = _File(path).header()
        if header is not None:
            return {name: value for name, value in header.items() if name != "journal"}
    raise StageError(f"{folder} has no journal to replay; simulate the shard first.")


class Journaled:
    """Answers from the journal what it holds, at once and for nothing, and records in it what the engine answers.

    Args:
        inner: Is asked for what the journal lacks.
        identity: Of the model, part of each call's key.
        journal: Whose records count.
    """

    def __init__(self, inner: Handler, identity: str, journal: Journal) -> None:
        self._inner = inner
        self._journal = journal
        self._keys = CallKeys(identity)

    async def handle(self, call: Call) -> Reply | RatingReply:
        """The recorded answer, or a new one."""
        key = self._keys.of(call.prompt, call.sampling, call.seed)
        answer = self._journal.find(key)
        if answer is not None:
            call.is_journaled = True
            if isinstance(answer, CallRejectedError):
                raise answer
            return answer
        try:
            answer = await self._inner.handle(call)
        except CallRejectedError as error:
            self._journal.append(key, error, call.seconds)
            raise
        self._journal.append(key, answer, call.seconds)
        return answer


class ReplayEngine:
    """Stands where an engine stood, for a shard whose every call is in its journal.

    Args:
        identity: Of the model whose answers the journal holds.
        measured: The facts of the engine that gave them.
    """

    def __init__(self, identity: str, measured: Mapping[str, Any] | None = None) -> None:
        self.identity = identity
        self._measured = dict(measured or {})

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        raise self._missing()

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        raise self._missing()

    def facts(self) -> dict[str, Any]:
        return self._measured

    def _missing(self) -> StageError:
        return StageError(
            f"the journal lacks a call of {self.identity}, so the shard cannot be replayed: it was not complete. "
            "Simulate it without --replay: what is in the journal is not asked again."
        )
