"""A large society on a fleet, in virtual time: how busy the servers are, and which part holds them up first.

Real is what decides: the scheduler of interactions, the gate, the registry's files, and the fleet's client with its
choice of a server, its retries and its signs of life. Stated are the server (slots, seconds a token, how often it fails
and how long it takes to come back) and what a call costs its shard's core. Everything runs in one process, so what is
real is also timed, by the clock.
"""

import asyncio
import dataclasses
import functools
import heapq
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from salign import compose
from salign.bench import dealing
from salign.bench.figures import Figure, measure_parts
from salign.bench.virtual import SLOTS, Client, Core, Server, Use, VirtualLoop
from salign.config import Fleet, FleetEngine, Sampling, ServedEngine
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.fleet import BEAT_S, LOOK_S, Registration, agree_on, open_fleet, register, unregister
from salign.engines.fleet import FleetEngine as SharedFleet
from salign.engines.gate import Gate
from salign.engines.opening import metered
from salign.society import sources
from salign.society.calls import Speaker
from salign.society.phases import Setting
from salign.society.protocols import protocol_of
from salign.society.recall import question_table
from salign.society.simulation import Simulation
from salign.society.spool import Spool
from salign.society.world import World

# Stated.
FAILS_EVERY_S, RESTART_S = 3600.0, 300.0
# Of a shard's core, a call through HTTP: `bench.py society --only http` (2,400 calls a second).
CORE_S = 1 / 2400
# Servers a shard has, if each shard has its part: the gate (256 in flight) then lets twice their slots through.
SERVERS_A_SHARD = 8
# The society whose hours are told.
AGENTS, ROUNDS = 1_000_000, 10
SIZES = (1, 4, 16, 64, 256, 1024)
_SIDE = 10  # a shard's world has 10 x 10 agents
_LEAST_CALLS = 20_000
_LOOKS, _CHOICES = 20, 2000
_MEASURED = (0.2, 0.7)  # between these shares of the calls the fleet is neither filling nor running out


@dataclass
class _Fleet:
    """Servers that register in a folder, show signs of life, fail and come back."""

    folder: Path
    use: Use
    servers: list[Server]
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    num_failures: int = 0

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def come(self, number: int) -> None:
        url = f"http://127.0.0.1:{number + 1}/v1"
        unregister(self._file(number))
        register(self._file(number), Registration(base_url=url, identity="virtual", served="virtual"), "key")
        self.servers[number].come()

    def connect(self, core: Core) -> Callable[[ServedEngine, Registration, str], Client]:
        def connected(_: ServedEngine, row: Registration, __: str) -> Client:
            return Client(self.servers[int(row.base_url.split(":")[2].split("/")[0]) - 1], core)

        return connected

    async def live(self, fails_every_s: float) -> None:
        """Signs of life, failures and returns, until it is cancelled."""
        loop = asyncio.get_running_loop()
        events = [(self.draw.expovariate(1 / fails_every_s), number) for number in range(len(self.servers))]
        heapq.heapify(events)
        while True:
            while events[0][0] <= loop.time():
                _, number = heapq.heappop(events)
                if self.servers[number].is_up:
                    self.servers[number].fail()
                    self.num_failures += 1
                    heapq.heappush(events, (loop.time() + RESTART_S, number))
                else:
                    self.come(number)
                    heapq.heappush(events, (loop.time() + self.draw.expovariate(1 / fails_every_s), number))
            for number, server in enumerate(self.servers):
                if server.is_up:
                    os.utime(self._file(number))
            await asyncio.sleep(min(BEAT_S, max(events[0][0] - loop.time(), 0.0)))


class Outcome(NamedTuple):
    """What came of a fleet of a size.

    Attributes:
        utilisation: Of the slots of servers that were up, in the middle of the run; work that was lost counts as none.
        whole: The same from the first call to the last.
        seconds: Virtual, of the whole.
        busy_s: Seconds of a slot that were worked.
        num_calls: That were answered.
        num_failures: Of servers.
        num_shards: That were simulated beside each other.
        real_s: Of the simulation, by the clock.
    """

    utilisation: float
    whole: float
    seconds: float
    busy_s: float
    num_calls: int
    num_failures: int
    num_shards: int
    real_s: float


def _setting(max_rounds: int, side: int = _SIDE) -> Setting:
    """Of square worlds that nothing stops early."""
    society = {"topology": {"size": side, "radius": 2}, "rating": "parse", "stopping": None, "max_rounds": max_rounds}
    config = compose.parse({"engine": {"kind": "scripted"}, "society": society}, "bench")
    questions, prior = sources.questions(config.society.questions), sources.load(config.society.prior)
    table, _ = question_table(config.society, 0, questions, prior)
    return Setting(config.society, 0, table, len(questions), prior, [])


class _Counting:
    """Counts the calls of all shards, and notes how the slots were used when some of them were answered."""

    def __init__(self, use: Use, most: int) -> None:
        self.num = 0
        self._use = use
        self._at = [int(share * most) for share in _MEASURED]
        self.noted: list[tuple[float, float, float]] = []

    def told(self) -> None:
        self.num += 1
        if self.num in self._at:
            self._use.change(asyncio.get_running_loop().time())
            self.noted.append((self._use.slot_s, self._use.busy_s, self._use.lost_s))


def simulate(
    num_servers: int,
    num_shards: int,
    max_rounds: int,
    *,
    side: int = _SIDE,
    core_s: float = CORE_S,
    fails_every_s: float = FAILS_EVERY_S,
) -> Outcome:
    """Square worlds, one a shard, on a fleet that all shards share, in virtual time.

    Args:
        num_servers: Of the fleet.
        num_shards: Processes beside each other.
        max_rounds: Of each world.
        side: Agents along a world's side.
        core_s: What a call costs the core of its shard.
        fails_every_s: The mean time after which a server fails.
    """
    setting = _setting(max_rounds, side)
    most = num_shards * max_rounds * protocol_of(setting.society).most_calls(side**2)
    section = FleetEngine(kind="fleet", program="vllm")

    async def shard(number: int, fleet: _Fleet, counting: _Counting, folder: Path) -> None:
        core = Core(core_s)
        async with open_fleet(Fleet("virtual", section, "virtual"), fleet.folder, fleet.connect(core)) as shared:
            engine = metered(_Counted(shared, counting), Gate(section.max_in_flight, adaptive=False))
            world = World(dataclasses.replace(setting, speakers=[Speaker(engine)]), number)
            with Spool(folder / f"spool-{number}") as spool:
                await Simulation(setting.society, [world], spool).run()

    async def whole(folder: Path) -> Outcome:
        use = Use()
        fleet = _Fleet(folder / "fleet", use, [Server(use) for _ in range(num_servers)])
        agree_on(fleet.folder, "virtual")
        for number in range(num_servers):
            fleet.come(number)
        living = asyncio.create_task(fleet.live(fails_every_s))
        counting = _Counting(use, most)
        await asyncio.gather(*(shard(number, fleet, counting, folder) for number in range(num_shards)))
        living.cancel()
        seconds = asyncio.get_running_loop().time()
        use.change(seconds)
        (slots, busy, lost), (slots_2, busy_2, lost_2) = counting.noted
        steady = (busy_2 - busy - (lost_2 - lost)) / (slots_2 - slots)
        done = use.busy_s - use.lost_s
        return Outcome(steady, done / use.slot_s, seconds, done, counting.num, fleet.num_failures, num_shards, 0.0)

    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="salign-bench-") as name,
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
    ):
        found = runner.run(whole(Path(name)))
    return found._replace(real_s=time.perf_counter() - began)


class _Counted:
    """A fleet whose answers are counted."""

    def __init__(self, engine: SharedFleet, counting: _Counting) -> None:
        self.identity = engine.identity
        self._engine = engine
        self._counting = counting

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        reply = await self._engine.generate(prompt, sampling, seed)
        self._counting.told()
        return reply

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        raise NotImplementedError  # ratings are asked for in words

    def facts(self) -> dict[str, Any]:
        return {}


def registry_s(num_servers: int) -> tuple[float, float]:
    """What a shard's look into the registry takes when nothing has changed, and a call's choice of a server: seconds.

    Args:
        num_servers: That are registered.
    """

    async def measured(folder: Path) -> tuple[float, float]:
        use = Use()
        fleet = _Fleet(folder / "fleet", use, [Server(use) for _ in range(num_servers)])
        agree_on(fleet.folder, "virtual")
        for number in range(num_servers):
            fleet.come(number)
        section = FleetEngine(kind="fleet", program="vllm")
        engine = SharedFleet(Fleet("virtual", section, "virtual"), fleet.folder, lambda *_: _Instant(use))
        await engine.look()
        began = time.process_time()
        for _ in range(_LOOKS):
            await engine.look()
        looked = time.process_time()
        for _ in range(_CHOICES):
            await engine.generate(Prompt(""), Sampling(), 0)
        return (looked - began) / _LOOKS, (time.process_time() - looked) / _CHOICES

    with tempfile.TemporaryDirectory(prefix="salign-bench-") as name:
        return asyncio.run(measured(Path(name)))


class _Instant(Client):
    """Answers at once."""

    def __init__(self, use: Use) -> None:
        super().__init__(Server(use), Core(0.0))

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        return Reply("", 0, 0)


def _size(num_servers: int, num_calls: int) -> list[Figure]:
    """A fleet of a size, at least so many calls a server."""
    shards = max(1, num_servers // SERVERS_A_SHARD)
    per_round = protocol_of(_setting(1).society).most_calls(_SIDE**2)
    rounds = max(2, min(ROUNDS, round(max(num_calls * num_servers, _LEAST_CALLS) / (shards * per_round))))
    found = simulate(num_servers, shards, rounds)
    # The whole society does the same for longer, and ends alike.
    slots = num_servers * SLOTS
    tail_s = found.seconds - found.busy_s / (found.utilisation * slots)
    work_s = AGENTS / (shards * _SIDE**2) * ROUNDS / rounds * found.busy_s
    up = FAILS_EVERY_S / (FAILS_EVERY_S + RESTART_S)
    hours = (work_s / (found.utilisation * slots * up) + tail_s) / 3600
    name = f"{num_servers:,} servers, {shards} shards of {_SIDE**2} agents: utilisation of slots that are up"
    note = (
        f"{found.num_calls:,} calls in {found.seconds:,.0f} s ({rounds} rounds, {found.num_failures} failures), "
        f"{found.real_s:.0f} s by the clock; filling and end included {found.whole:.2f}; by this, {AGENTS:,} agents "
        f"and {ROUNDS} rounds take {hours:,.1f} h"
    )
    return [Figure(name, found.utilisation, "", ">= 0.9 to 256", note=note)]


def _one_shard() -> list[Figure]:
    """How many servers one process keeps busy."""
    figures = []
    for num_servers in (8, 16, 32):
        found = simulate(num_servers, 1, 4)
        name = f"one shard of {_SIDE**2} agents on {num_servers} servers: utilisation"
        figures.append(
            Figure(name, found.utilisation, "", note=f"{found.num_calls:,} calls; at most 256 are in flight")
        )
    return figures


def _registry() -> list[Figure]:
    figures = []
    for num_servers in SIZES[2:]:
        look, choice = registry_s(num_servers)
        name = f"registry of {num_servers:,} servers: a call's way to one of them"
        note = f"looking who is there takes {100 * look / LOOK_S:.1f} % of a shard's core (local file system)"
        figures.append(Figure(name, 1e6 * choice, "us of a core", note=note))
    return figures


def measure(num_calls: int, only: Sequence[str], say: Callable[[str], None]) -> list[Figure]:
    """The figures of `python jobs/bench.py scale`.

    Args:
        num_calls: For each server, at least.
        only: Names of parts; empty for all.
        say: Told what is being measured.

    Raises:
        ConfigError: There is no such part.
    """
    parts: dict[str, Callable[[], list[Figure]]] = {"registry": _registry, "one_shard": _one_shard}
    parts["claims"] = dealing.measured
    parts |= {str(size): functools.partial(_size, size, num_calls) for size in SIZES}
    return measure_parts("scale", parts, only, say)
