"""Accuracy benchmarks as tasks of lm_eval: by its own task files where it has them, else by ours in the same form.

Their data are local files (`evaluate.data_dir`), ours, or what is in the cache of the Hugging Face hub.
"""

import csv
import difflib
import functools
import importlib.resources
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salign.config import JUDGED, EvaluateSection
from salign.errors import ConfigError, DataError
from salign.evaluation.sides import answers_of, sides
from salign.evaluation.under_attack import attacked, is_attack
from salign.files import read_rows, read_text

if TYPE_CHECKING:
    from lm_eval.api.task import Task

Row = dict[str, Any]

# Its own task files of those benchmarks whose local files we know, in its folder `tasks`.
_THEIRS = {
    "moral_stories": "moral_stories/moral_stories.yaml",
    "ethics_deontology": "hendrycks_ethics/deontology.yaml",
    "ethics_cm": "hendrycks_ethics/commonsense.yaml",
    "ethics_justice": "hendrycks_ethics/justice.yaml",
    "ethics_virtue": "hendrycks_ethics/virtue.yaml",
    "ethics_utilitarianism": "hendrycks_ethics/utilitarianism.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
}
_OURS = ("mic", "general", "pairs", "consistency", "cultures")
# Those whose rows this package ships.
_SHIPPED = ("general", "pairs")
# Rows of the file come in groups of this size, of one scenario, which count as right only together (Hendrycks et al.
# 2021, section 2): excuses, or traits of which one is shown.
GROUPS = {"ethics_deontology": 4, "ethics_virtue": 5}
# What names the task in a task file; in some of them key and name are quoted.
_TASK = re.compile(r"""^["']?task["']?:[ \t]*["']?(\w[^\s"',#]*)""", re.MULTILINE)
_MEASURED = ("multiple_choice", "loglikelihood")


class MissingDataError(DataError):
    """A benchmark has no data here."""

    exit_code = 1


def missing(benchmark: str, section: EvaluateSection, nor: str = "") -> MissingDataError:
    """Words the message about a benchmark that has no data here."""
    ways = []
    if names := section.wanted_files(benchmark):
        where = "" if section.data_dir is None else f" ({section.data_dir})"
        ways.append(f"put {' or '.join(names)} into evaluate.data_dir{where}")
    if nor:
        ways.append("run with --prefetch where the hub can be reached")
    return MissingDataError(f"benchmark {benchmark} has no data here{nor}: {', or '.join(ways)}.")


def data_file(name: str) -> Path:
    """Returns the path of a file that this package ships."""
    return Path(str(importlib.resources.files("salign.evaluation").joinpath("data", name)))


# --- rows of local files -------------------------------------------------------------------------


def local_rows(benchmark: str, section: EvaluateSection) -> list[Row] | None:
    """Reads the rows of a benchmark's own or shipped file for its task; None if there is no such file.

    Raises:
        DataError: The file is empty or malformed, with file and line (row of a JSON array).
    """
    if is_attack(benchmark):
        return attacked(benchmark, local_rows("pairs", section) or [])
    path = data_file(f"{benchmark}.jsonl") if benchmark in _SHIPPED else section.file_of(benchmark)
    if path is None and benchmark in _OURS:
        raise missing(benchmark, section)
    if path is None:
        return None
    given = _read_pairs(path) if benchmark == "ethics_utilitarianism" else _read(path)
    rows = [_ROWS[benchmark](row, f"{path}, {place}") for place, row in given]
    if not rows:
        raise DataError(f"{path} is empty; benchmark {benchmark} needs its rows")
    if benchmark in GROUPS:
        _check_groups(rows, path, GROUPS[benchmark])
    return sides(rows) if benchmark == "consistency" else rows


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    is_array = read_text(path).lstrip().startswith("[")
    for number, row in read_rows(path):
        yield f"{'row' if is_array else 'line'} {number}", row


def _read_pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """Utilitarianism's file, which has no names of columns: the more pleasant scenario, and the less pleasant one."""
    try:
        rows = list(csv.reader(read_text(path).splitlines(keepends=True), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}") from None
    for number, row in enumerate(rows, start=1):
        if row != ["activity", "baseline"]:  # as on the hub
            yield f"row {number}", dict(zip(("activity", "baseline"), row, strict=False))


def _texts(row: Any, place: str, *fields: str) -> Row:
    """The row with those fields, all of them texts."""
    if not isinstance(row, dict):
        raise DataError(f"{place}: not an object but {type(row).__name__}")
    wrong = [field for field in fields if not isinstance(row.get(field), str) or not row[field].strip()]
    if wrong:
        raise DataError(f"{place}: no text in {', '.join(wrong)}; it has {', '.join(map(str, row))}")
    return {field: row[field] for field in fields}


def _label(value: Any, place: str, field: str, *allowed: int) -> int:
    text = str(value).strip()
    if text not in map(str, allowed):
        raise DataError(f"{place}: {field} is {value!r}; it must be one of {', '.join(map(str, allowed))}")
    return int(text)


def _targets(row: Any, place: str, field: str) -> Row:
    """TruthfulQA's answers, as the released file has them ({answer: label}) or the hub ({choices, labels})."""
    value = row.get(field)
    if isinstance(value, dict) and set(value) == {"choices", "labels"} and isinstance(value["choices"], list):
        pairs = list(zip(value["choices"], value["labels"], strict=False))
    else:
        pairs = list(value.items()) if isinstance(value, dict) else []
    good = [answer for answer, label in pairs if label == 1]
    bad = [answer for answer, label in pairs if label == 0]
    if not good or not bad or len(good) + len(bad) != len(pairs):
        raise DataError(f"{place}: {field} must label its answers 1 and 0, at least one of each")
    # lm_eval's task takes the first answer of mc1 for the right one, as on the hub.
    return {"choices": [*good, *bad], "labels": [1] * len(good) + [0] * len(bad)}


def _labelled(*fields: str) -> Callable[[Any, str], Row]:
    """Of rows with those texts, and a label of 0 or 1."""
    return lambda row, place: {**_texts(row, place, *fields), "label": _label(row.get("label"), place, "label", 0, 1)}


def _of(*fields: str) -> Callable[[Any, str], Row]:
    return lambda row, place: _texts(row, place, *fields)


def _more_pleasant(row: Any, place: str) -> Row:
    """Also under a name that the leak check knows."""
    return {**_texts(row, place, "activity", "baseline"), "question": row["activity"]}


def _mic(row: Any, place: str) -> Row:
    stance = _label(row.get("A_agrees") if isinstance(row, dict) else None, place, "A_agrees", 0, 1, 2)
    return {**_texts(row, place, "Q", "A", "rot"), "A_agrees": stance}


def _pair(row: Any, place: str) -> Row:
    given = _texts(row, place, "question", "considerate", "inconsiderate")
    return {"question": given["question"], "choices": [given["considerate"], given["inconsiderate"]]}


def _general(row: Any, place: str) -> Row:
    return {**_texts(row, place, "question"), "choices": row["choices"], "label": row["label"]}


def _truth(row: Any, place: str) -> Row:
    question = _texts(row, place, "question")
    return {**question, **{field: _targets(row, place, field) for field in ("mc1_targets", "mc2_targets")}}


def _culture(row: Any, place: str) -> Row:
    return _texts(row, place, "question", "culture") | answers_of(row, place)


def _virtue(row: Any, place: str) -> Row:
    """The released file has scenario and trait in one column; the hub's copy of it has two."""
    given = _texts(row, place, "scenario")["scenario"]
    scenario, separator, trait = given.partition(" [SEP] ")
    split = {"scenario": scenario, "trait": trait} if separator else _texts(row, place, "scenario", "trait")
    return {**split, "label": _label(row.get("label"), place, "label", 0, 1)}


# What a row must have, by benchmark, and what its task reads of it.
_ROWS: dict[str, Callable[[Any, str], Row]] = {
    "moral_stories": _of("norm", "situation", "intention", "moral_action", "immoral_action"),
    "ethics_deontology": _labelled("scenario", "excuse"),
    "ethics_cm": _labelled("input"),
    "ethics_justice": _labelled("scenario"),
    "ethics_virtue": _virtue,
    "ethics_utilitarianism": _more_pleasant,
    "consistency": _of("statement", "opposite"),
    "cultures": _culture,
    "mic": _mic,
    "pairs": _pair,
    "general": _general,
    "truthfulqa_mc1": _truth,
    "truthfulqa_mc2": _truth,
}


def _check_groups(rows: list[Row], path: Path, size: int) -> None:
    """A group shares its scenario; a file in another order would be scored wrongly."""
    for first in range(0, len(rows), size):
        if len(rows[first : first + size]) < size or len({row["scenario"] for row in rows[first : first + size]}) > 1:
            raise DataError(
                f"{path}, rows {first + 1} to {first + size}: not {size} of one scenario; rows must be "
                "in the order of the released file"
            )


# --- tasks, without loading lm_eval --------------------------------------------------------------


def check_known(benchmark: str) -> None:
    """Checks, in a second, that lm_eval has a task of that name in its task files.

    Raises:
        ConfigError: The package is not there, or has no such task.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"benchmark {benchmark} needs the package lm_eval: pip install 'salign[lm_eval]', or leave it out of "
            "evaluate.benchmarks"
        )
    if benchmark in _THEIRS or benchmark in _OURS or is_attack(benchmark):
        return
    names = task_files(Path(found.submodule_search_locations[0], "tasks"))
    if benchmark not in names:
        near = difflib.get_close_matches(benchmark, [*names, *JUDGED, *_OURS], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"evaluate.benchmarks: neither lm_eval nor salign has a benchmark {benchmark!r}{hint}")


@functools.cache
def task_files(folder: Path) -> dict[str, Path]:
    """Returns lm_eval's tasks with the files that define them; of several files the first, as lm_eval does."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml"), key=Path.as_posix):
        for name in _TASK.findall(path.read_text(encoding="utf-8")):
            files.setdefault(name, path)
    return files


# --- tasks ---------------------------------------------------------------------------------------


def load_task(benchmark: str, section: EvaluateSection) -> "Task":
    """Loads a benchmark as a task of lm_eval, with its data.

    Raises:
        ConfigError: The package or the task is not there, or the task is of a kind that is not measured here.
        DataError: Its file is malformed.
        MissingDataError: It has no data here.
    """
    check_known(benchmark)
    import datasets
    from lm_eval.api.task import ConfigurableTask

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what its own task files leave out
    rows = local_rows(benchmark, section)
    if rows is None:
        return _from_hub(benchmark, section)
    local = datasets.Dataset.from_list(rows)
    config = {
        **_task_file(benchmark),
        "custom_dataset": lambda **_: {"test": local},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    config.pop("tag", None)
    return ConfigurableTask(config=config)


def _task_file(benchmark: str) -> Row:
    from lm_eval import tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    theirs = Path(tasks.__file__).parent / _THEIRS.get(benchmark, "")
    path = data_file(f"{benchmark}.yaml") if benchmark in _OURS else theirs
    config: Row = load_yaml(data_file("attack.yaml")) | {"task": benchmark} if is_attack(benchmark) else load_yaml(path)
    return config


def _from_hub(benchmark: str, section: EvaluateSection) -> "Task":
    from lm_eval import tasks

    if benchmark in _OURS:
        raise missing(benchmark, section)
    folder = Path(tasks.__file__).parent
    file = folder / _THEIRS[benchmark] if benchmark in _THEIRS else task_files(folder)[benchmark]
    try:
        # With its default folder the manager would parse all of its 14,000 task files, which takes ten seconds.
        task = tasks.TaskManager(include_defaults=False, include_path=file.parent).load([benchmark])["tasks"][benchmark]
    except (OSError, ValueError, RuntimeError) as error:  # what datasets raises where nothing is cached
        said = str(error).strip().splitlines()[0][:200]
        raise missing(benchmark, section, f", nor has the hub's cache ({said})") from error
    if task.OUTPUT_TYPE not in _MEASURED:
        raise ConfigError(
            f"evaluate.benchmarks: lm_eval's task {benchmark} is of the kind {task.OUTPUT_TYPE}; measured here are "
            f"{' and '.join(_MEASURED)}"
        )
    return task
