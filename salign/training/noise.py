"""Noise on scores, put there on purpose: what an objective makes of a poor judge."""

from msgspec.structs import replace

from salign.records import MAX_SCORE, MIN_SCORE, AlignmentGroup
from salign.seeds import rng


def with_noise(group: AlignmentGroup, deviation: float, *place: int | str) -> AlignmentGroup:
    """Adds normal noise to each score, as if a less reliable judge had rated.

    Args:
        group: Its responses stay, and so does their order.
        deviation: Standard deviation in points of the scale, 1..7; 0 changes nothing.
        *place: What makes the draws these: seed, stage, group.

    Returns:
        The group with its new scores. One that would leave the scale is at its end, as a judge's would be; so scores
        may become equal, and a group of equal ones is nothing to an objective that compares.
    """
    if not deviation:
        return group
    draws = rng(*place, "score_noise")
    moved = (score + deviation * draws.gauss() for score in group.scores)
    return replace(group, scores=tuple(min(max(score, MIN_SCORE), MAX_SCORE) for score in moved))
