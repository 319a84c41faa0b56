"""The figures of a complete round: its ratings, and how much came back usable."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, sqrt
from statistics import median
from typing import Any
from zlib import crc32

from salign.config import FLAGS, SCALE, Gates, Scale, SocietySection
from salign.errors import StageError
from salign.records import Interaction
from salign.society.asides import REFLECTION
from salign.society.protocols.base import Protocol
from salign.society.raters import agreements
from salign.society.recalls import RecallRecord, Recalls
from salign.society.studies import SURVEY
from salign.tracking.metrics import mean
from salign.tracking.names import mean_rating

_NUM_EXAMPLES = 3
_AGREEMENT = "ranking_agreement_share"
# Of so few ratings it may be chance that all are the same digit: where a judge gives one digit in 60 % of cases, 20 are
# that digit once in 27,000 times.
_MIN_RATINGS = 20
# Flags that say more of the engine's settings than of what a text says.
_HARMLESS = frozenset({"cut", "thinking"})
_EMPTY = crc32(b"")


def _standard_deviation(counts: Mapping[float, int]) -> float:
    """Of values, each with how often it is there; the same in any order."""
    total = sum(counts.values())
    centre = fsum(value * num for value, num in counts.items()) / total
    return sqrt(fsum((value - centre) ** 2 * num for value, num in counts.items()) / total)


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
    observed: dict[tuple[str, str], dict[int, tuple[float | None, ...]]] = field(default_factory=dict)
    """Observers' ratings by the turn's role and the criterion, then by the agent; None where one is missing."""
    answers: list[tuple[int, int]] = field(default_factory=list)
    """Checksums of each turn that is rated as an answer to the topic, and of the topic."""
    masses: list[float] = field(default_factory=list)
    """Of the digits, for each rating by probabilities."""
    flags: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """How many turns that say something have which flags."""
    recalls: defaultdict[str, Recalls] = field(default_factory=lambda: defaultdict(Recalls))
    """What agents were reminded of, by the role of the turn, of every role."""
    kept: list[bool] = field(default_factory=list)
    """Whether each new description of an agent by itself was kept."""
    opinions: defaultdict[str, list[float | None]] = field(default_factory=lambda: defaultdict(list))
    """Answers to each question of the survey; None where one could not be read."""
    measured: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """Values of the protocol's own figures, by name."""

    def add(self, interaction: Interaction, protocol: Protocol[Any]) -> None:
        """Takes up one interaction, held by a protocol."""
        self.num_interactions += 1
        for name, value in protocol.measure(interaction):
            self.measured[name].append(value)
        if protocol.ranked:
            self.measured[_AGREEMENT].extend(agreements(interaction))
        if interaction.failure is not None:
            self.num_failed += 1
            self.failures = sorted({*self.failures, interaction.failure})[:_NUM_EXAMPLES]
        topic = crc32(interaction.topic.encode())
        for turn in interaction.turns:
            if turn.text or turn.flags:
                self.flags[turn.flags] += 1
            self.recalls[turn.role].add(turn)
            if turn.about is not None:
                self.feedback.append(turn.rating)
            if turn.role == REFLECTION:
                self.kept.append(turn.data["kept"])
            if turn.role == SURVEY:
                self.opinions[turn.data["question"]].append(turn.data["opinion"])
            if turn.mass is not None:
                self.masses.append(turn.mass)
            for criterion, observation in turn.observed.items():
                by_agent = self.observed.setdefault((turn.role, criterion), {})
                by_agent[turn.agent] = (*by_agent.get(turn.agent, ()), observation.rating)
                if observation.mass is not None:
                    self.masses.append(observation.mass)
            if turn.observed.keys() - protocol.scored:  # what the protocol itself rates, such as a move, is no answer
                self.answers.append((crc32(turn.text.encode()), topic))

    def merge(self, other: "Round") -> None:
        """Takes up another part of the same round."""
        self.num_interactions += other.num_interactions
        self.num_failed += other.num_failed
        self.failures = sorted({*self.failures, *other.failures})[:_NUM_EXAMPLES]
        self.feedback.extend(other.feedback)
        self.answers.extend(other.answers)
        self.masses.extend(other.masses)
        self.flags.update(other.flags)
        for role, recalls in other.recalls.items():
            self.recalls[role].merge(recalls)
        self.kept.extend(other.kept)
        for name, opinions in other.opinions.items():
            self.opinions[name].extend(opinions)
        for name, values in other.measured.items():
            self.measured[name].extend(values)
        for series, ratings in other.observed.items():
            by_agent = self.observed.setdefault(series, {})
            for agent, given in ratings.items():  # one that was asked by several may have spoken in both parts
                by_agent[agent] = (*by_agent.get(agent, ()), *given)

    def ratings(self, role: str, criterion: str) -> list[float | None]:
        """The observers' ratings of a role's turns by a criterion."""
        return [rating for given in self.observed.get((role, criterion), {}).values() for rating in given]

    def by_agent(self, role: str, criterion: str) -> dict[int, float | None]:
        """The same for each agent, on average where it said several turns."""
        return {agent: mean(given) for agent, given in self.observed.get((role, criterion), {}).items()}

    def _surveyed(self, society: SocietySection) -> dict[str, float | None]:
        """What came of survey and reflection; None in a round without."""
        figures: dict[str, float | None] = {}
        for question in () if society.survey is None else society.survey.questions:
            there = Counter(value for value in self.opinions.get(question.name, ()) if value is not None)
            figures[f"sim/{SURVEY}_{question.name}_mean"] = mean(there.elements())
            figures[f"sim/{SURVEY}_{question.name}_sd"] = _standard_deviation(there) if there else None
        if society.reflection is not None:
            figures["sim/description_kept_share"] = mean(map(float, self.kept))
        return figures

    def metrics(self, protocol: Protocol[Any]) -> dict[str, Any]:
        """The round in figures; None where nothing was rated.

        The outcome's means are called by the criterion alone, other turns' by their role as well.
        """
        validity = Validity.of(protocol)
        validity.add(self)
        *others, outcome = protocol.observed
        recalls = next((self.recalls[role] for role in protocol.reminded[:1] if role in self.recalls), Recalls())
        means = {mean_rating(criterion): mean(self.ratings(outcome, criterion)) for criterion in protocol.criteria}
        for role in others:
            for criterion in protocol.criteria:
                means[mean_rating(criterion, role)] = mean(self.ratings(role, criterion))
        return {
            "sim/world": self.world,
            "sim/round": self.number,
            **means,
            **self._surveyed(protocol.society),
            **{f"sim/{name}": protocol.figure(name, self.measured.get(name, ())) for name in protocol.figures},
            **({f"sim/{_AGREEMENT}": mean(self.measured.get(_AGREEMENT, ()))} if protocol.ranked else {}),
            "sim/parse_rate": validity.rated_share,
            "sim/digit_mass_median": validity.digit_mass_median,
            "sim/flagged_share": validity.flagged_share,
            "sim/cut_share": validity.cut_share,
            "sim/failed": self.num_failed,
            "sim/recalled_initial_share": recalls.share("initial"),
            "sim/recalled_own_share": recalls.share("own"),
            **({} if protocol.society.stream is None else {"sim/recalled_heard_share": recalls.share("heard")}),
            "sim/recall_distance_mean": recalls.mean_distance,
        }


def curves(protocol: Protocol[Any]) -> dict[str, tuple[str, ...]]:
    """The metrics of a round that differ between protocols: those that are drawn together, by their title."""
    *others, _ = protocol.observed
    drawn = {}
    for criterion in protocol.society.observed_criteria:
        low, high = criterion.scale
        title = f"{criterion.name.replace('_', ' ').capitalize()}, {low} to {high}"
        drawn[title] = (*(mean_rating(criterion.name, role) for role in others), mean_rating(criterion.name))
    if protocol.ranked:
        drawn["Pairs of answers that observers rank alike in both orders"] = (f"sim/{_AGREEMENT}",)
    return drawn | {title[:1].upper() + title[1:]: (f"sim/{name}",) for name, title in protocol.figures.items()}


@dataclass
class Validity:
    """How much of what was asked for came back usable, over many rounds."""

    recalls: RecallRecord
    num_interactions: int = 0
    num_failed: int = 0
    num_ratings: int = 0
    num_missing_ratings: int = 0
    num_answers: int = 0
    num_repeated: int = 0
    num_empty: int = 0
    failures: tuple[str, ...] = ()
    masses: Counter[float] = field(default_factory=Counter)
    """How often the digits had which probability, to three places."""
    ratings: dict[str, Counter[float]] = field(default_factory=dict)
    """How often who rated by what gave which rating, to three places."""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    """Of the criteria that observers rate; all others rate from 1 to 7."""
    exact: frozenset[str] = frozenset()
    """The criteria that have a rule: that all rate alike says nothing against it."""
    num_texts: int = 0
    num_flagged: int = 0
    flags: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, protocol: Protocol[Any]) -> "Validity":
        """Of no round yet."""
        scales = {criterion.name: criterion.scale for criterion in protocol.society.observed_criteria}
        exact = frozenset({*protocol.scored, *(criterion.name for criterion in protocol.rules)})
        return cls(RecallRecord(protocol.reminded), scales=scales, exact=exact)

    def add(self, round_: Round) -> None:
        """Takes up a round that is complete."""
        self.num_interactions += round_.num_interactions
        self.num_failed += round_.num_failed
        self.failures = tuple(sorted({*self.failures, *round_.failures})[:_NUM_EXAMPLES])
        self._rated("feedback", round_.feedback)
        for opinions in round_.opinions.values():
            self._read(opinions)
        for role, criterion in round_.observed:
            self._rated(criterion, round_.ratings(role, criterion))
        self.masses.update(round(mass, 3) for mass in round_.masses)
        for flags, num in round_.flags.items():
            self.num_texts += num
            if not _HARMLESS.issuperset(flags):
                self.num_flagged += num
            for flag in flags:
                self.flags[flag] += num
        questions = defaultdict(set)
        for answer, question in round_.answers:
            questions[answer].add(question)
        self.num_answers += len(round_.answers)
        self.num_repeated += sum(len(questions[answer]) > 1 for answer, _ in round_.answers)
        self.num_empty += sum(answer == _EMPTY for answer, _ in round_.answers)
        self.recalls.add(round_.number, round_.recalls)

    def _read(self, ratings: Sequence[float | None]) -> None:
        self.num_ratings += len(ratings)
        self.num_missing_ratings += ratings.count(None)

    def _rated(self, series: str, ratings: Sequence[float | None]) -> None:
        self._read(ratings)
        given = self.ratings.setdefault(series, Counter())
        for rating, num in Counter(ratings).items():  # in words there are seven
            if rating is not None:
                given[round(rating, 3)] += num

    @property
    def digit_mass_median(self) -> float | None:
        """Median probability of the digits; None where nothing was rated by probabilities."""
        return median(sorted(self.masses.elements())) if self.masses else None

    @property
    def rating_sds(self) -> dict[str, float]:
        """Standard deviation of the audience's ratings (`feedback`) and of the observers' by each criterion."""
        return {name: _standard_deviation(given) for name, given in sorted(self.ratings.items()) if given}

    @property
    def flagged_share(self) -> float:
        """Share of texts with a flag that is not harmless."""
        return self.num_flagged / self.num_texts if self.num_texts else 0.0

    @property
    def cut_share(self) -> float:
        """Share of texts that ended at the limit of tokens."""
        return self.flags["cut"] / self.num_texts if self.num_texts else 0.0

    @property
    def rated_share(self) -> float:
        """Share of the ratings asked for that came back as numbers."""
        return 1 - self.num_missing_ratings / self.num_ratings if self.num_ratings else 0.0

    @property
    def failed_share(self) -> float:
        """Share of interactions that ended in a failure."""
        return self.num_failed / self.num_interactions

    @property
    def repeated_share(self) -> float:
        """Share of answers that were given to several questions."""
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
            "num_empty": self.num_empty,
            "digit_mass_median": self.digit_mass_median,
            "rating_sd": {name: round(sd, 6) for name, sd in self.rating_sds.items()},
            "num_texts": self.num_texts,
            "flagged_share": round(self.flagged_share, 6),
            "flags": {flag: self.flags[flag] for flag in FLAGS},
        }

    def check(self, gates: Gates, shard: int, facts: Mapping[str, Any]) -> None:
        """Says which gates are crossed.

        Args:
            gates: What a shard must reach.
            shard: Its number.
            facts: `num_calls`, `num_refused_calls`, what was `said_of_refusals` if known, `served`, the names under
                which each model's answers came, and `recall`, what agents were expected to recall of what they start
                with, empty where that is nothing.

        Raises:
            StageError: With the figures of every gate that is crossed.
        """
        num_calls, num_refused = facts["num_calls"], facts["num_refused_calls"]
        crossed = [
            f"answers of {model} came with several model names ({', '.join(names)}): the server must serve a single "
            "model (launch --drop-answers-of=NAME makes the calls again that one of them answered)"
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
        said = facts.get("said_of_refusals") if num_refused > gates.max_refused_call_share * num_calls else None
        if num_refused > gates.max_refused_call_share * num_calls:
            crossed.append(
                f"the engine refused {num_refused} of {num_calls} calls "
                f"(society.gates.max_refused_call_share = {gates.max_refused_call_share:.1%})"
                + (f", most often with: {said}" if said else "")
            )
        if self.repeated_share > gates.max_repeated_share:
            crossed.append(
                f"{self.repeated_share:.1%} of {self.num_answers} drafts and revisions repeat what was said to another "
                f"question in the same round (society.gates.max_repeated_share = {gates.max_repeated_share:.1%})"
                + (f"; {self.num_empty} of them are empty" if self.num_empty else "")
            )
        crossed += self._doubtful(gates)
        if facts["recall"].get("expected_initial_share"):
            crossed += self.recalls.crossed(gates)
        if crossed:
            remedy = "Look at its interactions, and use a stronger model, another society.rating, or other gates."
            if said:  # all else may follow from it
                remedy = "Change what the engine refuses: engine.dialect says what a server takes."
            raise StageError(f"shard {shard} does not count as done: {' and '.join(crossed)}. {remedy}")

    def _doubtful(self, gates: Gates) -> list[str]:
        """Gates on what ratings and texts are worth that are crossed."""
        crossed = []
        mass = self.digit_mass_median
        if mass is not None and mass < gates.min_digit_mass:
            crossed.append(
                f"the digits had {mass:.1%} of the probability in the median, so a rating mostly does not say what the "
                f"model meant (society.gates.min_digit_mass = {gates.min_digit_mass:.1%})"
            )
        for name, sd in self.rating_sds.items():
            given, (low, high) = self.ratings[name], self.scales.get(name, SCALE)
            needed = gates.min_rating_sd * (high - low) / (SCALE[1] - SCALE[0])
            if name not in self.exact and given.total() >= _MIN_RATINGS and sd < needed:
                scale = "" if (low, high) == SCALE else f", on a scale from 1 to 7; this one is from {low} to {high}"
                crossed.append(
                    f"the {given.total()} ratings of {name} are all about {given.most_common(1)[0][0]:g}, with a "
                    f"standard deviation of {sd:.3f}, and do not tell one text from another "
                    f"(society.gates.min_rating_sd = {gates.min_rating_sd:g}{scale})"
                )
        if self.flagged_share > gates.max_flagged_share:
            counts = ", ".join(f"{flag}: {n}" for flag, n in self.flags.most_common() if flag not in _HARMLESS)
            crossed.append(
                f"{self.num_flagged} of {self.num_texts} texts are flagged as doubtful ({counts}; "
                f"society.gates.max_flagged_share = {gates.max_flagged_share:.1%})"
            )
        if self.cut_share > gates.max_cut_share:
            crossed.append(
                f"max_tokens ended {self.flags['cut']} of {self.num_texts} texts: raise it in society.draft, feedback "
                f"and revision (society.gates.max_cut_share = {gates.max_cut_share:.1%})"
            )
        return crossed
