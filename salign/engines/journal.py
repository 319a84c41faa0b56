"""The journal: every model call's answer, append-only, under the hash of what was asked. Resume is replay.

`salign.recordlog` has the files. Each says in its header of which models and config it is.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from salign import logfiles, recordlog
from salign.blocks import KEY_BYTES, Record
from salign.config import SCALE, Sampling
from salign.engines.base import Call, Handler, Prompt, RatingReply, Reply
from salign.engines.reuse import ReusedRun
from salign.errors import CallRejectedError, StageError
from salign.recordlog import RecordLog

# A society has a handful of samplings.
_MAX_BEGUN = 64
# In the record of an answer that another run had: its folder.
_REUSED_FROM = "reused_from"

Answer = Reply | RatingReply | CallRejectedError


class Found(NamedTuple):
    """An answer that was recorded, and the run whose journal had it first; None: this run's."""

    answer: Answer
    reused_from: str | None = None


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
        user = prompt.user
        if prompt.scored is not None:
            form, user = f"{form}_scores_{len(prompt.scored)}", prompt.scored + user
        hasher.update(f"\0{seed}\0{form}\0{prompt.system!r}\0{user}".encode("utf-8", "surrogatepass"))
        digest: bytes = hasher.digest()
        return digest

    def _begin(self, sampling: Sampling | None) -> tuple[Sampling | None, Any]:
        asked = None if sampling is None else list(sampling.model_dump().values())
        text = json.dumps([logfiles.VERSION, self._identity, asked])
        if len(self._begun) >= _MAX_BEGUN:
            self._begun.clear()
        begun = self._begun[id(sampling)] = sampling, hashlib.blake2b(text.encode(), digest_size=KEY_BYTES)
        return begun


def _row(answer: Answer, seconds: float) -> bytes:
    row: dict[str, Any] = {"seconds": round(seconds, 4)}
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
    return orjson.dumps(row)


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


def _read(row: bytes) -> Found | None:
    """A record as it was written; None where it is none."""
    try:
        values = orjson.loads(row)
        reused_from = values.get(_REUSED_FROM)
        return Found(_answer(values), None if reused_from is None else str(reused_from))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class Journal:
    """The calls that a shard has paid for.

    Args:
        folder: Where the journal's files are.
        header: Of which models and config it is.
        writer: Which of the files this process appends to; None for reading alone.
        reused: Other runs whose journals count too. What one of them answers is recorded here as well, with its name:
            a run's own journal holds all that it was answered.

    Raises:
        ConfigError: The journal is of other models or another config; what differs is named.
        StageError: A file is no journal, or of another version.
        OSError: As for a full disk.
    """

    def __init__(
        self, folder: Path, header: Mapping[str, Any], writer: int | None, reused: Sequence[ReusedRun] = ()
    ) -> None:
        self._folder = folder
        self._reused = reused
        self._log = RecordLog(folder, header, writer)
        self._waiting: list[Record] = []

    def __len__(self) -> int:
        """Calls that an earlier process has left."""
        return len(self._log)

    def find(self, key: bytes) -> Found | None:
        """The answer that was recorded, here or in another run; None where there is none.

        A refusal counts in a replay alone, or in the rounds of another run that this one continues: it was paid with
        nothing, and its reason may be gone.

        Raises:
            OSError: An earlier record could not be written.
        """
        row = self._log.find(key)
        if row is None:
            return self._find_elsewhere(key)
        found = _read(row)
        if found is None:
            raise StageError(
                f"the journal in {self._folder} has a record that is no answer ({row[:40]!r}). Remove the folder to "
                "begin the shard again."
            )
        if isinstance(found.answer, CallRejectedError) and self._log.is_written:
            return self._find_elsewhere(key)
        return found

    def _find_elsewhere(self, key: bytes) -> Found | None:
        for path, records, with_refusals in self._reused:
            row = records.find(key)
            found = None if row is None else _read(row)
            if row is None or found is None or (isinstance(found.answer, CallRejectedError) and not with_refusals):
                continue
            self._append(key, orjson.dumps({**orjson.loads(row), _REUSED_FROM: path}))
            return Found(found.answer, path)
        return None

    def append(self, key: bytes, answer: Answer, seconds: float) -> None:
        """Records an answer. It is in the file when the event loop has come round once.

        Raises:
            OSError: An earlier record could not be written.
        """
        self._append(key, _row(answer, seconds))

    def _append(self, key: bytes, row: bytes) -> None:
        if not self._waiting:
            if not self._log.is_written:
                return
            self._log.check()
            # All that is answered in one turn of the loop is one write.
            asyncio.get_running_loop().call_soon(self._write_later)
        self._waiting.append((key, row))

    def _write_later(self) -> None:
        with contextlib.suppress(OSError):  # the next call says it
            self.write()

    def write(self) -> None:
        """Hands what waits to the system: it outlives this process, but not the machine (see `sync`).

        Raises:
            OSError: As for a full disk. The file is cut back to its last whole record.
        """
        waiting, self._waiting = self._waiting, []
        self._log.append(waiting)

    async def sync(self) -> None:
        """Waits until all that was appended is on the disk itself.

        Raises:
            OSError: Something could not be written.
        """
        self.write()
        await asyncio.to_thread(self._log.sync)

    def close(self) -> None:
        """Writes what waits, and closes the files.

        Raises:
            OSError: Something could not be written.
        """
        try:
            self.write()
        finally:
            self._log.close()


def written_header(folder: Path) -> dict[str, Any]:
    """The header of a folder's journal.

    Raises:
        StageError: There is no journal.
    """
    header = logfiles.read_header(folder)
    if header is None:
        raise StageError(f"{folder} has no journal to replay; simulate the shard first.")
    return header


def _served(row: bytes) -> str | None:
    """The model's name as the server gave it with a recorded answer."""
    with contextlib.suppress(ValueError, AttributeError):
        name = orjson.loads(row).get("served")
        return name if isinstance(name, str) else None
    return None


def served_names(folder: Path) -> set[str]:
    """Under which names the answers of a folder's journal came."""
    return {name for _, row in logfiles.read_records(folder) if (name := _served(row)) is not None}


def drop_answers(folder: Path, served: str) -> int:
    """Removes the answers that came under a name from a journal that nobody has open.

    Returns:
        How many there were.
    """
    return recordlog.drop_records(folder, lambda row: _served(row) == served)


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
        found = self._journal.find(key)
        if found is not None:
            call.is_journaled, call.reused_from = True, found.reused_from
            if isinstance(found.answer, CallRejectedError):
                raise found.answer
            return found.answer
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
        lacking: What to say of a call that is not there; None: that the shard cannot be replayed.
    """

    def __init__(self, identity: str, measured: Mapping[str, Any] | None = None, lacking: str | None = None) -> None:
        self._lacking = lacking
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
            self._lacking
            or f"the journal lacks a call of {self.identity}, so the shard cannot be replayed: it was not complete. "
            "Simulate it without --replay: what is in the journal is not asked again."
        )
