"""What a run will cost: model calls, tokens, hours. At most, for a world may stop before its last round.

By rates that were measured in the run; else by stated ones (`cluster.throughput`); else by a GPU's data sheet, as a
range.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from salign.cluster.rates import Range, calls_of, tokens_of_data, trained_per_s
from salign.config import Config, TrainStage, num_agents_of
from salign.plan import Unit
from salign.run import RunDir
from salign.society.protocols import protocol_of
from salign.society.shard import worlds_of
from salign.society.topology import make_topology
from salign.tracking.metrics import read_metrics


@dataclass(frozen=True)
class Estimate:
    """Of one stage; None is what cannot be known yet.

    Attributes:
        amount: Of what there is, such as `50,000 calls`.
        tokens: Read and written.
        hours: On the wall.
        gpu_hours: Of all GPUs together.
        source: Where the rates come from.
        generation: Of which it is a stage.
    """

    stage: str
    amount: str
    tokens: Range | None
    hours: Range | None
    gpu_hours: Range | None
    source: str
    generation: int = 1


def _last(rows: Sequence[dict[str, Any]], name: str) -> float:
    """The last value of a metric."""
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), 0.0)


def _pace(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Calls that an engine answered, and in how many seconds: from the first answer on, where there are later ones.

    Before it, as many calls as there may be are in flight and none is answered, which says nothing of the rate.
    """
    told = [row for row in rows if row.get("sim/calls") is not None]
    found = [(row["time"], row["sim/calls"] - row.get("sim/calls_journaled", 0)) for row in told]
    if not found:
        return 0.0, 0.0
    start = next((place for place, (_, answered) in enumerate(found) if answered), 0)
    if found[-1][1] == found[start][1]:
        start = 0
    return found[-1][1] - found[start][1], found[-1][0] - found[start][0]


def _measured_calls(run: RunDir, config: Config) -> tuple[float | None, float | None]:
    """A shard's calls a second, without those that its journal answered, and tokens a call, as this run has them."""
    calls = answered = tokens = seconds = 0.0
    for shard in range(config.society.num_shards):
        rows = list(read_metrics(run.shard(shard) / "metrics.jsonl"))
        made, took = _pace(rows)
        answered, seconds = answered + made, seconds + took
        calls += _last(rows, "sim/calls")
        tokens += _last(rows, "sim/tokens")
    return (answered / seconds if answered and seconds else None), (tokens / calls if calls and tokens else None)


def _simulation(run: RunDir, config: Config, shards: int) -> Estimate:
    society, cluster = config.society, config.cluster
    num_agents = num_agents_of(society.topology) or make_topology(society.topology).num_agents
    worlds = max(len(worlds_of(society, shard)) for shard in range(society.num_shards))
    rounds = society.max_rounds - (0 if society.branch is None else society.branch.after_round)
    per_shard = worlds * protocol_of(society).most_calls(num_agents) * rounds
    at_once = cluster.num_shards_at_once(shards)
    rate, tokens_per_call, source = _rate_of_calls(run, config, num_agents * worlds, at_once)
    tokens = None if tokens_per_call is None else tokens_per_call.times(per_shard * shards)
    hours = gpu_hours = None
    if rate is not None:
        shard_hours = _hours(Range.exact(per_shard), rate)
        hours = shard_hours.times(math.ceil(shards / at_once))
        gpu_hours = shard_hours.times(shards * cluster.num_gpus("simulate"))
        of_fleets = cluster.num_gpus("serve") * sum(fleet.section.num_servers for fleet in config.fleets)
        gpu_hours = gpu_hours.plus(hours.times(of_fleets))
    return Estimate(
        "simulate", f"{per_shard * shards:,} calls", tokens, hours, gpu_hours, _said(source, rate, "calls/s")
    )


def _rate_of_calls(
    run: RunDir, config: Config, num_agents: int, at_once: int
) -> tuple[Range | None, Range | None, str]:
    """A shard's calls a second, tokens a call, and where both are from; None for what cannot be known."""
    rate, tokens = _measured_calls(run, config)
    stated = config.cluster.throughput
    if rate is not None:
        return Range.exact(rate), _exact(tokens), "measured in this run"
    if stated.calls_per_s is not None or stated.gpu is None:
        return _exact(stated.calls_per_s), _exact(stated.tokens_per_call), "cluster.throughput"
    protocol = protocol_of(config.society)
    found = calls_of(config, stated.gpu, protocol.max_calls, num_agents, at_once)
    if isinstance(found, str):
        return None, _exact(stated.tokens_per_call), found
    return found.per_s, found.tokens, found.source


def _exact(value: float | None) -> Range | None:
    return None if value is None else Range.exact(value)


def _hours(amount: Range, rate: Range) -> Range:
    """From the least at the best rate to the most at the worst."""
    return Range(amount.low / rate.high / 3600, amount.high / rate.low / 3600)


def _step_tokens(stage: TrainStage) -> int:
    """Tokens of one step at most: every response as long as it may be."""
    return stage.groups_per_step * stage.max_responses * stage.max_tokens


def most_tokens(stage: TrainStage) -> float | None:
    """What a stage is trained on at most, in tokens; None where only its data says."""
    bounds = []
    if stage.max_steps is not None:
        bounds.append(stage.max_steps * _step_tokens(stage))
    if stage.num_tokens is not None:  # the last step begins below the budget
        bounds.append(stage.num_tokens - 1 + _step_tokens(stage))
    return float(min(bounds)) if bounds else None


def least_steps(stage: TrainStage) -> int:
    """Optimizer steps of a stage with a budget of tokens, where every response is as long as it may be."""
    assert stage.num_tokens is not None
    least = math.ceil(stage.num_tokens / _step_tokens(stage))
    return least if stage.max_steps is None else min(least, stage.max_steps)


def _training(run: RunDir, config: Config, stage: TrainStage) -> Estimate:
    cluster = config.cluster
    rows = list(read_metrics(run.stage(stage.name) / "metrics.jsonl"))
    last: dict[str, Any] = next((row for row in reversed(rows) if "train/global_step" in row), {})
    steps = last.get("train/steps_most") or stage.max_steps
    tokens, rate, source = (
        _exact(most_tokens(stage)),
        _exact(cluster.throughput.train_tokens_per_s),
        "cluster.throughput",
    )
    if last and last.get("train/num_tokens"):
        tokens = Range.exact(last["train/num_tokens"] / last["train/global_step"] * last["train/steps_most"])
        if measured := last.get("perf/tokens_per_s"):
            rate, source = Range.exact(measured), "measured in this run"
    gpu = cluster.throughput.gpu
    if rate is None and gpu is not None:
        rate, source = trained_per_s(config, stage, gpu, cluster.num_gpus("train")), f"{gpu} by its data sheet"
    if tokens is None:
        tokens = tokens_of_data(config, stage)
    hours = None if tokens is None or rate is None else _hours(tokens, rate)
    gpu_hours = None if hours is None else hours.times(cluster.num_gpus("train"))
    if steps is not None:
        amount = f"{steps:,} steps"
    elif stage.num_tokens is not None:
        amount = f"{least_steps(stage):,} steps or more"
    else:
        amount = "steps of its data"
    said = _said(source, rate, "tokens/s") + ("" if tokens is not None else "; its data is not here yet")
    return Estimate(f"train {stage.name}", amount, tokens, hours, gpu_hours, said)


def _said(source: str, rate: Range | None, unit: str) -> str:
    if rate is None:
        return "rate unknown" if source == "cluster.throughput" else f"rate unknown: {source}"
    return f"{_shown(rate, '{:,.1f}'.format)} {unit}, {source}"


def estimate(run: RunDir, config: Config, left: Sequence[Unit]) -> list[Estimate]:
    """What is left of a run, stage by stage; evaluations are left out, for they are small."""
    shards = sum(unit.stage == "simulate" for unit in left)
    found = [_simulation(run, config, shards)] if shards else []
    keys = {unit.key for unit in left}
    found += [_training(run, config, stage) for stage in config.train.stages if f"train/{stage.name}" in keys]
    return [dataclasses.replace(row, generation=run.number) for row in found]


def _named(estimates: Sequence[Estimate]) -> list[tuple[str, Estimate]]:
    """The name and the figures of each; of generations that cost the same, once."""
    alike = defaultdict[Estimate, list[int]](list)
    for one in estimates:
        alike[dataclasses.replace(one, generation=min(one.generation, 2))].append(one.generation)
    found = []
    for one, numbers in alike.items():
        if one.generation == 1:
            name = one.stage
        elif len(numbers) == 1:
            name = f"generation {numbers[0]}: {one.stage}"
        else:
            name = f"{one.stage}, of generations {numbers[0]} to {numbers[-1]} each"
        found.append((name, one))
    return found


def print_estimate(estimates: Sequence[Estimate], console: Console) -> None:
    """A table of them with their sum, and where the rates come from."""
    table = Table(title="Estimate, if no world stops early", title_justify="left")
    for column, justify in (("stage", "left"), ("amount", "right"), ("tokens", "right"), ("hours", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("GPU hours", justify="right")
    named = _named(estimates)
    for name, one in named:
        table.add_row(name, one.amount, *_numbers(one.tokens, one.hours, one.gpu_hours))
    table.add_section()
    sums = [_sum([getattr(one, what) for one in estimates]) for what in ("tokens", "hours", "gpu_hours")]
    whole = "all" if all(one.hours is not None for one in estimates) else "all that is known"
    table.add_row(whole, "", *_numbers(*sums))
    console.print(table)
    stages = defaultdict[str, list[str]](list)
    for name, one in named:
        stages[one.source].append(name)
    lines = [f"{', '.join(of)}: {source}." for source, of in stages.items()]
    if any(one.hours is None for one in estimates):
        lines.append(
            "Rates come from the run itself once it has started, from cluster.throughput, or from the data sheet of "
            "the GPU that cluster.throughput.gpu names."
        )
    if any("data sheet" in one.source for one in estimates):
        lines.append(
            "From a data sheet: between shares of its peaks that are often reached, and between short replies and "
            "those of max_tokens (docs/slurm.md). Once some shards are at work, it is measured."
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _numbers(tokens: Range | None, hours: Range | None, gpu_hours: Range | None) -> tuple[str, str, str]:
    return _shown(tokens, _short), _shown(hours, "{:,.2f}".format), _shown(gpu_hours, "{:,.1f}".format)


def _short(amount: float) -> str:
    """Three digits of a large number and its unit, for a column of a table."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= 0.9995 * size:
            return f"{amount / size:.{2 if amount < 9.995 * size else 1 if amount < 99.95 * size else 0}f} {unit}"
    return f"{amount:.0f}"


def _sum(values: Sequence[Range | None]) -> Range | None:
    known = [value for value in values if value is not None]
    return Range(sum(one.low for one in known), sum(one.high for one in known)) if known else None


def _shown(value: Range | None, form: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    low, high = form(value.low), form(value.high)
    return low if low == high else f"{low} to {high}"
