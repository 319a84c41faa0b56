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

from salign.config import Effect, Embedder, HashingEmbedder, TransformersEmbedder, selected
from salign.digests import name_of
from salign.run import lock, new_file
from salign.society.embedders import embed

# Distances are whole numbers of millionths: compared exactly, and the same on every machine.
_MILLION = 1_000_000
# Distances that are kept, at most: 100 MB.
_MAX_KEPT = 25_000_000
# Distances in one matrix product, at most: 32 MB.
_MAX_PRODUCT = 1 << 22


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
        self._rows: dict[int, NDArray[np.int32]] | None = {} if len(self.questions) ** 2 <= _MAX_KEPT else None
        self._block = max(1, _MAX_PRODUCT // len(self.questions))

    def within(self, max_distance: float) -> "QuestionTable":
        """The same table, with another largest distance."""
        table = copy.copy(self)
        table.max_distance = max_distance
        return table

    def distances(self, question: int, others: NDArray[np.int32]) -> NDArray[np.int32]:
        """Cosine distances from a question to some others, in millionths: [others]."""
        if self._rows is None:
            one = self._embeddings[question]
            vector = one if isinstance(one, np.ndarray) else one.toarray().ravel()
            return _millionths(np.asarray(self._embeddings[others] @ vector))
        row = self._rows.get(question)
        if row is None:
            start = question // self._block * self._block
            product = self._embeddings[start : start + self._block] @ self._embeddings.T
            similarity = product if isinstance(product, np.ndarray) else product.toarray()
            self._rows |= enumerate(_millionths(similarity), start)
            row = self._rows[question]
        return row[others]


def _millionths(similarity: NDArray[Any]) -> NDArray[np.int32]:
    return np.rint((1.0 - similarity.astype(np.float64)) * _MILLION).clip(min=0).astype(np.int32)


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
    path = folder / f"embeddings-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.npy"
    # Of the shards that start together, one asks the model.
    with lock(path.with_suffix(".lock"), f"the embeddings {path}", wait=True):
        if not path.exists():
            with new_file(path) as part:
                np.save(part, np.asarray(embed(embedder, questions)))
        return np.load(path)


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

    # A society may have a million agents: what they start with is two flat arrays, their texts shared. Own answers are
    # found by number; `_own_numbers` has the questions in the order in which they were first answered, in `_own_since`.
    __slots__ = ("_initial_answers", "_initial_questions", "_own", "_own_numbers", "_own_since")

    def __init__(self, initial: Mapping[int, str]) -> None:
        numbers = sorted(initial)
        self._initial_questions = array("i", numbers)
        self._initial_answers = tuple(initial[number] for number in numbers)
        self._own: dict[int, list[tuple[int, str]]] = {}
        self._own_numbers = array("i")
        self._own_since = array("i")

    def __len__(self) -> int:
        """How many questions are remembered."""
        return len(self._own.keys() | set(self._initial_questions))

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
            self._own_numbers.append(question)
            self._own_since.append(round_)
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
        own = self._own_numbers[: bisect_right(self._own_since, after_round)]
        nearest = min(_nearest(table, question, own), _nearest(table, question, self._initial_questions))
        distance, number = nearest[0] / _MILLION, nearest[1]
        if not distance < table.max_distance:
            return None
        for round_, answer in reversed(self._own.get(number, ())):
            if round_ <= after_round:
                return Memory(number, answer, "own", distance)
        place = bisect_left(self._initial_questions, number)
        return Memory(number, self._initial_answers[place], "initial", distance)


def _nearest(table: QuestionTable, question: int, numbers: "array[int]") -> tuple[float, int]:
    """The smallest distance in millionths, and which of some questions has it; infinity where there is none."""
    if not numbers:
        return float("inf"), -1
    known = np.frombuffer(numbers, dtype=np.int32)
    distances = table.distances(question, known)
    least = distances.min()
    return int(least), int(known[distances == least].min())
