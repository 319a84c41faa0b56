"""Words and runs of words of many texts as 64-bit hashes, by numpy: linear, at about 50 MB of text per second.

A word is what `normalise` leaves of it. Equal words have equal hashes; so have unequal ones by chance, about one pair
in 2^64: whoever finds a match compares the words themselves.
"""

import hashlib
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
    """Reduces a text to what is compared: words in lower case, one space between them, no punctuation."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


@dataclass(frozen=True)
class Words:
    """The words of several texts in one row."""

    hashes: Hashes
    """[words]"""
    starts: NDArray[np.int64]
    """[texts + 1]: where each text's words begin, and the end."""


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


def _mixed(values: Hashes) -> Hashes:
    """Each value's bits spread over all of it (Stafford's variant 13 of the finaliser of MurmurHash3)."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


# [256]: which bytes of UTF-8 belong to words.
_IN_WORD = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
_WORD_POWERS = _Powers(_BASES[1])
# [9]: what of eight bytes, read as a number, the first so many are.
_FIRST_BYTES = np.array([(1 << 8 * num) - 1 for num in range(9)], np.uint64)


def _sums_between(values: Hashes, starts: NDArray[np.int64], ends: NDArray[np.int64], powers: _Powers) -> Hashes:
    """Each stretch as a polynomial in the base, wherever it stands: prefix sums, shifted back by the inverse."""
    power, inverse = powers.first(len(values) + 1)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * power[:-1], out=sums[1:])
    hashes: Hashes = (sums[ends] - sums[starts]) * inverse[starts]
    return hashes


def words_of(texts: Sequence[str]) -> Words:
    """Finds the words of each text, in time linear in the number of characters."""
    joined = _BETWEEN.join(texts).lower()
    if not joined.isascii():
        joined = _OTHER_NOT_WORD.sub(" ", joined)
    encoded = joined.encode("utf-8", "replace")
    data = np.frombuffer(encoded, np.uint8)
    between = np.flatnonzero(data == 0)
    if len(between) >= max(len(texts), 1):
        return words_of([text.replace(_BETWEEN, " ") for text in texts])
    in_word = np.zeros(len(data) + 2, np.bool_)
    in_word[1:-1] = _IN_WORD.take(data)
    edges = np.flatnonzero(in_word[1:] != in_word[:-1])
    starts, ends = edges[::2], edges[1::2]
    hashes = _hashes_between(encoded, starts, ends)
    begins = np.searchsorted(starts, between)
    return Words(hashes, np.concatenate([[0], begins, [len(hashes)]])[: len(texts) + 1].astype(np.int64))


# Bytes of a word that are hashed for all words together; no word of a language has more.
_LONG_WORD = 1024


def _hashes_between(data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Hashes:
    """Of each stretch a hash of its bytes, eight at a time; no stretch holds a byte 0."""
    padded = data + bytes(8)
    # At each place the number that the eight bytes from there on are.
    eights = np.ndarray(len(data) + 1, "<u8", padded, strides=(1,))
    sizes = ends - starts
    hashes = _mixed(eights[starts] & _FIRST_BYTES[np.minimum(sizes, 8)])
    done, longer = 8, np.flatnonzero(sizes > 8)
    while len(longer) and done < _LONG_WORD:
        more = eights[starts[longer] + done] & _FIRST_BYTES[np.minimum(sizes[longer] - done, 8)]
        hashes[longer] = _mixed((hashes[longer] ^ more) + np.uint64(_BASES[0]))
        done += 8
        longer = longer[sizes[longer] > done]
    for number in longer:
        rest = hashlib.blake2b(data[starts[number] + done : ends[number]], digest_size=8).digest()
        hashes[number] ^= np.uint64(int.from_bytes(rest, "little"))
    return hashes


def whole(words: Words) -> Hashes:
    """Returns a hash of all words of each text in their order; [texts]."""
    return _mixed(_sums_between(words.hashes, words.starts[:-1], words.starts[1:], _WORD_POWERS))


def shingles(words: Words, size: int, known: NDArray[np.bool_] | None = None) -> tuple[Hashes, NDArray[np.int64]]:
    """Returns a hash of every run of `size` words, and the number of its text; both [runs].

    Args:
        words: Of some texts.
        size: Of a run.
        known: [words]: leaves out runs with a word for which this is false.
    """
    num = len(words.hashes) - size + 1
    if num <= 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    whole_run = np.ones(num, np.bool_)
    if known is not None:
        for offset in range(size):
            whole_run &= known[offset : offset + num]
    first = np.flatnonzero(whole_run)
    text_of = np.searchsorted(words.starts, first, side="right") - 1
    inside = first + size <= words.starts[text_of + 1]
    first, text_of = first[inside], text_of[inside]
    hashes = np.zeros(len(first), np.uint64)
    for offset in range(size):
        hashes += words.hashes[first + offset] * np.uint64(pow(_BASES[0], offset, 1 << 64))
    return hashes, text_of
