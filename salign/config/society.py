"""The simulated society."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from salign.config.aggregation import Aggregation
from salign.config.base import (
    Count,
    CountOrZero,
    Name,
    NotBool,
    Sampling,
    Section,
    Share,
    at_most,
    unless,
)
from salign.config.criteria import Criterion
from salign.config.effects import Effect
from salign.config.embedders import Embedder, HashingEmbedder
from salign.config.engines import EngineSection
from salign.config.gates import Gates, ObserverCheck, Stopping
from salign.config.memory import AnswersMemory, MemorySection, StreamMemory
from salign.config.profiles import PeopleProfiles, ProfilesSection
from salign.config.protocols import BackScatterProtocol, ProtocolSection
from salign.config.sources import EverydaySource, Source
from salign.config.studies import Branch, Intervention, Label, Reflection, Survey, mistakes_of_interventions
from salign.config.topology import (
    GridTopology,
    IsolatedTopology,
    ScaleFreeTopology,
    SmallWorldTopology,
    TopologySection,
    num_agents_of,
)

Population = Literal["all_good", "all_bad", "half_half", "mixed_half_half"]
Ablation = Literal["memory", "feedback_text", "audience"]

LABELS: dict[Population, tuple[Label, ...]] = {
    "all_good": ("good",),
    "all_bad": ("bad",),
    "half_half": ("bad", "good"),
    "mixed_half_half": ("bad", "good"),
}
"""Which labels the agents of a population have."""


class MixturePart(Section):
    """A share of the agents, drawn at random, that speaks through another engine or under other instructions.

    A share that rounds to no agent is refused; 0 is allowed.
    """

    name: Name
    """Appears in the record of each interaction of these agents."""
    share: Share
    """Share of all agents."""
    engine: EngineSection | None = None
    """None: the run's engine."""
    instructions: str | None = None
    """System text of each call of these agents."""


class SocietySection(Section):
    num_worlds: Annotated[Count, Effect.EXTENT] = 1
    """Independent societies."""
    num_shards: Annotated[
        Count, at_most(100_000, "each shard is a process, a folder and a task of a scheduler"), Effect.EXTENT
    ] = 1
    """Parts of the run that are simulated independently, each of one or more whole worlds."""
    topology: TopologySection = GridTopology()
    """Who can hear whom."""
    protocol: ProtocolSection = BackScatterProtocol()
    """How agents interact."""
    aggregation: Aggregation = Aggregation()
    """How the opinions of several become one."""
    max_rounds: Annotated[Count, Effect.EXTENT] = 50
    """In each round, every agent has one interaction."""
    audience_size: CountOrZero = 4
    """Members who are asked for feedback, at most."""
    global_share: Share = 0.0
    """Share of the audience that is drawn from the whole society: of every audience where that is a whole number of
    members, otherwise on average, with one member more or fewer by chance."""
    populations: tuple[Population, ...] = ("mixed_half_half",)
    """World w starts with `populations[w % len(populations)]`."""
    profiles: ProfilesSection | None = None
    """Who the agents are, in the system text of each of their calls. None: nobody in particular; where the protocol
    needs goals, the embedded people."""
    mixture: tuple[MixturePart, ...] = ()
    """Parts of the society that speak through other engines, or under other instructions."""
    observer: EngineSection | None = None
    """What rates drafts and revisions for the record; None: the run's engine."""
    criteria: tuple[Criterion, ...] | None = None
    """What observers rate; None: what the protocol asks for, which is `[{name: alignment}, {name: engagement}]` unless
    docs/protocols.md says otherwise. The first is the one that figures compare."""
    observer_check: Annotated[ObserverCheck | None, Effect.EXTENT] = ObserverCheck()
    """How the observer is tested before the run relies on it; None: not at all."""
    survey: Survey | None = None
    """Questions that agents answer from time to time, beside what they do; None: none."""
    reflection: Reflection | None = None
    """How often agents describe themselves anew; None: never."""
    interventions: tuple[Intervention, ...] = ()
    """What is changed for some agents from a round on."""
    branch: Branch | None = None
    """Begins with the rounds of another run; None: at the beginning."""
    questions: Source = EverydaySource()
    """What is asked."""
    prior: Source = EverydaySource()
    """What agents start with: questions with good and bad answers."""
    memory: MemorySection = AnswersMemory()
    """What agents remember, and what of it comes to their minds."""
    num_initial_memories: CountOrZero = 50
    """Memories of each agent at the start, drawn from `prior` by the agent's label."""
    embedder: Embedder = HashingEmbedder()
    """How two questions are compared."""
    recall_share: Share = 0.9
    """A remembered question is recalled if it is as near as the nearest memory of a starting agent is for this share of
    the questions asked. A memory that has nothing in common with the question is never recalled."""
    max_recall_distance: Annotated[float, NotBool, Field(ge=0, le=2)] | None = None
    """Cosine distance below which a remembered question is recalled, whatever the embedder; if given,
    `recall_share` has no effect."""
    rating: Literal["logprob", "parse"] = "logprob"
    """`logprob`: the mean of the digits under their probabilities, one token per rating; `parse`: read from text,
    with a
    reason."""
    num_rating_retries: CountOrZero = 2
    """How often an unreadable rating in words is requested again. A rating from the digits' probabilities, or in
    words at temperature 0, would come out the same."""
    wording: Literal["shared_first", "reference"] = "shared_first"
    """The order of a prompt's parts: shared parts first, for an engine's prefix cache; or that of the released code."""
    draft: Sampling = Sampling()
    """How a draft is sampled, and an answer of the protocol `sample`."""
    feedback: Sampling = Sampling()
    """How feedback is sampled, and the observers' ratings where they rate in words."""
    revision: Sampling = Sampling()
    """How a revision is sampled."""
    without: tuple[Ablation, ...] = ()
    """Ablations: no memory; feedback is a rating without words; no audience."""
    stopping: Annotated[Stopping | None, Effect.EXTENT] = Stopping()
    """When a world ends before `max_rounds`; None: never."""
    schedule: Annotated[Literal["dependency", "lockstep"], Effect.FREE] = "dependency"
    """Both give the same result; `lockstep` waits for the whole world after each round."""
    max_alive: Annotated[Count, Effect.FREE] = 1024
    """Most interactions in progress in one process."""
    gates: Annotated[Gates, Effect.EXTENT] = Gates()
    """What a shard must meet to count as done."""

    @property
    def population_profiles(self) -> ProfilesSection | None:
        """Where the agents' profiles come from, if they have any."""
        return PeopleProfiles() if self.profiles is None and self.protocol.needs_goals else self.profiles

    @property
    def has_audience(self) -> bool:
        """Whether anybody is asked what they think of another's answer."""
        return self.protocol.asks_audience and self.topology.kind != "isolated" and "audience" not in self.without

    @property
    def observed_criteria(self) -> tuple[Criterion, ...]:
        """What observers rate."""
        return self.protocol.criteria if self.criteria is None else self.criteria

    @property
    def stream(self) -> StreamMemory | None:
        """How agents remember what they lived through; None where they remember their answers alone, or nothing."""
        return self.memory if isinstance(self.memory, StreamMemory) and "memory" not in self.without else None

    def criterion(self, name: str) -> Criterion:
        """The criterion of that name, which observers rate."""
        return next(criterion for criterion in self.observed_criteria if criterion.name == name)

    @property
    def scored_criteria(self) -> tuple[Criterion, ...]:
        """Those by which a scorer rates."""
        return tuple(criterion for criterion in self.observed_criteria if criterion.scorer is not None)

    @property
    def stopping_criteria(self) -> tuple[Criterion, ...]:
        """The criteria whose product must rise for a world to continue."""
        named = None if self.stopping is None else self.stopping.criteria
        return self.observed_criteria if named is None else tuple(map(self.criterion, named))

    @property
    def observers_rate(self) -> Literal["logprob", "parse", "both"]:
        """How observers' ratings are read: a scale without single digits has none whose probability could be."""
        asked = [criterion for criterion in self.observed_criteria if criterion.wording]
        in_words = {self.rating == "parse" or not (criterion.ranked or criterion.has_digits) for criterion in asked}
        if self.observer_check is not None:  # by alignment
            in_words.add(self.rating == "parse")
        return "both" if len(in_words) > 1 else "parse" if True in in_words else "logprob"

    def num_rating_tries(self, *, in_words: bool) -> int:
        """How often a rating is asked for at most: again only where the same prompt may have another answer."""
        return 1 + self.num_rating_retries if in_words and self.feedback.temperature > 0 else 1

    @model_validator(mode="after")
    def _possible(self) -> "SocietySection":
        mistakes = []
        topology = self.topology
        num_agents = num_agents_of(topology)
        if num_agents is not None and self.has_audience and self.audience_size > num_agents - 1:
            mistakes.append(
                f"audience_size {self.audience_size} is larger than the rest of the society: a topology of "
                f"{num_agents} agents leaves {num_agents - 1} others"
            )
        mistakes += _cast_mistakes(self)
        most = self.protocol.max_audience
        if most is not None and self.has_audience and self.audience_size > most:
            mistakes.append(
                f"audience_size {self.audience_size} is too large for the protocol {self.protocol.kind}: at most {most}"
            )
        if isinstance(topology, GridTopology) and topology.radius < 1 and self.audience_size and not self.global_share:
            mistakes.append(
                f"topology.radius {topology.radius:g} leaves every agent without an audience: cells are 1 apart; "
                "raise it, or "
                "global_share"
            )
        if isinstance(topology, SmallWorldTopology) and topology.num_neighbours >= topology.num_agents:
            mistakes.append(
                f"topology.num_neighbours {topology.num_neighbours} must be less than topology.num_agents "
                f"{topology.num_agents}"
            )
        if isinstance(topology, ScaleFreeTopology) and topology.num_links >= topology.num_agents:
            mistakes.append(
                f"topology.num_links {topology.num_links} must be less than topology.num_agents {topology.num_agents}"
            )
        if self.protocol.needs_sampling and self.draft.temperature == 0:
            kind = self.protocol.kind
            mistakes.append(f"draft.temperature 0 would give the protocol {kind} the same answer each time; raise it")
        if self.num_shards > self.num_worlds:
            mistakes.append(
                f"num_shards {self.num_shards} exceeds num_worlds {self.num_worlds}: a shard has at least one world"
            )
        if self.branch is not None and self.branch.after_round >= self.max_rounds:
            mistakes.append(
                f"branch.after_round {self.branch.after_round} leaves no round to simulate: max_rounds is "
                f"{self.max_rounds}"
            )
        mistakes += self._mistakes_of_criteria()
        mistakes += self.mistakes_of_interventions(num_agents)
        if not self.populations:
            mistakes.append("populations is empty: name at least one, such as mixed_half_half")
        names = [part.name for part in self.mixture]
        if len(set(names)) < len(names):
            mistakes.append(f"two parts of the mixture have the same name: {', '.join(names)}")
        if sum(part.share for part in self.mixture) > 1 + 1e-9:
            mistakes.append("the shares of the mixture sum to more than 1")
        elif num_agents is not None:
            mistakes += empty_parts(self.mixture, num_agents)
        return unless(self, mistakes)

    def mistakes_of_interventions(self, num_agents: int | None) -> list[str]:
        """What is wrong with the interventions; None: how many agents there are is not known."""
        labels = {label for population in self.populations for label in LABELS[population]}
        if self.population_profiles is not None:  # which may have others
            labels |= {"good", "bad"}
        return mistakes_of_interventions(
            self.interventions,
            max_rounds=self.max_rounds,
            num_agents=num_agents,
            parts=[part.name for part in self.mixture],
            labels=labels,
            has_memory="memory" not in self.without,
        )

    def _mistakes_of_criteria(self) -> list[str]:
        names = [criterion.name for criterion in self.observed_criteria]
        if not names:
            return ["criteria is empty: name at least one, such as alignment"]
        mistakes = [f"criteria names {name} twice" for name, num in Counter(names).items() if num > 1]
        ranked = [criterion.name for criterion in self.observed_criteria if criterion.ranked]
        if ranked and not 2 <= self.protocol.num_beside <= 9:
            mistakes.append(
                f"criteria: {', '.join(ranked)} is ranked, and an interaction of the protocol {self.protocol.kind} has "
                f"{self.protocol.num_beside} answers beside each other: a ranking is of 2 to 9. Take the "
                "protocol sample or back_scatter, or leave ranked out"
            )
        if self.stopping is not None and self.stopping.criteria is not None:
            needed = self.stopping.criteria
            if not needed:
                mistakes.append("stopping.criteria is empty: name at least one, or set it to null for all")
            missing = [name for name in needed if name not in names]
            if missing:
                mistakes.append(
                    f"stopping.criteria needs {', '.join(missing)}, and observers rate {', '.join(names)} (criteria)"
                )
            mistakes += [f"stopping.criteria names {name} twice" for name, num in Counter(needed).items() if num > 1]
        return mistakes


def _cast_mistakes(society: SocietySection) -> list[str]:
    """Whether enough agents can come together, as far as the config says."""
    size, topology = society.protocol.cast_size, society.topology
    num_agents = num_agents_of(topology)
    held = f"the protocol {society.protocol.kind} is held by {size} agents together"
    if size == 1:
        return []
    if isinstance(topology, IsolatedTopology):
        return [f"{held}, and in the topology isolated nobody has anybody; choose another, such as grid or complete"]
    if num_agents is not None and size > num_agents:
        return [f"{held}, and the topology has {num_agents}"]
    if isinstance(topology, GridTopology) and topology.radius < 1:
        return [f"{held}, and topology.radius {topology.radius:g} leaves each alone: cells are 1 apart; raise it"]
    return []


def part_sizes(mixture: Sequence[MixturePart], num_agents: int) -> list[int]:
    """How many agents each part of a mixed society has, by the largest remainder (Hamilton's method).

    Those of no part have a share too: what the parts leave of 1.
    """
    shares = [part.share for part in mixture]
    quotas = [round(share * num_agents, 9) for share in (*shares, max(0.0, 1 - sum(shares)))]
    sizes = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda position: sizes[position] - quotas[position])
    for position in by_remainder[: max(0, num_agents - sum(sizes))]:
        sizes[position] += 1
    return sizes[:-1]


def empty_parts(mixture: Sequence[MixturePart], num_agents: int) -> list[str]:
    """An error message for each part whose share rounds to no agent."""
    return [
        f"mixture: the share {part.share:g} of {part.name} rounds to no agent of {num_agents}; raise it to "
        f"{1 / num_agents:.3g} or more, or take a larger society"
        for part, size in zip(mixture, part_sizes(mixture, num_agents), strict=True)
        if part.share and not size
    ]
