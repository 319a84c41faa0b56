"""What an evaluation has measured so far, so that a stopped one continues from there."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from salign.engines.journal import Journal

Score = tuple[float, bool]


class Scores:
    """Log-likelihoods of answers after their contexts, append-only; a torn end is dropped.

    Args:
        folder: Of the files of all ranks, which are read.
        rank: Whose file is written.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, Score] = {}
        for path in folder.glob("journal-*.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                with contextlib.suppress(ValueError, KeyError):  # what follows a torn line stands on a line of its own
                    row = json.loads(line)
                    self._known[row["key"]] = (row["score"], row["greedy"])
        self._file: IO[str] = (folder / f"journal-{rank:05d}.jsonl").open("a", encoding="utf-8")
        self._file.write("\n")  # ends what was torn

    @staticmethod
    def _key(context: Sequence[int], answer: Sequence[int]) -> str:
        return hashlib.blake2b(json.dumps([list(context), list(answer)]).encode(), digest_size=16).hexdigest()

    def find(self, context: Sequence[int], answer: Sequence[int]) -> Score | None:
        """What was measured; None where nothing was. Both are token ids."""
        return self._known.get(self._key(context, answer))

    def note(self, context: Sequence[int], answer: Sequence[int], score: Score) -> None:
        """Records what was measured; it outlives this process at once."""
        row = {"key": self._key(context, answer), "score": score[0], "greedy": score[1]}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Measured:
    """Calls of engines, and log-likelihoods."""

    journal: Journal
    scores: Scores


@contextlib.contextmanager
def open_measured(folder: Path, of: Mapping[str, Any], rank: int) -> Iterator[Measured]:
    """What was measured of the same model by the same code, and where more is recorded; what is of others is removed.

    Args:
        folder: The evaluation's.
        of: All that decides what a measurement comes to, beside what it is of.
        rank: Whose files are written; rank 0 tidies up.
    """
    name = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
    place = folder / f"measured-{name}"
    if rank == 0:
        for other in folder.glob("measured-*"):
            if other != place:
                shutil.rmtree(other)
    with contextlib.ExitStack() as stack:
        journal = Journal(place / "calls", dict(of), rank)
        stack.callback(journal.close)
        scores = Scores(place / "scores", rank)
        stack.callback(scores.close)
        yield Measured(journal, scores)


def forget_measured(folder: Path) -> None:
    """Removes the records of an evaluation that is complete: its samples hold them all."""
    for place in folder.glob("measured-*"):
        shutil.rmtree(place)
