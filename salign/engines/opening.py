"""Opens the engine that a config names."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from salign.config import EngineSection, OpenAIEngine, ScriptedEngine, ServerEngine
from salign.engines.base import Engine
from salign.engines.gate import Gate
from salign.engines.meter import MeteredEngine


@contextlib.asynccontextmanager
async def open_engine(section: EngineSection, model: str, folder: Path) -> AsyncIterator[MeteredEngine]:
    """The engine of a section, metered, closed at the end of the block.

    Args:
        section: Which engine.
        model: What an engine of our own loads where its section names no model.
        folder: Where servers that are started here keep their logs.

    Raises:
        ConfigError: The model or the server's settings are wrong.
        EngineError: The server is unreachable or does not start.
    """
    gate = Gate(section.max_in_flight, adaptive=isinstance(section, OpenAIEngine | ServerEngine))
    if isinstance(section, ServerEngine):
        from salign.engines.server import servers

        async with servers(section, section.model or model, folder, gate.pushed_back) as served:
            yield MeteredEngine(served, gate)
        return
    metered = MeteredEngine(await _open(section, model, gate), gate)
    try:
        yield metered
    finally:
        await metered.close()


async def _open(section: EngineSection, model: str, gate: Gate) -> Engine:
    if isinstance(section, ScriptedEngine):
        from salign.engines.scripted import ScriptedEngine as Scripted

        return Scripted()
    if isinstance(section, OpenAIEngine):
        from salign.engines.openai import connect

        return await connect(section, pushed_back=gate.pushed_back)
    assert not isinstance(section, ServerEngine)
    from salign.engines.transformers import TransformersEngine as Transformers

    return Transformers(section, section.model or model)
