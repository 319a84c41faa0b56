"""What a run will cost: model calls, tokens, hours. At most, for a world may stop before its last round.

By rates that were measured in the run; else by stated ones (`cluster.throughput`); else by those of an earlier run that
is alike (`salign.cluster.measured`); else by a GPU's data sheet, as a range.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from salign.cluster.measured import Earlier, calls_in, evaluation_in, training_in
from salign.cluster.rates import Range, calls_of, tokens_of_calls, tokens_of_data, trained_per_s
from salign.config import Config, TrainStage, num_agents_of
from salign.plan import Unit
from salign.run import RunDir
from salign.society.protocols import protocol_of
from salign.society.shard import worlds_of
from salign.society.topology import make_topology


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


def _simulation(run: RunDir, config: Config, shards: int, earlier: Earlier) -> Estimate:
    society, cluster = config.society, config.cluster
    num_agents = num_agents_of(society.topology) or make_topology(society.topology).num_agents
    worlds = max(len(worlds_of(society, shard)) for shard in range(society.num_shards))
    rounds = society.max_rounds - (0 if society.branch is None else society.branch.after_round)
    per_shard = worlds * protocol_of(society).most_calls(num_agents) * rounds
    at_once = cluster.num_shards_at_once(shards)
    of = _rate_of_calls(run, config, earlier) or _stated_calls(config, num_agents * worlds, at_once)
    tokens = None if of.tokens is None else of.tokens.times(per_shard * shards)
    hours = gpu_hours = None
    if of.per_s is not None:
        shard_hours = _hours(Range.exact(per_shard), of.per_s, of.start_s)
        hours = shard_hours.times(math.ceil(shards / at_once))
        gpu_hours = shard_hours.times(shards * cluster.num_gpus("simulate"))
        of_fleets = cluster.num_gpus("serve") * sum(fleet.section.num_servers for fleet in config.fleets)
        gpu_hours = gpu_hours.plus(hours.times(of_fleets))
    return Estimate(
        "simulate", f"{per_shard * shards:,} calls", tokens, hours, gpu_hours, _said(of.source, of.per_s, "calls/s")
    )


class _Rate(NamedTuple):
    """Of one shard's calls, as far as it is known: how many a second, tokens of each, and seconds beside them."""

    per_s: Range | None
    tokens: Range | None
    source: str
    start_s: float = 0.0


def _rate_of_calls(run: RunDir, config: Config, earlier: Earlier) -> _Rate | None:
    """As this run has measured it; else, unless the user states one, as an earlier run has; None where none has."""
    if (own := calls_in(run, config)) is not None:
        return _Rate(Range.exact(own.per_s), _exact(own.tokens), "measured in this run", own.start_s)
    stated = config.cluster.throughput
    if stated.calls_per_s is not None or (found := earlier.calls(run.number)) is None:
        return None
    calls, there, source = found
    prompt, reply = tokens_of_calls(config, protocol_of(config.society).max_calls)
    prompt_there, reply_there = tokens_of_calls(there, protocol_of(there.society).max_calls)
    # What a model writes takes the time, and how long replies become is between what is usual and what they may.
    longer = Range(*sorted((reply.low / reply_there.low, reply.high / reply_there.high)))
    tokens = _exact(stated.tokens_per_call)
    if tokens is None and calls.tokens is not None:
        more = [(prompt + one) / (prompt_there + other) for one, other in zip(reply, reply_there, strict=True)]
        tokens = Range(min(more), max(more)).times(calls.tokens)
    if longer != Range.exact(1.0):
        source += ", allowing for other lengths of replies"
    return _Rate(Range(calls.per_s / longer.high, calls.per_s / longer.low), tokens, source, calls.start_s)


def _stated_calls(config: Config, num_agents: int, at_once: int) -> _Rate:
    """By what is stated of the cluster: a rate, or which GPUs it has."""
    stated = config.cluster.throughput
    tokens = _exact(stated.tokens_per_call)
    if stated.calls_per_s is not None or stated.gpu is None:
        return _Rate(_exact(stated.calls_per_s), tokens, "cluster.throughput")
    found = calls_of(config, stated.gpu, protocol_of(config.society).max_calls, num_agents, at_once)
    if isinstance(found, str):
        return _Rate(None, tokens, found)
    return _Rate(found.per_s, found.tokens, found.source)


def _exact(value: float | None) -> Range | None:
    return None if value is None else Range.exact(value)


def _hours(amount: Range, rate: Range, start_s: float) -> Range:
    """From the least at the best rate to the most at the worst, each with the seconds beside that."""
    return Range((amount.low / rate.high + start_s) / 3600, (amount.high / rate.low + start_s) / 3600)


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


def _training(run: RunDir, config: Config, stage: TrainStage, earlier: Earlier) -> Estimate:
    cluster = config.cluster
    steps = stage.max_steps
    rate, source, start_s = _exact(cluster.throughput.train_tokens_per_s), "cluster.throughput", 0.0
    tokens = _exact(most_tokens(stage))
    if (own := training_in(run, config, stage)) is not None:
        rate, source, start_s = Range.exact(own.per_s), "measured in this run", own.start_s
        steps, tokens = own.num_steps, Range.exact(own.step_tokens * own.num_steps)
    elif (found := earlier.training(stage.name, run.number)) is not None:
        there, its, named = found
        if rate is None:
            rate, source, start_s = Range.exact(there.per_s), named, there.start_s
        if stage.max_steps is not None and its.parts == stage.parts:
            tokens = _exact(min(most_tokens(stage) or math.inf, there.step_tokens * stage.max_steps))
    gpu = cluster.throughput.gpu
    if rate is None and gpu is not None:
        rate, source = trained_per_s(config, stage, gpu, cluster.num_gpus("train")), f"{gpu} by its data sheet"
    if tokens is None:
        tokens = tokens_of_data(config, stage)
    hours = None if tokens is None or rate is None else _hours(tokens, rate, start_s)
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


def _evaluation(run: RunDir, config: Config, model: str, earlier: Earlier) -> Iterator[Estimate]:
    """Of one model, where the same was evaluated before; nobody knows how long another benchmark takes."""
    own = evaluation_in(run, config, model)
    found = earlier.evaluation(model, run.number) if own is None else (own, "measured in this run")
    if found is not None:
        seconds, source = found
        hours = Range.exact(seconds / 3600)
        gpu_hours = hours.times(config.cluster.num_gpus("evaluate"))
        yield Estimate(f"evaluate {model}", "1 model", None, hours, gpu_hours, f"{seconds:,.0f} s, {source}")


def estimate(run: RunDir, config: Config, left: Sequence[Unit], earlier: Earlier | None = None) -> list[Estimate]:
    """What is left of a run, stage by stage; evaluations only where one like them has been measured.

    Args:
        run: The run, or a generation of one.
        config: Its config.
        left: What is to do.
        earlier: Whose measurements may stand in; None: those of the runs beside this one.
    """
    earlier = Earlier(run, config) if earlier is None else earlier
    shards = sum(unit.stage == "simulate" for unit in left)
    found = [_simulation(run, config, shards, earlier)] if shards else []
    keys = {unit.key for unit in left}
    found += [_training(run, config, stage, earlier) for stage in config.train.stages if f"train/{stage.name}" in keys]
    for model in config.evaluated_models:
        found += _evaluation(run, config, model, earlier) if f"evaluate/{model}" in keys else ()
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
            "Rates come from the run itself once it has started, from cluster.throughput, from an earlier run in the "
            "same folder that is alike, or from the data sheet of the GPU that cluster.throughput.gpu names."
        )
    if any("data sheet" in one.source for one in estimates):
        lines.append(
            "From a data sheet: between shares of its peaks that are often reached, and between short replies and "
            "those of max_tokens (docs/slurm.md). Once some shards are at work, it is measured."
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _numbers(tokens: Range | None, hours: Range | None, gpu_hours: Range | None) -> tuple[str, str, str]:
    return _shown(tokens, _short), _shown(hours, _of_a_clock), _shown(gpu_hours, "{:,.1f}".format)


def _of_a_clock(hours: float) -> str:
    """Hours to about half a minute, and to seconds where there are few minutes."""
    return f"{hours:,.2f}" if hours >= 0.1 else f"{hours:.3f}"


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
