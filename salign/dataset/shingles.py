"""Words and runs of words of many texts as 64-bit hashes, by numpy: linear, at about 50 MB of text per second.

A word is what `normalise` leaves of it. Equal words have equal hashes; so have unequal ones by chance, about one pair
in 2^64: whoever finds a match compares the words themselves.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_NOT_WORD = re.compile(r"[\W_]+")
_OTHER_NOT_WORD = re.compile(r"[^\w\x00-\x7f]+")
_BETWEEN = "\x00"
# Odd, so that each power has an inverse modulo 2^64.
_BASES = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)


def normalise(text: str) -> str:
    """Text as it is compared: words in lower case, one space between them, without punctuation."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


@dataclass(frozen=True)
class Words:
    """The words of some texts in a row."""

    hashes: Hashes
    """[words]"""
    starts: NDArray[np.int64]
    """[texts + 1]: where each text's words begin, and the end."""

    @property
    def text_of(self) -> NDArray[np.int64]:
        """[words]: the number of its text."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


class _Powers:
    """b^0, b^1, ... and their inverses modulo 2^64, as many as were needed so far."""

    def __init__(self, base: int) -> None:
        self._base, self._inverse = base, pow(base, -1, 1 << 64)
        self._both = np.ones((2, 1), np.uint64)

    def first(self, number: int) -> NDArray[np.uint64]:
        """[2, number]: powers and inverses."""
        if number > self._both.shape[1]:
            bases = np.array([[self._base], [self._inverse]], np.uint64)
            each = np.repeat(bases, max(number, 2 * self._both.shape[1]), axis=1)
            each[:, 0] = 1
            self._both = np.multiply.accumulate(each, axis=1)
        return self._both[:, :number]


def _values_of_bytes() -> tuple[NDArray[np.bool_], Hashes]:
    """[256]: which bytes of UTF-8 belong to words, and a value for each."""
    in_word = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
    values = _mixed(np.arange(1, 257, dtype=np.uint64))
    return in_word, np.where(in_word, values, np.uint64(0))


def _mixed(values: Hashes) -> Hashes:
    """Each value's bits spread over all of it (Stafford's variant 13 of the finaliser of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_IN_WORD, _VALUES = _values_of_bytes()
_BYTE_POWERS, _WORD_POWERS = _Powers(_BASES[0]), _Powers(_BASES[1])


def _sums_between(values: Hashes, starts: NDArray[np.int64], ends: NDArray[np.int64], powers: _Powers) -> Hashes:
    """Each stretch as a polynomial in the base, wherever it stands: prefix sums, shifted back by the inverse."""
    power, inverse = powers.first(len(values) + 1)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * power[:-1], out=sums[1:])
    hashes: Hashes = (sums[ends] - sums[starts]) * inverse[starts]
    return hashes


def words_of(texts: Sequence[str]) -> Words:
    """The words of each text; the work grows with the number of characters."""
    joined = _BETWEEN.join(texts)
    if joined.count(_BETWEEN) >= max(len(texts), 1):
        joined = _BETWEEN.join(text.replace(_BETWEEN, " ") for text in texts)
    joined = joined.lower()
    if not joined.isascii():
        joined = _OTHER_NOT_WORD.sub(" ", joined)
    data = np.frombuffer(joined.encode("utf-8", "replace"), np.uint8)
    in_word = np.zeros(len(data) + 2, np.bool_)
    in_word[1:-1] = _IN_WORD[data]
    edges = np.flatnonzero(in_word[1:] != in_word[:-1])
    starts, ends = edges[::2], edges[1::2]
    hashes = _mixed(_sums_between(_VALUES[data], starts, ends, _BYTE_POWERS))
    begins = np.searchsorted(starts, np.flatnonzero(data == 0))
    return Words(hashes, np.concatenate([[0], begins, [len(hashes)]])[: len(texts) + 1].astype(np.int64))


def whole(words: Words) -> Hashes:
    """[texts]: a hash of all words of each text in their order."""
    return _mixed(_sums_between(words.hashes, words.starts[:-1], words.starts[1:], _WORD_POWERS))


def shingles(words: Words, size: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Every run of `size` words: its hash, and the number of its text; both [runs]."""
    text_of = words.text_of
    num = len(words.hashes) - size + 1
    if num <= 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    hashes = np.zeros(num, np.uint64)
    for place in range(size):
        hashes += words.hashes[place : place + num] * np.uint64(pow(_BASES[0], place, 1 << 64))
    inside = text_of[:num] == text_of[size - 1 :]
    return _mixed(hashes[inside]), text_of[:num][inside]
