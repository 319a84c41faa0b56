"""Opens the engine that a section of the config names, measures it, and puts its handlers in front."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

from salign.config import Effect, EngineSection, selected
from salign.engines.base import Engine, Handler, PushesBack
from salign.engines.capabilities import Capabilities, Measurable, Ratings, prepare, read
from salign.engines.determinism import determinism_of
from salign.engines.gate import Gate, Gated
from salign.engines.journal import Journal, Journaled
from salign.engines.kinds import kind_of
from salign.engines.meter import MeteredEngine


class OpenEngine(NamedTuple):
    """An engine that is open and measured, and the gate that bounds its calls."""

    engine: Engine
    gate: Gate


def metered(engine: Engine, gate: Gate, journal: Journal | None = None) -> MeteredEngine:
    """An engine as it is called: counted, and answered from the journal or through the gate by the engine itself.

    Args:
        engine: What answers.
        gate: Bounds its calls.
        journal: Answers what it was answered before, and records what is new; None for none.
    """
    handler: Handler = Gated(engine, gate)
    if journal is not None:
        handler = Journaled(handler, engine.identity, journal)
    return MeteredEngine(handler, engine, gate)


@contextlib.asynccontextmanager
async def open_unmetered(
    section: EngineSection, model: str, folder: Path, *, ratings: Ratings | None = None, kept: Path | None = None
) -> AsyncIterator[OpenEngine]:
    """The engine of a section, measured, closed at the end of the block; to be called through `metered`.

    A journal's header names its engines and what was measured of them, so that they are opened before it.

    Args:
        section: Which engine.
        model: What an engine of our own loads where its section names no model.
        folder: Where servers that are started here keep their logs.
        ratings: How its ratings will be read; None where it is asked for none.
        kept: Where a run keeps what was measured, so that all its processes ask alike; None for nowhere.

    Raises:
        ConfigError: The model or the server's settings are wrong; or the engine cannot rate in any way.
        EngineError: The server is unreachable or does not start.
    """
    async with kind_of(section).open(section, model, folder) as engine:
        gate = Gate(section.max_in_flight, adaptive=isinstance(engine, PushesBack))
        if isinstance(engine, PushesBack):
            engine.on_push_back(gate.pushed_back)
        if isinstance(engine, Measurable):
            await prepare(engine, _asked(section), ratings, kept)
            if getattr(section, "probe", None) == "determinism":
                found = await determinism_of(engine, _asked(section), ratings, kept)
                engine.capabilities = engine.capabilities.model_copy(update={"determinism": found.model_dump()})
        yield OpenEngine(engine, gate)


@contextlib.asynccontextmanager
async def open_engine(
    section: EngineSection,
    model: str,
    folder: Path,
    *,
    ratings: Ratings | None = None,
    journal: Journal | None = None,
) -> AsyncIterator[MeteredEngine]:
    """The engine of a section behind a journal that is there already, or none; as `open_unmetered` and `metered`."""
    async with open_unmetered(section, model, folder, ratings=ratings) as opened:
        yield metered(*opened, journal)


def known(section: EngineSection, identity: str, ratings: Ratings | None, kept: Path) -> Capabilities | None:
    """What a run has measured of an engine that is not opened; None if nothing."""
    return read(kept, identity, _asked(section), ratings)


def _asked(section: EngineSection) -> dict[str, Any]:
    """What of a section may change what is measured."""
    return selected(section, Effect.DECIDES)
