"""Who holds an interaction together: a round parts the agents into casts, by seed and topology."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from salign.errors import ConfigError
from salign.seeds import rng
from salign.society.topology import Complete, Topology


@dataclass(frozen=True, slots=True)
class Parting:
    """The casts of one round: `casts`, each with its leader first, and of each agent its cast's place there or -1."""

    casts: Sequence[tuple[int, ...]]
    places: "array[int]"

    def cast(self, agent: int) -> tuple[int, ...]:
        """Those with whom an agent acts, itself included; nobody where it rests."""
        place = self.places[agent]
        return self.casts[place] if place >= 0 else ()


class Casts:
    """The casts of a world, round by round.

    Agents take their turn in an order drawn by seed. Each that is still free leads a cast with neighbours drawn from
    those that are free, and rests where there are too few. In a complete society nobody rests but the remainder, and of
    pairs on a grid hardly anybody.

    Args:
        topology: Who may act together.
        size: Agents in each cast; of 1, every agent acts alone.
        *place: What makes the draws these: run seed, world.

    Raises:
        ConfigError: No agent has enough neighbours for a cast.
    """

    def __init__(self, topology: Topology, size: int, *place: int | str) -> None:
        if size > 1 and not any(len(topology.neighbours(agent)) >= size - 1 for agent in range(topology.num_agents)):
            raise ConfigError(
                f"society.protocol is held by {size} agents together, one with {size - 1} of its neighbours, and in "
                "society.topology no agent has so many. Choose smaller casts, or a topology with more links."
            )
        self.size = size
        self._topology = topology
        self._place = place
        self._kept: dict[int, Parting] = {}

    def of_round(self, round_: int) -> Parting:
        """Who acts with whom in a round (counted from 1)."""
        kept = self._kept.get(round_)
        if kept is None:
            kept = self._kept[round_] = self._part(round_)
        return kept

    def forget(self, before: int) -> None:
        """Drops the rounds before one; who asks for such a round has it drawn again, the same."""
        for round_ in [kept for kept in self._kept if kept < before]:
            del self._kept[round_]

    def cast(self, agent: int, round_: int) -> tuple[int, ...]:
        """Those with whom an agent acts in a round, the leader first; nobody where it rests."""
        return (agent,) if self.size == 1 else self.of_round(round_).cast(agent)

    def _part(self, round_: int) -> Parting:
        generator = rng(*self._place, round_, "casts")
        order = list(range(self._topology.num_agents))
        generator.shuffle(order)
        if isinstance(self._topology, Complete):
            casts = [tuple(order[end - self.size : end]) for end in range(self.size, len(order) + 1, self.size)]
        else:
            casts = self._neighbours(order, generator)
        places = array("i", [-1]) * len(order)
        for place, cast in enumerate(casts):
            for agent in cast:
                places[agent] = place
        return Parting(casts, places)

    def _neighbours(self, order: Sequence[int], generator: Random) -> list[tuple[int, ...]]:
        cast_of: dict[int, tuple[int, ...]] = {}
        alone = []
        for agent in order:
            if agent in cast_of:
                continue
            free = [other for other in self._topology.neighbours(agent) if other not in cast_of]
            if len(free) < self.size - 1:
                alone.append(agent)
                continue
            cast = (agent, *generator.sample(free, self.size - 1))
            cast_of |= dict.fromkeys(cast, cast)
        if self.size == 2:
            for agent in alone:
                self._join(agent, cast_of)
        return [cast for agent, cast in cast_of.items() if agent == cast[0]]

    def _join(self, agent: int, cast_of: dict[int, tuple[int, ...]]) -> None:
        """Makes two pairs of one, with two agents that are alone: an augmenting path (Berge 1957) of three links."""
        if agent in cast_of:
            return
        for other in self._topology.neighbours(agent):
            pair = cast_of.get(other)
            if pair is None:
                continue
            left = pair[1] if pair[0] == other else pair[0]
            for free in self._topology.neighbours(left):
                if free != agent and free not in cast_of:
                    cast_of |= dict.fromkeys((agent, other), (agent, other)) | dict.fromkeys((left, free), (left, free))
                    return
