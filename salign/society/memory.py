"""What agents remember: question -> own latest answer, as it stood after a given round."""

import copy
import hashlib
import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from salign.arrays import load_array, save_array
from salign.config import Effect, Embedder, HashingEmbedder, TransformersEmbedder, selected
from salign.digests import name_of
from salign.locks import lock
from salign.society.embedders import embed

# Distances are whole numbers of hundred-thousandths: compared exactly, and the same on every machine.
_UNITS = 100_000
# A distance and a question's number in one whole number, so that the smallest is the nearest question, of those equally
# near the first: 18 bits and 14.
_BITS, _MASK = 14, (1 << 14) - 1
# Distances that are kept, at most: 100 MB. So 5,000 questions, whose numbers have 13 bits.
MAX_KEPT = 25_000_000
# Distances in one matrix product, at most: 32 MB.
MAX_PRODUCT = 1 << 22


class QuestionTable:
    """All questions of a shard, embedded once; agents refer to them by number.

    Of a table that is small enough, the distances from a question to all others are computed for many questions at a
    time, by one matrix product, and kept; of a larger one, those from a question to what an agent remembers, each time.

    Args:
        questions: In the order of their numbers, each once.
        embeddings: Theirs, rows of length 1 (`embed`): [questions, features].
        max_distance: Cosine distance under which a remembered question is similar enough to be recalled.
    """

    def __init__(self, questions: Sequence[str], embeddings: Any, max_distance: float = 0.0) -> None:
        self.questions = tuple(questions)
        self.number = {question: number for number, question in enumerate(self.questions)}
        self.max_distance = max_distance
        self._embeddings = embeddings
        self._rows: dict[int, NDArray[np.uint32]] | None = {} if len(self.questions) ** 2 <= MAX_KEPT else None
        self._block = max(1, MAX_PRODUCT // len(self.questions))

    def within(self, max_distance: float) -> "QuestionTable":
        """The same table, with another largest distance."""
        table = copy.copy(self)
        table.max_distance = max_distance
        return table

    def distances(self, question: int, others: NDArray[np.int32]) -> NDArray[np.float64]:
        """Cosine distances from a question to some others, to five decimals: [others]."""
        if self._rows is None:
            return self._between(question, others) / _UNITS
        return (self._row(question)[others] >> _BITS) / _UNITS

    def between(self, question: int, others: Sequence[str]) -> list[float]:
        """The cosine distances from a question to others, to five decimals."""
        numbers = np.asarray([self.number[one] for one in others], np.int32)
        units: list[int]
        if self._rows is None:
            units = self._between(question, numbers).tolist()
        else:  # they are few, so that arithmetic on arrays would take longer than on each number
            units = [code >> _BITS for code in self._row(question).take(numbers).tolist()]
        return [unit / _UNITS for unit in units]

    def nearest(self, question: int, others: NDArray[np.int32]) -> tuple[float, int]:
        """Of some questions (at least one) the nearest with its distance; of those equally near, the first."""
        if self._rows is None:
            units = self._between(question, others)
            least = units.min()
            return int(least) / _UNITS, int(others[units == least].min())
        coded = self._row(question).take(others)
        code = coded.item(coded.argmin())
        return (code >> _BITS) / _UNITS, code & _MASK

    def _row(self, question: int) -> NDArray[np.uint32]:
        """Distances to all questions, each with the question's number."""
        assert self._rows is not None
        row = self._rows.get(question)
        if row is None:
            start = question // self._block * self._block
            product = self._embeddings[start : start + self._block] @ self._embeddings.T
            units = _units(product if isinstance(product, np.ndarray) else product.toarray())
            numbers = np.arange(len(self.questions), dtype=np.uint32)
            self._rows |= enumerate(units.astype(np.uint32) << _BITS | numbers, start)
            row = self._rows[question]
        return row

    def _between(self, question: int, others: NDArray[np.int32]) -> NDArray[np.int64]:
        one = self._embeddings[question]
        vector = one if isinstance(one, np.ndarray) else one.toarray().ravel()
        return _units(np.asarray(self._embeddings[others] @ vector))


def _units(similarity: NDArray[Any]) -> NDArray[np.int64]:
    return np.rint((1.0 - similarity.astype(np.float64)) * _UNITS).clip(min=0).astype(np.int64)


def embeddings_of(embedder: Embedder, questions: Sequence[str], folder: Path | None = None) -> Any:
    """Each question's embedding: [questions, features].

    Args:
        embedder: What makes two of them similar.
        questions: Each once.
        folder: Where a model's embeddings are kept, so that every shard and every restart has the same.
    """
    if folder is None or isinstance(embedder, HashingEmbedder):
        return embed(embedder, questions)
    model = name_of(embedder.model) if isinstance(embedder, TransformersEmbedder) else None
    text = json.dumps([selected(embedder, Effect.DECIDES), model, questions], ensure_ascii=False)
    path = folder / f"embeddings-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.npz"
    # Of the shards that start together, one asks the model.
    with lock(path.with_suffix(".lock"), f"the embeddings {path}", wait=True):
        found = load_array(path)
        if found is None:
            found = np.asarray(embed(embedder, questions))
            save_array(path, found)
        return found


class Memory(NamedTuple):
    """An answer that an agent remembers: to which question, where it comes from, and how far the question asked is."""

    question: int
    answer: str
    source: Literal["initial", "own"]
    distance: float


class InternalMemory:
    """One agent's answers. Every answer keeps the round it came from, so that a reader sees the memory as it stood.

    (The external memory of the paper, a record of every interaction that an agent led, is the world's output.)
    """

    # A society may have a million agents: what they start with is a flat array, their texts shared. `_numbers` has the
    # questions of the start, in order, and then those the agent answered, as it first did in the rounds of `_since`.
    __slots__ = ("_initial_answers", "_numbers", "_own", "_since")

    def __init__(self, initial: Mapping[int, str]) -> None:
        numbers = sorted(initial)
        self._numbers = array("i", numbers)
        self._initial_answers = tuple(initial[number] for number in numbers)
        self._own: dict[int, list[tuple[int, str]]] = {}
        self._since = array("i")

    def __len__(self) -> int:
        """How many questions are remembered."""
        return len(set(self._numbers))

    @property
    def num_versions(self) -> int:
        """How many own answers are kept, replaced ones that may still be read included."""
        return sum(map(len, self._own.values()))

    def remember(self, question: int, answer: str, round_: int, read_after: int = 0) -> None:
        """Stores the agent's answer of a round.

        Args:
            question: Its number.
            answer: The answer.
            round_: Counted from 1; no earlier than that of any answer before.
            read_after: The memory as it stood before the end of this round is read no more.
        """
        versions = self._own.get(question)
        if versions is None:
            versions = self._own[question] = []
            self._numbers.append(question)
            self._since.append(round_)
        versions.append((round_, answer))
        while len(versions) > 1 and versions[1][0] <= read_after:
            del versions[0]

    def recall(self, table: QuestionTable, question: int, after_round: int) -> Memory | None:
        """The remembered question nearest to another, with its latest answer, as the memory stood after a round.

        Of questions equally near, the first of the table; an own answer hides what the agent started with. None where
        the nearest is not under the table's `max_distance`.

        Args:
            table: What the questions' numbers stand for.
            question: The number of the one that is asked.
            after_round: Answers of later rounds are not there yet.
        """
        num_initial = len(self._initial_answers)
        num_known = num_initial + bisect_right(self._since, after_round)
        if not num_known:
            return None
        known = np.frombuffer(self._numbers, np.int32, num_known)
        distance, number = table.nearest(question, known)
        if not distance < table.max_distance:
            return None
        for round_, answer in reversed(self._own.get(number, ())):
            if round_ <= after_round:
                return Memory(number, answer, "own", distance)
        place = bisect_left(self._numbers, number, 0, num_initial)
        return Memory(number, self._initial_answers[place], "initial", distance)
