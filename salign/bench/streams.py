"""What reads a large society's interactions, each reader in a process of its own: interactions a second, and memory."""

import functools
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from salign import compose
from salign.bench.figures import Figure, measure_parts
from salign.config import Config
from salign.errors import StageError
from salign.machine import peak_memory
from salign.manifest import create_run
from salign.markers import Done, mark_done, read_done
from salign.run import RunDir
from salign.society.shard import run_shard
from salign.tracking.metrics import read_metrics

_MIB = 1 << 20
_WORLD = {"topology": {"size": 10, "radius": 2}, "rating": "parse", "stopping": None, "max_rounds": 10}
_NUM_OF_WORLD = 1_000
_WORLDS_OF_SHARD = 50
_OPEN = {"min_rated_share": 0.0, "max_failed_share": 1.0, "max_refused_call_share": 1.0, "max_repeated_share": 1.0}
_RATIO = {"imitation": 1, "self_critic": 5_000, "realignment": 1_500}
# What ends a text of the scripted engine; no two texts end in the same.
_MARK = re.compile(rb"\(([0-9a-f]{6})\)")
READERS = ("collect", "collect with dataset.ratio", "summary", "report")


def _config(folder: Path, name: str, num_worlds: int, **dataset: Any) -> Config:
    shards = -(-num_worlds // _WORLDS_OF_SHARD)
    tree = {
        "run": {"root": str(folder), "name": name},
        "engine": {"kind": "scripted"},
        "society": {**_WORLD, "gates": _OPEN, "num_worlds": num_worlds, "num_shards": shards},
        "dataset": dataset,
        "tracking": {"wandb": False},
    }
    return compose.parse(tree, "bench")


def _replicate(world: RunDir, done: Done, run: RunDir, shard: int, worlds: range) -> None:
    """A shard whose worlds all went as one did, with other words: no text of two worlds is the same."""
    source, target = world.shard(0), run.shard(shard)
    target.mkdir(parents=True)
    lines = (source / "interactions.jsonl").read_bytes()
    rows = read_metrics(source / "metrics.jsonl")
    with (target / "interactions.jsonl").open("wb") as file, (target / "metrics.jsonl").open("w") as metrics:
        for number in worlds:
            own = _MARK.sub(rb"(\1 %d)" % number, lines)
            file.write(own.replace(b'{"world":0,', b'{"world":%d,' % number))
            metrics.writelines(json.dumps({**row, "sim/world": number}) + "\n" for row in rows if "sim/world" in row)
    counted = ("num_calls", "prompt_tokens", "completion_tokens", "num_held", "num_interactions")
    facts = {name: done.facts[name] * len(worlds) for name in counted}
    each = {name: dict.fromkeys(map(str, worlds), done.facts[name]["0"]) for name in ("worlds", "rounds")}
    mark_done(target, ["interactions.jsonl", "metrics.jsonl"], {}, {**done.facts, **facts, **each})


def make_runs(folder: Path, num_worlds: int) -> tuple[RunDir, RunDir]:
    """A run of so many worlds, and one with the same record whose data keeps a ratio."""
    small = _config(folder, "world", 1)
    world = create_run(small)
    run_shard(world, small, 0)
    done = read_done(world.shard(0))
    assert done is not None
    config = _config(folder, "all", num_worlds)
    run = create_run(config)
    for shard in range(config.society.num_shards):
        first = shard * _WORLDS_OF_SHARD
        _replicate(world, done, run, shard, range(first, min(first + _WORLDS_OF_SHARD, num_worlds)))
    by_ratio = create_run(_config(folder, "ratio", num_worlds, ratio=_RATIO))
    (by_ratio.path / "simulate").symlink_to(run.path / "simulate")
    return run, by_ratio


def read(reader: str, run: RunDir) -> dict[str, float]:
    """Runs a reader in this process: seconds, those of a processor, and the peak of memory (bytes)."""
    config = run.config()
    start = time.perf_counter()
    if reader == "summary":
        from salign.report.summary import summarize

        summarize(run, config)
    elif reader == "report":
        from salign.report.write import write_report

        write_report(run, config)
    else:
        from salign.dataset.collect import collect

        collect(run, config)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    processor = usage.ru_utime + usage.ru_stime
    return {"seconds": time.perf_counter() - start, "processor": processor, "peak": peak_memory()}


def _measured(reader: str, runs: Callable[[], tuple[RunDir, RunDir]]) -> list[Figure]:
    run = runs()[1 if "ratio" in reader else 0]
    if reader in ("summary", "report") and read_done(run.dataset) is None:
        read("collect", run)
    command = [sys.executable, "-m", "salign.bench.streams", reader, str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(f"{reader} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    usage: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    shards = (read_done(run.shard(shard)) for shard in range(run.config().society.num_shards))
    num = sum(done.facts["num_interactions"] for done in shards if done is not None)
    note = f"{usage['processor']:.1f} s of a core in {usage['seconds']:.1f} s"
    return [
        Figure(f"{reader}: {num:,} interactions", num / usage["processor"], "/s of a core", ">= 20,000", note=note),
        Figure(f"{reader}: peak memory", usage["peak"] / _MIB, "MiB", "<= 512"),
    ]


def measure(num_interactions: int, only: Sequence[str], say: Callable[[str], None]) -> list[Figure]:
    """The figures of `python jobs/bench.py streams`.

    Args:
        num_interactions: How many are read, to the next thousand.
        only: Names of parts; empty for all.
        say: Told what is being measured.

    Raises:
        ConfigError: There is no such part.
    """
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as folder:

        @functools.cache
        def runs() -> tuple[RunDir, RunDir]:  # made when a part is measured: an unknown part is an error at once
            say(f"making {num_interactions:,} interactions")
            return make_runs(Path(folder), -(-num_interactions // _NUM_OF_WORLD))

        parts = {reader: functools.partial(_measured, reader, runs) for reader in READERS}
        return measure_parts("streams", parts, only, say)


if __name__ == "__main__":
    print(json.dumps(read(sys.argv[1], RunDir(Path(sys.argv[2])))))
