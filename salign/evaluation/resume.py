"""What an evaluation has measured: a stopped one goes on from there, and one of more benchmarks asks what is new."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salign import logfiles
from salign.blocks import KEY_BYTES
from salign.engines.journal import Journal
from salign.recordlog import RecordLog

Score = tuple[float, bool]


class Scores:
    """Stores log-likelihoods of answers after their contexts.

    Args:
        folder: Of the files of all ranks, which are read.
        rank: Whose files are written.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._log = RecordLog(folder, {}, rank)

    @staticmethod
    def _key(context: Sequence[int], answer: Sequence[int]) -> bytes:
        return hashlib.blake2b(json.dumps([list(context), list(answer)]).encode(), digest_size=KEY_BYTES).digest()

    def find(self, context: Sequence[int], answer: Sequence[int]) -> Score | None:
        """Returns what was measured, or None. Both arguments are token ids."""
        row = self._log.find(self._key(context, answer))
        if row is None:
            return None
        score, greedy = json.loads(row)
        return score, greedy

    def note(self, context: Sequence[int], answer: Sequence[int], score: Score) -> None:
        """Records a measurement at once, so that it outlives this process."""
        self._log.append([(self._key(context, answer), json.dumps(score).encode())])

    def close(self) -> None:
        self._log.close()


@dataclass(frozen=True)
class Measured:
    """What was measured before: calls of engines, and log-likelihoods."""

    journal: Journal
    scores: Scores


@contextlib.contextmanager
def open_measured(folder: Path, of: Mapping[str, Any], rank: int) -> Iterator[Measured]:
    """Opens the measurements of the same model by the same code; removes those of others.

    Args:
        folder: The evaluation's.
        of: All that decides what a measurement comes to, beside what it is of.
        rank: Whose files are written; rank 0 tidies up.
    """
    of = {**of, "journal": logfiles.VERSION}
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
