"""What can be checked about the alignment data before it is made."""

from pathlib import Path

from salign.config import Config
from salign.dataset.collect import check_leaks
from salign.dataset.groups import demonstrations
from salign.society import sources


def check_dataset(config: Config) -> list[Path]:
    """Reads all that is trained on beside the society's own data, and compares it with what is evaluated on.

    Returns:
        The files that were read.

    Raises:
        DataError: A file is missing or malformed, or has too little in it.
        StageError: Evaluation prompts are in what is trained on or remembered.
    """
    files = list(config.dataset.leak_check)
    for part in (part for stage in config.train.stages for part in stage.parts):
        if part.kind == "groups":
            files.append(part.path)  # check_leaks reads it
        elif part.kind == "answers":
            demonstrations(part)
            files += sources.files_of(part.source)
    check_leaks(config, groups=())
    return files
