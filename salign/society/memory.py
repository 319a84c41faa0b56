"""What agents remember: question -> own latest answer, as it stood after a given round."""

import hashlib
import json
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from salign.config import Effect, Embedder, HashingEmbedder, TransformersEmbedder, selected
from salign.digests import name_of
from salign.run import lock, new_file
from salign.society.embedders import embed

# Distances in one matrix product, at most: 32 MB.
_MAX_PRODUCT = 1 << 22


class QuestionTable:
    """All questions of a shard, embedded once; agents refer to them by number.

    Which questions are similar does not depend on who asks: it is computed for many questions at a time, by one matrix
    product, when the first of them is asked. An agent's retrieval is then a look into its own memory.

    Args:
        questions: In the order of their numbers; a second time a question does not count.
        embedder: What makes two of them similar.
        max_distance: Cosine distance under which they are.
        folder: Where a model's embeddings are kept, so that every shard and every restart has the same.
    """

    def __init__(
        self, questions: Sequence[str], embedder: Embedder, max_distance: float, folder: Path | None = None
    ) -> None:
        self.questions = tuple(dict.fromkeys(questions))
        self.number = {question: number for number, question in enumerate(self.questions)}
        self._max_distance = max_distance
        self._embeddings: Any = _embeddings(embedder, self.questions, folder)
        self._block = max(1, _MAX_PRODUCT // len(self.questions))
        self._near: dict[int, tuple[tuple[int, float], ...]] = {}

    def near(self, question: int) -> tuple[tuple[int, float], ...]:
        """The questions whose cosine distance to one is under the largest allowed, with it, the nearest first.

        Of questions equally near (to six decimals, so that machines agree), the first of the table comes first.
        """
        found = self._near.get(question)
        if found is None:
            self._compute(question // self._block * self._block)
            found = self._near[question]
        return found

    def _compute(self, start: int) -> None:
        """The similar questions of one block."""
        product = self._embeddings[start : start + self._block] @ self._embeddings.T
        similarity = product if isinstance(product, np.ndarray) else product.toarray()
        distances = np.maximum(np.round(1.0 - similarity.astype(np.float64), 6), 0.0)
        for row, number in zip(distances, range(start, len(self.questions)), strict=False):
            under = np.flatnonzero(row < self._max_distance)
            nearest = under[np.argsort(row[under], kind="stable")]
            self._near[number] = tuple(zip(nearest.tolist(), row[nearest].tolist(), strict=True))


def _embeddings(embedder: Embedder, questions: Sequence[str], folder: Path | None) -> Any:
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
    """An answer that is remembered: its question's number, where it comes from, and how near the question is."""

    question: int
    answer: str
    source: Literal["initial", "own"]
    distance: float


class InternalMemory:
    """One agent's answers. Every answer keeps the round it came from, so that a reader sees the memory as it stood.

    (The external memory of the paper, a record of every interaction that an agent led, is the world's output.)
    """

    # A society may have a million agents: what they start with is two flat arrays, their texts shared.
    __slots__ = ("_initial_answers", "_initial_questions", "_own")

    def __init__(self, initial: Mapping[int, str]) -> None:
        numbers = sorted(initial)
        self._initial_questions = array("i", numbers)
        self._initial_answers = tuple(initial[number] for number in numbers)
        self._own: dict[int, list[tuple[int, str]]] = {}

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
            round_: Counted from 1.
            read_after: The memory as it stood before the end of this round is read no more.
        """
        versions = self._own.setdefault(question, [])
        versions.append((round_, answer))
        while len(versions) > 1 and versions[1][0] <= read_after:
            del versions[0]

    def recall(self, near: Sequence[tuple[int, float]], after_round: int) -> Memory | None:
        """The first of some questions that is remembered, with its latest answer, as the memory stood after a round.

        Args:
            near: Numbers of questions with their distances, the most similar first.
            after_round: Answers of later rounds are not there yet.
        """
        for number, distance in near:
            for round_, answer in reversed(self._own.get(number, ())):
                if round_ <= after_round:
                    return Memory(number, answer, "own", distance)
            place = bisect_left(self._initial_questions, number)
            if place < len(self._initial_questions) and self._initial_questions[place] == number:
                return Memory(number, self._initial_answers[place], "initial", distance)
        return None
