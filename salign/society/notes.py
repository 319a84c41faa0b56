"""What agents carry beside answers: named notes, as they stood after a given round."""

from collections.abc import Mapping
from typing import Any


class Notes:
    """One agent's notes. Each version keeps the round it came from, so that a reader sees it as it stood."""

    __slots__ = ("_versions",)

    def __init__(self) -> None:
        self._versions: dict[str, list[tuple[int, Any]]] = {}

    @property
    def num_versions(self) -> int:
        """How many values are kept, replaced ones that may still be read included."""
        return sum(map(len, self._versions.values()))

    def write(self, notes: Mapping[str, Any], round_: int, read_after: int = 0) -> None:
        """Stores what an agent notes in a round.

        Args:
            notes: Values by name; they replace those of the same names.
            round_: Counted from 1; no earlier than that of any note before.
            read_after: What stood before the end of this round is read no more.
        """
        for name, value in notes.items():
            versions = self._versions.setdefault(name, [])
            versions.append((round_, value))
            while len(versions) > 1 and versions[1][0] <= read_after:
                del versions[0]

    def read(self, name: str, after_round: int) -> Any:
        """The note of a name as it stood after a round; None where there was none."""
        versions = self._versions.get(name)
        if versions is not None:
            for round_, value in reversed(versions):
                if round_ <= after_round:
                    return value
        return None

    def after(self, round_: int) -> dict[str, Any]:
        """All notes as they stood after a round, by name."""
        return {name: self.read(name, round_) for name, versions in self._versions.items() if versions[0][0] <= round_}
