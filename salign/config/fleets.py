"""The fleets of servers that a run has: each is there for all engines of one model and with the same settings."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from salign.config.effects import Effect, selected
from salign.config.engines import EngineSection, FleetEngine


class Fleet(NamedTuple):
    """Servers of one model that the shards of a run share.

    Attributes:
        name: Of its folder, jobs and logs: by the model, and by what decides what it says.
        section: The first that names it; others may differ in what is free.
        model: What it serves.
    """

    name: str
    section: FleetEngine
    model: str

    @classmethod
    def of(cls, section: FleetEngine, base: str) -> "Fleet":
        """The fleet that a section names; `base` is the run's model."""
        model = section.model or base
        decides = json.dumps([model, selected(section, Effect.DECIDES)], sort_keys=True)
        digest = hashlib.blake2b(decides.encode(), digest_size=4).hexdigest()
        stem = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(model).name).strip(".-")[:40]
        return cls(f"{stem}-{digest}", section, model)


def fleets_of(engines: Iterable[EngineSection], base: str) -> list[Fleet]:
    """The fleets that some engines name, each once."""
    found = [Fleet.of(section, base) for section in engines if isinstance(section, FleetEngine)]
    return list({fleet.name: fleet for fleet in reversed(found)}.values())[::-1]
