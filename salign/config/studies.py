"""What a study does with a society that runs: it asks agents for their opinions, and it intervenes."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from salign.config.base import AbsolutePath, Count, CountOrZero, Name, NotBool, Section, unless
from salign.config.criteria import Criterion
from salign.config.effects import Effect
from salign.config.topology import TopologySection, num_agents_of

Label = Literal["good", "bad"]


class Survey(Section):
    """Questions that agents answer with a number, out of what they remember; nothing of them changes by it."""

    questions: Annotated[tuple[Criterion, ...], Field(min_length=1)]
    """Each with a name, a scale and a wording that says what both ends of the scale mean."""
    every: Count = 1
    """After each so many rounds they are asked."""
    share: Annotated[float, NotBool, Field(gt=0, le=1)] = 1.0
    """Share of the agents that is asked: a panel, drawn at random for each world and the same each time."""

    @model_validator(mode="after")
    def _possible(self) -> "Survey":
        names = Counter(question.name for question in self.questions)
        mistakes = [f"two questions are called {name}" for name, num in names.items() if num > 1]
        mistakes += [
            f"the question {question.name} is asked by its wording alone: it has no rule or scorer, and is not ranked"
            for question in self.questions
            if not question.wording or question.ranked
        ]
        return unless(self, mistakes)

    def num_asked(self, num_agents: int) -> int:
        """How many agents of a world are asked."""
        return max(1, round(self.share * num_agents))


class Reflection(Section):
    """From time to time each agent describes itself anew, and goes by that if it is rated higher than before."""

    every: Count = 5
    """In each so many rounds, before its interaction; it counts from the next round on."""


class Branch(Section):
    """Another run's first rounds, after which this one goes on by itself.

    They are that run's, to the byte, and cost nothing: its config holds for them, and its journal answers their calls.
    """

    run: Annotated[AbsolutePath, Effect.INPUT]
    """Its folder, which is only read."""
    after_round: Count
    """The last of them."""


class Broadcast(Section):
    """Something that agents have heard, as an answer to a question; they recall it where a question is near to that."""

    question: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]


class Intervention(Section):
    """What is changed for some agents from a round on. Of several that change the same, the last one counts."""

    name: Name
    from_round: Count
    """The first round in which it holds."""
    agents: tuple[CountOrZero, ...] = ()
    """Numbers of the agents, counted from 0. Without them, and without share or label: all agents."""
    label: Label | None = None
    """The agents that began as good, or as bad."""
    share: Annotated[float, NotBool, Field(gt=0, le=1)] | None = None
    """Share of these, or of all, drawn at random."""
    instructions: str | None = None
    """Their system text from then on."""
    part: Name | None = None
    """The part of the mixture through whose engine, and under whose instructions, they speak from then on. A part with
    share 0 has nobody before."""
    links: TopologySection | None = None
    """Whom they hear from then on, of as many agents as the society has."""
    broadcast: Broadcast | None = None
    """What they remember from then on, beside their own answers."""

    @model_validator(mode="after")
    def _possible(self) -> "Intervention":
        mistakes = []
        if not any((self.instructions, self.part, self.links, self.broadcast)):
            mistakes.append(f"{self.name} changes nothing: give it instructions, part, links or broadcast")
        if self.agents and (self.label is not None or self.share is not None):
            mistakes.append(f"{self.name} names agents by number and by label or share: give one of them")
        if len(set(self.agents)) < len(self.agents):
            mistakes.append(f"{self.name} names an agent twice")
        return unless(self, mistakes)


def mistakes_of_interventions(
    interventions: Sequence[Intervention],
    *,
    max_rounds: int,
    num_agents: int | None,
    parts: Collection[str],
    labels: Collection[str],
    has_memory: bool,
) -> list[str]:
    """What is wrong with interventions in a society, as far as the config says it.

    Args:
        interventions: In order.
        max_rounds: The last round that there may be.
        num_agents: Of each world; None where only a file says.
        parts: Names of the mixture's.
        labels: Those that agents of some population have.
        has_memory: Whether agents remember anything.
    """
    names = Counter(one.name for one in interventions)
    mistakes = [f"two interventions are called {name}" for name, num in names.items() if num > 1]
    for one in interventions:
        called = f"the intervention {one.name}"
        if one.from_round > max_rounds:
            mistakes.append(f"{called} begins in round {one.from_round}, and max_rounds is {max_rounds}")
        if one.part is not None and one.part not in parts:
            known = ", ".join(parts) or "none"
            mistakes.append(f"{called} names the part {one.part}, and the mixture has: {known}")
        if one.label is not None and one.label not in labels:
            mistakes.append(f"{called} is on nobody: no population has agents labelled {one.label}")
        if one.broadcast is not None and not has_memory:
            mistakes.append(f"{called} broadcasts to agents without memory")
        if num_agents is not None:
            beyond = [agent for agent in one.agents if agent >= num_agents]
            if beyond:
                mistakes.append(f"{called} names agent {beyond[0]}, and agents are numbered from 0 to {num_agents - 1}")
            if one.share is not None and round(one.share * num_agents) == 0:
                mistakes.append(f"{called} is on nobody: its share {one.share:g} of {num_agents} agents rounds to none")
        size = None if one.links is None else num_agents_of(one.links)
        if size is not None and num_agents is not None and size != num_agents:
            mistakes.append(f"{called} has links of {size} agents, and the society has {num_agents}")
    return mistakes
