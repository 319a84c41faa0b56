"""The units of work in a run, and which of them are complete, judging by their markers alone."""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from salign.config import NOT_FREE, Config, Fleet, given
from salign.errors import ConfigError
from salign.locks import is_locked
from salign.markers import Done, damaged, read_done, read_failure
from salign.run import RunDir

# An error message names at most so many units.
_MAX_NAMED = 8


@dataclass(frozen=True)
class Unit:
    """One piece of work: a shard, the collector, a training stage, an evaluation.

    Attributes:
        stage: Which kind of work; see `salign.stages`.
        argument: Which of its kind: a shard's number, a training stage's or a model's name; "" where there is one.
        folder: Where its results and its marker are.
        needs: Keys of the units whose results it reads.
        max_rounds: Of a shard: one that was simulated for fewer is not complete.
        asked: Of an evaluation, the digest of what it measures: one that measured something else is not complete.
        replayed: Datasets of earlier generations that it reads as well, by the names under which its marker knows them.
    """

    stage: str
    argument: str
    folder: Path
    needs: tuple[str, ...] = ()
    max_rounds: int = 0
    asked: str = ""
    replayed: tuple[tuple[str, Path], ...] = ()

    @property
    def key(self) -> str:
        """The name by which markers of other units know it."""
        return "dataset" if self.stage == "collect" else f"{self.stage}/{self.argument}"

    @property
    def words(self) -> tuple[str, ...]:
        """Stage and argument, as on the command line of `python -m salign.work`."""
        return (self.stage, self.argument) if self.argument else (self.stage,)

    @property
    def name(self) -> str:
        """The name that a user reads."""
        return " ".join(self.words)

    @property
    def log_name(self) -> str:
        return "-".join(self.words) + ".log"


ASKED = "evaluate"
"""Under this name the marker of an evaluation has the digest of what was measured."""

# Which models are evaluated, and whether benchmarks without data are left out, changes nothing of what is measured.
_NOT_ASKED = {"models", "allow_missing"}


def asked_of(config: Config) -> str:
    """The digest of all that `evaluate` says of what is measured of a model."""
    asked = {name: value for name, value in given(config.evaluate, *NOT_FREE).items() if name not in _NOT_ASKED}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def units(run: RunDir, config: Config) -> list[Unit]:
    """Returns every unit of a run, each after those that it needs; no society if nothing is trained on its data."""
    plan: list[Unit] = []
    if config.has_society:
        rounds = config.society.max_rounds
        shards = range(config.society.num_shards)
        plan += [Unit("simulate", str(shard), run.shard(shard), max_rounds=rounds) for shard in shards]
        plan.append(Unit("collect", "", run.dataset, tuple(shard.key for shard in plan)))
    for stage in config.train.stages:
        start = config.train.start_of(stage.name)
        needs: tuple[str, ...] = () if start == "base" else (f"train/{start}",)
        if stage.uses_society:
            needs += ("dataset",)
        parts = (part.replay for part in stage.parts if part.kind == "run")
        replayed = {its.dataset_key: its.dataset for shares in parts for _, _, its in run.replayed(shares)}
        plan.append(Unit("train", stage.name, run.stage(stage.name), needs, replayed=tuple(replayed.items())))
    asked = asked_of(config)
    for model in config.evaluated_models:
        needs = () if model == "base" else (f"train/{model}",)
        plan.append(Unit("evaluate", model, run.evaluation(model), needs, asked=asked))
    return plan


def servers_of(run: RunDir, config: Config) -> list[Unit]:
    """The servers of the run's fleets, which are done like units, but have no results and so no place in the plan."""
    return [
        Unit("serve", f"{fleet.name}.{number}", run.fleet(fleet.name) / str(number))
        for fleet in (config.fleets if config.has_society else ())
        for number in range(fleet.section.num_servers)
    ]


def find_fleet(config: Config, name: str) -> Fleet:
    """Finds a fleet by its name.

    Raises:
        ConfigError: There is none; those that there are get named.
    """
    for fleet in config.fleets:
        if fleet.name == name:
            return fleet
    known = ", ".join(fleet.name for fleet in config.fleets) or "none"
    raise ConfigError(f"the run has no fleet {name!r}; there are: {known}")


def find_unit(everything: Sequence[Unit], stage: str, argument: str = "") -> Unit:
    """Finds the unit that a user names.

    Raises:
        ConfigError: There is none; those that there are get named.
    """
    for unit in everything:
        if (unit.stage, unit.argument) == (stage, argument):
            return unit
    there = [unit.argument for unit in everything if unit.stage == stage]
    if len(there) > _MAX_NAMED:
        there = [*there[: _MAX_NAMED - 2], "...", there[-1]]
    known = f"there are: {', '.join(there)}" if there else "the run has none, as no stage trains on a society's data"
    raise ConfigError(f"the run has no unit `{stage} {argument}`; {known}" if argument else f"no {stage} here: {known}")


def is_short(done: Done, max_rounds: int) -> bool:
    """Whether a shard was simulated for fewer rounds than the run has by now."""
    return int(done.facts.get("max_rounds", max_rounds)) < max_rounds


def complete(everything: Sequence[Unit]) -> set[str]:
    """Returns the keys of the units that are done and were made from the inputs as they are now."""
    digests: dict[str, str] = {}
    for unit in everything:
        done = read_done(unit.folder)
        if done is None or is_short(done, unit.max_rounds) or done.inputs.get(ASKED, "") != unit.asked:
            continue
        # A unit whose inputs were made anew with another result is to be made anew as well.
        earlier = {key: read_done(folder) for key, folder in unit.replayed}
        same = (found is not None and found.digest == done.inputs.get(key) for key, found in earlier.items())
        if all(digests.get(need) == done.inputs.get(need) for need in unit.needs) and all(same):
            digests[unit.key] = done.digest
    return set(digests)


def is_complete(unit: Unit, everything: Sequence[Unit]) -> bool:
    """Returns whether one unit is complete; looks only at it and at what it needs."""
    if not unit.needs:
        return bool(complete([unit]))
    wanted = {unit.key}
    for other in reversed(everything):
        if other.key in wanted:
            wanted.update(other.needs)
    return unit.key in complete([other for other in everything if other.key in wanted])


def to_run(everything: Sequence[Unit]) -> list[Unit]:
    """Returns units that are not complete, and those that need one of them: their inputs may come out otherwise."""
    done, left = complete(everything), dict[str, Unit]()
    for unit in everything:
        if unit.key not in done or any(need in left for need in unit.needs):
            left[unit.key] = unit
    return list(left.values())


def require_needs(chosen: Sequence[Unit], everything: Sequence[Unit], at_work: Collection[str] = ()) -> None:
    """Makes sure that what some units need is there, or is made before them.

    Args:
        chosen: Units of a launch of some stages.
        everything: All of the run's.
        at_work: Keys of those that jobs of an earlier launch do.

    Raises:
        ConfigError: One needs a unit that is not.
    """
    coming = complete(everything).union((unit.key for unit in chosen), at_work)
    for unit in chosen:
        missing = [need for need in unit.needs if need not in coming]
        if missing:
            stage = next(other.stage for other in everything if other.key == missing[0])
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ConfigError(
                f"{unit.name} needs {missing[0]}{more}, and that is not done: launch --until={unit.stage}, or "
                f"--only={stage} first."
            )


def damaged_files(everything: Sequence[Unit]) -> Iterator[tuple[Unit, str]]:
    """The files of units that are not what their markers vouch for, by hash: each is read whole."""
    for unit in everything:
        done = read_done(unit.folder)
        if done is not None:
            yield from ((unit, name) for name in damaged(unit.folder, done))


def state(unit: Unit, done: set[str]) -> tuple[str, str | None]:
    """Returns one word for a unit's state, and its error if it failed."""
    if unit.key in done:
        return "done", None
    if is_locked(unit.folder / ".lock"):
        return "running", None
    failure = read_failure(unit.folder)
    if failure is not None:
        return "failed", failure[0]
    return ("interrupted" if (unit.folder / "metrics.jsonl").exists() else "to do"), None
