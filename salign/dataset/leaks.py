"""Whether prompts of the evaluation are in the training data, word for word or nearly."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from salign.dataset.shingles import Hashes, Words, normalise, shingles, whole, words_of
from salign.errors import DataError
from salign.files import format_of, read_rows, read_text

MIN_CONTAINED = 30
"""Characters of a prompt that is looked for inside texts; a few words may well stand in any."""
RUN = 4
"""Words in a run. Prompts and texts are compared by the runs that they have in common."""
MIN_NEAR_WORDS = 8
"""Words of a prompt whose near-copies are looked for: of a shorter one, a word that differs is half of its runs."""
MIN_NEAR_SHARE = 0.5
"""Of a prompt's runs, how many a text must have to be a near-copy of it."""
CANNOT_FIND = (
    "paraphrases, translations, prompts cut to less than half or with every fourth word changed; near-copies of "
    f"prompts of fewer than {MIN_NEAR_WORDS} words; prompts of fewer than {MIN_CONTAINED} characters or {RUN} words "
    "inside longer texts; prompts spread over several texts"
)

# What so many prompts have in common is the form of a benchmark, and no trace of one of them.
_MAX_PROMPTS_OF_RUN = 50
# Characters that are compared at a time.
BATCH = 300_000
_MAX_NAMED = 20
_MAX_TABLE_BITS = 26
_PROMPT_FIELDS = (
    *("question", "Question", "prompt", "query", "chosen", "situation", "scenario", "Q"),
    *("instruction", "input", "statement", "opposite"),
)


class Passage(NamedTuple):
    """Texts that are trained on or remembered (a question, an exemplar or a group), and where they stand."""

    texts: Sequence[str]
    parts: Sequence[str]
    """What each text is: query, response, ..."""
    source: str
    number: int
    """In its source, counted from 1."""


class Match(NamedTuple):
    """A prompt that was found: where, and what share of its runs of words is there."""

    prompt: str
    place: str
    share: float


@dataclass
class Leaks:
    """The result of a leak check: at most one match for each prompt, in the prompts' order."""

    num_prompts: int
    num_texts: int = 0
    exact: list[Match] = field(default_factory=list)
    near: list[Match] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Returns the result for a card: counts, the first near-copies, and what such a check cannot find."""
        return {
            "num_evaluation_prompts": self.num_prompts,
            "num_texts": self.num_texts,
            "num_leaked": len(self.exact),
            "num_near": len(self.near),
            "near": [{**match._asdict(), "share": round(match.share, 3)} for match in self.near[:_MAX_NAMED]],
            "min_near_share": MIN_NEAR_SHARE,
            "cannot_find": CANNOT_FIND,
        }


def find_leaks(passages: Iterable[Passage], prompts: Iterable[str]) -> Leaks:
    """Finds evaluation prompts in texts, after normalising both, in time linear in both.

    Exact: a text is the prompt, or contains it whole and it has at least 30 characters. Near: a text has half of the
    runs of four words of a prompt of at least 8 words.
    """
    return _Index(prompts).search(passages)


class _Index:
    """The evaluation prompts by the runs of words in them.

    Published checks are of this kind, by runs of 8 to 13 words (GPT-3, PaLM, Llama 2) over documents; prompts of a
    society are a dozen words long, so runs are shorter and what share of a prompt they make up decides.
    """

    def __init__(self, prompts: Iterable[str]) -> None:
        distinct = sorted(set(prompts))
        self._num_given = len(distinct)
        by_normal: dict[str, str] = {}
        for prompt in distinct:
            by_normal.setdefault(normalise(prompt), prompt)
        by_normal.pop("", None)
        self._normals, self._prompts = list(by_normal), list(by_normal.values())
        words = words_of(self._normals)
        self._wholes, self._prompt_of_whole = np.unique(whole(words), return_index=True)
        self._index_runs(words)
        num_words = np.diff(words.starts)[: len(self._normals)]
        contained = np.array([len(normal) >= MIN_CONTAINED for normal in self._normals], np.bool_)
        # The share of its runs from which on a text is looked at.
        self._least = np.where(num_words >= MIN_NEAR_WORDS, MIN_NEAR_SHARE, np.where(contained, 1.0, np.inf))
        self._nearest = np.zeros(len(self._normals))
        self._exact: dict[int, Match] = {}
        self._near: dict[int, Match] = {}

    def _index_runs(self, words: Words) -> None:
        num_prompts = len(self._normals)
        hashes, prompt_of = shingles(words, RUN)
        order = np.lexsort((prompt_of, hashes))
        hashes, prompt_of = hashes[order], prompt_of[order]
        again = (hashes[1:] == hashes[:-1]) & (prompt_of[1:] == prompt_of[:-1])
        kept = np.concatenate([np.ones(min(len(hashes), 1), np.bool_), ~again])
        hashes, prompt_of = hashes[kept], prompt_of[kept]
        count = np.unique(hashes, return_counts=True)[1]
        # Runs that many prompts share are no evidence, unless a prompt has no others.
        common = np.repeat(count > _MAX_PROMPTS_OF_RUN, count)
        has_own = np.bincount(prompt_of[~common], minlength=num_prompts) > 0
        kept = ~common | ~has_own[prompt_of]
        hashes, prompt_of = hashes[kept], prompt_of[kept]
        self._runs, self._first, self._count = np.unique(hashes, return_index=True, return_counts=True)
        self._prompt_of = prompt_of
        self._num_runs = np.maximum(np.bincount(prompt_of, minlength=num_prompts), 1)
        # Of the words and runs of a text, tables tell at once nearly all that are in no prompt.
        self._word_table, self._run_table = _Table(words.hashes), _Table(self._runs)

    def search(self, passages: Iterable[Passage]) -> Leaks:
        leaks = Leaks(self._num_given)
        for batch in _batches(passages):
            leaks.num_texts += len(batch.texts)
            if self._normals:
                self._compare(batch)
        near = {prompt: match for prompt, match in self._near.items() if prompt not in self._exact}
        leaks.exact, leaks.near = ([matches[prompt] for prompt in sorted(matches)] for matches in (self._exact, near))
        return leaks

    def _compare(self, batch: "_Batch") -> None:
        words = words_of(batch.texts)
        hashes = whole(words)
        text_of, whole_of = _among(self._wholes, hashes)
        for text, prompt in zip(text_of.tolist(), self._prompt_of_whole[whole_of].tolist(), strict=True):
            self._take(prompt, batch, text, 1.0)
        for text, prompt, share in self._shares(words):
            self._take(prompt, batch, text, share)

    def _shares(self, words: Words) -> Iterator[tuple[int, int, float]]:
        """Text, prompt, and how much of the prompt the text has, where that is enough to look at."""
        hashes, text_of = shingles(words, RUN, self._word_table.may_have(words.hashes))
        maybe = np.flatnonzero(self._run_table.may_have(hashes))
        match, run = _among(self._runs, hashes[maybe])
        # Each run once a text, then each prompt that has it.
        both = np.unique(text_of[maybe][match] * len(self._runs) + run)
        text, run = np.divmod(both, max(len(self._runs), 1))
        count = self._count[run]
        offsets = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        prompt = self._prompt_of[np.repeat(self._first[run], count) + offsets]
        pairs, shared = np.unique(np.repeat(text, count) * len(self._normals) + prompt, return_counts=True)
        text, prompt = np.divmod(pairs, len(self._normals))
        share = shared / self._num_runs[prompt]
        # Only where it is nearer than what was found; all of a prompt's runs may be the prompt itself.
        looked_at = (share >= self._least[prompt]) & ((share > self._nearest[prompt]) | (share == 1))
        yield from zip(text[looked_at].tolist(), prompt[looked_at].tolist(), share[looked_at].tolist(), strict=True)

    def _take(self, prompt: int, batch: "_Batch", text: int, share: float) -> None:
        if prompt in self._exact:
            return
        wanted, normal = self._normals[prompt], normalise(batch.texts[text])
        match = Match(self._prompts[prompt], batch.place(text), share)
        if normal == wanted or (share == 1 and len(wanted) >= MIN_CONTAINED and f" {wanted} " in f" {normal} "):
            self._exact[prompt] = match
            self._least[prompt] = np.inf  # not looked for again
        elif self._least[prompt] == MIN_NEAR_SHARE and share > self._nearest[prompt]:
            self._near[prompt] = match
            self._nearest[prompt] = share


class _Table:
    """Tells of nearly all hashes that are not among the known that they are not."""

    def __init__(self, known: Hashes) -> None:
        bits = min(max(10, (32 * len(known)).bit_length()), _MAX_TABLE_BITS)
        self._shift = np.uint64(64 - bits)
        self._is_known = np.zeros(1 << bits, np.bool_)
        self._is_known[known >> self._shift] = True

    def may_have(self, hashes: Hashes) -> NDArray[np.bool_]:
        may_have: NDArray[np.bool_] = self._is_known[hashes >> self._shift]
        return may_have


class _Batch:
    """Passages that are compared at a time."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.texts = [text for passage in passages for text in passage.texts]
        self._passages = passages

    def place(self, text: int) -> str:
        """Where one of the texts stands."""
        for passage in self._passages:
            if text < len(passage.texts):
                break
            text -= len(passage.texts)
        return f"{passage.source}, {passage.number}: {passage.parts[text]}"


def _batches(passages: Iterable[Passage]) -> Iterator[_Batch]:
    batch: list[Passage] = []
    size = 0
    for passage in passages:
        batch.append(passage)
        size += sum(map(len, passage.texts))
        if size >= BATCH:
            yield _Batch(batch)
            batch, size = [], 0
    if batch:
        yield _Batch(batch)


def _among(known: Hashes, hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the hashes are among the known (sorted), and the position there of each of them."""
    if not len(known):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    there = np.flatnonzero(known[at] == hashes)
    return there, at[there]


def prompts_of(path: Path) -> list[str]:
    """Reads the evaluation prompts of a file: text (one a line), or rows of JSON, CSV or Parquet.

    Raises:
        DataError: It is missing or malformed.
    """
    if format_of(path) == "text":
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    rows = [row for _, row in read_rows(path)]
    prompts = [prompt for row in rows for prompt in prompts_in(row)]
    if rows and not prompts:
        raise DataError(f"{path}: no row has a prompt in one of the fields {', '.join(_PROMPT_FIELDS)}")
    return prompts


def prompts_in(row: Any) -> list[str]:
    """Returns the prompts in a row of an evaluation file, found by the usual names of their field."""
    if isinstance(row, str):
        return [row]
    if not isinstance(row, dict):
        return []
    given = (row.get(field) for field in _PROMPT_FIELDS)
    texts = [text for text in given if isinstance(text, str) and text.strip()]
    # Of a transcript, what the human asked first.
    return [re.split(r"\n*(?:Human|Assistant):", text.lstrip().removeprefix("Human:"))[0].strip() for text in texts]
