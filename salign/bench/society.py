"""Measures everything around the model: the scheduler, the journal, the client. No model takes part.

Figures of one table come from one run on one machine, side by side. Those of others are quoted, with their source.
"""

import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import md5
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import fmean, median
from typing import Any

from salign import compose
from salign.bench.figures import Figure
from salign.bench.virtual import VirtualLoop
from salign.config import Config, Sampling, SocietySection
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.opening import metered
from salign.errors import ConfigError, StageError
from salign.machine import peak_memory
from salign.manifest import create_run
from salign.markers import read_done
from salign.records import read_interactions
from salign.run import RunDir
from salign.society import sources
from salign.society.calls import Speaker
from salign.society.phases import Setting
from salign.society.recall import question_table
from salign.society.shard import run_shard
from salign.society.simulation import Simulation
from salign.society.spool import Spool
from salign.society.world import World
from salign.tracking.metrics import read_metrics

_REFERENCE = "released code, 10 threads, zero-latency stub"
_MS_PER_TOKEN, _SLOTS, _MEDIAN_TOKENS = 4.0, 256, 45
_KIB = 1024


class Bench:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num = 0

    def config(self, **society: Any) -> Config:
        """A society of 10 x 10 in words, as the paper's; nothing stops it early."""
        self._num += 1
        shape = {"topology": {"size": 10, "radius": 2}, "rating": "parse", "stopping": None, "gates": _OPEN, **society}
        tree = {
            "run": {"root": str(self._folder), "name": f"bench-{self._num}"},
            "engine": {"kind": "scripted"},
            "society": shape,
        }
        return compose.parse(tree, "bench")

    def run(self, config: Config, *, replay: bool = False) -> tuple[float, RunDir, dict[str, Any]]:
        """Seconds of shard 0 of a run, from its questions to its marker; the run; the marker's facts."""
        run = RunDir(config.run.root / config.run.name) if replay else create_run(config)
        start = time.perf_counter()
        run_shard(run, config, 0, replay=replay)
        seconds = time.perf_counter() - start
        done = read_done(run.shard(0))
        assert done is not None
        return seconds, run, done.facts


_OPEN = dict.fromkeys(("min_rated_share", "min_initial_recall_share", "min_digit_mass", "min_rating_sd"), 0.0)
_OPEN |= {f"max_{what}_share": 1.0 for what in ("failed", "refused_call", "repeated", "flagged", "cut")}


def _throughput(bench: Bench) -> list[Figure]:
    rates, replays = [], []
    for _ in range(3):
        config = bench.config(max_rounds=20)
        seconds, _, facts = bench.run(config)
        rates.append(facts["num_calls"] / seconds)
        seconds, _, facts = bench.run(config, replay=True)
        replays.append(facts["num_calls"] / seconds)
    beside = f"226: {_REFERENCE}; 38: OASIS 0.2.5 through HTTP"
    return [
        Figure("scripted engine, journal on, 10 x 10, 20 rounds", median(rates), "calls/s", ">= 17,000", beside),
        Figure("replay of that journal", median(replays), "calls/s", ">= 20,000"),
    ]


def _steadiness(bench: Bench) -> list[Figure]:
    ratios = []
    for _ in range(3):
        _, run, _ = bench.run(bench.config(max_rounds=50))
        ends = [row["time"] for row in read_metrics(run.shard(0) / "metrics.jsonl") if "sim/round" in row]
        spans = [later - earlier for earlier, later in pairwise(ends)]
        ratios.append(fmean(spans[:10]) / fmean(spans[-10:]))
    beside = f"0.59 after 20 rounds: {_REFERENCE}"
    return [Figure("last rounds' rate over the first's (10 of 50)", median(ratios), "", ">= 0.95", beside)]


# --- memory and start: in processes of their own -------------------------------------------------


def resident_after(num_agents: int, kind: str, protocol: str, folder: Path) -> dict[str, float]:
    """Simulates one round of this many agents in this process; its memory (bytes) and the text that agents remember.

    Args:
        num_agents: As many as a square has that is as large.
        kind: Of `society.memory`.
        protocol: Of `society.protocol`.
        folder: Where the run is.
    """
    bench = Bench(folder)
    side = round(num_agents**0.5)
    society: dict[str, Any] = {"topology": {"size": side, "radius": 2}, "max_rounds": 1, "memory": {"kind": kind}}
    society |= {"audience_size": 1} if protocol == "back_scatter" else {"protocol": {"kind": protocol}}
    config = bench.config(**society)
    _, run, facts = bench.run(config)
    remembered = ("revision", "action") if kind == "answers" else ("revision", "feedback")
    interactions = read_interactions(run.shard(0) / "interactions.jsonl")
    text = sum(len(turn.text) for one in interactions for turn in one.turns if turn.role in remembered)
    peak = peak_memory()
    return {"agents": side**2, "peak": peak, "text": text, "calls": facts["num_calls"]}


def _memory(sizes: Sequence[int], folder: Path) -> list[Figure]:
    def measured(num_agents: int, kind: str, protocol: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            words = [sys.executable, "-m", "salign.bench.society", str(num_agents), kind, protocol, own]
            found: dict[str, float] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
            return found

    figures = []
    for kind, protocol, note in (
        ("answers", "back_scatter", ""),
        ("stream", "back_scatter", "society.memory: {kind: stream}"),
        ("answers", "feed", "society.protocol: {kind: feed}"),
    ):
        least = measured(100, kind, protocol)
        for size in sizes:
            found = measured(size, kind, protocol)
            num = found["agents"] - least["agents"]
            each = (found["peak"] - least["peak"] - (found["text"] - least["text"])) / num / _KIB
            name = f"memory an agent beyond its text, {size:,} agents, one round"
            figures.append(Figure(name, each, "KiB", "<= 8", note=note))
    return figures


def _start(bench: Bench) -> list[Figure]:
    def once() -> float:
        run = create_run(bench.config(max_rounds=1))
        start = time.perf_counter()
        command = [sys.executable, "-m", "salign.work", "simulate", str(run.path), "0"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not any(run.shard(0).glob("journal-*.new-*")):
                time.sleep(0.005)
            return time.perf_counter() - start

    seconds = median(once() for _ in range(5))
    return [Figure("start of a shard of 100 agents, process included, to the first answer", seconds, "s", "<= 1.5")]


# --- through HTTP, against the neutral engine ----------------------------------------------------


@contextmanager
def mock_engine(script: Path, ms_per_token: float, slots: int) -> Iterator[str]:
    """The yardstick's engine on a free loopback port; its base URL.

    Raises:
        ConfigError: There is no such script.
        StageError: It does not answer.
    """
    if not script.is_file():
        raise ConfigError(
            f"no mock engine {script}. Name one with --mock-engine; tests/integration/mock_engine.py is one, for few "
            "calls."
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--port", str(port), "--ms-per-token", str(ms_per_token), "--slots", str(slots)]
    process = subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1):  # noqa: S310 (our own, on loopback)
                    break
            except OSError:
                time.sleep(0.05)
        else:
            raise StageError(f"the mock engine {script} does not answer on port {port}; does it run by itself?")
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait()


def _stats(base_url: str) -> dict[str, float]:
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats", timeout=5) as answer:  # noqa: S310
        found: dict[str, float] = json.loads(answer.read())
        return found


def _against(bench: Bench, url: str, **society: Any) -> tuple[float, dict[str, Any], Config]:
    config = bench.config(**society)
    engine = {"kind": "openai", "base_url": url, "max_in_flight": _SLOTS}
    config = compose.parse({**config.model_dump(mode="json"), "engine": engine}, "bench")
    seconds, _, facts = bench.run(config)
    return seconds, facts, config


def _http(bench: Bench, script: Path) -> list[Figure]:
    with mock_engine(script, 0.0, _SLOTS) as url:
        rates = []
        for _ in range(3):
            seconds, facts, _ = _against(bench, url, max_rounds=5)
            rates.append(facts["num_calls"] / seconds)
    beside = "40: released code at 4 ms a token, at most 10 in flight; 38: OASIS 0.2.5 at 0 ms"
    return [Figure("HTTP, mock engine, 0 ms a token, 10 x 10, 5 rounds", median(rates), "calls/s", ">= 800", beside)]


def _latency(bench: Bench, script: Path) -> list[Figure]:
    figures = []
    ten = {"max_rounds": 10}
    with mock_engine(script, _MS_PER_TOKEN, _SLOTS) as url:
        seconds, facts, config = _against(bench, url, **ten)
        busy = _stats(url)["busy"]
        bound = max(critical_path(config.society, 0.6), busy / _SLOTS)
        note = f"{seconds:.1f} s for {facts['num_calls']} calls; bound {bound:.1f} s"
        name = "4 ms a token, 256 slots, 10 x 10, 10 rounds: time over the lower bound"
        figures.append(Figure(name, seconds / bound, "", "<= 1.10", note=note))
        near = {**ten, "topology": {"size": 10, "radius": 1}}
        free, _, config = _against(bench, url, **near)
        barred, _, _ = _against(bench, url, **near, schedule="lockstep")
    note = f"{barred:.1f} s and {free:.1f} s; without a limit to the slots {_ideal(config.society, 0.6):.2f}"
    name = "the same with radius 1: dependency over lockstep"
    figures.append(
        Figure(name, barred / free, "", ">= 1.3, heavy tails", "AI Metropolis: 1.3 to 4.15 (abstract)", note)
    )
    for sigma in (1.0, 1.4):
        name = f"the same in virtual time, log-normal lengths of sigma {sigma}"
        figures.append(Figure(name, _ideal(config.society, sigma), "", ">= 1.3, heavy tails"))
    return figures


# --- the bound: the same society in virtual time -------------------------------------------------


class _TimedEngine:
    """The mock engine's replies and lengths, with any number of slots.

    With sigma 0.6 a reply is that of the yardstick, length and words, so that the prompts that follow are the same.
    """

    identity = "timed"

    def __init__(self, sigma: float) -> None:
        self._sigma = sigma

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        text = prompt.user
        name = md5(text.encode(), usedforsecurity=False).hexdigest()
        tokens = random.Random(name).lognormvariate(log(_MEDIAN_TOKENS), self._sigma)
        tokens = max(4, min(256 if self._sigma == 0.6 else 4096, int(tokens)))
        await asyncio.sleep(tokens * _MS_PER_TOKEN / 1000)
        if "Rating:" in text:
            return Reply(f"Rating: {random.Random(text).randint(1, 7)} ### Reason: " + "because " * tokens, 0, tokens)
        return Reply((f"[{name[:8]}] " + "word " * tokens).strip(), 0, tokens)

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        return {}


def critical_path(society: SocietySection, sigma: float) -> float:
    """Seconds that a society takes where nothing ever waits for a slot: the longest chain of calls."""
    society = society.model_copy(update={"max_alive": 1 << 30})
    questions, prior = sources.questions(society.questions), sources.load(society.prior)
    table, _ = question_table(society, 0, questions, prior)

    async def simulate() -> float:
        engine = metered(_TimedEngine(sigma), Gate(1 << 30, adaptive=False))
        world = World(Setting(society, 0, table, len(questions), prior, [Speaker(engine)]), 0)
        with tempfile.TemporaryDirectory() as folder, Spool(Path(folder) / "spool") as spool:
            await Simulation(society, [world], spool).run()
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(simulate())


def _ideal(society: SocietySection, sigma: float) -> float:
    lockstep = society.model_copy(update={"schedule": "lockstep"})
    return critical_path(lockstep, sigma) / critical_path(society, sigma)


# --- all of it -----------------------------------------------------------------------------------


def measure(script: Path, sizes: Sequence[int], only: Sequence[str], say: Callable[[str], None]) -> list[Figure]:
    """The figures of `python jobs/bench.py society`.

    Args:
        script: The yardstick's mock engine.
        sizes: Numbers of agents of which the memory is measured.
        only: Names of parts; empty for all.
        say: Told what is being measured.

    Raises:
        ConfigError: There is no such part.
    """
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as name:
        folder = Path(name)
        bench = Bench(folder)
        parts: dict[str, Callable[[], list[Figure]]] = {
            "throughput": lambda: _throughput(bench),
            "steadiness": lambda: _steadiness(bench),
            "http": lambda: _http(bench, script),
            "latency": lambda: _latency(bench, script),
            "memory": lambda: _memory(sizes, folder),
            "start": lambda: _start(bench),
        }
        unknown = [part for part in only if part not in parts]
        if unknown:
            raise ConfigError(f"no part {', '.join(unknown)} of the society benchmark; its parts: {', '.join(parts)}")
        figures: list[Figure] = []
        for part, measured in parts.items():
            if only and part not in only:
                continue
            if part in ("http", "latency") and not script.is_file():
                figures.append(Figure(part, None, "", note=f"no mock engine at {script}; name it with --mock-engine"))
                continue
            say(part)
            figures += measured()
        return figures


if __name__ == "__main__":
    print(json.dumps(resident_after(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
