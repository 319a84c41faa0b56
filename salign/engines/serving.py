"""One server of a fleet: started, registered in the run's folder, started again if it ends, taken out at its end.

It ends when all shards are complete, or when none has been at work for `idle_min`: whoever uses it is known by the
locks and markers of the run's units.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from salign.config import Config, Fleet, FleetEngine
from salign.digests import name_of
from salign.engines.fleet import BEAT_S, Registration, agree_on, register, unregister
from salign.engines.kinds import kind_of
from salign.engines.nodes import Nodes, nodes_of
from salign.engines.openai import with_body
from salign.engines.programs import Program, on_gpus, program_of
from salign.engines.server import KeptServer
from salign.errors import ConfigError
from salign.launchers import is_in_job
from salign.locks import is_locked, lock
from salign.machine import visible_devices
from salign.manifest import require_model
from salign.markers import recording_failure
from salign.plan import Unit, find_fleet, is_complete, units
from salign.run import RunDir

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""How often it is looked whether a server still lives."""


def serve(run: RunDir, config: Config, argument: str) -> None:
    """Serves until nobody needs it any more.

    Args:
        run: The run's folder.
        config: The run's.
        argument: The fleet's name and the server's number, as `NAME.NUMBER`.

    Raises:
        ConfigError: The program or the model cannot be had here, or is another than the other servers'.
        EngineError: The server ends again and again.
        StageError: Another process is this server.
    """
    name, _, number = argument.rpartition(".")
    fleet = find_fleet(config, name)
    folder = run.fleet(name)
    nodes = nodes_of(config, folder / number)
    if nodes is not None and not nodes.is_first:
        asyncio.run(_follow(fleet, folder, number, nodes))
        return
    with (
        lock(folder / number / ".lock", f"server {number} of the fleet {name}"),
        recording_failure(folder / number),
    ):
        model = kind_of(fleet.section).model_of(fleet.section, config.model)
        if model is not None:
            require_model(run, model)
        asyncio.run(_serve(fleet, folder, number, _Users(units(run, config)), nodes))


class _Users:
    """The shards that ask a fleet."""

    def __init__(self, everything: Sequence[Unit]) -> None:
        self._left = [unit for unit in everything if unit.stage == "simulate"]
        self._last = time.monotonic()

    def are_done(self) -> bool:
        """Whether none is left. Those that were found complete are not looked at again."""
        while self._left and is_complete(self._left[-1], self._left):
            self._left.pop()
        return not self._left

    def idle_s(self) -> float:
        """For how long none has been at work."""
        if any(is_locked(unit.folder / ".lock") for unit in self._left):
            self._last = time.monotonic()
        return time.monotonic() - self._last


class _Served(NamedTuple):
    """What a server of a fleet is: its section, as it is started, and what it serves."""

    section: FleetEngine
    program: Program
    identity: str


async def _what_is_served(fleet: Fleet, folder: Path, host: str, num_nodes: int = 1) -> _Served:
    """What a server of a fleet is, on each of its nodes.

    Raises:
        ConfigError: Another server, or node, has another model.
    """
    section = on_gpus(fleet.section.model_copy(update={"num_servers": 1}), len(visible_devices()), num_nodes)
    program = await asyncio.to_thread(program_of, section, fleet.model, host)
    named = await asyncio.to_thread(lambda: name_of(program.model, program.files()))
    identity = with_body(f"{named} ({section.program})", section)
    first = agree_on(folder, identity)
    if first != identity:
        raise ConfigError(
            f"this server would serve {identity}, and the first one of the fleet {fleet.name} served {first}. Give all "
            f"nodes the same model; if the run is to use this one, remove {folder}."
        )
    return _Served(section, program, identity)


async def _serve(fleet: Fleet, folder: Path, number: str, users: _Users, nodes: Nodes | None) -> None:
    # In a job, shards are on other nodes; the key is what keeps others out.
    host, name = ("0.0.0.0", socket.gethostname()) if is_in_job() else ("127.0.0.1", "127.0.0.1")  # noqa: S104
    section, program, identity = await _what_is_served(fleet, folder, host, 1 if nodes is None else nodes.num)
    if nodes is not None:
        program = nodes.leading(program)
    server = KeptServer(program, section, int(number), folder / number / "server.log", (), identity=identity)
    file = folder / f"{number}.json"
    unregister(file)  # of a process that was killed
    try:
        while not users.are_done():
            await (server.start() if nodes is None else nodes.start(server))
            assert server.running is not None
            base_url = f"http://{name}:{server.running.port}/v1"
            register(file, Registration(base_url=base_url, identity=identity, served=program.model), server.running.key)
            logger.info("%s is served at %s", identity, base_url)
            if await _until_it_ends(server, file, section, users, nodes):
                return
            unregister(file)
            logger.warning("server %s of the fleet %s ended and is started again", number, fleet.name)
    finally:
        unregister(file)
        await server.close()
        if nodes is not None:
            nodes.close()


async def _follow(fleet: Fleet, folder: Path, number: str, nodes: Nodes) -> None:
    """What the other nodes of a server do; its first node has the model by then, and everything else to say."""
    if await nodes.called():
        section, program, _ = await _what_is_served(fleet, folder, "127.0.0.1", nodes.num)
        await nodes.follow(program, section, folder / number / f"server-node-{nodes.rank}.log")


async def _until_it_ends(
    server: KeptServer, file: Path, section: FleetEngine, users: _Users, nodes: Nodes | None
) -> bool:
    """Shows that the server lives; True when nobody needs it any more, False when it ended by itself."""
    beaten = time.monotonic()
    while server.running is not None and server.running.process.poll() is None:
        await asyncio.sleep(POLL_S)
        if nodes is not None and (lost := nodes.lost()):
            logger.warning("%s", lost)
            return False
        if time.monotonic() - beaten < BEAT_S:
            continue
        beaten = time.monotonic()
        with contextlib.suppress(OSError):  # the file system may be back at the next beat
            os.utime(file)
        if users.are_done():
            return True
        if users.idle_s() >= 60 * section.idle_min:
            logger.warning("no shard was at work for engine.idle_min = %g minutes: the server ends", section.idle_min)
            return True
    return False
