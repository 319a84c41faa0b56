"""What can be known of a society before it is simulated: is it what its config says?"""

from salign.config import EdgesTopology, SocietySection, empty_parts
from salign.errors import ConfigError
from salign.society import sources
from salign.society.population import answers_by_label
from salign.society.recall import check_recall
from salign.society.topology import make_topology


def check_society(society: SocietySection, seed: int) -> None:
    """Reads its questions, prior and links, and looks at what would do nothing.

    Args:
        society: The run's.
        seed: The run's.

    Raises:
        DataError: A file is missing or malformed, or has too little in it.
        ConfigError: A population has no world, a part of the mixture is nobody, or agents would hardly recall what
            they start with.
    """
    if len(society.populations) > society.num_worlds:
        raise ConfigError(
            f"society.populations names {len(society.populations)}, and society.num_worlds is {society.num_worlds}: "
            f"there would be no world of {', '.join(society.populations[society.num_worlds :])}. Raise num_worlds, or "
            "name fewer."
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
