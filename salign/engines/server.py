"""Servers (llama.cpp, vLLM) that start and stop with the shard that uses them.

Each has a port on loopback, a key and a temporary folder of its own, so two shards on a node never meet. A keeper
process (keeper.py) stands between shard and server and ends the server when the shard is gone.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiohttp

from salign.config import OpenAIEngine as OpenAISection
from salign.config import ServedEngine
from salign.digests import name_of
from salign.engines.http import TooLongError, read_bounded
from salign.engines.keeping import KeptProcess, explain, start
from salign.engines.least_loaded import LeastLoaded
from salign.engines.openai import OpenAIEngine, with_body
from salign.engines.programs import Program, program_of, server_environment
from salign.engines.proxy import ProxyEngine
from salign.errors import CallRejectedError, EngineError, SalignError
from salign.machine import share_out, visible_devices

logger = logging.getLogger(__name__)

T = TypeVar("T")

NUM_PORTS = 5
"""On how many ports a server is tried, where others take them."""
NUM_RESTARTS = 3
"""How often a server that ended is started again."""
_POLL_S = 0.2
SAY_EVERY_S = 10.0
SEEN_DEAD_S = 2.0
"""By when the end of a server is known after its connections broke."""
ANSWER_S = 10.0
"""For an answer to whether a server is ready."""
_MOST_BYTES = 1 << 20
"""Of a list of models."""


@contextlib.asynccontextmanager
async def servers(section: ServedEngine, model: str, folder: Path) -> AsyncIterator[LeastLoaded]:
    """The servers of a section behind one engine, ended at the end of the block.

    Args:
        section: Which program, and how many.
        model: What they serve.
        folder: Where their logs go, `server-<index>.log`; not shared with another shard.

    Raises:
        ConfigError: The program or the model cannot be had here.
        EngineError: A server ends or is not ready in time; the message quotes its log.
    """
    program = await asyncio.to_thread(program_of, section, model)
    name = await asyncio.to_thread(lambda: name_of(program.model, program.files()))
    identity = with_body(f"{name} ({section.program})", section)
    devices = await asyncio.to_thread(visible_devices)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [
        KeptServer(program, section, index, folder / f"server-{index}.log", shared, identity=identity)
        for index, shared in enumerate(share_out(devices, section.num_servers))
    ]
    starts = [asyncio.create_task(server.start()) for server in kept]
    try:
        await asyncio.gather(*starts)
        yield LeastLoaded(kept)
    finally:
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in kept))


# --- one server ----------------------------------------------------------------------------------


class _PortTakenError(EngineError):
    """Somebody else listens where our server should."""


@dataclass
class _Running(KeptProcess):
    """A server as it was started: on a port, with a key."""

    port: int
    reserved: socket.socket

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def end(self) -> None:
        self.reserved.close()
        await super().end()


def reserve_port() -> socket.socket:
    """A free port of loopback, bound but not listening.

    As long as it is held the kernel gives the port to nobody who asks for any, while a server that asks for this one
    gets it (SO_REUSEADDR on both). vLLM also sets SO_REUSEPORT: without this, two of them might share a port unseen.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


class KeptServer(ProxyEngine):
    """One server and its client. A server that ends is started again, a few times."""

    def __init__(
        self,
        program: Program,
        section: ServedEngine,
        index: int,
        log: Path,
        devices: Sequence[str],
        *,
        identity: str,
    ) -> None:
        super().__init__()
        self.identity = identity
        self._program = program
        self._section = section
        self._name = f"server {index} of {section.program}"
        self._log = log
        self._devices = devices
        self.running: _Running | None = None
        self._engine: OpenAIEngine | None = None
        self._old_engines: list[OpenAIEngine] = []
        self._num_starts = 0
        self._starting = asyncio.Lock()
        self._lost_since: float | None = None

    def _clients(self) -> list[OpenAIEngine]:
        return [] if self._engine is None else [self._engine]

    @property
    def waiting_since(self) -> float | None:
        """Since when it is being started again; None while it serves."""
        return self._lost_since

    async def start(self) -> None:
        """Starts the server and waits until it is ready, on another port where somebody else took the first."""
        if self._num_starts > NUM_RESTARTS:
            raise EngineError(
                f"{self._name} was started {self._num_starts} times and ended each time; see {self._log}."
            )
        self._num_starts += 1
        for attempt in range(1, NUM_PORTS + 1):
            await self._end()
            try:
                await self._start_once()
            except _PortTakenError as error:
                if attempt == NUM_PORTS:
                    raise EngineError(f"{error} The same happened on {NUM_PORTS} ports. See {self._log}.") from None
                logger.info("%s Another port is tried.", error)
            else:
                return

    async def close(self) -> None:
        """Ends the server."""
        await self._end()
        for engine in self._old_engines:
            await engine.close()

    async def _call(self, call: Callable[[OpenAIEngine], Awaitable[T]]) -> T:
        while True:
            async with self._starting:
                if self._engine is None:
                    await self.start()
                engine = self._engine
            assert engine is not None
            try:
                return await call(engine)
            except CallRejectedError:
                raise
            except SalignError as error:  # also a refused key, by who listens there since
                async with self._starting:
                    if engine is self._engine:
                        await self._give_up(error)

    async def _give_up(self, error: SalignError) -> None:
        """Lets go of a server that ended, so that the next call starts it again; raises the error of one that lives."""
        assert self.running is not None
        code = await self.running.exit_code(SEEN_DEAD_S)
        if code is None:
            raise error
        ended = f"{self._name} ended by itself ({explain(code)}). {self.running.quote()}"
        if self._num_starts > NUM_RESTARTS:
            raise EngineError(f"{ended}\nIt was started {self._num_starts} times; what is complete is kept.") from error
        logger.warning("%s\nIt is being restarted.", ended)
        self._lost_since = time.time()
        await self._end()

    async def _start_once(self) -> None:
        reserved = reserve_port()
        port, key = reserved.getsockname()[1], secrets.token_urlsafe(32)
        env = server_environment(self._section) | self._program.environment(port, key)
        if self._devices:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices)
        process, log_start = start(self._program.command(port), env, self._log)
        self.running = _Running(process, key, self._log, log_start, port, reserved)
        await self._ready(self.running)
        shared = (OpenAISection.model_fields.keys() & ServedEngine.model_fields.keys()) - {"kind", "model"}
        client = OpenAISection(
            kind="openai",
            base_url=self.running.base_url,
            model=self._program.model,
            patience_s=0.0,  # whether it lives is known of its process
            **self._section.model_dump(include=shared),
        )
        self._engine = OpenAIEngine(client, self._program.model, identity=self.identity, api_key=key)
        self._take_in(self._engine)
        self._lost_since = None

    async def _ready(self, running: _Running) -> None:
        """Returns when the server serves the model."""
        begin = said = time.monotonic()
        # No proxy of the environment: the server is on loopback.
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {running.key}"}, timeout=aiohttp.ClientTimeout(total=ANSWER_S)
        ) as session:
            while (code := running.process.poll()) is None:
                if await self._serves(session, running.base_url):
                    return
                now = time.monotonic()
                if now - begin > self._section.start_timeout_s:
                    raise EngineError(
                        f"{self._name} was not ready within engine.start_timeout_s = "
                        f"{self._section.start_timeout_s:g} s. {running.quote()}"
                    )
                if now - said >= SAY_EVERY_S:
                    logger.info("waiting for %s (%.0f s)", self._name, now - begin)
                    said = now
                await asyncio.sleep(_POLL_S)
        if _somebody_listens(running.port):
            raise _PortTakenError(f"{self._name} ended: another process listens on its port {running.port}.")
        raise EngineError(f"{self._name} ended before it was ready ({explain(code)}). {running.quote()}")

    async def _serves(self, session: aiohttp.ClientSession, base_url: str) -> bool:
        """Whether our server answers and serves the model; False while it is loading."""
        try:
            async with session.get(f"{base_url}/models") as response:
                answer = await read_bounded(response, _MOST_BYTES)
        except (aiohttp.ClientError, TimeoutError, TooLongError):
            return False
        if response.status in (401, 403):
            raise _PortTakenError(f"{self._name}: its key is refused; another server has the port.")
        if response.status != 200:
            return False
        try:
            served = [model["id"] for model in json.loads(answer)["data"]]
        except (ValueError, TypeError, KeyError):
            served = []
        if self._program.model not in served:
            raise _PortTakenError(f"{self._name}: another server has the port; it serves {served or 'no model'}.")
        return True

    async def _end(self) -> None:
        running, self.running = self.running, None
        if self._engine is not None:
            self._old_engines.append(self._engine)  # calls may still be on their way through it
            self._engine = None
        if running is not None:
            await running.end()


def _somebody_listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
