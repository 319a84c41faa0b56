"""The parts of `python jobs/bench.py validity`, in the order in which they are measured and shown."""

import functools
from collections.abc import Callable, Sequence

from salign.bench.figures import Figure, measure_parts
from salign.bench.validity import leaks, ratings, recall, spread, stopping, tokens
from salign.bench.validity.context import Context

PARTS: dict[str, Callable[[Context], list[Figure]]] = {
    "recall": recall.measure,
    "spread": spread.measure,
    "ratings": ratings.measure,
    "stopping": stopping.measure,
    "leaks": leaks.measure,
    "tokens": tokens.measure,
}


def measure(context: Context, only: Sequence[str], say: Callable[[str], None]) -> list[Figure]:
    """The figures of `python jobs/bench.py validity`.

    Args:
        context: What the parts may use.
        only: Names of parts; empty for all.
        say: Told what is being measured.

    Raises:
        ConfigError: There is no such part.
    """
    parts = {name: functools.partial(measured, context) for name, measured in PARTS.items()}
    return measure_parts("validity", parts, only, say)
