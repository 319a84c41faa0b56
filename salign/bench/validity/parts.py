"""The parts of `python jobs/bench.py validity`, in the order in which they are measured and shown."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from salign.bench.figures import Figure, measure_parts
from salign.bench.validity import leaks, ratings, recall, stopping, tokens


@dataclass(frozen=True)
class Context:
    """What a part may use: a scratch folder, and third-party data, which may not be here.

    `model` answers where a part needs a real one.
    """

    scratch: Path
    data: Path
    model: str = "smollm2-135m"

    def needs(self, *names: str) -> str | None:
        """Why a part cannot be measured here: a file of the third-party data is missing; None where all are there."""
        missing = [str(self.data / name) for name in names if not (self.data / name).exists()]
        return f"not measured: {', '.join(missing)} is not here" if missing else None


PARTS: dict[str, Callable[[Context], list[Figure]]] = {
    "recall": recall.measure,
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
