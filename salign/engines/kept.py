"""What is measured of an engine once in a run, by one of its processes, and kept there."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from salign.errors import ConfigError, HeldError
from salign.locks import lock
from salign.storage import part_of

logger = logging.getLogger(__name__)

# Who waits for another's measurement looks after a pause that grows: a thousand shards may begin at once.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


class Measurement(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    measured: ClassVar[str]
    """In words."""


M = TypeVar("M", bound=Measurement)


def file_name(prefix: str, identity: str, asked: Mapping[str, Any], ratings: str | None) -> str:
    """The name of a measurement's file.

    Args:
        prefix: What is measured.
        identity: The engine's.
        asked: The settings that change what is measured.
        ratings: How its ratings are read; None where none are asked for.
    """
    text = json.dumps([identity, ratings, asked], sort_keys=True)
    return f"{prefix}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.json"


async def once(
    path: Path | None, kind: type[M], measure: Callable[[], Awaitable[M]], is_kept: Callable[[], bool] = lambda: True
) -> M:
    """What is kept in a file; where there is none, one of all processes that ask measures it, and the others wait.

    Args:
        path: The file; None where nothing is kept.
        kind: What is measured.
        measure: Measures it.
        is_kept: Whether what was measured is kept; asked after it.

    Raises:
        ConfigError: The file is damaged.
    """
    if path is None:
        return await measure()
    pause = _FIRST_PAUSE_S
    while (found := read(path, kind)) is None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock(path.with_suffix(".lock"), f"{kind.measured} in {path}", patience_s=0.0))
            except HeldError as held:
                if pause == _FIRST_PAUSE_S:
                    logger.info("waits for another process: %s", held)
                await asyncio.sleep(pause)
                pause = min(1.5 * pause, _LONGEST_PAUSE_S)
                continue
            if (found := read(path, kind)) is None:
                found = await measure()
                return publish(path, found) if is_kept() else found
    return found


def read(path: Path, kind: type[M]) -> M | None:
    """What is kept in a file; None where there is none.

    Raises:
        ConfigError: The file is damaged.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError):
        raise ConfigError(
            f"{path} is not a valid measurement of {kind.measured}. Remove it, and it will be measured again."
        ) from None


def publish(path: Path, mine: M) -> M:
    """Keeps a measurement; what the first of all processes has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    part.write_text(mine.model_dump_json(indent=1) + "\n", encoding="utf-8")
    try:
        os.link(part, path)  # fails where there is one, and nobody ever sees half of it
    except FileExistsError:
        return read(path, type(mine)) or mine
    finally:
        part.unlink(missing_ok=True)
    return mine
