"""What a part of the benchmark may use."""

from dataclasses import dataclass
from pathlib import Path


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
