"""Thousands of shards on a hundred tasks: what it costs to deal them out, to look at them and to plan them.

The tasks are processes of this machine, forked from this one, that run what a task of a job runs. Only the work itself
is left out: a shard is marked as done at once.
"""

import contextlib
import dataclasses
import io
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

import salign
from salign import compose, work
from salign.bench.figures import Figure
from salign.cluster.status import Board
from salign.config import Config
from salign.launch import LaunchOptions, launch
from salign.locks import lock
from salign.manifest import create_run
from salign.markers import mark_done
from salign.run import RunDir
from salign.stages import STAGES

NUM_SHARDS, NUM_TASKS = 10_000, 100
_AT_ONCE = 8  # processes, on what may be two cores
NUM_GENERATIONS = 1000
_QUICKSTART = Path(salign.__file__).parent / "configs" / "quickstart.yaml"


def _config(folder: Path, num_shards: int, num_tasks: int) -> Config:
    tree = {
        "run": {"root": str(folder), "name": "dealt"},
        "engine": {"kind": "scripted"},
        "society": {"num_worlds": num_shards, "num_shards": num_shards},
        "cluster": {"kind": "slurm", "shards_per_task": -(-num_shards // num_tasks)},
        "evaluate": {"models": []},
    }
    return compose.parse(tree, "bench")


def _done_at_once(run: RunDir, config: Config, shard: str) -> None:
    folder = run.shard(int(shard))
    with lock(folder / ".lock", f"shard {shard}"):
        (folder / "took").open("x").close()  # fails if another task took it too
        mark_done(folder, ["took"], {}, {"max_rounds": config.society.max_rounds})


def _task(run: RunDir, number: int, num_shards: int, num_tasks: int) -> None:
    """One task of the array: its own shards, then those that are left."""
    first, behind = (place * num_shards // num_tasks for place in (number, number + 1))
    own = [("simulate", str(shard)) for shard in range(first, behind)]
    logging.disable(logging.INFO)
    work.do_all(run.path, own, shared=[(0, num_shards)])


@contextlib.contextmanager
def _without_work() -> Iterator[None]:
    stage = STAGES["simulate"]
    STAGES["simulate"] = dataclasses.replace(stage, run=_done_at_once)
    try:
        yield
    finally:
        STAGES["simulate"] = stage


class Dealt(NamedTuple):
    """What dealing cost.

    Attributes:
        run: Whose shards all are done.
        config: Of the run.
        seconds: By the clock, until the last shard was done.
        cores_s: Of all cores, until then.
        late_s: Of a core, for a task that began when nothing was left.
    """

    run: RunDir
    config: Config
    seconds: float
    cores_s: float
    late_s: float


def _children_s() -> float:
    used = os.times()
    return used.children_user + used.children_system


def deal(folder: Path, num_shards: int, num_tasks: int, at_once: int) -> Dealt:
    """Lets the first of many tasks deal out all shards, as where the others wait in the queue; then one comes late.

    Args:
        folder: For the run.
        num_shards: Of the run.
        num_tasks: Of the array.
        at_once: Tasks that there are from the start.

    Raises:
        AssertionError: A task failed, two took the same shard, or one is left.
    """
    config = _config(folder, num_shards, num_tasks)
    run = create_run(config)
    context = multiprocessing.get_context("fork")

    def do(*numbers: int) -> float:
        before = _children_s()
        tasks = [context.Process(target=_task, args=(run, number, num_shards, num_tasks)) for number in numbers]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
        assert not any(task.exitcode for task in tasks)
        return _children_s() - before

    with _without_work():
        began = time.perf_counter()
        cores_s = do(*range(at_once))
        seconds = time.perf_counter() - began
        assert len(list(run.simulate.glob("shard-*/done.json"))) == num_shards
        return Dealt(run, config, seconds, cores_s, do(num_tasks - 1))


def _planned(config: Config) -> float:
    began = time.process_time()
    launch(config, Console(file=io.StringIO(), width=200), LaunchOptions(dry_run=True))
    return time.process_time() - began


def measured() -> list[Figure]:
    """Claims, files, status and planning."""
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as name:
        folder = Path(name)
        planned = _planned(_config(folder, NUM_SHARDS, NUM_TASKS))
        dealt = deal(folder, NUM_SHARDS, NUM_TASKS, _AT_ONCE)
        files = sum(len(names) for _, _, names in os.walk(dealt.run.simulate)) - NUM_SHARDS  # without the work's own
        began = time.process_time()
        Board(dealt.run, dealt.config).look()
        looked = time.process_time() - began
        words = [f"run.root={folder}", f"generations.num={NUM_GENERATIONS}"]
        generations = _planned(compose.load(_QUICKSTART, words))
    what = f"{NUM_SHARDS:,} shards on {NUM_TASKS} tasks"
    claims = f"of {_AT_ONCE} tasks beside each other that have no work to do; {dealt.seconds:.0f} s by the clock"
    return [
        Figure(f"{what}: claims", NUM_SHARDS / dealt.cores_s, "a second of a core", note=claims),
        Figure(f"{what}: files for a claim and its end", files / NUM_SHARDS, ""),
        Figure(f"{what}: a task that comes when all is done", dealt.late_s, "s of a core"),
        Figure(f"{what}: status, all done", looked, "s of a core"),
        Figure(f"{what}: dry run", planned, "s of a core"),
        Figure(f"{NUM_GENERATIONS:,} generations: dry run", generations, "s of a core"),
    ]
