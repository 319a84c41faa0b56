"""How far confidence is from being right."""

from collections.abc import Sequence
from math import fsum

NUM_BINS = 10
"""Of equal width, in which confidence and being right are compared."""


def bin_of(confidence: float) -> int:
    """Returns the number of the bin of a confidence from 0 to 1."""
    return min(int(confidence * NUM_BINS), NUM_BINS - 1)


def calibration_error(values: Sequence[tuple[float, float]]) -> float | None:
    """The expected calibration error of (confidence, whether right), in ten bins of equal width (Guo et al. 2017).

    None where there are no values. The order of the values does not matter.
    """
    if not values:
        return None
    bins: dict[int, list[float]] = {}
    for confidence, right in values:
        bins.setdefault(bin_of(confidence), []).append(confidence - right)
    return fsum(abs(fsum(gaps)) for gaps in bins.values()) / len(values)
