"""What can be known of an evaluation before it begins: are its files there, and whole?"""

from pathlib import Path

from salign.config import JUDGED, Config
from salign.errors import ConfigError, DataError, SalignError
from salign.evaluation.judged import items
from salign.evaluation.tasks import MissingDataError, check_known, local_rows
from salign.society import sources


def check_evaluation(config: Config) -> list[Path]:
    """Reads every file that the evaluation will read, without loading lm_eval.

    Returns:
        Those files.

    Raises:
        SalignError: A benchmark is not known or its file is empty, malformed or certainly missing, or there are fewer
            questions than asked for; all mistakes are named, as an error of the first one's kind.
    """
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
    if mistakes:
        raise type(mistakes[0])("\n".join(map(str, mistakes)))
    return [*config.evaluate.files, *sources.files_of(config.evaluate.questions)]
