"""What is known of a round when all of it is held: its ratings, and how much came back usable."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any
from zlib import crc32

from salign.config import Gates
from salign.errors import StageError
from salign.records import Interaction
from salign.society.recalls import REMINDED, RecallRecord, Recalls

_NUM_EXAMPLES = 3


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there, exactly rounded and so the same in any order; None where none is."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


@dataclass
class Round:
    """One round of one world, or the part of it that is known so far; parts are merged."""

    world: int
    number: int
    num_interactions: int = 0
    failures: list[str] = field(default_factory=list)
    num_failed: int = 0
    feedback: list[float | None] = field(default_factory=list)
    """Ratings that turns of one agent give to another's, all that were asked for; None where one is missing."""
    observed: dict[tuple[str, str], dict[int, float | None]] = field(default_factory=dict)
    """Observers' ratings by the turn's role and the criterion, then by the agent; None where one is missing."""
    answers: list[tuple[int, int]] = field(default_factory=list)
    """Checksums of each observed turn, and of the topic."""
    recalls: dict[str, Recalls] = field(default_factory=lambda: {role: Recalls() for role in REMINDED})
    """What agents were reminded of, by the role of the turn."""

    def add(self, interaction: Interaction) -> None:
        """Takes up one interaction."""
        self.num_interactions += 1
        if interaction.failure is not None:
            self.num_failed += 1
            self.failures.append(interaction.failure)
        topic = crc32(interaction.topic.encode())
        for turn in interaction.turns:
            if turn.role in self.recalls:
                self.recalls[turn.role].add(turn)
            if turn.about is not None:
                self.feedback.append(turn.rating)
            for criterion, observation in turn.observed.items():
                self.observed.setdefault((turn.role, criterion), {})[turn.agent] = observation.rating
            if turn.observed:
                self.answers.append((crc32(turn.text.encode()), topic))
        self.failures = sorted(set(self.failures))[:_NUM_EXAMPLES]

    def merge(self, other: "Round") -> None:
        """Takes up another part of the same round."""
        self.num_interactions += other.num_interactions
        self.num_failed += other.num_failed
        self.failures = sorted({*self.failures, *other.failures})[:_NUM_EXAMPLES]
        self.feedback.extend(other.feedback)
        self.answers.extend(other.answers)
        for role, recalls in other.recalls.items():
            self.recalls[role].merge(recalls)
        for series, ratings in other.observed.items():
            self.observed.setdefault(series, {}).update(ratings)

    def mean_observed(self, role: str, criterion: str) -> float | None:
        """The mean of the observers' ratings of a role's turns by a criterion; None where there is none."""
        return mean(self.observed.get((role, criterion), {}).values())

    def metrics(self) -> dict[str, Any]:
        """The round in figures; None where nothing was rated."""
        validity = Validity()
        validity.add(self)
        return {
            "sim/world": self.world,
            "sim/round": self.number,
            "sim/alignment_mean": self.mean_observed("revision", "alignment"),
            "sim/engagement_mean": self.mean_observed("revision", "engagement"),
            "sim/draft_alignment_mean": self.mean_observed("draft", "alignment"),
            "sim/draft_engagement_mean": self.mean_observed("draft", "engagement"),
            "sim/parse_rate": validity.rated_share,
            "sim/failed": self.num_failed,
            "sim/recalled_initial_share": self.recalls["draft"].share("initial"),
            "sim/recalled_own_share": self.recalls["draft"].share("own"),
            "sim/recall_distance_mean": self.recalls["draft"].mean_distance,
        }


@dataclass
class Validity:
    """How much of what was asked for came back usable, over many rounds."""

    num_interactions: int = 0
    num_failed: int = 0
    num_ratings: int = 0
    num_missing_ratings: int = 0
    num_answers: int = 0
    num_repeated: int = 0
    failures: tuple[str, ...] = ()
    recalls: RecallRecord = field(default_factory=RecallRecord)

    def add(self, round_: Round) -> None:
        """Takes up a round that is complete."""
        self.num_interactions += round_.num_interactions
        self.num_failed += round_.num_failed
        self.failures = tuple(sorted({*self.failures, *round_.failures})[:_NUM_EXAMPLES])
        for ratings in (round_.feedback, *map(list, map(dict.values, round_.observed.values()))):
            self.num_ratings += len(ratings)
            self.num_missing_ratings += ratings.count(None)
        questions = defaultdict(set)
        for answer, question in round_.answers:
            questions[answer].add(question)
        self.num_answers += len(round_.answers)
        self.num_repeated += sum(len(questions[answer]) > 1 for answer, _ in round_.answers)
        self.recalls.add(round_.number, round_.recalls)

    @property
    def rated_share(self) -> float:
        return 1 - self.num_missing_ratings / self.num_ratings if self.num_ratings else 0.0

    @property
    def failed_share(self) -> float:
        return self.num_failed / self.num_interactions

    @property
    def repeated_share(self) -> float:
        return self.num_repeated / self.num_answers if self.num_answers else 0.0

    def figures(self) -> dict[str, Any]:
        """Counts and shares, for the marker."""
        return {
            "num_interactions": self.num_interactions,
            "num_failed": self.num_failed,
            "num_ratings": self.num_ratings,
            "num_missing_ratings": self.num_missing_ratings,
            "rated_share": round(self.rated_share, 6),
            "failed_share": round(self.failed_share, 6),
            "repeated_share": round(self.repeated_share, 6),
        }

    def check(self, gates: Gates, shard: int, facts: Mapping[str, Any]) -> None:
        """Says which gates are crossed.

        Args:
            gates: What a shard must reach.
            shard: Its number.
            facts: `num_calls`, `num_refused_calls`, `served`, the names under which each model's answers came, and
                `recall`, what agents were expected to recall of what they start with, empty where that is nothing.

        Raises:
            StageError: With the figures of every gate that is crossed.
        """
        num_calls, num_refused = facts["num_calls"], facts["num_refused_calls"]
        crossed = [
            f"answers of {model} came under several names ({', '.join(names)}): is it one model?"
            for model, names in facts["served"].items()
            if len(names) > 1
        ]
        if self.rated_share < gates.min_rated_share:
            crossed.append(
                f"{self.rated_share:.1%} of {self.num_ratings} ratings could be read "
                f"(society.gates.min_rated_share = {gates.min_rated_share:.1%})"
            )
        if self.failed_share > gates.max_failed_share:
            crossed.append(
                f"{self.num_failed} of {self.num_interactions} interactions failed "
                f"(society.gates.max_failed_share = {gates.max_failed_share:.1%}): {'; '.join(self.failures)}"
            )
        if num_refused > gates.max_refused_call_share * num_calls:
            crossed.append(
                f"the engine refused {num_refused} of {num_calls} calls "
                f"(society.gates.max_refused_call_share = {gates.max_refused_call_share:.1%})"
            )
        if self.repeated_share > gates.max_repeated_share:
            crossed.append(
                f"{self.repeated_share:.1%} of {self.num_answers} drafts and revisions say what was said to another "
                f"question in the same round (society.gates.max_repeated_share = {gates.max_repeated_share:.1%})"
            )
        if facts["recall"].get("expected_initial_share"):
            crossed += self.recalls.crossed(gates)
        if crossed:
            raise StageError(
                f"shard {shard} does not count as done: {' and '.join(crossed)}. Look at its interactions, and use a "
                "stronger model, another society.rating, or other gates."
            )
