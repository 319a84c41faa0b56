"""Chain of Hindsight: a group as one text, in which each response follows a phrase that rates it.

The words are all here. HINDSIGHT_VERSION changes with any of them.
"""

from msgspec.structs import replace

from salign.records import AlignmentGroup
from salign.seeds import rng

HINDSIGHT_VERSION = "1"

# Without the space that follows: a tokenizer joins it to the answer's first word. A reply of the trained model is to be
# begun with GOOD, and ends where a line begins with BAD.
GOOD = "Good:"
BAD = "Bad:"


def chain_of_hindsight(group: AlignmentGroup, *place: int | str) -> AlignmentGroup:
    """Joins the best and the worst response of a group into one response, in random order.

    Liu et al. 2023, "Chain of Hindsight Aligns Language Models with Feedback", arXiv 2302.02676. There the loss leaves
    out the words of feedback and hides a share of the earlier tokens; here all of the text is learnt as it is.

    Args:
        group: Its best response is the one with the highest score, its worst the one with the lowest, of equal ones
            the first. Where none is rated below the best there is no worst, and the text is the good part alone.
        *place: What makes the draw of the order this one: seed, stage, group.

    Returns:
        A group of that one response, with the best one's score; query, kind and provenance stay.
    """
    best = group.scores.index(max(group.scores))
    worst = group.scores.index(min(group.scores))
    parts = [f"{GOOD} {group.responses[best]}"]
    if group.scores[worst] < group.scores[best]:
        parts.append(f"{BAD} {group.responses[worst]}")
        rng(*place, "hindsight").shuffle(parts)
    return replace(group, responses=("\n".join(parts),), scores=(group.scores[best],))
