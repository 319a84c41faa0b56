"""What the report shows of the interactions, gathered in one pass over them; only counts grow with the record."""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from salign.config import Config, Criterion, GridTopology
from salign.markers import Done
from salign.records import Interaction, Member, Profile, Recalled, Turn
from salign.report.attributes import Attributes
from salign.seeds import rng
from salign.society.aggregation import rated
from salign.society.protocols import protocol_of
from salign.tracking.metrics import mean

MAX_SAMPLES = 200
MAX_TEXT = 2_000
"""Characters of one text that stand in the page."""
_MAX_CELLS = 600_000
_MAX_WORLDS = 12
_MAX_SIDE = 100
_MAX_READ_CLOSELY = 20_000
"""Interactions whose words are compared; if there are more, this many are drawn at random."""
NUM_BINS = 61
"""Of a rating's scale; from 1 to 7, a tenth each."""
_WORD = re.compile(r"\w{4,}")
FEEDBACK = "feedback"
"""What turns of the audience are called, whatever their role."""


@dataclass(frozen=True)
class Shard:
    """A complete shard: its number and its marker."""

    number: int
    done: Done

    @property
    def populations(self) -> dict[int, str]:
        return {int(world): population for world, population in self.done.facts["worlds"].items()}

    @property
    def last_rounds(self) -> dict[int, int]:
        return {int(world): last for world, last in self.done.facts["rounds"].items()}

    @property
    def num_agents(self) -> int:
        """Of its largest world."""
        return max(map(int, self.done.facts["agents"].values()))

    @property
    def num_interactions(self) -> int:
        return int(self.done.facts["num_interactions"])


def clipped(text: str | None) -> str | None:
    """Cuts a text to the length that the page shows."""
    return text if text is None or len(text) <= MAX_TEXT else text[:MAX_TEXT] + " ..."


class CellMap:
    """Ratings by cell and round; of a large society some worlds and rounds, and means of square blocks.

    Args:
        config: Its topology says where an agent is: on the grid, else by its number, row by row.
        shards: Those that are complete, at least one.
    """

    def __init__(self, config: Config, shards: Sequence[Shard]) -> None:
        lasts = {world: last for shard in shards for world, last in sorted(shard.last_rounds.items())}
        self.num_agents = max((shard.num_agents for shard in shards), default=0)
        protocol, topology = protocol_of(config.society), config.society.topology
        self.criteria = {criterion.name: criterion for criterion in config.society.observed_criteria}
        # The outcome by each criterion, and by the first what it is compared with, if anything.
        self.measures = [(protocol.outcome, criterion) for criterion in protocol.criteria]
        self.measures += [(role, protocol.criteria[0]) for role in protocol.observed[:-1][:1]]
        self.is_grid = isinstance(topology, GridTopology)
        width = max(1, topology.size if isinstance(topology, GridTopology) else int(np.ceil(self.num_agents**0.5)))
        self.block = -(-width // _MAX_SIDE)
        self.side = -(-width // self.block)
        agents = np.arange(self.num_agents)
        self._cell = agents // width // self.block * self.side + agents % width // self.block
        num_cells = self.side**2
        most_rounds = max(lasts.values(), default=1)
        kept = int(np.clip(_MAX_CELLS // num_cells, 2, most_rounds)) if most_rounds > 1 else 1
        self.rounds = sorted({round(number) for number in np.linspace(1, most_rounds, kept)})
        kept = int(np.clip(_MAX_CELLS // (num_cells * len(self.rounds)), 1, _MAX_WORLDS))
        # The first worlds, in which populations come by turns.
        self.lasts = dict(list(lasts.items())[:kept])
        self.num_worlds = len(lasts)
        self._number_of_round = {round_: number for number, round_ in enumerate(self.rounds)}
        shape = (len(self.measures), len(self.rounds), num_cells)
        self._sums: dict[int, NDArray[np.float32]] = {world: np.zeros(shape, np.float32) for world in self.lasts}
        self._counts: dict[int, NDArray[np.int32]] = {world: np.zeros(shape, np.int32) for world in self.lasts}

    def add(self, interaction: Interaction) -> None:
        number = self._number_of_round.get(interaction.round)
        if interaction.world not in self.lasts or number is None:
            return
        for measure, (role, criterion) in enumerate(self.measures):
            for turn in interaction.turns_of(role):
                value = turn.observed_rating(criterion)
                if value is not None:
                    cell = self._cell[turn.agent]
                    self._sums[interaction.world][measure, number, cell] += value
                    self._counts[interaction.world][measure, number, cell] += 1

    def values(self, world: int) -> NDArray[np.float32]:
        """Returns a world's ratings: [measures, rounds, cells], NaN where nothing is known."""
        counts = self._counts[world]
        return np.where(counts > 0, self._sums[world] / np.maximum(counts, 1), np.nan).astype(np.float32)


class Followed:
    """Measures which feedback was followed: how many of a reason's own words the outcome takes up.

    A reason's own words are those (of 4 letters or more) that neither the question nor the first answer has. Chance is
    what the same words find in the outcome of another interaction.

    Args:
        first: The role of the turn that the audience rates.
        outcome: The role of the turn that answers it.
    """

    def __init__(self, first: str, outcome: str) -> None:
        self._first, self._outcome = first, outcome
        self.taken: dict[int, list[float]] = {score: [0.0, 0.0, 0.0] for score in range(1, 8)}
        """By the rating that came with the reason: reasons, and sums of share and of chance."""
        self.gain: dict[int, list[float]] = {score: [0.0, 0.0, 0.0] for score in range(1, 8)}
        """By the audience's rating: interactions, and sums of the observers' rating's change and of its square."""
        self.num_read = 0
        self._other: frozenset[str] = frozenset()

    def add(self, interaction: Interaction) -> list[float | None]:
        """Adds an interaction; returns the share of each reason's words that the outcome takes up."""
        feedback = heard(interaction)
        first, outcome = interaction.turn(self._first), interaction.turn(self._outcome)
        if first is None or outcome is None:
            return [None] * len(feedback)
        known = _words(interaction.topic) | _words(first.text)
        words = _words(outcome.text)
        shares: list[float | None] = []
        for item in feedback:
            own = _words(item.text) - known
            share = len(own & words) / len(own) if own else None
            shares.append(share)
            if share is not None and item.rating is not None and self.num_read:
                sums = self.taken[round(item.rating)]
                sums[0] += 1
                sums[1] += share
                sums[2] += len(own & self._other) / len(own)
        self._other = words
        self.num_read += 1
        return shares

    def add_gain(self, rating: float, gain: float) -> None:
        """Adds the audience's rating, and by how much the outcome was rated above the first answer."""
        sums = self.gain[round(rating)]
        sums[0] += 1
        sums[1] += gain
        sums[2] += gain**2


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


class Reservoir:
    """A random sample of a stream, in which each item has the same chance (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, generator: random.Random) -> None:
        self._size, self._rng = size, generator
        self.items: list[tuple[int, Any]] = []
        self.num_seen = 0

    def draw(self) -> int | None:
        """Draws the slot in which to keep the stream's next item; None if it is not kept."""
        self.num_seen += 1
        if len(self.items) < self._size:
            self.items.append((self.num_seen, None))
            return len(self.items) - 1
        drawn = self._rng.randrange(self.num_seen)
        return drawn if drawn < self._size else None

    def keep(self, slot: int, item: Any) -> None:
        self.items[slot] = (self.num_seen, item)

    def in_order(self) -> list[Any]:
        return [item for _, item in sorted(self.items, key=lambda pair: pair[0])]


@dataclass
class Society:
    """The figures of the interactions of all complete shards."""

    cells: CellMap
    observed: tuple[str, ...]
    """The protocol's roles of turns that observers rate, in order; by its first criterion the last, which is the
    outcome, is compared with the first, where there are two."""
    criteria: tuple[str, ...]
    compared: Criterion
    """The first of the criteria."""
    followed: Followed
    by_attribute: Attributes
    num_interactions: int = 0
    num_failed: int = 0
    num_discarded: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_calls: int = 0
    before_after: NDArray[np.int64] = field(default_factory=lambda: np.zeros((NUM_BINS, NUM_BINS), np.int64))
    """Interactions by the rating of the first answer and of the outcome, in bins of their scale."""
    num_higher: int = 0
    """Outcomes that were rated higher than the first answer; `num_lower`: lower."""
    num_lower: int = 0
    means: dict[tuple[str, str], float | None] = field(default_factory=dict)
    """By role and criterion."""
    missing: dict[str, list[int]] = field(default_factory=dict)
    """By who rates what: ratings asked for, and those that are missing."""
    failures: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)
    relations: dict[str, dict[float, list[float]]] = field(default_factory=dict)
    """By the protocol's relation and x: how many values, and the sums of y and of its square."""


class SocietyReader:
    """Gathers a `Society` from interactions, one by one.

    Args:
        config: The run's.
        shards: Those that are complete; what they count says how much may be kept.
        profiles: Of the agents, by the numbers that interactions name.
    """

    def __init__(self, config: Config, shards: Sequence[Shard], profiles: Mapping[int, Profile] | None = None) -> None:
        self._profiles = profiles or {}
        self._protocol = protocol = protocol_of(config.society)
        self._first, self._outcome = protocol.observed[0], protocol.outcome
        followed = Followed(self._first, self._outcome)
        compared = config.society.observed_criteria[0]
        by_attribute = Attributes(self._profiles, self._outcome, protocol.criteria[0])
        cells = CellMap(config, shards)
        self.society = Society(cells, protocol.observed, protocol.criteria, compared, followed, by_attribute)
        # Of each role and criterion, ratings asked for, missing ones, and the sum of the others.
        self._ratings: dict[tuple[str, str], list[float]] = {
            (role, criterion): [0, 0, 0.0] for role in protocol.observed for criterion in protocol.criteria
        }
        self._feedback = [0, 0]
        self._aggregation = config.society.aggregation
        self._has_audience = config.society.has_audience
        self._samples = Reservoir(MAX_SAMPLES, rng(config.run.seed, "report", "interactions"))
        total = sum(shard.num_interactions for shard in shards)
        self._closely = min(1.0, _MAX_READ_CLOSELY / max(total, 1))
        self._rng = rng(config.run.seed, "report", "closely")

    def add(self, interaction: Interaction) -> None:
        society = self.society
        society.num_interactions += 1
        society.num_calls += interaction.num_calls
        society.prompt_tokens += interaction.prompt_tokens
        society.completion_tokens += interaction.completion_tokens
        if interaction.failure is not None:
            society.num_failed += 1
            # A record's failures are few kinds of sentence; numbers in them are not kinds of their own.
            if len(society.failures) < 50 or interaction.failure in society.failures:
                society.failures[interaction.failure] += 1
        society.cells.add(interaction)
        society.by_attribute.add(interaction)
        self._rate(interaction)
        for name, x, y in self._protocol.relate(interaction):
            sums = society.relations.setdefault(name, {}).setdefault(x, [0.0, 0.0, 0.0])
            sums[0] += 1
            sums[1] += y
            sums[2] += y**2
        slot = self._samples.draw()
        if slot is not None or self._rng.random() < self._closely:
            taken = society.followed.add(interaction) if self._has_audience else []
            if slot is not None:
                self._samples.keep(slot, self._sample(interaction, taken))

    def _rate(self, interaction: Interaction) -> None:
        society = self.society
        given = heard(interaction)
        rated_first: dict[str, list[float]] = {}  # of each role, by the first criterion
        for turn in interaction.turns:
            if turn.role not in society.observed or not turn.observed:
                continue
            for criterion in society.criteria:
                rating, sums = turn.observed_rating(criterion), self._ratings[turn.role, criterion]
                sums[0] += 1
                if rating is None:
                    sums[1] += 1
                else:
                    sums[2] += rating
            if (first := turn.observed_rating(society.criteria[0])) is not None:
                rated_first.setdefault(turn.role, []).append(first)
        self._feedback[0] += len(given)
        self._feedback[1] += sum(turn.rating is None for turn in given)
        before, after = (mean(rated_first.get(role, ())) for role in (self._first, self._outcome))
        if self._first != self._outcome and before is not None and after is not None:
            society.before_after[_bin(before, society.compared), _bin(after, society.compared)] += 1
            society.num_higher += after > before
            society.num_lower += after < before
            together = rated(given, self._aggregation)
            if together is not None:
                society.followed.add_gain(together, after - before)

    def _sample(self, interaction: Interaction, taken: Sequence[float | None]) -> dict[str, Any]:
        """An interaction for reading; `taken` is each heard turn's share of words that the outcome took up."""
        shares = iter(taken)
        return {
            "world": interaction.world,
            "round": interaction.round,
            "agent": interaction.agent,
            "members": [self._member(member) for member in interaction.agents],
            "label": interaction.agents[0].label,
            "part": interaction.agents[0].part,
            "question": clipped(interaction.topic),
            "failure": clipped(interaction.failure),
            "compared": [_observed(interaction, role, self.society.criteria[0]) for role in self.society.observed],
            "turns": [
                {
                    "role": turn.role,
                    "agent": turn.agent,
                    "text": clipped(turn.text),
                    "rating": turn.rating,
                    "observed": {criterion: given.rating for criterion, given in turn.observed.items()},
                    "recalled": [] if turn.recalled is None else [_recalled(one) for one in turn.recalled.all],
                    "data": clipped(orjson.dumps(turn.data).decode()) if turn.data else None,
                    "judges": turn.about is not None,
                    "taken": None if turn.about is None else next(shares, None),
                }
                for turn in interaction.turns
            ],
        }

    def _member(self, member: Member) -> dict[str, Any]:
        """One of those whose interaction it is, with what its profile says of it, in words that can be searched for."""
        profile = None if member.profile is None else self._profiles.get(member.profile)
        if profile is None:
            return {"agent": member.agent, "name": None, "about": []}
        told = [f"{name} {value}" for name, value in profile.facts.items()]
        return {"agent": member.agent, "name": clipped(profile.name), "about": [clipped(text) for text in told]}

    def end(self) -> Society:
        society = self.society
        society.samples = self._samples.in_order()
        if self._has_audience:
            society.missing[FEEDBACK] = self._feedback
        for (role, criterion), (asked, missing, total) in self._ratings.items():
            society.missing[f"{role} {criterion}"] = [int(asked), int(missing)]
            society.means[role, criterion] = total / (asked - missing) if asked > missing else None
        return society


def _recalled(one: Recalled) -> dict[str, Any]:
    return {
        "question": one.question,
        "answer": clipped(one.answer),
        "source": one.source,
        "distance": one.distance,
        "by": one.by,
    }


def _bin(rating: float, criterion: Criterion) -> int:
    low, high = criterion.scale
    share = (min(max(rating, low), high) - low) / (high - low)
    return round(share * (NUM_BINS - 1))


def heard(interaction: Interaction) -> list[Turn]:
    """Returns the turns that judge another turn."""
    return [turn for turn in interaction.turns if turn.about is not None]


def _observed(interaction: Interaction, role: str, criterion: str) -> float | None:
    turn = interaction.turn(role)
    return None if turn is None else turn.observed_rating(criterion)
