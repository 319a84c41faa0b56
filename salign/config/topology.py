"""Who can hear whom."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from salign.config.base import AbsolutePath, Count, NotBool, Positive, Section, Share, at_most, kind_unless_said
from salign.config.effects import Effect

_AGENTS_COST = (
    "an agent takes 5 KiB of memory, so a world of 10,000,000 agents takes 50 GB beside all that is said in it"
)
Agents = Annotated[Count, at_most(10_000_000, _AGENTS_COST)]


class GridTopology(Section):
    """Agents on the cells of a square grid; neighbours are the cells within a radius."""

    kind: Literal["grid"] = "grid"
    size: Annotated[Count, at_most(3162, _AGENTS_COST)] = 10
    """Cells in each row, and rows."""
    radius: Positive = 2.0
    """Cells up to this distance are heard; 2 with `euclidean` means 12 neighbours."""
    metric: Literal["euclidean", "moore", "von_neumann"] = "euclidean"
    """Distance between two cells: straight line, king's moves (moore), or rook's steps (von_neumann)."""
    torus: bool = False
    """Whether opposite edges of the grid are joined."""


class CompleteTopology(Section):
    """Every agent hears every other."""

    kind: Literal["complete"]
    num_agents: Agents
    """Agents in each world."""


class SmallWorldTopology(Section):
    """Watts and Strogatz: a ring of neighbours, with a share of its links rewired at random."""

    kind: Literal["small_world"]
    num_agents: Agents
    """Agents in each world."""
    num_neighbours: Annotated[int, NotBool, Field(ge=2)] = 8
    """Links of each agent before rewiring."""
    rewired_share: Share = 0.1
    """Share of the links that is rewired."""


class ScaleFreeTopology(Section):
    """Barabasi and Albert: each new agent links to others in proportion to the links they have."""

    kind: Literal["scale_free"]
    num_agents: Agents
    """Agents in each world."""
    num_links: Count = 4
    """Links of each new agent."""


class EdgesTopology(Section):
    """Links from a file: two agent numbers per line, counted from 0."""

    kind: Literal["edges"]
    path: Annotated[AbsolutePath, Effect.INPUT]
    """The file."""
    directed: bool = False
    """Whether a line goes one way: the second agent hears the first, and not the other way round."""


class LayersTopology(Section):
    """Agents in layers, numbered one layer after the other; each hears all of the layer before its own."""

    kind: Literal["layers"]
    sizes: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Agents in each layer: `[1, 1, 1]` is a chain, `[1, 4, 1]` branches and joins, `[4, 4, 4]` is a mesh."""


class IsolatedTopology(Section):
    """Each agent is alone: the control that shows whether the society matters."""

    kind: Literal["isolated"]
    num_agents: Agents
    """Agents in each world."""


TopologySection = Annotated[
    GridTopology
    | CompleteTopology
    | SmallWorldTopology
    | ScaleFreeTopology
    | EdgesTopology
    | LayersTopology
    | IsolatedTopology,
    Field(discriminator="kind"),
    BeforeValidator(kind_unless_said("grid")),
]


def num_agents_of(topology: TopologySection) -> int | None:
    """How many agents a topology has; None where only its file says."""
    if isinstance(topology, GridTopology):
        return topology.size**2
    if isinstance(topology, LayersTopology):
        return sum(topology.sizes)
    return None if isinstance(topology, EdgesTopology) else topology.num_agents
