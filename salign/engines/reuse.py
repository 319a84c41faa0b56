"""Calls that other runs have paid for: their journals, which are only read.

A call's key is its content (which model, prompt, sampling, seed), so whoever asks the same finds it. What a key does
not have, and an answer depends on as well (settings of the engine, how it is asked for ratings), is compared by the
journals' headers.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from salign.config import Config
from salign.errors import ConfigError, StageError
from salign.locks import lock
from salign.logfiles import files_of, read_header
from salign.recordindex import RecordIndex
from salign.storage import new_folder

logger = logging.getLogger(__name__)

# The index of a run that is at work is made again after so long: shards that start one after the other share one.
_FRESH_S = 600.0
# Settings that say where and how a model is reached: what they decide is in its identity, or in how it is asked.
_OF_NO_ACCOUNT = ("kind", "rating_way")


class ReusedRun(NamedTuple):
    """A run whose journals answer calls of this one."""

    path: str
    records: RecordIndex
    with_refusals: bool = False
    """Whether calls that were refused there count as refused here too, as where that run is continued."""


def journals_of(run: Path) -> list[Path]:
    """The folders of a run's journals of calls: of its shards.

    Raises:
        ConfigError: There are none, or they are of an older version.
    """
    found = sorted(folder for folder in (run / "simulate").glob("shard-*") if folder.is_dir())
    try:
        journals = [folder for folder in found if files_of(folder)]
        if journals:
            read_header(journals[0])
    except StageError as error:
        said = str(error).partition(". ")[0]
        raise ConfigError(f"reuse: {said}. Take {run} out of reuse.") from None
    if not journals:
        raise ConfigError(f"reuse: {run} has no journal of model calls. Name a run's folder, or take it out of reuse.")
    return journals


def check_reuse(config: Config) -> None:
    """Makes sure, before anything is paid for, that there are calls to reuse.

    Raises:
        ConfigError: A folder is no other run's, or has no journal that this version reads.
    """
    for run in config.reuse:
        if run == config.run.root / config.run.name:
            raise ConfigError(f"reuse names the run itself ({run}), which goes on from its own journal. Leave it out.")
        journals_of(run)


def open_reused(runs: Sequence[Path], header: Mapping[str, Any], kept: Path) -> list[ReusedRun]:
    """The runs that calls are looked for in, in their order.

    Args:
        runs: Their folders.
        header: Of this run's journal; see `salign.society.headers.journal_header`.
        kept: Where indexes of their journals are kept, for all processes of this run.

    Raises:
        ConfigError: A run has no journal that could answer a call of this one; what differs is named.
    """
    return [ReusedRun(str(run), _index_of(run, header, kept)) for run in runs]


def _index_of(run: Path, header: Mapping[str, Any], kept: Path) -> RecordIndex:
    own = _voices(header)
    folders, apart = [], list[str]()
    for folder in journals_of(run):
        theirs = read_header(folder)
        if theirs is None:  # nothing of it is whole
            continue
        mistakes = _differences(own, _voices(theirs))
        if mistakes:
            apart += mistakes
        else:
            folders.append(folder)
    if not folders:
        listed = "; ".join(dict.fromkeys(apart)) or "none of its journals is whole"
        raise ConfigError(f"reuse: {run} can answer no call of this run: {listed}. Take it out of reuse.")
    if apart:
        logger.warning("reuse: some shards of %s are left out: %s", run, "; ".join(dict.fromkeys(apart)))
    return _kept_index(folders, kept)


# --- which models two runs have in common ----------------------------------------------------------


def _voices(header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By each model's identity: the settings of its engine, and how it is asked, as a journal's header has them."""
    parts = header.get("society.mixture") or []
    places = [("model", "engine"), ("society.observer.model", "society.observer")]
    places += [(f"society.mixture.{part}.model", f"society.mixture.{part}.engine") for part in parts]
    found: dict[str, dict[str, Any]] = {}
    for place, section in places:
        own = section if f"{section}.kind" in header else "engine"
        settings = {name.removeprefix(f"{own}."): value for name, value in header.items() if name.startswith(f"{own}.")}
        for name in _OF_NO_ACCOUNT:
            settings.pop(name, None)
        asked = header.get(f"{place}.asked") or {}
        voice = found.setdefault(str(header.get(place)), {})
        voice |= settings | {f"asked.{name}": value for name, value in asked.items() if value is not None}
    return found


def _differences(own: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why the answers of one cannot be those of the other; nothing where they can."""
    common = own.keys() & theirs.keys()
    if not common:
        return [f"its models are {', '.join(sorted(theirs))}, and this run's {', '.join(sorted(own))}"]
    return [
        f"{identity} has {name} {theirs[identity].get(name)!r} there and {own[identity].get(name)!r} here"
        for identity in sorted(common)
        for name in sorted(own[identity].keys() | theirs[identity].keys())
        if own[identity].get(name) != theirs[identity].get(name)
        # What was not measured, nobody was asked for.
        and not (name.startswith("asked.") and name not in own[identity].keys() & theirs[identity].keys())
    ]


# --- indexes on the disk ---------------------------------------------------------------------------


def _kept_index(folders: Sequence[Path], kept: Path) -> RecordIndex:
    """The index of some journals: of what they hold now, or held a little while ago.

    None is ever removed, for another process may have it mapped.
    """
    of = hashlib.blake2b("\0".join(map(str, folders)).encode(), digest_size=6).hexdigest()
    kept.mkdir(parents=True, exist_ok=True)
    with lock(kept / f".{of}.lock", f"the index of {folders[0].parent.parent}", wait=True):
        exact = kept / f"{of}-{_state_of(folders)}"
        if not exact.is_dir():
            recent = [folder for folder in kept.glob(f"{of}-*") if time.time() - folder.stat().st_mtime < _FRESH_S]
            if recent:
                return RecordIndex.load(max(recent, key=lambda folder: folder.stat().st_mtime))
            with new_folder(exact) as part:
                RecordIndex.build(part, folders)
        return RecordIndex.load(exact)


def _state_of(folders: Sequence[Path]) -> str:
    """A digest of the names and sizes of journals' files: another, once there is more in them."""
    hasher = hashlib.blake2b(digest_size=6)
    for name, size in _sizes(folders):
        hasher.update(json.dumps([name, size]).encode())
    return hasher.hexdigest()


def _sizes(folders: Sequence[Path]) -> Iterator[tuple[str, int]]:
    for folder in folders:
        with os.scandir(folder) as entries:
            yield from sorted((one.name, one.stat().st_size) for one in entries if one.name.startswith("journal-"))
