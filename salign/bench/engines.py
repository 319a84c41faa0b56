"""Measures how servers are used: by a society and its client beside a bare one, with a prefix cache, and as a fleet."""

import asyncio
import contextlib
import functools
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from salign.bench import bare
from salign.bench.figures import Figure, measure_parts
from salign.bench.society import mock_engine
from salign.config import Fleet, FleetEngine, Sampling
from salign.engines.base import Prompt
from salign.engines.fleet import BEAT_S, Registration, agree_on, open_fleet, register, unregister

_NUM_SERVERS, _SLOTS, _MS_PER_TOKEN = 8, 4, 4.0
_NUM_CALLS = 3_000
# When, in shares of the calls, the last server comes and the first one dies.
_COMES, _DIES = 0.25, 0.5


class Times(NamedTuple):
    """When the calls began and ended, one server came and one died (s), and how much work was done (s of a slot)."""

    began: float
    came: float
    died: float
    ended: float
    work: float

    @property
    def ideal(self) -> float:
        """How long the servers that were there, each with all its slots busy, take for the work.

        Without the late one until it came, and without the dead one from then on.
        """
        stages = [(self.came, _NUM_SERVERS - 1), (self.died, _NUM_SERVERS), (float("inf"), _NUM_SERVERS - 1)]
        at, left = self.began, self.work
        for until, num_servers in stages:
            rate = num_servers * _SLOTS
            if left <= rate * (until - at):
                return at + left / rate - self.began
            left -= rate * (until - at)
            at = until
        raise AssertionError(stages)


def _busy(url: str) -> float:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/stats", timeout=60) as answer:  # noqa: S310 (our own)
        return float(json.load(answer)["busy"])


async def _beat(folder: Path) -> None:
    while True:
        for file in folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                os.utime(file)
        await asyncio.sleep(BEAT_S)


async def _through(urls: Sequence[str], servers: Sequence[contextlib.ExitStack], folder: Path) -> Times:
    def come(number: int) -> None:
        register(folder / f"{number}.json", Registration(base_url=urls[number], identity="mock", served="mock"), "key")

    agree_on(folder, "mock")
    for number in range(_NUM_SERVERS - 1):
        come(number)
    beating = asyncio.create_task(_beat(folder))
    section = FleetEngine(kind="fleet", program="vllm")
    gate, sampling = asyncio.Semaphore(2 * _NUM_SERVERS * _SLOTS), Sampling()
    num_done, came, died, dead = 0, 0.0, 0.0, 0.0

    async with open_fleet(Fleet("mock", section, "mock"), folder) as engine:

        async def one(number: int) -> None:
            nonlocal num_done, came, died, dead
            async with gate:
                await engine.generate(Prompt(f"What would you do in case {number}?"), sampling, number)
            num_done += 1
            if num_done == int(_COMES * _NUM_CALLS):
                come(_NUM_SERVERS - 1)
                came = time.monotonic()
            elif num_done == int(_DIES * _NUM_CALLS):
                dead = await asyncio.to_thread(_busy, urls[0])
                died = time.monotonic()
                await asyncio.to_thread(servers[0].close)
                unregister(folder / "0.json")

        began = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(_NUM_CALLS)))
        ended = time.monotonic()
    beating.cancel()
    work = dead + sum([await asyncio.to_thread(_busy, url) for url in urls[1:]])
    return Times(began, came, died, ended, work)


def _fleet(script: Path) -> list[Figure]:
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="salign-bench-") as folder:
        servers = [stack.enter_context(contextlib.ExitStack()) for _ in range(_NUM_SERVERS)]
        urls = [server.enter_context(mock_engine(script, _MS_PER_TOKEN, _SLOTS)) for server in servers]
        times = asyncio.run(_through(urls, servers, Path(folder)))
    seconds = times.ended - times.began
    what = f"fleet of {_NUM_SERVERS} mock servers of {_SLOTS} slots, one killed and one late"
    note = f"{seconds:.1f} s for {_NUM_CALLS:,} calls; ideal {times.ideal:.1f} s"
    over = f"{what}: time over the ideal of those that were there"
    return [Figure(over, seconds / times.ideal, "", "<= 1.10", note=note)]


def measure(script: Path, only: Sequence[str], say: Callable[[str], None]) -> list[Figure]:
    """The figures of `python jobs/bench.py engines`.

    Args:
        script: Of the mock engine.
        only: Names of parts; empty for all.
        say: Told what is being measured.

    Raises:
        ConfigError: There is no such part.
        StageError: The mock engine does not start.
    """
    bodies = bare.Bodies(script)
    parts: dict[str, Callable[[], list[Figure]]] = {
        "fleet": functools.partial(_fleet, script),
        "society": functools.partial(bare.over_mock, bodies),
        "llama": bare.over_llama,
        "client": functools.partial(bare.client, bodies),
        "prefixes": functools.partial(bare.prefixes, bodies),
    }
    return measure_parts("engines", parts, only, say)
