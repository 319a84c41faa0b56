"""What an agent lived through: its answers and what was said to it, recalled as in Generative Agents (2304.03442).

Differences from there: a memory is compared by the question about which it was said, which costs no embedding; it
is as old as its words, not as its last recall, since reading somebody's state must not change it.
"""

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from salign.config import StreamMemory
from salign.records import Recalled
from salign.society.memory import QuestionTable

_BYTES_PER_TOKEN = 3
_OWN = -1
# Scores are compared to so many places: machines differ in the last bit of a power.
_PLACES = 9


class Heard(NamedTuple):
    """Something that an agent keeps of an interaction.

    `by` is who said it, None for itself; `importance` is from 0 to 1; `about` is the question that it is about, None
    for the interaction's.
    """

    text: str
    by: int | None
    importance: float
    about: str | None = None


class Stream:
    """One agent's memories, in the order in which it had them; what it starts with comes first, as of round 0."""

    # Flat arrays, and texts that others have too: a society may have a million agents.
    __slots__ = ("_importances", "_initial", "_numbers", "_rounds", "_speakers", "_texts")

    def __init__(self, initial: Mapping[int, str]) -> None:
        self._initial = tuple(initial[number] for number in sorted(initial))
        self._numbers = array("i", sorted(initial))
        self._rounds = array("i")
        self._speakers = array("i")
        self._importances = array("f")
        self._texts: list[str] = []

    @property
    def num_versions(self) -> int:
        """How many memories are kept, beside those of the start."""
        return len(self._texts)

    def remember(
        self, heard: Sequence[Heard], numbers: Sequence[int], round_: int, max_kept: int, read_after: int = 0
    ) -> None:
        """Stores what came of an interaction.

        Args:
            heard: In order.
            numbers: Of the questions that they are about.
            round_: Counted from 1; no earlier than that of anything before.
            max_kept: So many are ever read.
            read_after: The memory as it stood before the end of this round is read no more.
        """
        for one, number in zip(heard, numbers, strict=True):
            self._texts.append(one.text)
            self._numbers.append(number)
            self._rounds.append(round_)
            self._speakers.append(_OWN if one.by is None else one.by)
            self._importances.append(one.importance)
        old = bisect_right(self._rounds, read_after) - max_kept
        if old > 0:
            start = len(self._initial)
            del self._numbers[start : start + old]
            del self._texts[:old], self._rounds[:old], self._speakers[:old], self._importances[:old]

    def recall(self, section: StreamMemory, table: QuestionTable, question: int, after_round: int) -> Recalled | None:
        """What comes to an agent's mind, as its memory stood after a round.

        Only what is nearer than the table's `max_distance` counts; of equal scores, the later memory's is higher.

        Args:
            section: How it is chosen.
            table: What the questions' numbers stand for.
            question: The number of the one that is asked.
            after_round: What was lived through later is not there yet.

        Returns:
            The memory of the highest score, with the others in it; None where none is near enough.
        """
        start, end = len(self._initial), bisect_right(self._rounds, after_round)
        first = max(0, end - section.max_kept)
        numbers = np.asarray(self._numbers[:start] + self._numbers[start + first : start + end], np.int32)
        if not len(numbers):
            return None
        distances = table.distances(question, numbers)
        near = np.flatnonzero(distances < table.max_distance)
        if not len(near):
            return None
        rounds = np.asarray([0] * start + self._rounds[first:end].tolist())
        importances = np.asarray([0.5] * start + self._importances[first:end].tolist())
        score = np.round(
            section.recency_weight * _scaled(section.decay ** (after_round - rounds[near]).astype(np.float64))
            + section.importance_weight * _scaled(importances[near])
            + section.relevance_weight * _scaled(-distances[near]),
            _PLACES,
        )
        chosen: dict[tuple[int, str], Recalled] = {}
        for place in near[np.lexsort((-near, -score))].tolist():
            number, lived = int(numbers[place]), place - start + first
            text = self._initial[place] if place < start else self._texts[lived]
            by = None if place < start or self._speakers[lived] == _OWN else self._speakers[lived]
            source: Any = "initial" if place < start else "own" if by is None else "heard"
            # What was said twice takes up one place.
            said = Recalled(table.questions[number], text, source, float(distances[place]), by)
            chosen.setdefault((number, text), said)
            if len(chosen) == section.num_recalled:
                break
        return within(tuple(chosen.values()), section.max_tokens)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values from 0 for the lowest to 1 for the highest; zeros where all are the same."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def num_tokens(text: str) -> int:
    """A text's tokens by its bytes in UTF-8, three each: more than an English text has by most tokenizers."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def within(memories: Sequence[Recalled], max_tokens: int) -> Recalled:
    """Memories as one, in order: cut where they have the tokens together; what was left out is counted."""
    kept: list[Recalled] = []
    left, left_out = max_tokens, 0
    for memory in memories:
        size = num_tokens(memory.answer)
        text = memory.answer if size <= left else _beginning(memory.answer, left)
        left -= num_tokens(text)
        left_out += size - num_tokens(text)
        if text or not kept:
            kept.append(msgspec.structs.replace(memory, answer=text))
    first, *more = kept
    return msgspec.structs.replace(first, more=tuple(more), num_left_out=left_out)


def _beginning(text: str, max_tokens: int) -> str:
    """A text's first words, of so many tokens at most; where no word is so short, the beginning of the first."""
    cut = text.encode("utf-8", "replace")[: max_tokens * _BYTES_PER_TOKEN].decode("utf-8", "ignore")
    words, space, _ = cut.rpartition(" ")
    return words if space and not text[len(cut) :].startswith(" ") else cut
