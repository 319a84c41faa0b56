"""Benchmarks without a right answer: what a model's shares of the choices are compared with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from salign.errors import DataError

Row = dict[str, Any]


def sides(rows: Sequence[Row]) -> list[Row]:
    """Two documents of each row of `consistency`: the statement, and its opposite."""
    return [{"question": row[side]} for row in rows for side in ("statement", "opposite")]


def contradictions(agrees: Mapping[int, float | None]) -> dict[int, float | None]:
    """By row of `consistency`: |p + q - 1|, where p and q are the shares of "yes" to a statement and its opposite.

    0 for a model that says of the opposite what follows from its view of the statement, however sure it is; 1 for one
    that agrees, or disagrees, with both. A side that was not measured leaves its row out.
    """
    found: dict[int, float | None] = {}
    for number in range(0, max(agrees, default=-1), 2):
        first, second = agrees.get(number), agrees.get(number + 1)
        found[number // 2] = None if first is None or second is None else abs(first + second - 1)
    return found


def answers_of(row: Any, place: str) -> Row:
    """The options of a row of `cultures`, and the share of people who chose each.

    Raises:
        DataError: They are not as many shares of 1 as options.
    """
    options, shares = row.get("options"), row.get("shares")
    are_texts = isinstance(options, list) and all(isinstance(one, str) and one.strip() for one in options)
    if not are_texts or len(set(options)) < max(2, len(options)):
        raise DataError(f"{place}: options must be at least two different texts")
    are_numbers = isinstance(shares, list) and all(type(one) in (int, float) and 0 <= one <= 1 for one in shares)
    if not are_numbers or len(shares) != len(options) or abs(sum(shares) - 1) > 0.01:
        raise DataError(
            f"{place}: shares must be a number from 0 to 1 for each of the {len(options)} options, 1 in all"
        )
    return {"options": options, "shares": [one / sum(shares) for one in shares]}


def _distance(document: Row, shares: Sequence[float]) -> dict[str, float]:
    """Jensen-Shannon distance to base 2, from 0 to 1 (Lin 1991; its square root), over all and of its culture."""
    from scipy.spatial.distance import jensenshannon

    distance = float(jensenshannon(shares, document["shares"], base=2))
    return {"js": distance, f"js_{document['culture']}": distance}


METRICS_OF_SHARES: dict[str, Callable[[Row, Sequence[float]], dict[str, float]]] = {
    "consistency": lambda _, shares: {"agrees": shares[0]},
    "cultures": _distance,
}
"""By benchmark, the metrics of a document from the model's shares of its choices."""
