"""The closing table of a run: the results in figures, and where everything is."""

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from salign.config import KINDS, Config, SocietySection
from salign.documents import read_json
from salign.evaluation.compare import compare, write_tables
from salign.evaluation.statistics import Estimate
from salign.evaluation.trial import criterion_of, poor_judges, trials_in
from salign.files import read_rows
from salign.garbage import rare_collections
from salign.markers import check_files, read_done, require_done
from salign.records import Interaction, read_interactions
from salign.run import RunDir
from salign.seeds import rng
from salign.shown import neutral
from salign.society.observer import in_words
from salign.society.protocols import protocol_of
from salign.society.protocols.base import Protocol
from salign.storage import write_atomic
from salign.tracking.metrics import mean, read_metrics

_NUM_EXAMPLES = 3


@rare_collections()
def _society(interactions: Iterable[Interaction], protocol: Protocol[Any]) -> dict[str, Any]:
    counts = Counter(num_interactions=0, num_failed=0, num_calls=0, num_tokens=0)
    ratings: dict[tuple[str, str], array[float]] = {
        (criterion, role): array("d") for criterion in protocol.criteria for role in protocol.observed
    }
    for item in interactions:
        tokens = item.prompt_tokens + item.completion_tokens
        failed = item.failure is not None
        counts.update(num_interactions=1, num_failed=failed, num_calls=item.num_calls, num_tokens=tokens)
        for (criterion, role), given in ratings.items():
            there = (turn.observed_rating(criterion) for turn in item.turns_of(role))
            given.extend(rating for rating in there if rating is not None)
    means: dict[str, dict[str, float | None]] = {criterion: {} for criterion in protocol.criteria}
    for (criterion, role), given in ratings.items():
        means[criterion][role] = mean(given)
    return {**counts, "means": means}


def summarize(run: RunDir, config: Config) -> dict[str, Any]:
    """Computes the run's figures from its complete stages; writes `report/summary.json`, and the models' table.

    Returns:
        `society` and `dataset` (None where nothing was simulated), `training`, `evaluation`, `differences`, each
        figure's paired difference of the last evaluated model from the first, and `examples` of what both answer.
    """
    files: list[Iterable[Interaction]] = []
    card, observer = None, None
    if config.has_society:
        for shard in range(config.society.num_shards):
            complete = read_done(run.shard(shard))
            if complete is not None:  # some may be missing (cluster.min_shards)
                observer = observer or complete.facts.get("observer")
                check_files(run.shard(shard), complete, f"shard {shard}")
                files.append(read_interactions(run.shard(shard) / "interactions.jsonl"))
        require_done(run.dataset, "the dataset", f"Run `python jobs/collect.py {run.path}`, or launch again.")
        card = read_json(run.dataset / "card.json", str(run.dataset / "card.json"), dict[str, Any])
    training = {}
    for stage in config.train.stages:
        losses = [row["train/loss"] for row in read_metrics(run.stage(stage.name) / "metrics.jsonl")]
        quarter = max(1, len(losses) // 4)  # a single step's loss says more about its groups than about the model
        training[stage.name] = {
            "num_steps": len(losses),
            "loss_first_quarter": mean(losses[:quarter]),
            "loss_last_quarter": mean(losses[-quarter:]),
        }
    models = config.compared_models
    evaluation, trials = dict[str, Any](), dict[str, Any]()
    for model in models:
        done = read_done(run.evaluation(model))
        evaluation[model] = {} if done is None else done.facts
        trials |= {} if done is None else trials_in(run.evaluation(model))
    differences = {}
    if len(config.evaluated_models) > 1:
        compared = compare(run, config, models)
        write_tables(run, compared)
        for figure, row in compared.figures.items():
            for model, estimate in row.items():
                evaluation[model][figure] = estimate.to_json()
        # Pairs stand in the order of the models.
        differences = {task: pairs[len(models) - 2].estimate for task, pairs in compared.differences.items() if pairs}
    protocol, everything = protocol_of(config.society), itertools.chain.from_iterable(files)
    summary = {
        "society": None if card is None else {**_society(everything, protocol), "observer": observer},
        "dataset": None if card is None else {kind: card["kinds"][kind]["num_groups"] for kind in KINDS},
        "training": training,
        "evaluation": evaluation,
        "differences": {task: difference.to_json() for task, difference in differences.items()},
        "examples": examples(run, config),
        "poor_judges": poor_judges(config, observer, trials),
    }
    write_atomic(run.report / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def examples(run: RunDir, config: Config) -> list[dict[str, Any]]:
    """Questions, drawn by the run's seed and not by hand, with the answers of the first and the last model."""
    models = config.compared_models
    ends = dict.fromkeys((*models[:1], *models[-1:]))  # nobody, where nothing is evaluated
    if any(read_done(run.evaluation(model)) is None for model in ends):
        return []
    answered: dict[str, dict[str, str | None]] = {}
    for model in ends:
        for _, row in read_rows(run.evaluation(model) / "samples.jsonl"):
            if isinstance(row, dict) and row.get("benchmark") == "questions":
                answered.setdefault(row["prompt"], {})[model] = row["answer"]
    drawn = rng(config.run.seed, "examples").sample(sorted(answered), min(_NUM_EXAMPLES, len(answered)))
    return [{"question": question, "answers": answered[question]} for question in drawn]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def print_summary(run: RunDir, config: Config, summary: dict[str, Any], console: Console) -> None:
    """Prints the closing table."""
    table = Table(title=f"Run {config.run.name}", show_header=False, title_justify="left", pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    if summary["society"] is not None:
        _add_society(table, summary["society"], config.society)
        table.add_row("groups", ", ".join(f"{kind} {count}" for kind, count in summary["dataset"].items()))
    for stage, row in summary["training"].items():
        first, last = _number(row["loss_first_quarter"]), _number(row["loss_last_quarter"])
        table.add_row(f"loss of {stage}", f"{first} -> {last} (first and last quarter of {row['num_steps']} steps)")
    _add_figures(table, summary)
    if config.train.stages:
        table.add_row("model", str(run.model(config.train.last.name)))
    if summary["society"] is not None:
        table.add_row("data", str(run.dataset / "groups.jsonl"))
    table.add_row("logs", str(run.logs))
    if config.tracking.wandb:
        table.add_row("W&B runs", f"{run.wandb / 'wandb'}  (in the terminal: wandb leet DIR)")
    table.add_row("figures", str(run.report / "summary.json"))
    table.add_row("report", f"{run.report / 'index.html'}  (open it in a browser)")
    console.print(table)
    if summary["differences"]:
        console.print("Intervals are 95 % bootstrap intervals; differences are paired by question.")
    shown = itertools.chain.from_iterable(summary["evaluation"].values())
    why = {summary["poor_judges"].get(criterion_of(task)): None for task in shown}
    for reason in filter(None, why):
        console.print(f"Grey: rated by a judge that is not shown to be one: {reason}.", highlight=False, markup=False)
    if summary["examples"]:
        _print_examples(summary["examples"], console)


def _add_figures(table: Table, summary: dict[str, Any]) -> None:
    models = list(summary["evaluation"])
    named = [
        (f"{model}: {task}", task, row) for model, tasks in summary["evaluation"].items() for task, row in tasks.items()
    ]
    named += [(f"{models[-1]} - {models[0]}: {task}", task, row) for task, row in summary["differences"].items()]
    table.add_section()
    for name, task, row in named:
        if row is not None:
            is_poor = criterion_of(task) in summary["poor_judges"]
            table.add_row(name, str(Estimate(**row)), style="dim" if is_poor else None)
    table.add_section()


def _print_examples(examples: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="Held-out questions, drawn by the run's seed", title_justify="left", pad_edge=False)
    models = list(examples[0]["answers"])
    for name in ("question", *models):
        table.add_column(name, overflow="fold", ratio=1 if name == "question" else 2)
    for row in examples:
        said = (row["answers"].get(model) or "-" for model in models)
        table.add_row(*(Text(neutral(text)) for text in (row["question"], *said)), end_section=True)
    console.print(table)


def _add_society(table: Table, society: dict[str, Any], section: SocietySection) -> None:
    failed = f", {society['num_failed']} failed" if society["num_failed"] else ""
    calls = f"{society['num_calls']} model calls, {society['num_tokens']} tokens"
    table.add_row("interactions", f"{society['num_interactions']}{failed} ({calls})")
    for criterion, by_role in society["means"].items():
        means = ", ".join(f"{role}s {_number(value)}" for role, value in by_role.items())
        low, high = section.criterion(criterion).scale
        table.add_row(f"mean {criterion}, {low}-{high}", means)
    if society["observer"] is not None:
        table.add_row("observer", in_words(society["observer"]))
        for criterion, found in society["observer"].get("criteria", {}).items():
            table.add_row(criterion, in_words(found))
