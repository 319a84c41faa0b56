"""Who lives in a world: each agent's label, the memory that it starts with, and its part of a mixed society."""

from array import array
from collections.abc import Iterable, Mapping, Sequence

from salign.config import LABELS, MixturePart, Population, SocietySection, empty_parts, part_sizes
from salign.errors import ConfigError, DataError
from salign.seeds import rng
from salign.society.memory import InternalMemory, QuestionTable
from salign.society.sources import Exemplar, Label
from salign.society.stream import Stream


def labels(population: Population, num_agents: int, *place: int | str) -> list[Label]:
    """The label of each agent, by its number.

    `half_half` makes the first half (the upper half of a grid) good and the other bad; `mixed_half_half` places as many
    of each at random. Of an odd number of agents, the odd one is good.
    """
    if population == "all_good":
        return ["good"] * num_agents
    if population == "all_bad":
        return ["bad"] * num_agents
    num_good = num_agents - num_agents // 2
    halves: list[Label] = ["good" if agent < num_good else "bad" for agent in range(num_agents)]
    if population == "mixed_half_half":
        rng(*place, "population").shuffle(halves)
    return halves


def answers_by_label(
    society: SocietySection,
    prior: Sequence[Exemplar],
    populations: Sequence[Population],
    profiled: Iterable[Label] = (),
) -> dict[Label, list[Exemplar]]:
    """The prior's answers of each label.

    Args:
        society: How many of them an agent is to start with.
        prior: Where they come from.
        populations: Which labels are needed.
        profiled: Those that profiles name.

    Raises:
        DataError: There are fewer of a label than an agent is to start with.
    """
    pools: dict[Label, list[Exemplar]] = {"good": [], "bad": []}
    for exemplar in prior:
        if exemplar.label is not None:
            pools[exemplar.label].append(exemplar)
    needed = [(f"the population {population}", LABELS[population]) for population in populations]
    for whose, labels in [*needed, ("society.profiles", tuple(profiled))]:
        for label in labels:
            if len(pools[label]) < society.num_initial_memories:
                raise DataError(
                    f"society.prior has {len(pools[label])} answers labelled {label!r}; agents of {whose} "
                    f"start with society.num_initial_memories = {society.num_initial_memories}. Lower "
                    "that, or choose another prior or population."
                )
    return pools


def initial_memories(
    society: SocietySection,
    prior: Sequence[Exemplar],
    table: QuestionTable,
    labelled: Iterable[tuple[int, Label]],
    *place: int | str,
) -> Mapping[int, InternalMemory | Stream]:
    """Each agent's memory at the start: answers of its own label, drawn from the prior without replacement.

    Args:
        society: How many they start with, and what they remember at all.
        prior: Where the answers come from; `answers_by_label` has found enough in it.
        table: The numbers of its questions.
        labelled: Agents with their labels.
        *place: What makes the draws these: run seed, world.
    """
    if "memory" in society.without:
        return {agent: InternalMemory({}) for agent, _ in labelled}
    pools: dict[Label, list[tuple[int, str]]] = {"good": [], "bad": []}
    for exemplar in prior:
        if exemplar.label is not None and exemplar.answer is not None:
            pools[exemplar.label].append((table.number[exemplar.question], exemplar.answer))
    num = society.num_initial_memories
    kind = InternalMemory if society.stream is None else Stream
    return {
        agent: kind(dict(rng(*place, agent, "memory").sample(pools[label], num)) if num else {})
        for agent, label in labelled
    }


def parts(mixture: Sequence[MixturePart], num_agents: int, *place: int | str) -> "array[int]":
    """Each agent's part of a mixed society: 0 for none, else the part's position counted from 1; drawn at random.

    Raises:
        ConfigError: A part's share rounds to no agent.
    """
    if not mixture:
        return array("i", bytes(4 * num_agents))
    if mistakes := empty_parts(mixture, num_agents):
        raise ConfigError(f"society.{'; '.join(mistakes)}")
    sizes = part_sizes(mixture, num_agents)
    everybody = [position for position, size in enumerate(sizes, start=1) for _ in range(size)]
    everybody += [0] * (num_agents - len(everybody))
    rng(*place, "mixture").shuffle(everybody)
    return array("i", everybody)
