"""Every kind of engine: what is known of it from its section alone, and how it is opened.

One class for each `kind` of `salign.config.engines`, in one dict. Planning reads this module: what loads torch or a
client is imported where it is opened.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from salign import models
from salign.config import (
    EngineSection,
    Fleet,
    FleetEngine,
    OpenAIEngine,
    ScriptedEngine,
    ServedEngine,
    ServerEngine,
    TransformersEngine,
)
from salign.engines.base import Engine
from salign.engines.programs import is_gguf, on_gpus, program_of
from salign.errors import ConfigError
from salign.garbage import rare_collections
from salign.machine import visible_devices
from salign.run import run_around


class _Section(Protocol):
    @property
    def kind(self) -> str: ...


S = TypeVar("S", bound=_Section)
P = TypeVar("P", bound=ServedEngine)

# By when a server says at the launch which models it serves.
_CONNECT_TIMEOUT_S = 15.0


class Kind(ABC, Generic[S]):
    """A kind of engine.

    Attributes:
        is_in_process: Transformers loads its model, a Hugging Face folder, in this process: `check_engines` checks the
            folder and its chat template.
        starts_servers: It starts servers that use the machine's GPUs: of the ranks of an evaluation only one opens it.
        why_not_trained: Why it cannot answer for a model of the run, unless `answering_for` says how it can.
    """

    is_in_process = False
    starts_servers = False
    why_not_trained = "it has a model of its own"

    def model_of(self, section: S, base: str) -> str | None:
        """The model whose files are loaded here; None where there is none, or a server elsewhere has it.

        Args:
            section: Of the engine.
            base: The run's model.
        """
        return None

    def check(self, section: S, base: str, *, fetch: bool, here: bool) -> None:
        """Makes sure, in seconds and before anything starts, that what the engine needs is there.

        Args:
            section: Of the engine.
            base: The run's model.
            fetch: The run is about to start: what can be downloaded is downloaded.
            here: It will run on this machine: servers must answer.

        Raises:
            ConfigError: A model, a program or a served name does not exist.
            EngineError: A server is unreachable.
        """

    def answering_for(self, section: S, model: str) -> S:
        """The section by which the engine answers for a model under evaluation.

        Args:
            section: Which names no model.
            model: The run's, or the folder of one that it trained, which need not be there yet.

        Raises:
            ConfigError: This kind cannot load it.
        """
        raise ConfigError(
            f"evaluate.engine.kind {section.kind} cannot load {model}: {self.why_not_trained}. {_ANSWERS_FOR_MODELS}"
        )

    @abstractmethod
    def open(self, section: S, base: str, logs: Path) -> contextlib.AbstractAsyncContextManager[Engine]:
        """The engine, closed at the end of the block.

        An engine with `probe` is measured then (`capabilities.Measurable`); one that may push calls back says so by
        `on_push_back` (`base.PushesBack`).

        Args:
            section: Of the engine.
            base: The run's model, for a section that names none.
            logs: Where servers that are started here keep their logs.

        Raises:
            ConfigError: The model or the server's settings are wrong.
            EngineError: The server is unreachable or does not start.
        """


_ANSWERS_FOR_MODELS = (
    "Set evaluate.engine={kind: server, program: vllm}, which serves the folder of any model, or evaluate.engine=null: "
    "transformers loads it in the process."
)


class _Scripted(Kind[ScriptedEngine]):
    why_not_trained = "it has no model"

    @contextlib.asynccontextmanager
    async def open(self, section: ScriptedEngine, base: str, logs: Path) -> AsyncIterator[Engine]:
        from salign.engines.scripted import ScriptedEngine as Scripted

        yield Scripted()


class _Transformers(Kind[TransformersEngine]):
    is_in_process = True

    def model_of(self, section: TransformersEngine, base: str) -> str:
        return section.model or base

    def answering_for(self, section: TransformersEngine, model: str) -> TransformersEngine:
        return section.model_copy(update={"model": model})

    @contextlib.asynccontextmanager
    async def open(self, section: TransformersEngine, base: str, logs: Path) -> AsyncIterator[Engine]:
        with rare_collections():
            from salign.engines.transformers import TransformersEngine as Transformers

        engine = Transformers(section, self.model_of(section, base))
        try:
            yield engine
        finally:
            await engine.close()


class _OpenAI(Kind[OpenAIEngine]):
    why_not_trained = "its server serves a model of its own, and nothing shows that it is this one"

    def check(self, section: OpenAIEngine, base: str, *, fetch: bool, here: bool) -> None:
        if here:
            timeout_s = min(section.timeout_s, _CONNECT_TIMEOUT_S)
            once = {"num_retries": 1, "timeout_s": timeout_s, "patience_s": 0.0}
            asyncio.run(self._connect_once(section.model_copy(update=once)))

    async def _connect_once(self, section: OpenAIEngine) -> None:
        async with self.open(section, "", Path()):
            pass

    @contextlib.asynccontextmanager
    async def open(self, section: OpenAIEngine, base: str, logs: Path) -> AsyncIterator[Engine]:
        from salign.engines.openai import connect

        engine = await connect(section)
        try:
            yield engine
        finally:
            await engine.close()


class _Served(Kind[P]):
    starts_servers = True

    def model_of(self, section: P, base: str) -> str | None:
        model = section.model or base
        # The GGUF of an embedded model is another file than its folder; its digest stands in the engine's identity.
        return None if section.program == "llama_cpp" and model in models.EMBEDDED else model

    def check(self, section: P, base: str, *, fetch: bool, here: bool) -> None:
        model = section.model or base
        if fetch or model not in models.EMBEDDED:  # an embedded model's file is downloaded where it is looked for
            program_of(section, model)  # which serves what it can, such as a GGUF file

    def answering_for(self, section: P, model: str) -> P:
        if section.program == "llama_cpp" and not (model in models.EMBEDDED or is_gguf(model)):
            raise ConfigError(
                f"evaluate.engine.program llama_cpp cannot load {model}: it serves GGUF files, and a model of a run is "
                f"a folder in Hugging Face format. {_ANSWERS_FOR_MODELS}"
            )
        return section.model_copy(update={"model": model})

    @contextlib.asynccontextmanager
    async def open(self, section: P, base: str, logs: Path) -> AsyncIterator[Engine]:
        from salign.engines.server import servers

        async with servers(section, section.model or base, logs) as engine:
            yield engine


class _Fleet(_Served[FleetEngine]):
    """Shards share the fleet's servers; whatever else opens it, such as an evaluation, starts servers of its own, which
    share the GPUs that are there.
    """

    @contextlib.asynccontextmanager
    async def open(self, section: FleetEngine, base: str, logs: Path) -> AsyncIterator[Engine]:
        from salign.engines.fleet import open_fleet

        run = run_around(logs)
        if run is None or not logs.is_relative_to(run.simulate):
            num_gpus = len(await asyncio.to_thread(visible_devices)) // section.num_servers
            async with super().open(on_gpus(section, num_gpus), base, logs) as engine:
                yield engine
            return
        fleet = Fleet.of(section, base)
        async with open_fleet(fleet, run.fleet(fleet.name)) as shared:
            yield shared


KINDS: dict[str, Kind[Any]] = {
    "scripted": _Scripted(),
    "transformers": _Transformers(),
    "openai": _OpenAI(),
    "server": _Served[ServerEngine](),
    "fleet": _Fleet(),
}
"""By the word that stands in a section's `kind`."""


def kind_of(section: EngineSection) -> Kind[Any]:
    """The kind of a section's engine."""
    return KINDS[section.kind]
