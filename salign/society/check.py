"""What can be checked about a society before it is simulated: is it what its config says?"""

import logging
from pathlib import Path

from salign.config import EdgesTopology, SocietySection, empty_parts
from salign.errors import ConfigError
from salign.society import sources
from salign.society.population import answers_by_label
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
        DataError: A file is missing or malformed, or has too little in it.
        ConfigError: A part of the mixture rounds to no agent, or agents would hardly recall their initial memories.
    """
    if len(society.populations) > society.num_worlds:
        logger.warning(
            "society.populations names %d, and society.num_worlds is %d: there is no world of %s",
            len(society.populations),
            society.num_worlds,
            ", ".join(society.populations[society.num_worlds :]),
        )
    questions = sources.questions(society.questions)
    prior = sources.load(society.prior) if society.num_initial_memories else []
    if prior:
        answers_by_label(society, prior, society.populations)
    if isinstance(society.topology, EdgesTopology):
        mistakes = empty_parts(society.mixture, make_topology(society.topology).num_agents)
        if mistakes:
            raise ConfigError(f"society.{'; '.join(mistakes)}")
    check_recall(society, seed, questions, prior)
    links = [society.topology.path] if isinstance(society.topology, EdgesTopology) else []
    return [*sources.files_of(society.questions), *sources.files_of(society.prior), *links]
