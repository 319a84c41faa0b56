"""One figure of a measurement, and the machine that it was measured on."""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salign.errors import ConfigError


@dataclass(frozen=True)
class Figure:
    """One line of the table. `value` is None where it could not be had; then `note` says why."""

    name: str
    value: float | None
    unit: str
    to_reach: str = ""
    beside: str = ""
    note: str = ""


def measure_parts(
    bench: str, parts: Mapping[str, Callable[[], list[Figure]]], only: Sequence[str], say: Callable[[str], None]
) -> list[Figure]:
    """The figures of a bench's parts, or of some of them.

    Raises:
        ConfigError: There is no such part.
    """
    unknown = [part for part in only if part not in parts]
    if unknown:
        raise ConfigError(f"no part {', '.join(unknown)} of the benchmark {bench}; its parts: {', '.join(parts)}")
    figures: list[Figure] = []
    for part, measured in parts.items():
        if not only or part in only:
            say(part)
            figures += measured()
    return figures


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return {
        "cores": os.cpu_count(),
        "cpu": model.group(1) if model else "",
        "load_1min": round(os.getloadavg()[0], 2),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": sys.version.split()[0],
    }


def as_json(figures: Sequence[Figure]) -> str:
    """The figures and the machine, for a file."""
    return json.dumps({"machine": machine(), "figures": [asdict(figure) for figure in figures]}, indent=2) + "\n"
