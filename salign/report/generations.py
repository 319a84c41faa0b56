"""The generations of a run beside each other: what its societies said, and what its models came to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from salign.config import Config
from salign.evaluation.compare import compare_generations, write_tables
from salign.evaluation.judged import AS_OBSERVERS
from salign.evaluation.statistics import Estimate
from salign.run import RunDir, generations
from salign.society.protocols import protocol_of
from salign.tracking.metrics import mean, read_metrics

NOTE = (
    "Observers, judges and questions are the same in all generations. Intervals are 95 % bootstrap intervals over "
    "questions, of one seed."
)


@dataclass(frozen=True)
class GenerationsTable:
    """Figures by generation, as far as they are there.

    Attributes:
        columns: `base`, the model that the first society speaks through, then the numbers of the generations.
        rows: Each figure's name with its values, one a column; None where there is none.
        curves: Mean ratings, on the scale from 1 to 7, by who rates and by what: of the first model, and of those
            that the generations trained, in their order; None where there is none.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str | None, ...]], ...]
    curves: dict[str, tuple[float | None, ...]]


def read_generations(run: RunDir, config: Config) -> GenerationsTable | None:
    """The figures of a run's generations, finished or not; None of a run of one.

    The ratings of a society are those of what it speaks through, which the generation before trained.
    """
    everything = generations(run, config)
    if len(everything) == 1:
        return None
    means = [_read(its.report / "summary.json").get("society") or {"means": {}} for its, _ in everything]
    series = dict.fromkeys((name, role) for one in means for name, roles in one["means"].items() for role in roles)
    rows = [
        (f"society: {name}, {role}s", (None, *(_number(one["means"].get(name, {}).get(role)) for one in means)))
        for name, role in series
    ]
    if config.stage(config.stage_of_generation).num_replayed:
        logs = (its.stage(own.stage_of_generation) / "metrics.jsonl" for its, own in everything)
        ages = (mean(row.get("train/replay/age") for row in read_metrics(log)) for log in logs)
        rows.append(("trained on: age of the groups, in generations", (None, *map(_number, ages))))
    trained = (its.evaluation(name) for its, own in everything for name in own.compared_models[-1:])
    results = [_read(folder / "results.json") for folder in (run.evaluation("base"), *trained)]
    figures = [one.get("figures", {}) for one in results]
    for figure in dict.fromkeys(name for one in figures for name in one):
        estimates = (one.get(figure) for one in figures)
        rows.append((f"model: {figure}", tuple(None if one is None else str(Estimate(**one)) for one in estimates)))
    judged = _by_judges(config, results)
    if len(config.judges) > 1:
        rows += [(name, tuple(map(_number, values))) for name, values in judged.items()]
    curves = {**_by_observers(config, means), **judged}
    return GenerationsTable(("base", *(str(its.number) for its, _ in everything)), tuple(rows), curves)


def _by_observers(config: Config, means: Sequence[dict[str, Any]]) -> dict[str, tuple[float | None, ...]]:
    """What observers say of the last turns that they rate; a society speaks through the model of the one before."""
    role = protocol_of(config.society).observed[-1]
    found = {}
    for criterion in config.society.observed_criteria:
        values = [one["means"].get(criterion.name, {}).get(role) for one in means]
        if any(value is not None for value in values):
            said = (None if value is None else criterion.on_common_scale(value) for value in values)
            found[f"society: {criterion.name}, {role}s"] = (*said, None)
    return found


def _by_judges(config: Config, results: Sequence[dict[str, Any]]) -> dict[str, tuple[float | None, ...]]:
    """What each judge says of the answers to the held-out questions, by the criteria of observers."""
    found = {}
    for criterion in AS_OBSERVERS if "questions" in config.evaluate.benchmarks else ():
        for judge in config.judges:
            values = tuple(_mean_of(one, judge.name, criterion) for one in results)
            found[f"judge {judge.name}: {criterion}"] = values
    return found


def _mean_of(results: dict[str, Any], judge: str, criterion: str) -> float | None:
    about = results.get("judging", {}).get("questions", {}).get(criterion, {})
    if "agreement" in about:
        return _as_number(about["agreement"]["means"].get(judge))
    return _as_number(results.get("figures", {}).get(criterion, {}).get("mean"))


def _as_number(value: Any) -> float | None:
    return None if value is None else float(value)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def print_generations(run: RunDir, config: Config, console: Console) -> None:
    """The generations of a complete run as a table; their models' differences are written beside the evaluations.

    Raises:
        StageError: A generation is not evaluated, or two were with different versions of anything.
    """
    found = read_generations(run, config)
    assert found is not None
    table = Table(title=f"Generations of {run.path.name}", title_justify="left", caption=NOTE)
    table.add_column("figure", overflow="fold")
    for column in found.columns:
        table.add_column(column, justify="right")
    for name, values in found.rows:
        table.add_row(name, *(value or "-" for value in values))
    console.print(table)
    if not config.compared_models:
        return
    write_tables(run, compare_generations(run, config), "generations")
    console.print(f"differences: {run.path / 'evaluate' / 'generations.md'}", highlight=False, soft_wrap=True)
