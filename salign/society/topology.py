"""Who can hear whom, who judges a draft, and which process owns which agent."""

import functools
import graphlib
import itertools
import logging
import math
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from salign.config import (
    CompleteTopology,
    EdgesTopology,
    GridTopology,
    IsolatedTopology,
    LayersTopology,
    ScaleFreeTopology,
    SmallWorldTopology,
    SocietySection,
    TopologySection,
)
from salign.errors import ConfigError, DataError
from salign.files import read_text
from salign.seeds import derive, rng
from salign.storage import write_atomic

if TYPE_CHECKING:
    import networkx as nx

logger = logging.getLogger(__name__)


class Topology(ABC):
    """The links of a society. Agents are numbered from 0; a link goes both ways, unless the topology has layers."""

    def __init__(self, num_agents: int) -> None:
        self.num_agents = num_agents

    @abstractmethod
    def neighbours(self, agent: int) -> Sequence[int]:
        """Whom an agent can hear: the others that it is linked with, ordered by number."""

    def owners(self, num_ranks: int) -> NDArray[np.int32]:
        """The rank that owns each agent, by number: what a rank owns is as good as equal in size.

        Who owns whom changes no result, only how much ranks must tell each other. With as many agents as ranks or
        more, every rank owns one. One rank asks and tells the others: only one installation surely gives one answer.
        """
        return (np.arange(self.num_agents, dtype=np.int64) * num_ranks // self.num_agents).astype(np.int32)

    @property
    def layers(self) -> "Layers":
        """Who comes behind whom, where links go one way.

        Raises:
            ConfigError: They go both ways, or in a circle.
        """
        raise ConfigError(
            "society.protocol passes on what agents make, so the links of society.topology must go one way: choose "
            "kind: layers, or kind: edges with directed: true and no circle"
        )


class Grid(Topology):
    """Agents on the cells of a square, row by row; neighbours are the cells within a radius.

    Nothing is stored for a cell. Whatever the metric, what lies within the radius is one stretch in each row, widest in
    the agent's own, so it is enough to know how far the stretch reaches to either side. Blocks of owners are bands of
    rows.
    """

    def __init__(self, section: GridTopology) -> None:
        super().__init__(section.size**2)
        self._size = section.size
        self._torus = section.torus
        radius = min(section.radius, 2.0 * section.size)  # by any metric, no two cells are farther apart
        reach = min(int(radius), section.size - 1)
        steps = range(-reach, reach + 1)
        if section.torus:
            # Each row once, by the shorter way round; of the longer one less lies within the radius.
            steps = range(max(-reach, -((section.size - 1) // 2)), min(reach, section.size // 2) + 1)
        self._widths = [(step, _width(section.metric, radius, abs(step))) for step in steps]

    def neighbours(self, agent: int) -> list[int]:
        size = self._size
        row, column = divmod(agent, size)
        found: list[int] = []
        if self._torus:
            rows = [((row + step) % size * size, width) for step, width in self._widths]
            rows.sort()
        else:
            rows = [((row + step) * size, width) for step, width in self._widths if 0 <= row + step < size]
        for start, width in rows:
            left, right = column - width, column + width + 1
            if left >= 0 and right <= size:
                found.extend(range(start + left, start + right))
            elif not self._torus:
                found.extend(range(start + max(left, 0), start + min(right, size)))
            elif right - left >= size:
                found.extend(range(start, start + size))
            elif left < 0:
                found.extend(range(start, start + right))
                found.extend(range(start + left + size, start + size))
            else:
                found.extend(range(start, start + right - size))
                found.extend(range(start + left, start + size))
        found.remove(agent)
        return found


def _width(metric: str, radius: float, step: int) -> int:
    """How many cells to either side are within the radius, that many rows away."""
    if metric == "euclidean":
        return math.isqrt(int(radius**2) - step**2)  # exact: the squares of whole numbers are whole
    return int(radius) - step if metric == "von_neumann" else int(radius)


class _AllBut(Sequence[int]):
    """All agents but one, without a list of them."""

    def __init__(self, num_agents: int, agent: int) -> None:
        self._others = range(num_agents - 1)
        self._agent = agent

    def __len__(self) -> int:
        return len(self._others)

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[one] for one in self._others[index]]
        other = self._others[index]
        return other + (other >= self._agent)


class Complete(Topology):
    """Every agent hears every other."""

    def neighbours(self, agent: int) -> Sequence[int]:
        return _AllBut(self.num_agents, agent)


class Isolated(Topology):
    """Nobody hears anybody."""

    def neighbours(self, agent: int) -> Sequence[int]:
        return ()


class Links(Topology):
    """Any links: for each agent in turn its neighbours, all in one array."""

    def __init__(self, num_agents: int, pairs: NDArray[np.int64]) -> None:
        """Takes each link once or several times, in either direction: [links, 2]."""
        super().__init__(num_agents)
        one, other = pairs.T
        codes = np.sort(np.concatenate([one * num_agents + other, other * num_agents + one]))
        codes = codes[np.diff(codes, prepend=-1) > 0]  # np.unique takes 60 times as long
        self._starts = np.searchsorted(codes, np.arange(num_agents + 1, dtype=np.int64) * num_agents)
        self._others = (codes % num_agents).astype(np.int32)

    def pairs(self) -> NDArray[np.int64]:
        """Each link once, the smaller number first, in order: [links, 2]."""
        one = np.repeat(np.arange(self.num_agents, dtype=np.int64), np.diff(self._starts))
        once = one < self._others
        return np.stack([one[once], self._others[once].astype(np.int64)], axis=1)

    def neighbours(self, agent: int) -> list[int]:
        found: list[int] = self._others[self._starts[agent] : self._starts[agent + 1]].tolist()
        return found

    def owners(self, num_ranks: int) -> NDArray[np.int32]:
        """By METIS, so that few links lie between ranks; blocks where it is not installed or leaves a rank empty."""
        if not 1 < num_ranks <= self.num_agents:
            return super().owners(num_ranks)
        try:
            import pymetis
        except ImportError:
            logger.info("pymetis is not installed: agents are assigned to ranks by number, which may cost messages")
            return super().owners(num_ranks)
        graph = pymetis.CSRAdjacency(adj_starts=self._starts.astype(np.int32), adjacent=self._others)
        parts = pymetis.part_graph(num_ranks, graph, options=pymetis.Options(seed=0)).vertex_part
        owners = np.asarray(parts, dtype=np.int32)
        return owners if len(np.unique(owners)) == num_ranks else super().owners(num_ranks)


class Directed(Topology):
    """Links that go one way: each agent hears those whose links lead to it."""

    def __init__(self, num_agents: int, pairs: Iterable[tuple[int, int]]) -> None:
        """Takes each link once or several times: who is heard, and by whom."""
        super().__init__(num_agents)
        before: list[set[int]] = [set() for _ in range(num_agents)]
        for one, other in pairs:
            before[other].add(one)
        self._before = [sorted(heard) for heard in before]

    def neighbours(self, agent: int) -> list[int]:
        return self._before[agent]

    @functools.cached_property
    def layers(self) -> "Layers":
        return Layers(self._before)


class Layers:
    """The agents of a directed acyclic graph by how many stand in a row before them, at most.

    Args:
        before: Whom each agent hears.

    Raises:
        ConfigError: There is a circle.
    """

    def __init__(self, before: Sequence[Sequence[int]]) -> None:
        try:
            order = list(graphlib.TopologicalSorter(dict(enumerate(before))).static_order())
        except graphlib.CycleError as error:
            circle = " hears ".join(map(str, reversed(error.args[1])))
            raise ConfigError(
                f"society.topology has a circle (agent {circle}), and society.protocol passes on what agents make "
                "along links that must lead to an end: remove one of them"
            ) from None
        self._layers = [0] * len(before)
        for agent in order:
            self._layers[agent] = 1 + max((self._layers[heard] for heard in before[agent]), default=-1)
        self._heard = frozenset(heard for agents in before for heard in agents)
        self.num = 1 + max(self._layers)

    def of(self, agent: int) -> int:
        """An agent's layer; 0 for one that hears nobody."""
        return self._layers[agent]

    def is_last(self, agent: int) -> bool:
        """Whether nobody hears an agent."""
        return agent not in self._heard


def _in_layers(section: LayersTopology) -> Directed:
    starts = list(itertools.accumulate(section.sizes, initial=0))
    layers = [range(start, end) for start, end in itertools.pairwise(starts)]
    pairs = (pair for both in itertools.pairwise(layers) for pair in itertools.product(*both))
    return Directed(starts[-1], pairs)


def make_topology(section: TopologySection, *place: int | str) -> Topology:
    """A society's links.

    Args:
        section: Which kind, and how large.
        *place: What makes a random one this one: run seed, world.

    Raises:
        DataError: The file of links is missing or malformed.
    """
    return TOPOLOGIES[type(section)](section, derive(*place, "topology"))


def _small_world(section: SmallWorldTopology, seed: int) -> Links:
    import networkx as nx

    return _links(nx.watts_strogatz_graph(section.num_agents, section.num_neighbours, section.rewired_share, seed=seed))


def _scale_free(section: ScaleFreeTopology, seed: int) -> Links:
    import networkx as nx

    return _links(nx.barabasi_albert_graph(section.num_agents, section.num_links, seed=seed))


def _links(graph: "nx.Graph[int]") -> Links:
    numbers = np.fromiter(itertools.chain.from_iterable(graph.edges()), dtype=np.int64)
    return Links(graph.number_of_nodes(), numbers.reshape(-1, 2))


def write_links(links: Links, path: Path, about: str) -> None:
    """Writes links as `EdgesTopology` reads them: two agents' numbers a line, after a line that says what they are."""
    lines = ["%d %d\n" % (one, other) for one, other in links.pairs().tolist()]  # noqa: UP031 (half the time)
    write_atomic(path, f"# {about}\n{''.join(lines)}")


# Nine digits: what is longer is no agent's number, and its society would fit into no memory.
_LINE = re.compile(r"\s*(?:(\d{1,9})(?:\s*,\s*|\s+)(\d{1,9})\s*)?(?:#.*)?", re.ASCII)


def _from_file(section: EdgesTopology) -> Topology:
    path, numbers = section.path, array("q")
    for place, line in enumerate(read_text(path).split("\n"), start=1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise DataError(
                f"{path}, line {place}: {line.strip()[:80]!r} is not an edge. A line holds two agent numbers, from "
                "0 to 999999999, separated by a space, tab or comma; anything after a # is ignored."
            )
        if found[1] is None:
            continue
        one, other = int(found[1]), int(found[2])
        if one == other:
            raise DataError(f"{path}, line {place}: agent {one} is connected to itself; remove the line.")
        numbers.append(one)
        numbers.append(other)
    if not numbers:
        raise DataError(f"{path} contains no edge. Write two agent numbers per line.")
    pairs = np.asarray(numbers, dtype=np.int64).reshape(-1, 2)
    if section.directed:
        return Directed(int(pairs.max()) + 1, ((one, other) for one, other in pairs.tolist()))
    return Links(int(pairs.max()) + 1, pairs)


TOPOLOGIES: dict[type, Callable[[Any, int], Topology]] = {
    GridTopology: lambda section, _: Grid(section),
    CompleteTopology: lambda section, _: Complete(section.num_agents),
    IsolatedTopology: lambda section, _: Isolated(section.num_agents),
    LayersTopology: lambda section, _: _in_layers(section),
    EdgesTopology: lambda section, _: _from_file(section),
    SmallWorldTopology: _small_world,
    ScaleFreeTopology: _scale_free,
}
"""What makes the links, out of its section and a seed."""


def draw_audience(society: SocietySection, topology: Topology, agent: int, *place: int | str) -> tuple[int, ...]:
    """The audience of one interaction, ordered by number: drawn without replacement from what there is.

    A share of it, `global_share`, comes from the whole society, the rest from the neighbourhood; where the
    neighbourhood has too few, the audience is smaller. Where nobody has one, it is empty. A share that is no whole
    number of members is kept on average.

    Args:
        society: Audience size, global share and ablations.
        topology: Who can hear whom.
        agent: Who asks.
        *place: What makes the draw this one: run seed, world, round, agent.
    """
    if not society.audience_size or not society.has_audience or isinstance(topology, Isolated):
        return ()
    generator = rng(*place, "audience")
    near = topology.neighbours(agent)
    # What is left of a whole number decides by chance, so that the share is kept on average; 0.4 is not nobody.
    num_global, rest = divmod(round(society.audience_size * society.global_share, 9), 1)
    num_global = int(num_global) + (rest > 0 and generator.random() < rest)
    drawn = generator.sample(near, min(society.audience_size - num_global, len(near)))
    if num_global:
        # As if from a list of all that are left, without the list: a place in it is a number once those left out
        # before it are counted in.
        left_out = sorted([agent, *drawn])
        num_left = topology.num_agents - len(left_out)
        for other in generator.sample(range(num_left), min(num_global, num_left)):
            member = other
            for number in left_out:
                member += member >= number
            drawn.append(member)
    return tuple(sorted(drawn))
