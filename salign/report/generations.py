"""The generations of a run beside each other: what its societies said, and what its models came to."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from salign.config import Config
from salign.evaluation.compare import Comparison, compare_generations, write_tables
from salign.run import RunDir, generations
from salign.storage import write_atomic


def write_generations(run: RunDir, config: Config) -> tuple[list[dict[str, Any]], Comparison]:
    """Compares all generations of a complete run.

    It writes `report/generations.json`, and the models' table as `evaluate/generations.md`, `.tex` and `.json`.

    Returns:
        The summary of each generation, and the comparison of their models.

    Raises:
        StageError: A generation is not evaluated.
    """
    summaries = [
        json.loads((its.report / "summary.json").read_text(encoding="utf-8")) for its, _ in generations(run, config)
    ]
    found = compare_generations(run, config)
    write_tables(run, found, "generations")
    rows = [{"generation": number, **summary} for number, summary in enumerate(summaries, 1)]
    write_atomic(run.report / "generations.json", json.dumps(rows, indent=2) + "\n")
    return summaries, found


def print_generations(run: RunDir, config: Config, console: Console) -> None:
    """The generations as two tables: means of the societies' ratings, and the models' figures."""
    summaries, found = write_generations(run, config)
    society = Table(title=f"Societies of {run.path.name}, mean ratings", title_justify="left")
    society.add_column("generation")
    series = [(name, role) for name, by_role in summaries[0]["society"]["means"].items() for role in by_role]
    for name, role in series:
        society.add_column(f"{name} of {role}", justify="right")
    for number, summary in enumerate(summaries, 1):
        means = [summary["society"]["means"][name][role] for name, role in series]
        society.add_row(str(number), *("-" if value is None else f"{value:.3f}" for value in means))
    console.print(society)
    models = Table(title="Models", title_justify="left", caption="95 % bootstrap intervals over items, not seeds")
    models.add_column("figure", overflow="fold")
    for model in found.models:
        models.add_column(model if model == "base" else f"generation {model}", justify="right")
    for figure, row in found.figures.items():
        models.add_row(figure, *(str(row[model]) for model in found.models))
    console.print(models)
    console.print(f"differences: {run.path / 'evaluate' / 'generations.md'}", highlight=False, soft_wrap=True)
