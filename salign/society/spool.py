"""Interactions on their way to the shard's file: kept on disk as they end, then put into canonical order."""

import contextlib
import os
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from salign.records import Interaction, to_bytes
from salign.storage import new_file

# An interaction has some KB: one of them is no write of its own.
_BUFFER_BYTES = 1 << 18

# Of the interactions of one world and round: agents, offsets and lengths in the spool's file.
Index = Mapping[tuple[int, int], tuple["array[int]", "array[int]", "array[int]"]]


class Spool:
    """A scratch file of interactions in the order in which they end."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("wb", buffering=_BUFFER_BYTES)
        self._size = 0
        self.index: dict[tuple[int, int], tuple[array[int], array[int], array[int]]] = defaultdict(
            lambda: (array("q"), array("q"), array("q"))
        )

    def add(self, interaction: Interaction) -> None:
        """Takes an interaction."""
        line = to_bytes(interaction)
        self._file.write(line)
        agents, offsets, lengths = self.index[interaction.world, interaction.round]
        agents.append(interaction.agent)
        offsets.append(self._size)
        lengths.append(len(line))
        self._size += len(line)

    def flush(self) -> None:
        """Makes what was taken readable for another process."""
        self._file.flush()

    def remove(self) -> None:
        """Ends the spool and its file."""
        try:
            self._file.close()
        finally:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def write_sorted(path: Path, spools: Sequence[tuple[Path, Index]], rounds: Iterable[tuple[int, int]]) -> None:
    """Writes the interactions of some rounds in the canonical order: world, round, agent. Whole or not at all.

    Args:
        path: The file to write.
        spools: Each rank's file and index.
        rounds: Numbers of world and round, in order; what is not named is left out.
    """
    with contextlib.ExitStack() as stack:
        # Not mapped into memory: pages that were read would count as the process's until it ends them all.
        files = [stack.enter_context(spool.open("rb", buffering=0)).fileno() for spool, _ in spools]
        file = stack.enter_context(new_file(path))
        for key in rounds:
            held = [(number, *index[key]) for number, (_, index) in enumerate(spools) if key in index]
            sources = np.concatenate([np.full(len(agents), number) for number, agents, _, _ in held])
            agents, offsets, lengths = (
                np.concatenate([np.asarray(entry[column]) for entry in held]) for column in (1, 2, 3)
            )
            for place in np.argsort(agents):
                file.write(os.pread(files[sources[place]], int(lengths[place]), int(offsets[place])))
