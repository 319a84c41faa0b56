"""What an interaction becomes where something is learnt from it: rows of responses to a query, with their scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from salign.config import Criterion, Kind
from salign.records import Turn


class Row(NamedTuple):
    """Responses to one query with their scores, None where one is missing."""

    kind: Kind
    query: str
    responses: tuple[tuple[Turn, float | None], ...]


@dataclass(frozen=True, slots=True)
class Learning:
    """What counts where interactions become something to learn from.

    Attributes:
        criteria: By which observers' ratings answers are scored, each with its weight.
        kept: Leaves out the turns whose flags forbid to learn from them.
        min_score: From which score on an answer that was improved is one to learn from.
    """

    criteria: tuple[tuple[Criterion, float], ...]
    kept: Callable[[Sequence[Turn]], list[Turn]]
    min_score: float

    def score(self, turn: Turn) -> float | None:
        """The weighted mean of a turn's ratings, on the scale from 1 to 7; None where one is missing."""
        return weighted_score(self.criteria, {name: given.rating for name, given in turn.observed.items()})


def weighted_score(criteria: Sequence[tuple[Criterion, float]], ratings: Mapping[str, float | None]) -> float | None:
    """The weighted mean of ratings by several criteria, on the scale from 1 to 7; None where one is missing.

    Args:
        criteria: Each with its weight, above 0.
        ratings: By criterion, on the criterion's own scale.
    """
    total = weights = 0.0
    for criterion, weight in criteria:
        rating = ratings.get(criterion.name)
        if rating is None:
            return None
        total += weight * criterion.on_common_scale(rating)
        weights += weight
    return total / weights
