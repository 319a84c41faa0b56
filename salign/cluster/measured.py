"""What runs have measured (rates of calls and of training, seconds of evaluations), and for which runs it holds too."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from salign.cluster.local import batches_of_models
from salign.config import Config, EngineSection, FleetEngine, Judge, LocalCluster, OpenAIEngine, TrainStage
from salign.errors import SalignError, presentable
from salign.machine import this_machine
from salign.markers import Done, read_done
from salign.run import RunDir
from salign.tracking.metrics import read_metrics

T = TypeVar("T")

# A login node answers in a second: of each folder of runs so many are looked at, of each run so many shards, and of
# each file of metrics the end.
_MOST_FOLDERS, _MOST_RUNS, _MOST_SHARDS = 1000, 20, 8
_LAST_BYTES = 1 << 20
# What reading a damaged run may raise, whatever is wrong with it.
_DAMAGED = (SalignError, OSError, LookupError, TypeError, ValueError, ArithmeticError)


class Calls(NamedTuple):
    """Of one shard: calls a second, tokens of a call, and the seconds beside the calls, as for loading a model."""

    per_s: float
    tokens: float | None
    start_s: float


class Trained(NamedTuple):
    """Of one stage: tokens a second of all ranks, tokens of a step, all its steps, and the seconds beside them."""

    per_s: float
    step_tokens: float
    num_steps: int
    start_s: float


# --- of one run ----------------------------------------------------------------------------------


def _last(rows: Sequence[dict[str, Any]], name: str) -> float:
    """The last value of a metric."""
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), 0.0)


def _are_sane(*values: float) -> bool:
    """Whether all are numbers above 0, which NaN is not."""
    return all(0 < value < math.inf for value in values)


def _pace(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Calls that an engine answered, and in how many seconds: from the first answer on, where there are later ones.

    Before it, as many calls as there may be are in flight and none is answered, which says nothing of the rate.
    """
    told = [row for row in rows if row.get("sim/calls") is not None]
    found = [(row["time"], row["sim/calls"] - (row.get("sim/calls_journaled") or 0)) for row in told]
    if not found:
        return 0.0, 0.0
    start = next((place for place, (_, answered) in enumerate(found) if answered), 0)
    if found[-1][1] == found[start][1]:
        start = 0
    return found[-1][1] - found[start][1], found[-1][0] - found[start][0]


def calls_in(run: RunDir, config: Config, most_shards: int | None = None) -> Calls | None:
    """What a run has measured of calls, without those that its journals answered; None before the first answer.

    Args:
        run: Its folder.
        config: Its config.
        most_shards: So many of its shards are read; None: all.

    Raises:
        DataError: A shard's metrics are damaged.
    """
    made = seconds = calls = tokens = 0.0
    whole: list[tuple[float, float]] = []
    for shard in range(config.society.num_shards)[:most_shards]:
        folder = run.shard(shard)
        rows = _rows(folder)
        answered, took = _pace(rows)
        made, seconds = made + answered, seconds + took
        calls, tokens = calls + _last(rows, "sim/calls"), tokens + _last(rows, "sim/tokens")
        done = read_done(folder)
        if not _fits_here(config, done):
            return None
        if done is not None and done.took_s is not None:
            whole.append((done.took_s, _last(rows, "sim/calls") - _last(rows, "sim/calls_journaled")))
    if not _are_sane(made, seconds):
        return None
    beside = [took - answered * seconds / made for took, answered in whole]
    return Calls(made / seconds, tokens / calls if _are_sane(tokens, calls) else None, _start(beside))


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The last rows of a unit's metrics; none where that is no ordinary file."""
    path = folder / "metrics.jsonl"
    return read_metrics(path, _LAST_BYTES) if path.is_file() else []


def _fits_here(config: Config, done: Done | None) -> bool:
    """Whether a local unit was made on a machine like this one, as far as its marker says."""
    if done is None or not isinstance(config.cluster, LocalCluster):
        return True
    here = this_machine()
    return all(done.machine.get(what) in (None, here[what]) for what in ("cores", "gpus"))


def _start(beside: Sequence[float]) -> float:
    """The mean of the seconds that units took beside what is counted; 0 where no unit is done."""
    return max(0.0, sum(beside) / len(beside)) if beside else 0.0


def training_in(run: RunDir, config: Config, stage: TrainStage) -> Trained | None:
    """What a run has measured of a stage; None before its first step.

    Raises:
        DataError: The stage's metrics are damaged.
    """
    folder = run.stage(stage.name)
    rows = [row for row in _rows(folder) if row.get("train/global_step") and row.get("train/num_tokens")]
    done = read_done(folder)
    if not rows or not _fits_here(config, done):
        return None
    last = rows[-1]
    tokens, trained = last["train/num_tokens"], last["train/num_tokens"] - rows[0]["train/num_tokens"]
    # The first step of a process takes longer than those that follow it.
    seconds = float(sum(row.get("perf/step_time_s") or 0.0 for row in rows[1:]))
    if not trained:
        trained, seconds = last.get("perf/tokens_per_s") or 0.0, 1.0
    step = last["train/global_step"]
    if not _are_sane(trained, seconds, tokens, step):
        return None
    took = None if done is None else done.took_s
    beside = [] if took is None else [took - tokens * seconds / trained]
    return Trained(trained / seconds, tokens / step, last.get("train/steps_most") or step, _start(beside))


def evaluation_in(run: RunDir, config: Config, model: str) -> float | None:
    """How many seconds the evaluation of a model took in a run, or of another where that one has not been evaluated.

    Of models that this machine evaluates side by side, each took its share of the seconds.
    """
    models = config.evaluated_models
    is_local = isinstance(config.cluster, LocalCluster)
    batches = batches_of_models(config, models) if is_local else [[name] for name in models]
    num_beside = {name: len(batch) for batch in batches for name in batch}
    for name in sorted(models, key=lambda name: name != model):
        done = read_done(run.evaluation(name))
        if done is not None and done.took_s is not None and _fits_here(config, done):
            return done.took_s / num_beside[name]
    return None


# --- of other runs -------------------------------------------------------------------------------


def speed_of_calls(config: Config) -> list[Any]:
    """What the rate of a shard's calls follows from, as plain values: where they are the same, so is the rate.

    Taken as it is in the config: every setting of the engines of the society with the model that each one speaks
    through, how ratings are asked for, and the jobs or processes that shards and servers get; of engines that all
    shards share, and of this machine's cores, also how many shards there are at a time. Not taken: what agents are
    told, how many there are and for how many rounds. How long their replies may be is allowed for by `estimate`.
    """
    places = {place: one for place, one in config.engines().items() if not place.startswith("evaluate.")}
    cluster = config.cluster
    at_once = cluster.num_shards_at_once(config.society.num_shards)
    is_shared = any(isinstance(one, FleetEngine | OpenAIEngine) for one in places.values())
    return [
        {place: _engine(one, config.model) for place, one in places.items()},
        config.society.rating,
        _resources(config, "simulate"),
        _resources(config, "serve") if config.fleets else None,
        at_once if is_shared or isinstance(cluster, LocalCluster) else None,
    ]


def speed_of_training(config: Config, stage: TrainStage) -> list[Any]:
    """What a stage's tokens a second follow from, as plain values: where they are the same, so is the rate.

    That is the base model, what the stage says of shapes and arithmetic (not of its data, its length, or what is
    learnt from a group), DeepSpeed's file by its path, and the ranks.
    """
    return [
        config.model,
        stage.objective.kind,
        stage.model_dump(mode="json", include=_OF_SPEED),
        _resources(config, "train"),
    ]


_OF_SPEED = {
    *("groups_per_step", "num_responses", "max_tokens", "row_tokens"),
    *("dtype", "attention", "lora", "gradient_checkpointing", "deepspeed"),
}


def speed_of_evaluation(config: Config) -> list[Any]:
    """What an evaluation's seconds follow from, as plain values: all of `evaluate` but which models, who answers and
    judges by which criteria, and the ranks.
    """
    return [
        config.model,
        config.evaluate.model_dump(mode="json", exclude={"models", "engine", "judges"}),
        _engine(config.answering, ""),
        [(judge.name, _judge(judge, config.model)) for judge in config.judges],
        config.society.model_dump(mode="json", include={"rating", "criteria"}),
        _resources(config, "evaluate"),
    ]


def _engine(section: EngineSection, base: str) -> dict[str, Any]:
    """A section as the config has it, with the model that it stands for."""
    plain = section.model_dump(mode="json")
    return {**plain, "model": plain["model"] or base} if "model" in plain else plain


def _judge(judge: Judge, base: str) -> dict[str, Any]:
    return judge.model_dump(mode="json") if judge.engine is None else _engine(judge.engine, base)


def _resources(config: Config, stage: str) -> dict[str, Any]:
    """What a stage gets of a cluster, but for what limits it."""
    cluster = config.cluster
    if isinstance(cluster, LocalCluster):
        return cluster.model_dump(include={"kind", "ranks_per_shard" if stage == "simulate" else "num_ranks"})
    whole = {"kind", "sbatch", "srun", *(("shards_at_once",) if stage == "simulate" else ())}
    own = cluster.by_stage[stage].model_dump(exclude={"timeout_min", "mem_gb"})
    return {**cluster.model_dump(include=whole), stage: own}


class Earlier:
    """Runs whose measurements may stand in for those that a run does not have yet; each is read once.

    Args:
        run: The run of the first generation.
        config: Its config.
    """

    def __init__(self, run: RunDir, config: Config) -> None:
        self._run = run
        self._config = config
        self._coming = self._others()
        self._read: list[tuple[RunDir, Config]] = []
        self._known: dict[tuple[str, str, bool], Any] = {}

    def calls(self, number: int) -> tuple[Calls, Config, str] | None:
        """What the newest run with the same engines has measured; with its config, and where that is.

        Args:
            number: Of the generation that it stands in for; to later ones of the run itself its first one comes before.
        """
        wanted = speed_of_calls(self._config)

        def found(run: RunDir, config: Config) -> tuple[Calls, Config] | None:
            same = calls_in(run, config, _MOST_SHARDS) if speed_of_calls(config) == wanted else None
            return None if same is None else (same, config)

        first = self._first("calls", "", number, found)
        return None if first is None else (*first[0], first[1])

    def training(self, name: str, number: int) -> tuple[Trained, TrainStage, str] | None:
        """The same of a stage; one of the same name comes before others of the same run."""
        wanted = speed_of_training(self._config, self._config.stage(name))

        def found(run: RunDir, config: Config) -> tuple[Trained, TrainStage] | None:
            for stage in sorted(config.train.stages, key=lambda stage: stage.name != name):
                if speed_of_training(config, stage) == wanted and (same := training_in(run, config, stage)):
                    return same, stage
            return None

        first = self._first("training", name, number, found)
        return None if first is None else (*first[0], first[1])

    def evaluation(self, model: str, number: int) -> tuple[float, str] | None:
        """Seconds that the evaluation of a model took where all that is asked was the same."""
        wanted = speed_of_evaluation(self._config)

        def found(run: RunDir, config: Config) -> float | None:
            return evaluation_in(run, config, model) if speed_of_evaluation(config) == wanted else None

        return self._first("evaluation", model, number, found)

    def _first(
        self, what: str, name: str, number: int, found: Callable[[RunDir, Config], T | None]
    ) -> tuple[T, str] | None:
        """What is found in the newest run that has it, and in which: once for all generations after the first."""
        key = (what, name, number > 1)
        if key not in self._known:
            self._known[key] = next(self._in_turn(number > 1, found), None)
        known: tuple[T, str] | None = self._known[key]
        return known

    def _in_turn(self, is_later: bool, found: Callable[[RunDir, Config], T | None]) -> Iterator[tuple[T, str]]:
        """All that is found; a run that is damaged is passed over."""
        own = found(self._run, self._config) if is_later else None
        if own is not None:
            yield own, "measured in generation 1"
        for run, config in self._all():
            try:
                other = found(run, config)
            except _DAMAGED:
                continue
            if other is not None:
                yield other, f"measured in run {presentable(run.path.name)}"

    def _all(self) -> Iterator[tuple[RunDir, Config]]:
        yield from self._read
        for one in self._coming:
            self._read.append(one)
            yield one

    def _others(self) -> Iterator[tuple[RunDir, Config]]:
        """The other runs of the same folder, that of the newest launch first."""
        launched = []
        with contextlib.suppress(OSError), os.scandir(self._run.path.parent) as entries:
            for entry in islice(entries, _MOST_FOLDERS):
                if entry.name != self._run.path.name and (since := _launched(RunDir(Path(entry.path)))) is not None:
                    launched.append((since, entry.path))
        for _, path in sorted(launched, reverse=True)[:_MOST_RUNS]:
            run = RunDir(Path(path))
            try:
                config = run.config()
            except _DAMAGED:
                continue
            yield run, config


def _launched(run: RunDir) -> float | None:
    """When a run was last launched, in seconds since the epoch; None of what is no run, or not for us to read."""
    try:
        return run.manifest.stat().st_mtime if run.config_file.is_file() else None
    except OSError:
        return None
