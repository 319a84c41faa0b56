"""Who agents are: ratings of what they say, by each attribute of their profiles."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from salign.records import Interaction, Profile

MAX_VALUES = 6
"""Lines of one figure, with that of all others: more colours are not told apart."""
OTHERS = "others"


class Attributes:
    """Ratings by attribute, its value and round.

    Of numbers that are many, ranges of a quarter of the profiles each; of texts, the most frequent values.

    Args:
        profiles: Of the agents, by the numbers that interactions name.
        role: Of the turns whose ratings count.
        criterion: By which they are rated.
    """

    def __init__(self, profiles: Mapping[int, Profile], role: str, criterion: str) -> None:
        self._role, self._criterion = role, criterion
        facts = {number: profile.facts for number, profile in profiles.items()}
        names = dict.fromkeys(name for known in facts.values() for name in known)
        grouped = {name: _groups({n: known[name] for n, known in facts.items() if name in known}) for name in names}
        self.groups = {name: by for name, by in grouped.items() if len(set(by.values())) > 1}
        """By attribute: of each profile the value that it counts to."""
        self.sums: dict[tuple[str, str, int], list[float]] = {}
        """By attribute, value and round: how many ratings, and their sum."""

    def add(self, interaction: Interaction) -> None:
        """Takes up an interaction."""
        if not self.groups:
            return
        profiles = {member.agent: member.profile for member in interaction.agents}
        for turn in interaction.turns_of(self._role):
            rating, profile = turn.observed_rating(self._criterion), profiles.get(turn.agent)
            if rating is None or profile is None:
                continue
            for name, by in self.groups.items():
                if profile in by:
                    sums = self.sums.setdefault((name, by[profile], interaction.round), [0.0, 0.0])
                    sums[0] += 1
                    sums[1] += rating


def _groups(values: Mapping[int, Any]) -> dict[int, str]:
    """Of each profile the value that it counts to."""
    counts = Counter(values.values())
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in counts)
    if is_number and len(counts) > MAX_VALUES:
        edges = np.quantile(list(values.values()), [0, 0.25, 0.5, 0.75, 1])
        named = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
        return {n: named[int(np.searchsorted(edges[1:4], value, "left"))] for n, value in values.items()}
    first = [value for value, _ in counts.most_common(MAX_VALUES - (len(counts) > MAX_VALUES))]
    return {number: str(value) if value in first else OTHERS for number, value in values.items()}
