"""Reads a run, finished or not, into what its report shows."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from salign.config import KINDS, Config
from salign.documents import read_json
from salign.engines.meter import Tally, merge_by_kind
from salign.errors import DataError
from salign.evaluation.compare import compare
from salign.evaluation.statistics import Estimate
from salign.garbage import rare_collections
from salign.manifest import Manifest, read_manifest
from salign.markers import check_files, read_done, read_failure
from salign.records import Profile, read_interactions, read_profiles
from salign.report.generations import GenerationsTable, read_generations
from salign.report.society import MAX_SAMPLES, Reservoir, Shard, Society, SocietyReader, clipped
from salign.run import RunDir
from salign.seeds import rng
from salign.tracking.metrics import Row, read_metrics

MAX_POINTS = 500
"""Of one curve."""
_MAX_RESPONSES = 8
"""Of one group: the best, and the two worst."""


@dataclass(frozen=True)
class WorldPath:
    """A world's rounds as `metrics.jsonl` has them, in order.

    `stop` says why it ended (`society.stopping`), None while it has not.
    """

    world: int
    population: str
    rounds: tuple[Row, ...]
    stop: str | None

    def values(self, name: str) -> list[float | None]:
        return [row[name] for row in self.rounds]


@dataclass(frozen=True)
class OverTime:
    """The simulation by the clock, summed over the shards: arrays [points]; `seconds` since the first row."""

    seconds: NDArray[np.float64]
    calls: NDArray[np.float64]
    tokens: NDArray[np.float64]
    completion_tokens: NDArray[np.float64] | None
    in_flight: NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A figure of an evaluation: an accuracy, or a mean rating; of several seeds, each one's mean in `seeds`."""

    mean: float
    low: float | None
    high: float | None
    n: int | None
    seeds: tuple[float, ...] = ()


@dataclass
class RunRecord:
    """Everything that a report shows; `gaps` says, section by section, what is not there yet."""

    folder: Path
    config: Config
    manifest: Manifest | None
    machines: dict[str, dict[str, Any]]
    gaps: dict[str, list[str]] = field(default_factory=dict)
    paths: list[WorldPath] = field(default_factory=list)
    over_time: OverTime | None = None
    observer: dict[str, Any] | None = None
    """What its ratings are worth, as the first shard measured."""
    society: Society | None = None
    card: dict[str, Any] | None = None
    groups: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, list[Row]] = field(default_factory=dict)
    evaluation: dict[str, dict[str, Figure]] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)
    trials: dict[str, Any] = field(default_factory=dict)
    """What the trials of the judges found."""
    generations: GenerationsTable | None = None
    calls_by_kind: dict[str, Tally] = field(default_factory=dict)
    """The model calls of all shards that are complete, by what they were for."""
    took_s: dict[str, float] = field(default_factory=dict)
    """Seconds that the complete units of a stage took together, by its name."""

    def missing(self, section: str, what: str, folder: Path) -> None:
        """Notes what is not there, with the error if it failed."""
        failure = read_failure(folder)
        gap = f"{what} failed: {failure[0]}" if failure is not None else f"{what} is not complete yet"
        self.gaps.setdefault(section, []).append(gap)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Returns what tokens cost; None if the config has no price."""
        price = self.config.tracking.price_per_1000_tokens
        return None if price is None else price.of(prompt_tokens, completion_tokens)


def read_run(run: RunDir, config: Config) -> RunRecord:
    """Reads everything of a run that is there.

    Raises:
        DataError: A file of it is malformed.
    """
    record = RunRecord(run.path, config, read_manifest(run), {})
    if config.has_society:
        _read_society(run, config, record)
        _read_data(run, config, record)
    for stage in config.train.stages:
        folder = run.stage(stage.name)
        rows = read_metrics(folder / "metrics.jsonl")
        if rows:
            record.training[stage.name] = thinned(rows, MAX_POINTS)
        if not _note_machine(record, f"train {stage.name}", folder):
            steps = f" (after step {rows[-1]['train/global_step']} of {rows[-1]['train/steps_most']})" if rows else ""
            record.missing("training", f"train stage {stage.name}{steps}", folder)
    _read_evaluation(run, config, record)
    record.generations = read_generations(run, config)
    return record


def _note_machine(record: RunRecord, unit: str, folder: Path) -> bool:
    """Whether a unit is complete; then where it was made is noted."""
    done = read_done(folder)
    if done is None:
        return False
    check_files(folder, done, unit)
    record.machines[unit] = done.machine
    stage = unit.partition(" ")[0]
    if done.took_s is not None:
        record.took_s[stage] = record.took_s.get(stage, 0.0) + done.took_s
    return True


def thinned(rows: Sequence[Row], most: int) -> list[Row]:
    """Thins out rows evenly; the first, the last and those with a measurement on held-out data stay."""
    if len(rows) <= most:
        return list(rows)
    kept = {round(position) for position in np.linspace(0, len(rows) - 1, most)}
    held_out = [position for position, row in enumerate(rows) if "eval/loss" in row]
    kept |= set(held_out[:: 1 + len(held_out) // most])
    return [rows[position] for position in sorted(kept)]


# --- the society ---------------------------------------------------------------------------------


@rare_collections()
def _read_society(run: RunDir, config: Config, record: RunRecord) -> None:
    shards, clocks = [], []
    profiles: dict[int, Profile] = {}
    for number in range(config.society.num_shards):
        folder = run.shard(number)
        rows = read_metrics(folder / "metrics.jsonl")
        done = read_done(folder)
        if done is None:
            record.missing("society", f"shard {number}", folder)
        else:
            shards.append(Shard(number, done))
            profiles |= read_profiles(folder / "profiles.jsonl")
            record.observer = record.observer or done.facts.get("observer")
            _note_machine(record, f"simulate {number}", folder)
        record.paths += _paths(config, rows, shards[-1] if done is not None else None)
        clocks.append(thinned([row for row in rows if "sim/calls" in row], MAX_POINTS))
    record.over_time = _over_time(clocks)
    if shards:
        reader = SocietyReader(config, shards, profiles)
        for shard in shards:
            for interaction in read_interactions(run.shard(shard.number) / "interactions.jsonl"):
                reader.add(interaction)
        record.society = reader.end()
        # Interactions that ran ahead of a stop are in no record; their tokens were paid for.
        for name in ("num_calls", "prompt_tokens", "completion_tokens"):
            setattr(record.society, name, sum(shard.done.facts[name] for shard in shards))
        record.calls_by_kind = merge_by_kind(
            {kind: Tally(**tally) for kind, tally in shard.done.facts.get("calls_by_kind", {}).items()}
            for shard in shards
        )
        record.society.num_discarded = sum(shard.done.facts["num_discarded_interactions"] for shard in shards)


def read_paths(run: RunDir, config: Config) -> list[WorldPath]:
    """The worlds of a run, as far as they have come."""
    paths = []
    for number in range(config.society.num_shards):
        folder = run.shard(number)
        done = read_done(folder)
        shard = None if done is None else Shard(number, done)
        paths += _paths(config, read_metrics(folder / "metrics.jsonl"), shard)
    return paths


def _paths(config: Config, rows: Sequence[Row], shard: Shard | None) -> list[WorldPath]:
    society = config.society
    worlds: dict[int, list[Row]] = {}
    for row in rows:
        if "sim/world" in row:
            worlds.setdefault(row["sim/world"], []).append(row)
    paths = []
    for world, of_world in sorted(worlds.items()):
        of_world.sort(key=lambda row: row["sim/round"])
        last = society.max_rounds if shard is None else shard.last_rounds[world]
        held = [row for row in of_world if row["sim/round"] <= last]  # not what ran ahead of a stop
        if held:
            population = society.populations[world % len(society.populations)]
            paths.append(WorldPath(world, population, tuple(held), held[-1].get("sim/stop")))
    return paths


def _over_time(clocks: Sequence[Sequence[Row]]) -> OverTime | None:
    """Sums over the shards at common moments."""
    clocks = [rows for rows in clocks if rows]
    if not clocks:
        return None
    start = min(rows[0]["time"] for rows in clocks)
    end = max(rows[-1]["time"] for rows in clocks)
    moments = np.linspace(start, end, min(200, max(len(rows) for rows in clocks) + 1))

    def total(name: str, *, after: bool) -> NDArray[np.float64]:
        sums = np.zeros(len(moments))
        for rows in clocks:
            values = [row[name] for row in rows]
            sums += np.interp(moments, [row["time"] for row in rows], values, left=0, right=None if after else 0)
        return sums

    known = all("sim/completion_tokens" in row for rows in clocks for row in rows)
    return OverTime(
        moments - start,
        total("sim/calls", after=True),
        total("sim/tokens", after=True),
        total("sim/completion_tokens", after=True) if known else None,
        total("sim/in_flight", after=False),
    )


# --- the data, and what was made of it -----------------------------------------------------------


def _read_data(run: RunDir, config: Config, record: RunRecord) -> None:
    if not _note_machine(record, "collect", run.dataset):
        record.missing("data", "the alignment data", run.dataset)
        return
    record.card = read_json(run.dataset / "card.json", str(run.dataset / "card.json"), dict[str, Any])
    path = run.dataset / "groups.jsonl"
    with path.open("rb") as file:
        lines = enumerate(file, start=1)
        for kind in KINDS:  # in the file one after the other, as many as the card says
            reservoir = Reservoir(MAX_SAMPLES // len(KINDS), rng(config.run.seed, "report", kind))
            for number, line in itertools.islice(lines, record.card["kinds"][kind]["num_groups"]):
                slot = reservoir.draw()
                if slot is not None:
                    reservoir.keep(slot, _group(_decoded(line, f"{path}, line {number}")))
            record.groups += reservoir.in_order()


def _decoded(line: bytes, where: str) -> dict[str, Any]:
    try:
        row: dict[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from None
    return row


def _group(row: Mapping[str, Any]) -> dict[str, Any]:
    rated = sorted(zip(row["scores"], row["responses"], strict=True), reverse=True)
    shown = rated if len(rated) <= _MAX_RESPONSES else [*rated[: _MAX_RESPONSES - 2], *rated[-2:]]
    return {
        "kind": row["kind"],
        "query": clipped(row["query"]),
        "responses": [{"score": score, "text": clipped(text)} for score, text in shown],
        "num_left_out": len(rated) - len(shown),
    }


def _read_evaluation(run: RunDir, config: Config, record: RunRecord) -> None:
    for model in config.evaluated_models:
        folder = run.evaluation(model)
        if _note_machine(record, f"evaluate {model}", folder):
            results = read_json(folder / "results.json", str(folder / "results.json"), dict[str, Any])
            record.evaluation[model] = {
                name: Figure(row["mean"], row["low"], row["high"], row["n"])
                for name, row in results["figures"].items()
                if row["mean"] is not None
            }
            record.trials |= results.get("judges", {})
        else:
            record.missing("evaluation", f"the evaluation of {model}", folder)
    _put_together(run, config, record)


def _put_together(run: RunDir, config: Config, record: RunRecord) -> None:
    """Of a stage's evaluations for several seeds makes one, and compares the last model with the first."""
    models = config.compared_models
    members = {model: (model,) if model == "base" else config.train.copies(model) for model in models}
    whole = [model for model in models if set(members[model]) <= set(record.evaluation)]
    ends = [model for model in dict.fromkeys(models[:1] + models[-1:]) if model in whole]
    if len(ends) == 2:
        compared = compare(run, config, ends)
        record.differences = {figure: difference.estimate for figure, (difference,) in compared.differences.items()}
    for model in whole:
        if len(members[model]) > 1:
            over = {figure: row[model] for figure, row in compare(run, config, [model]).figures.items()}
            each = [record.evaluation.pop(name) for name in members[model]]
            seeds = {name: tuple(one[name].mean for one in each if name in one) for name in over}
            record.evaluation[model] = {
                name: Figure(row.mean, row.low, row.high, row.n, seeds[name])
                for name, row in over.items()
                if row.mean is not None
            }


def failure_counts(society: Society, most: int = 10) -> Counter[str]:
    """Returns the most frequent reasons why interactions failed."""
    return Counter(dict(society.failures.most_common(most)))
