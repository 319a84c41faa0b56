"""What agents recalled: how often, from where, and at which distance."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from salign.config import Gates
from salign.records import Interaction, Turn

SOURCES = ("initial", "own", "broadcast", "heard")


@dataclass
class Recalls:
    """Counts over some turns; whole numbers, so that any order of adding up gives the same."""

    num_turns: int = 0
    distances: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By source and distance from the question asked, in thousandths: turns. Of several memories from one source that
    came to mind at once, the nearest counts."""
    num_tokens_left_out: int = 0
    """Of memories for which a prompt had no room."""

    def add(self, turn: Turn) -> None:
        """Takes up a turn, with what its speaker was reminded of."""
        self.num_turns += 1
        if turn.recalled is None:
            return
        nearest: dict[str, float] = {}
        for one in turn.recalled.all:
            nearest[one.source] = min(one.distance, nearest.get(one.source, one.distance))
        for source, distance in nearest.items():
            self.distances[source, round(distance * 1000)] += 1
        self.num_tokens_left_out += turn.recalled.num_left_out

    def merge(self, other: "Recalls") -> None:
        """Takes up other turns."""
        self.num_turns += other.num_turns
        self.distances.update(other.distances)
        self.num_tokens_left_out += other.num_tokens_left_out

    def share(self, source: str) -> float | None:
        """Of the turns, those that were reminded of something from a source; None where there is no turn."""
        count = sum(num for (origin, _), num in self.distances.items() if origin == source)
        return count / self.num_turns if self.num_turns else None

    @property
    def mean_distance(self) -> float | None:
        """Of what was recalled; None where nothing was."""
        total = self.distances.total()
        return sum(distance * num for (_, distance), num in self.distances.items()) / total / 1000 if total else None

    @property
    def median_distance(self) -> float | None:
        """Of what was recalled (the lower one of two); None where nothing was."""
        left = (self.distances.total() + 1) // 2
        for (_, distance), num in sorted(self.distances.items(), key=lambda item: item[0][1]):
            left -= num
            if left <= 0:
                return distance / 1000
        return None

    def figures(self) -> dict[str, Any]:
        """Shares by source, and distances, for a marker or a card."""
        return {
            "num_turns": self.num_turns,
            **{f"{source}_share": _rounded(self.share(source)) for source in SOURCES},
            "mean_distance": _rounded(self.mean_distance),
            "median_distance": self.median_distance,
            "num_tokens_left_out": self.num_tokens_left_out,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass
class RecallRecord:
    """What agents were reminded of in each round, by the role of the turn, of those that have looked into a memory."""

    roles: tuple[str, ...]
    rounds: dict[int, dict[str, Recalls]] = field(default_factory=dict)

    def add(self, round_: int, by_role: Mapping[str, Recalls]) -> None:
        """Takes up a round of one world."""
        there = self._of_round(round_)
        for role in self.roles:
            if role in by_role:
                there[role].merge(by_role[role])

    def take(self, interaction: Interaction) -> None:
        """Takes up one interaction."""
        by_role: dict[str, Recalls] = {}
        for turn in interaction.turns:
            if turn.role in self.roles:
                by_role = by_role or self._of_round(interaction.round)
                by_role[turn.role].add(turn)

    def _of_round(self, round_: int) -> dict[str, Recalls]:
        by_role = self.rounds.get(round_)
        if by_role is None:
            by_role = self.rounds[round_] = {role: Recalls() for role in self.roles}
        return by_role

    def first(self) -> Recalls:
        """All turns of the first round, in which agents have nothing of their own yet."""
        total = Recalls()
        for recalls in self.rounds.get(1, {}).values():
            total.merge(recalls)
        return total

    def crossed(self, gates: Gates) -> list[str]:
        """What to say where agents hardly recalled what they start with."""
        share = self.first().share("initial")
        if share is None or share >= gates.min_initial_recall_share:
            return []
        return [
            f"agents recalled what they start with before {share:.1%} of their first {' and '.join(self.roles)} turns "
            f"(society.gates.min_initial_recall_share = {gates.min_initial_recall_share:.1%}): populations make no "
            "difference"
        ]

    def figures(self) -> dict[str, Any]:
        """Of each role, over all rounds and round by round."""
        made: dict[str, Any] = {}
        for role in self.roles:
            total = Recalls()
            for by_role in self.rounds.values():
                total.merge(by_role[role])
            rounds = {str(number): self.rounds[number][role].figures() for number in sorted(self.rounds)}
            made[role] = {**total.figures(), "rounds": rounds}
        return made


def recalls_of(interactions: Iterable[Interaction], roles: tuple[str, ...]) -> RecallRecord:
    """What agents were reminded of in some interactions, before turns of some roles."""
    record = RecallRecord(roles)
    for interaction in interactions:
        record.take(interaction)
    return record
