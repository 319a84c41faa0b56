"""What an interaction becomes where something is learnt from it: rows of responses to a query, with their scores."""

from collections.abc import Callable, Sequence
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
        criteria: By which observers' ratings answers are scored.
        kept: Leaves out the turns whose flags forbid to learn from them.
        min_score: From which score on an answer that was improved is one to learn from.
    """

    criteria: tuple[Criterion, ...]
    kept: Callable[[Sequence[Turn]], list[Turn]]
    min_score: float

    def score(self, turn: Turn) -> float | None:
        """The mean of the observers' ratings of a turn, on the scale from 1 to 7; None where one is missing."""
        ratings = [(criterion, turn.observed_rating(criterion.name)) for criterion in self.criteria]
        there = [criterion.on_common_scale(rating) for criterion, rating in ratings if rating is not None]
        return sum(there) / len(there) if len(there) == len(ratings) else None
