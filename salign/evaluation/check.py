"""What can be checked about an evaluation before it starts: are its files complete? Can its engine answer?"""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from salign.config import JUDGED, Config
from salign.engines.kinds import kind_of
from salign.errors import ConfigError, DataError, SalignError
from salign.evaluation.judged import RATED, items
from salign.evaluation.tasks import MissingDataError, check_known, local_rows
from salign.evaluation.trial import TRIAL_PAIRS, criteria_to_try
from salign.run import RunDir
from salign.society import sources
from salign.society.observer import files_of_pairs


def check_evaluation(config: Config) -> list[Path]:
    """Reads every file that the evaluation will read, without loading lm_eval.

    Returns:
        Those files; none where no model is evaluated.

    Raises:
        SalignError: A benchmark is not known or its file is empty, malformed or certainly missing, there are fewer
            questions than asked for, or the engine that is to answer cannot load a model; all mistakes are named, as an
            error of the first one's kind.
    """
    if not config.evaluated_models:
        return []
    mistakes = list(_mistakes_in_data(config))
    tried = []
    for read_pairs in _pairs(config):
        try:
            tried += read_pairs()
        except DataError as error:
            mistakes.append(error)
    answering, run = config.answering, RunDir(config.run.root / config.run.name)
    try:
        for name in config.evaluated_models:
            model = config.model if name == "base" else str(run.model(name))
            kind_of(answering).answering_for(answering, model)
    except ConfigError as error:
        mistakes.append(error)
    if mistakes:
        raise type(mistakes[0])("\n".join(map(str, mistakes)))
    return [*config.evaluate.files, *sources.files_of(config.evaluate.questions), *tried]


def _pairs(config: Config) -> Iterator[Callable[[], list[Path]]]:
    """What reads the labelled pairs of judges' trials and of judges that score, and says in which files they are."""
    if (check := config.evaluate.judge_check) is not None and criteria_to_try(config):
        yield functools.partial(files_of_pairs, check, TRIAL_PAIRS)
    for judge in config.judges:
        if judge.scorer is not None:
            yield functools.partial(files_of_pairs, judge.scorer)


def _mistakes_in_data(config: Config) -> Iterator[SalignError]:
    """What is wrong with the benchmarks' names, their folder and their files."""
    folder, allow_missing = config.evaluate.data_dir, config.evaluate.allow_missing
    if folder is not None and not folder.is_dir() and not allow_missing:
        yield ConfigError(f"evaluate.data_dir {folder} is no folder; name the one that has the benchmarks' files.")
    for benchmark in config.evaluate.benchmarks:
        try:
            if benchmark in JUDGED:
                items(config, benchmark)
            else:
                check_known(benchmark)
                local_rows(benchmark, config.evaluate)
        except MissingDataError as error:
            if not allow_missing:
                yield error
        except (ConfigError, DataError) as error:
            yield error


_DISAGREE = 0.25
_ERRORS = 2.80  # standard errors that are found in 80 % of cases by a two-sided test at 5 % (Cohen 1988)


def visible_share(n: int) -> float:
    """Returns the smallest difference of two shares of the same n items that is found in 80 % of cases.

    It depends on how many items one model decides rightly and the other wrongly, which is not known beforehand: a
    quarter is assumed, as of models that were trained differently from the same one.
    """
    return _ERRORS * math.sqrt(_DISAGREE / n)


def visible(config: Config) -> Iterator[str]:
    """Says of each benchmark whose size is known which difference it can see."""
    most = config.evaluate.num_documents
    for benchmark in config.evaluate.benchmarks:
        try:
            asks = benchmark in JUDGED
            rows = items(config, benchmark) if asks else local_rows(benchmark, config.evaluate)
        except MissingDataError:
            rows = None
        if not rows:
            yield f"{benchmark}: n is not known before its data is loaded{_from_where(config, benchmark)}"
            continue
        n = len(rows) if asks or most is None else min(most, len(rows))
        if RATED.get(benchmark):
            yield f"{benchmark}: n = {n}, {_ERRORS / math.sqrt(n):.2f} standard deviations of the difference"
        else:
            yield f"{benchmark}: n = {n}, {visible_share(n):.3f} of {'refusals' if asks else 'accuracy'}"


def _from_where(config: Config, benchmark: str) -> str:
    """Where a benchmark's data must be by then, if it could have been in `evaluate.data_dir` and is not."""
    names, folder = config.evaluate.wanted_files(benchmark), config.evaluate.data_dir
    if not names or folder is None:
        return ""
    return f" from the hub's cache: {' or '.join(names)} is not in evaluate.data_dir ({folder})"


def print_visible(config: Config, console: Console) -> None:
    """Prints, in the launcher's dry run, which differences of two models the evaluation can see."""
    said = functools.partial(console.print, highlight=False, soft_wrap=True, markup=False)
    said(
        "smallest difference of two models that is found in 80 % of cases (if they disagree on a quarter of the items):"
    )
    for line in visible(config):
        said(f"  {line}")
