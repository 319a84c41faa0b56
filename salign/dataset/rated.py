"""What the converters of all shapes share: candidates for groups, and how scores of any scale are mapped onto 1..7."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from salign.config import Kind
from salign.dataset.conversations import Prompt
from salign.files import RowError
from salign.records import MAX_SCORE, MIN_SCORE

Range = tuple[float, float]


@dataclass(frozen=True)
class Reading:
    """How the scores of a file are read.

    Attributes:
        score_range: The ends of the file's scale; None: its shape's.
        weights: Of graded attributes; empty: its shape's.
        ignored: Columns that are not read, also inside a column's objects.
    """

    score_range: Range | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Candidate:
    """A prompt with responses, each with its score in 1..7 or None."""

    prompt: Prompt
    responses: list[tuple[str, float | None]]
    kind: Kind | Literal["demonstration"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def number_of(value: object, column: str) -> float:
    """Reads a number, also one that is written as text.

    Raises:
        RowError: It is none.
    """
    if type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    raise RowError(f"{column} is {value!r}, not a number")


def flag_of(value: object, column: str) -> bool:
    """Reads a yes or no: true, false, 1, 0, also as text.

    Raises:
        RowError: It is neither.
    """
    text = str(value).strip().lower()
    if text in ("true", "1", "1.0"):
        return True
    if text in ("false", "0", "0.0"):
        return False
    raise RowError(f"{column} is {value!r}; it must be true or false, or 1 or 0")


def scaled(score: float, score_range: Range) -> float:
    """Maps a score from its own scale to 1..7, linearly.

    Raises:
        RowError: It is outside the scale.
    """
    low, high = score_range
    if not low <= score <= high:
        raise RowError(
            f"score {float(score)} is outside the scale {low:g}..{high:g}; state the file's own scale with "
            "score_range: [low, high]"
        )
    if score_range == (MIN_SCORE, MAX_SCORE):
        return score
    return MIN_SCORE + (score - low) / (high - low) * (MAX_SCORE - MIN_SCORE)


def mean_score(scores: Sequence[float]) -> float:
    """Returns the mean, the same to the last bit for the same scores in any order."""
    return math.fsum(scores) / len(scores)


def thumb(*, is_good: bool) -> float:
    """Returns the top of the scale for good, the bottom for bad."""
    return MAX_SCORE if is_good else MIN_SCORE


def weighted(grades: Mapping[str, float], weights: Mapping[str, float], grade_range: Range) -> float:
    """Maps the weighted sum of graded attributes to 1..7, from the least to the most that it can be.

    With positive weights that is the weighted mean on the scale; a negative weight makes the lower grade the better.

    Raises:
        RowError: A grade is outside the scale.
    """
    low, high = grade_range
    for name in weights:
        scaled(grades[name], grade_range)  # for its error
    least = math.fsum(weight * (low if weight > 0 else high) for weight in weights.values())
    most = math.fsum(weight * (high if weight > 0 else low) for weight in weights.values())
    total = math.fsum(weight * grades[name] for name, weight in weights.items())
    return scaled(min(max(total, least), most), (least, most))  # rounding may lead a hair outside
