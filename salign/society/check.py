"""What can be checked about a society before it is simulated: is it what its config says?"""

import logging
from pathlib import Path

from salign.config import EdgesTopology, RelayProtocol, SocietySection, empty_parts
from salign.errors import ConfigError
from salign.society import sources
from salign.society.casts import Casts
from salign.society.functions import check_functions
from salign.society.observer import files_of_pairs
from salign.society.population import answers_by_label
from salign.society.profiles import draw_profiles, files_of, load_profiles
from salign.society.recall import check_recall
from salign.society.topology import make_topology

logger = logging.getLogger(__name__)


def check_society(society: SocietySection, seed: int) -> list[Path]:
    """Reads its questions, prior and links, and looks at what would do nothing.

    Args:
        society: The run's.
        seed: The run's.

    Returns:
        The files that were read.

    Raises:
        DataError: A file is missing or malformed, or has too little in it, such as no labelled pair for a scorer.
        ConfigError: A part of the mixture rounds to no agent, agents would hardly recall their initial memories, or
            nobody has enough neighbours for the protocol; a function that rates is not allowed, or none.
    """
    if len(society.populations) > society.num_worlds:
        logger.warning(
            "society.populations names %d, and society.num_worlds is %d: there is no world of %s",
            len(society.populations),
            society.num_worlds,
            ", ".join(society.populations[society.num_worlds :]),
        )
    functions = check_functions(society.observed_criteria)
    labelled = [file for one in society.scored_criteria if one.scorer for file in files_of_pairs(one.scorer)]
    profiles = load_profiles(society)
    questions = sources.questions(society.questions)
    prior = sources.load(society.prior) if society.num_initial_memories else []
    if prior:
        answers_by_label(society, prior, society.populations, {one.label for one in profiles if one.label is not None})
    _check_casts(society, seed)
    if isinstance(society.protocol, RelayProtocol):
        make_topology(society.topology, seed, 0).layers  # noqa: B018 (a circle is said here)
    section = society.population_profiles
    if section is not None and section.placed:
        draw_profiles(section, len(profiles), make_topology(society.topology, seed, 0).num_agents)
    if isinstance(society.topology, EdgesTopology):
        mistakes = empty_parts(society.mixture, make_topology(society.topology).num_agents)
        if mistakes:
            raise ConfigError(f"society.{'; '.join(mistakes)}")
    _check_studies(society)
    check_recall(society, seed, questions, prior)
    links = [society.topology.path] if isinstance(society.topology, EdgesTopology) else []
    asked = [*sources.files_of(society.questions), *sources.files_of(society.prior), *files_of(society.profiles)]
    return [*asked, *links, *functions, *labelled]


def _check_casts(society: SocietySection, seed: int) -> None:
    """Whether agents can act together as the protocol asks for; says how many rest."""
    size = society.protocol.cast_size
    if size == 1:
        return
    topology = make_topology(society.topology, seed, 0)
    Casts(topology, size, seed, 0)
    if resting := topology.num_agents % size:
        logger.warning(
            "society.protocol is held by %d agents together: of %d agents, %d must rest in each round",
            size,
            topology.num_agents,
            resting,
        )


def _check_studies(society: SocietySection) -> None:
    """Looks at interventions where files say how many agents there are.

    Raises:
        DataError: A file of links is missing or malformed.
        ConfigError: An intervention is on nobody, or has links of another number of agents.
    """
    if not society.interventions:
        return
    num_agents = make_topology(society.topology).num_agents
    mistakes = society.mistakes_of_interventions(num_agents)
    for one in society.interventions:
        size = num_agents if one.links is None else make_topology(one.links).num_agents
        if size != num_agents:
            mistakes.append(f"the intervention {one.name} has links of {size} agents, and the society has {num_agents}")
    if mistakes:
        raise ConfigError(f"society: {'; '.join(dict.fromkeys(mistakes))}")
