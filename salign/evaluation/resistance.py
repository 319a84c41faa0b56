"""What attacks change in a model: each figure under attack, and its difference from the same items without one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from salign.config import Config
from salign.errors import DataError
from salign.evaluation.evaluate import evaluate
from salign.evaluation.figures import values_of
from salign.evaluation.jailbreaks import FAMILIES, refused_of
from salign.evaluation.statistics import Estimate, nested_mean
from salign.evaluation.under_attack import is_attack, plain
from salign.evaluation.versions import code_digest
from salign.files import read_rows
from salign.markers import DONE, read_done
from salign.run import RunDir
from salign.seeds import derive
from salign.shown import neutral
from salign.storage import write_atomic

METRICS = {"likelier": "considerate likelier", "margin": "margin, nats a token", "unsafe_nll": "NLL of the other"}
"""With what each is called in the table."""


@dataclass(frozen=True)
class Attacked:
    """A figure of a model under an attack; `change` is paired by item, None where there is no attack."""

    model: str
    benchmark: str
    metric: str
    value: Estimate
    change: Estimate | None


def folder_of(run: RunDir, name: str) -> Path:
    """Where the results of a model are."""
    return run.path / "attack" / name


def measure(run: RunDir, config: Config, models: Sequence[str], benchmarks: Sequence[str], num: int) -> Iterator[str]:
    """Evaluates models of a run under attack, each unless that is done, in the run's folder `attack`.

    Args:
        run: With its trained models.
        config: Its config.
        models: `base`, or stages, each with its copies for other seeds.
        benchmarks: Of `under_attack.names`.
        num: How many of the pairs.

    Yields:
        The name of each model before it is evaluated.

    Raises:
        ConfigError: No such model.
        StageError: One is not trained yet, or a pair is in the training data.
    """
    section = config.evaluate.model_copy(update={"benchmarks": tuple(benchmarks), "num_documents": num})
    asked = config.model_copy(update={"evaluate": section})
    of = json.dumps({"benchmarks": list(benchmarks), "num": num, "code": code_digest()}) + "\n"
    for name in (copy for model in models for copy in copies_of(config, model)):
        folder, note = folder_of(run, name), folder_of(run, name) / "of.json"
        if read_done(folder) is not None and note.is_file() and note.read_text(encoding="utf-8") == of:
            continue
        yield name
        (folder / DONE).unlink(missing_ok=True)
        evaluate(run, asked, name, folder=folder)
        write_atomic(note, of)


def copies_of(config: Config, model: str) -> tuple[str, ...]:
    """A model and its copies for other seeds.

    Raises:
        ConfigError: No such model.
    """
    return ("base",) if model == "base" else config.train.copies(config.stage(model).name)


def changes(folders: Mapping[str, Sequence[Path]], config: Config) -> list[Attacked]:
    """Figures of models under attack, from the folders of their evaluations, one for each seed.

    Intervals are over items, and over seeds where there are several. A change is of the same model and seed, item by
    item: from the question as it is, or for many-shot from the same form without examples.

    Raises:
        DataError: An evaluation has no benchmark with an attack.
    """
    found = []
    for model, of_model in folders.items():
        values = [values_of(row for _, row in read_rows(folder / "samples.jsonl")) for folder in of_model]
        benchmarks = [name for name in dict.fromkeys(figure.split("/")[0] for figure in values[0]) if is_attack(name)]
        if not benchmarks:
            raise DataError(f"{of_model[0]}: no benchmark attack_... was measured; name some in evaluate.benchmarks")
        for benchmark in benchmarks:
            for metric in METRICS:
                here = [list(one[f"{benchmark}/{metric}"].values()) for one in values]
                place = (config.evaluation_seed, "attack", benchmark, metric)
                num = config.evaluate.num_resamples
                value = nested_mean(here, num_resamples=num, seed=derive(*place))
                change = None
                if plain(benchmark) != benchmark and f"{plain(benchmark)}/{metric}" in values[0]:
                    before = [list(one[f"{plain(benchmark)}/{metric}"].values()) for one in values]
                    moved = [
                        [_moved(*item) for item in zip(*both, strict=True)] for both in zip(before, here, strict=True)
                    ]
                    change = nested_mean(moved, num_resamples=num, seed=derive(*place, "change"))
                found.append(Attacked(model, benchmark, metric, value, change))
    return found


def refusals(run: RunDir, config: Config, models: Sequence[str]) -> list[Attacked]:
    """How often models refuse HH's questions in the ways of each family, as far as the run's evaluations have `hh_a`.

    A change is of the same model and seed, question by question, from the question as it is, where they have `hh` too.
    Intervals are as of `changes`.

    Args:
        run: With its evaluations.
        config: Its config.
        models: `base`, or stages; one that is not evaluated for all of its seeds is left out.
    """
    found = []
    for model in models:
        folders = [run.evaluation(copy) for copy in copies_of(config, model)]
        if any(read_done(folder) is None for folder in folders):
            continue
        values = [values_of(row for _, row in read_rows(folder / "samples.jsonl")) for folder in folders]
        for metric in map(refused_of, FAMILIES):
            if (figure := f"hh_a/{metric}") not in values[0]:
                continue
            here, plain_ = [one[figure] for one in values], [one.get("hh/refused") for one in values]
            place, num = (config.evaluation_seed, "attack", figure), config.evaluate.num_resamples
            value = nested_mean([list(one.values()) for one in here], num_resamples=num, seed=derive(*place))
            change = None
            if None not in plain_:
                moved = [
                    [_moved(before.get(item), now) for item, now in one.items()]
                    for one, before in zip(here, filter(None, plain_), strict=True)
                ]
                change = nested_mean(moved, num_resamples=num, seed=derive(*place, "change"))
            found.append(Attacked(model, "hh_a", metric, value, change))
    return found


def _moved(before: float | None, here: float | None) -> float | None:
    return None if before is None or here is None else here - before


def markdown(found: Sequence[Attacked], refused: Sequence[Attacked] = ()) -> str:
    """Writes a row for each model and attack: its figures, and by how much the attack changes them; then refusals."""
    heads = [head for name in METRICS.values() for head in (name, "change")]
    lines = [f"| model | attack | n | {' | '.join(heads)} |", f"|---|---|---|{'---|' * len(heads)}"]
    rows: dict[tuple[str, str], list[Attacked]] = {}
    for one in found:
        rows.setdefault((one.model, one.benchmark), []).append(one)
    for (model, benchmark), figures in rows.items():
        cells = [_cell(estimate) for one in figures for estimate in (one.value, one.change)]
        name, attack = neutral(model, "markdown"), benchmark.removeprefix("attack_")
        lines.append(f"| {name} | {attack} | {figures[0].value.n} | {' | '.join(cells)} |")
    if refused:
        lines += ["", "| model | attack of hh_a | n | refused | change |", "|---|---|---|---|---|"]
        for one in refused:
            name, attack = neutral(one.model, "markdown"), one.metric.removeprefix(refused_of(""))
            lines.append(f"| {name} | {attack} | {one.value.n} | {_cell(one.value)} | {_cell(one.change)} |")
    return "\n".join([*lines, ""])


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or estimate.mean is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def write_changes(run: RunDir, found: Sequence[Attacked], refused: Sequence[Attacked]) -> str:
    """Writes `attack/changes.md` and `.json` in the run's folder.

    Returns:
        The Markdown.
    """
    rows = [
        {
            **{"model": one.model, "benchmark": one.benchmark, "metric": one.metric, **one.value.to_json()},
            "change": None if one.change is None else one.change.to_json(),
        }
        for one in (*found, *refused)
    ]
    text = markdown(found, refused)
    write_atomic(run.path / "attack" / "changes.md", text)
    write_atomic(run.path / "attack" / "changes.json", json.dumps(rows, indent=2) + "\n")
    return text
