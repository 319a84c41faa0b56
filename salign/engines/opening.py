"""Opens the engine that a config names."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from salign.config import Effect, EngineSection, OpenAIEngine, ScriptedEngine, ServerEngine, selected
from salign.engines.capabilities import Capabilities, Measurable, Ratings, prepare, read
from salign.engines.gate import Gate
from salign.engines.meter import MeteredEngine
from salign.engines.scripted import ScriptedEngine as Scripted


@contextlib.asynccontextmanager
async def open_engine(
    section: EngineSection, model: str, folder: Path, *, ratings: Ratings | None = None, kept: Path | None = None
) -> AsyncIterator[MeteredEngine]:
    """The engine of a section, measured and metered, closed at the end of the block.

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
    gate = Gate(section.max_in_flight, adaptive=isinstance(section, OpenAIEngine | ServerEngine))
    if isinstance(section, ServerEngine):
        from salign.engines.server import servers

        async with servers(section, section.model or model, folder, gate.pushed_back) as served:
            await prepare(served, _asked(section), ratings, kept)
            yield MeteredEngine(served, gate)
        return
    engine = await _open(section, model, gate)
    try:
        if not isinstance(engine, Scripted):
            await prepare(engine, _asked(section), ratings, kept)
        yield MeteredEngine(engine, gate)
    finally:
        await engine.close()


def _asked(section: EngineSection) -> dict[str, Any]:
    """What of a section may change what is measured."""
    return selected(section, Effect.DECIDES)


def known(section: EngineSection, identity: str, ratings: Ratings | None, kept: Path) -> Capabilities | None:
    """What a run has measured of an engine that is not opened; None if nothing."""
    return read(kept, identity, _asked(section), ratings)


async def _open(section: EngineSection, model: str, gate: Gate) -> Measurable | Scripted:
    if isinstance(section, ScriptedEngine):
        return Scripted()
    if isinstance(section, OpenAIEngine):
        from salign.engines.openai import connect

        return await connect(section, pushed_back=gate.pushed_back)
    assert not isinstance(section, ServerEngine)
    from salign.engines.transformers import TransformersEngine as Transformers

    return Transformers(section, section.model or model)
