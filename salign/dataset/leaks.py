"""Whether prompts of the evaluation are in the training data."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from salign.errors import DataError
from salign.files import read_rows, read_text

# A shorter evaluation prompt is only compared whole: a few words may well stand in any text.
_MIN_CONTAINED = 30
_NOT_WORD = re.compile(r"[\W_]+")
_PROMPT_FIELDS = ("question", "Question", "prompt", "query", "chosen", "situation", "scenario", "Q")


def normalise(text: str) -> str:
    """Text as the check compares it: words in lower case, without punctuation."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def find_leaks(training: Iterable[str], evaluation: Iterable[str]) -> list[str]:
    """The evaluation prompts that stand in the training texts, after normalising both.

    A prompt leaks where a training text equals it, or contains it whole and it has at least 30 characters.
    """
    texts = set(map(normalise, training))
    all_text = "\n".join(sorted(texts))
    leaked = []
    for prompt in dict.fromkeys(evaluation):
        normal = normalise(prompt)
        if normal and (normal in texts or (len(normal) >= _MIN_CONTAINED and normal in all_text)):
            leaked.append(prompt)
    return leaked


def prompts_of(path: Path) -> list[str]:
    """The evaluation prompts of a file: text (one a line), JSON, JSON Lines or CSV (also .gz).

    Raises:
        DataError: It is missing or malformed.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        try:
            rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
        except csv.Error as error:
            raise DataError(f"{path}: no valid CSV ({error})") from None
        return _of_rows(rows, path)
    if name.endswith((".json", ".jsonl")):
        return _of_rows([row for _, row in read_rows(path)], path)
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _of_rows(rows: list[Any], path: Path) -> list[str]:
    found = [prompt for row in rows for prompt in prompts_in(row)]
    if rows and not found:
        raise DataError(f"{path}: no row has a prompt in one of the fields {', '.join(_PROMPT_FIELDS)}")
    return found


def prompts_in(row: Any) -> list[str]:
    """What of a row of an evaluation file is a prompt, by the usual names of its field."""
    if isinstance(row, str):
        return [row]
    if not isinstance(row, dict):
        return []
    texts = [row[field] for field in _PROMPT_FIELDS if isinstance(row.get(field), str)]
    # Of a transcript, what the human asked first.
    return [re.split(r"\n*(?:Human|Assistant):", text.lstrip().removeprefix("Human:"))[0].strip() for text in texts]
