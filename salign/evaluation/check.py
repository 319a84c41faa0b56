"""What can be checked about an evaluation before it starts: are its files complete? Can its engine answer?"""

from pathlib import Path

from salign.config import JUDGED, Config
from salign.engines.kinds import kind_of
from salign.errors import ConfigError, DataError, SalignError
from salign.evaluation.judged import items
from salign.evaluation.tasks import MissingDataError, check_known, local_rows
from salign.run import RunDir
from salign.society import sources


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
    mistakes: list[SalignError] = []
    for benchmark in config.evaluate.benchmarks:
        try:
            if benchmark in JUDGED:
                items(config, benchmark)
            else:
                check_known(benchmark)
                local_rows(benchmark, config.evaluate)
        except MissingDataError as error:
            if not config.evaluate.allow_missing:
                mistakes.append(error)
        except (ConfigError, DataError) as error:
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
    return [*config.evaluate.files, *sources.files_of(config.evaluate.questions)]
