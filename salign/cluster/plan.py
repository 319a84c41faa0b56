"""What a run consists of, and what of it is left to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salign.config import Config
from salign.locks import is_locked
from salign.markers import read_done, read_failure
from salign.run import RunDir


@dataclass(frozen=True)
class Unit:
    """One piece of work: a shard, the collector, a training stage, an evaluation.

    `key` is how other units' markers name it; `command` is what `python -m salign.stages` is given after the run.
    """

    key: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def stage(self) -> str:
        """`simulate`, `collect`, `train` or `evaluate`."""
        return self.command[0]

    @property
    def log_name(self) -> str:
        return "-".join(self.command) + ".log"


def units(run: RunDir, config: Config) -> list[Unit]:
    """Every unit of a run, each after those that it needs; no society where nothing is trained on its data."""
    shards = [
        Unit(f"simulate/{shard}", run.shard(shard), ("simulate", str(shard)), ())
        for shard in range(config.society.num_shards)
    ]
    dataset = Unit("dataset", run.dataset, ("collect",), tuple(shard.key for shard in shards))
    found = [*shards, dataset] if config.has_society else []
    for stage in config.train.stages:
        start = config.train.start_of(stage.name)
        needs: tuple[str, ...] = () if start == "base" else (f"train/{start}",)
        if stage.uses_society:
            needs += ("dataset",)
        found.append(Unit(f"train/{stage.name}", run.stage(stage.name), ("train", stage.name), needs))
    for model in config.evaluated_models:
        needs = () if model == "base" else (f"train/{model}",)
        found.append(Unit(f"evaluate/{model}", run.evaluation(model), ("evaluate", model), needs))
    return found


def complete(everything: Sequence[Unit]) -> set[str]:
    """The keys of the units that are done, and were made from what their inputs are now."""
    digests: dict[str, str] = {}
    for unit in everything:
        done = read_done(unit.folder)
        if done is None:
            continue
        # A unit whose inputs were made anew with another result is to be made anew as well.
        if all(digests.get(need) == done.inputs.get(need) for need in unit.needs):
            digests[unit.key] = done.digest
    return set(digests)


def is_complete(unit: Unit, everything: Sequence[Unit]) -> bool:
    """Whether one unit is in `complete`; only it and what it needs are looked at."""
    wanted = {unit.key}
    for other in reversed(everything):
        if other.key in wanted:
            wanted.update(other.needs)
    return unit.key in complete([other for other in everything if other.key in wanted])


def to_run(everything: Sequence[Unit]) -> list[Unit]:
    """Units that are not complete, and those that need one of them: their inputs may come out otherwise."""
    done, left = complete(everything), dict[str, Unit]()
    for unit in everything:
        if unit.key not in done or any(need in left for need in unit.needs):
            left[unit.key] = unit
    return list(left.values())


def state(unit: Unit, done: set[str]) -> tuple[str, str | None]:
    """One word for where a unit stands, and its error if it failed."""
    if unit.key in done:
        return "done", None
    if is_locked(unit.folder / ".lock"):
        return "running", None
    failure = read_failure(unit.folder)
    if failure is not None:
        return "failed", failure[0]
    return ("interrupted" if (unit.folder / "metrics.jsonl").exists() else "to do"), None
