"""Compares the models of a run: paired differences, and a table for a paper."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from salign.config import Config
from salign.documents import read_json
from salign.errors import StageError
from salign.evaluation.figures import lower_is_better, neither_is_better, values_of
from salign.evaluation.statistics import (
    Estimate,
    holm,
    means_over_seeds,
    nested_difference,
    nested_mean,
    paired_difference,
    permutation_p,
)
from salign.evaluation.trial import criterion_of, trial_in_words, why_poor
from salign.files import read_rows
from salign.markers import require_done
from salign.run import RunDir, generations
from salign.seeds import derive
from salign.shown import neutral
from salign.storage import write_atomic

# Below this a difference holds, if its interval leaves 0 out as well.
_LEVEL = 0.05

Values = dict[str, dict[int, float | None]]


@dataclass(frozen=True)
class Difference:
    """The difference second - first of one figure, paired item by item.

    `p` is the p-value of no difference, corrected by Holm for the other pairs of models compared by this figure.
    """

    first: str
    second: str
    estimate: Estimate
    p: float | None

    @property
    def holds(self) -> bool:
        """Whether the interval excludes 0 and the permutation test agrees."""
        low, high = self.estimate.low, self.estimate.high
        return self.p is not None and self.p < _LEVEL and low is not None and high is not None and not low <= 0 <= high

    @property
    def higher_one(self) -> str:
        return self.second if (self.estimate.mean or 0.0) > 0 else self.first

    @property
    def lower_one(self) -> str:
        return self.first if (self.estimate.mean or 0.0) > 0 else self.second

    def __str__(self) -> str:
        return f"{self.estimate}, p = {'-' if self.p is None else format(self.p, '.4f')}"


@dataclass(frozen=True)
class Comparison:
    """Figures of several models, and the differences of all pairs, each earlier model taken first."""

    models: tuple[str, ...]
    figures: dict[str, dict[str, Estimate]]
    differences: dict[str, list[Difference]]
    versions: dict[str, Any]
    facts: dict[str, Any]

    def is_rated_poorly(self, figure: str) -> bool:
        """Whether a figure's ratings are by a judge that its trial does not show to be one."""
        criterion = criterion_of(figure)
        trials = (trial for of_model in self.facts["judges"].values() for trial in of_model.values())
        return any(criterion in trial and why_poor(trial[criterion]) is not None for trial in trials)

    def best(self, figure: str) -> str | None:
        """Returns the model that is better than every other, if all those differences hold; else None."""
        if neither_is_better(figure) or self.is_rated_poorly(figure):
            return None
        lower = lower_is_better(figure)
        won = Counter(row.lower_one if lower else row.higher_one for row in self.differences[figure] if row.holds)
        return next((model for model in self.models if won[model] == len(self.models) - 1), None)


def _table(seeds: Sequence[Values], figure: str) -> list[list[float | None]]:
    return [list(values[figure].values()) for values in seeds]


def _estimate(seeds: Sequence[Values], figure: str, config: Config) -> Estimate:
    """A figure of a model, over its seeds."""
    place = (config.evaluation_seed, "bootstrap", figure)
    return nested_mean(_table(seeds, figure), num_resamples=config.evaluate.num_resamples, seed=derive(*place))


def _difference(
    values: Mapping[str, Sequence[Values]], figure: str, pair: tuple[str, str], config: Config
) -> Difference:
    sides = [_table(values[model], figure) for model in pair]
    num = config.evaluate.num_resamples
    place = (config.evaluation_seed, "bootstrap", "difference", figure)
    if all(len(side) == 1 for side in sides):
        estimate = paired_difference(sides[0][0], sides[1][0], num_resamples=num, seed=derive(*place))
    else:
        estimate = nested_difference(*sides, num_resamples=num, seed=derive(*place))
    means = map(means_over_seeds, sides)
    return Difference(*pair, estimate, permutation_p(*means, num_resamples=num, seed=derive(*place, "p")))


def _differences(
    values: Mapping[str, Sequence[Values]], figure: str, pairs: Sequence[tuple[str, str]], config: Config
) -> list[Difference]:
    """Those of all pairs, their p-values corrected for how many pairs there are."""
    found = [_difference(values, figure, pair, config) for pair in pairs]
    return [replace(one, p=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def compare(run: RunDir, config: Config, models: Sequence[str]) -> Comparison:
    """Compares complete evaluations of the run; a stage's are those of its copies for all seeds.

    Raises:
        StageError: One is not complete, or they were made with different versions of anything.
        ConfigError: No such model.
    """
    seeds = {model: ("base",) if model == "base" else config.train.copies(config.stage(model).name) for model in models}
    for name in itertools.chain.from_iterable(seeds.values()):
        remedy = f"Run `python jobs/evaluate.py {run.path} --model {name}`, or launch again."
        require_done(run.evaluation(name), f"the evaluation of {name}", remedy)
    folders = {model: [run.evaluation(name) for name in names] for model, names in seeds.items()}
    return _compare(models, folders, config)


def compare_folders(folders: Mapping[str, Sequence[Path]], config: Config) -> Comparison:
    """Compares evaluations of any runs, by what they are to be called; several of one name are its seeds.

    Raises:
        StageError: One is not complete, or they were made with different versions of anything.
    """
    for name, seeds in folders.items():
        for folder in seeds:
            require_done(folder, f"the evaluation of {name} in {folder}", "Launch its run again.")
    return _compare(list(folders), folders, config)


def compare_generations(run: RunDir, config: Config) -> Comparison:
    """The run's first model, and each generation's last, beside each other: `base`, `1`, `2` ...

    Raises:
        StageError: One is not evaluated, or they were made with different versions of anything.
    """
    folders = {str(its.number): its.evaluation(own.compared_models[-1]) for its, own in generations(run, config)}
    if "base" in config.evaluated_models:
        folders = {"base": run.evaluation("base"), **folders}
    for name, folder in folders.items():
        require_done(folder, f"the evaluation of generation {name}", f"Launch {run.config_file} again.")
    return _compare(list(folders), {name: [folder] for name, folder in folders.items()}, config)


def _compare(models: Sequence[str], folders: Mapping[str, Sequence[Path]], config: Config) -> Comparison:
    """Evaluations of models, in the folders of their seeds."""
    each = {folder: _results_in(folder) for of_model in folders.values() for folder in of_model}
    _check_versions(each)
    results = {model: each[of_model[0]] for model, of_model in folders.items()}
    values = {
        model: [values_of(row for _, row in read_rows(folder / "samples.jsonl")) for folder in of_model]
        for model, of_model in folders.items()
    }
    figures = {
        figure: {
            model: Estimate(**results[model]["figures"][figure])
            if len(values[model]) == 1
            else _estimate(values[model], figure, config)
            for model in models
        }
        for figure in values[models[0]][0]
    }
    pairs = list(itertools.combinations(models, 2))
    differences = {figure: _differences(values, figure, pairs, config) for figure in figures}
    tasks = list(results[models[0]]["calibration"])
    facts = {
        "code": {model: results[model]["code"] for model in models},
        "leak_check": {model: results[model]["leak_check"] for model in models},
        "calibration": {
            model: {task: mean([each[folder]["calibration"][task] for folder in folders[model]]) for task in tasks}
            for model in models
        },
        "judging": {model: results[model]["judging"] for model in models},
        "judges": {model: results[model].get("judges", {}) for model in models},
        "skipped": results[models[0]]["skipped"],
    }
    return Comparison(tuple(models), figures, differences, results[models[0]]["versions"], facts)


def _results_in(folder: Path) -> dict[str, Any]:
    return read_json(folder / "results.json", str(folder / "results.json"), dict[str, Any])


def _check_versions(results: Mapping[Path, Mapping[str, Any]]) -> None:
    first, *others = results
    for other in others:
        left, right = results[first]["versions"], results[other]["versions"]
        differing = [name for name in {**left, **right} if left.get(name) != right.get(name)]
        if differing:
            said = "; ".join(f"{name}: {left.get(name)} and {right.get(name)}" for name in differing)
            raise StageError(
                f"the evaluations of {first.name} and {other.name} cannot be compared: they differ in {said}. "
                f"Remove {first} or {other}, whichever is older, and evaluate again."
            )


# --- tables --------------------------------------------------------------------------------------

_NOTE = (
    "Means with 95 % bootstrap intervals, over items, and over seeds where a model was trained with several. Bold: "
    "better than each of the other models, where the interval of the paired difference leaves 0 out and a permutation "
    "test over items gives p < 0.05, corrected by Holm for the pairs of models (not for the number of figures). "
    "Visible: the smallest difference that such a sample finds in 80 % of cases. Lower is better where a figure ends "
    "in an arrow down."
)


def _name(figure: str) -> str:
    return f"{figure} ↓" if lower_is_better(figure) else figure


def _cell(estimate: Estimate) -> str:
    if estimate.mean is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def markdown(found: Comparison) -> str:
    """Writes two tables: figures, and their differences from the first model."""
    models = " | ".join(neutral(model, "markdown") for model in found.models)
    lines = [f"| figure | n | {models} |", f"|---|---|{'---|' * len(found.models)}"]
    for figure, row in found.figures.items():
        best = found.best(figure)
        cells = [f"**{_cell(row[model])}**" if model == best else _cell(row[model]) for model in found.models]
        lines.append(f"| {neutral(_name(figure), 'markdown')} | {row[found.models[0]].n} | {' | '.join(cells)} |")
    lines += ["", _NOTE, "", "| difference | n | mean | p | visible |", "|---|---|---|---|---|"]
    for figure, differences in found.differences.items():
        for difference in differences:
            p = "-" if difference.p is None else f"{difference.p:.4f}"
            what = neutral(f"{_name(figure)}: {difference.second} - {difference.first}", "markdown")
            mark = "**" if difference.holds and not found.is_rated_poorly(figure) else ""
            smallest = difference.estimate.visible
            visible = "-" if smallest is None else f"{smallest:.3f}"
            lines.append(
                f"| {what} | {difference.estimate.n} | {mark}{_cell(difference.estimate)}{mark} | {p} | {visible} |"
            )
    errors = found.facts["calibration"]
    for task in errors[found.models[0]]:
        said = ", ".join(f"{model} {errors[model][task]:.3f}" for model in found.models)
        lines += ["", neutral(f"Expected calibration error of {task}: {said}.", "markdown")]
    for judge, trial in found.facts["judges"][found.models[-1]].items():
        for criterion, one in trial.items():
            poor = "" if why_poor(one) is None else " It is not shown to be a judge, and nothing that it rated is bold."
            lines += ["", neutral(f"Judge {judge}, {criterion}: {trial_in_words(one)}.{poor}", "markdown")]
    leaks = found.facts["leak_check"][found.models[0]]
    versions = ", ".join(f"{name} {value}" for name, value in found.versions.items() if value is not None)
    skipped = neutral(", ".join(found.facts["skipped"]), "markdown")
    compared = f"{leaks['num_evaluation_prompts']} evaluation prompts compared with the training data: none in it word"
    lines += ["", f"{compared} for word, {leaks['num_near']} nearly."]
    lines += [f"Left out for want of data: {skipped}."] if skipped else []
    return "\n".join([*lines, f"Versions: {neutral(versions, 'markdown')}.", ""])


def latex(found: Comparison) -> str:
    """Writes the table of figures for LaTeX with booktabs."""
    lines = [
        rf"\begin{{tabular}}{{lr{'l' * len(found.models)}}}",
        r"\toprule",
        " & ".join(["figure", "$n$", *(neutral(model, "latex") for model in found.models)]) + r" \\",
        r"\midrule",
    ]
    for figure, row in found.figures.items():
        best = found.best(figure)
        cells = [rf"\textbf{{{_cell(row[model])}}}" if model == best else _cell(row[model]) for model in found.models]
        lines.append(" & ".join([neutral(_name(figure), "latex"), str(row[found.models[0]].n), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {_NOTE}", ""])


def to_json(found: Comparison) -> str:
    rows = {
        "models": found.models,
        "figures": {name: {model: row[model].to_json() for model in row} for name, row in found.figures.items()},
        "best": {figure: found.best(figure) for figure in found.figures},
        "differences": {
            figure: [
                {
                    "first": d.first,
                    "second": d.second,
                    **d.estimate.to_json(),
                    "p": d.p,
                    "holds": d.holds,
                    "visible": d.estimate.visible,
                }
                for d in differences
            ]
            for figure, differences in found.differences.items()
        },
        "versions": found.versions,
        **found.facts,
    }
    return json.dumps(rows, indent=2) + "\n"


def write_tables(run: RunDir, found: Comparison, name: str = "comparison") -> str:
    """Writes `evaluate/comparison.md`, `.tex` and `.json`, or files of another name.

    Returns:
        The Markdown.
    """
    folder, text = run.path / "evaluate", markdown(found)
    write_atomic(folder / f"{name}.md", text)
    write_atomic(folder / f"{name}.tex", latex(found))
    write_atomic(folder / f"{name}.json", to_json(found))
    return text
