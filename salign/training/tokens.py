"""Groups in tokens, and their store on disk: tokenised once, read from any number of ranks without being in memory."""

import contextlib
import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from salign.chat import ChatTemplate, chat_template, conversation
from salign.errors import DataError, StageError
from salign.markers import mark_done, read_done
from salign.records import AlignmentGroup, ReplayedGroup
from salign.storage import new_folder

_VERSION = 4
BATCH = 512  # groups that are tokenised together
FLUSH = 1 << 20  # tokens in memory before they are written
# Of each array the type in its file: everything in it is of the machine's own byte order.
_TYPES = {"tokens": "i", "bounds": "q", "firsts": "q", "scores": "f", "ages": "i"}


@dataclass(frozen=True)
class TokenGroup:
    """A group in tokens. `responses` end with the end token; there is a score for each.

    `references` are the mean negative log-likelihoods of the responses under the model that the stage starts from; None
    where the objective does not measure from it. `age` says how many generations ago the group was made.
    """

    query: list[int]
    responses: list[list[int]]
    scores: list[float]
    references: list[float] | None = None
    age: int = 0

    @property
    def num_tokens(self) -> int:
        """The tokens of the query and all responses."""
        return len(self.query) + sum(map(len, self.responses))

    def subset(self, positions: Sequence[int]) -> "TokenGroup":
        """Returns the group with some of its responses."""
        return TokenGroup(
            self.query,
            [self.responses[i] for i in positions],
            [self.scores[i] for i in positions],
            None if self.references is None else [self.references[i] for i in positions],
            self.age,
        )


@dataclass(frozen=True)
class TokenGroups:
    """The groups that fit, and counts of what does not."""

    groups: list[TokenGroup]
    num_long_responses: int
    num_dropped_groups: int


def tokenize(groups: Sequence[AlignmentGroup], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> TokenGroups:
    """Tokenises groups in memory; see `stream_tokens`."""
    left_out: Counter[str] = Counter()
    kept = list(stream_tokens(groups, tokenizer, max_tokens, left_out))
    return TokenGroups(kept, left_out["long_responses"], left_out["long_groups"] + left_out["long_best_groups"])


def stream_tokens(
    groups: Iterable[AlignmentGroup], tokenizer: PreTrainedTokenizerBase, max_tokens: int, left_out: Counter[str]
) -> Iterator[TokenGroup]:
    """Tokenises groups, the queries under the tokenizer's chat template, up to where an answer begins.

    A response ends with the token by which the template ends a turn, and has no other control token: what spells one in
    a query or a response is encoded as its letters.

    A response with which its query exceeds `max_tokens` is left out whole, and counted in `long_responses`. A group of
    which none remains is counted in `long_groups`; one of which none of the best remains, so that a worse one would
    be learnt as the best, is left out too and counted in `long_best_groups`.
    """
    left_out.update(long_responses=0, long_groups=0, long_best_groups=0)
    template = chat_template(tokenizer)
    for batch, encoded in _encoded(groups, template):
        segments = iter(encoded)
        queries = list(itertools.islice(segments, len(batch)))
        for group, query in zip(batch, queries, strict=True):
            responses = [[*ids, template.end] for ids in itertools.islice(segments, len(group.responses))]
            fitting = [position for position, ids in enumerate(responses) if len(query) + len(ids) <= max_tokens]
            left_out["long_responses"] += len(responses) - len(fitting)
            scores = [group.scores[i] for i in fitting]
            if not fitting:
                left_out["long_groups"] += 1
            elif max(scores) < max(group.scores):
                left_out["long_best_groups"] += 1
            else:
                age = group.age if isinstance(group, ReplayedGroup) else 0
                yield TokenGroup(query, [responses[i] for i in fitting], scores, age=age)


def _encoded(
    groups: Iterable[AlignmentGroup], template: ChatTemplate
) -> Iterator[tuple[list[AlignmentGroup], list[list[int]]]]:
    """Groups some hundred at a time with the tokens of their queries and then of their responses.

    While one such lot is tokenised, in a thread that needs no Python, the next is read and the one before is used.
    """
    iterator = iter(groups)
    before: tuple[list[AlignmentGroup], Future[list[list[int]]]] | None = None
    with ThreadPoolExecutor(max_workers=1) as thread:
        while batch := list(itertools.islice(iterator, BATCH)):
            texts = template.prompts((group.messages for group in batch), answer=True)
            texts += [template.response(text) for group in batch for text in group.responses]
            begun = batch, thread.submit(template.encode, texts)
            if before is not None:
                yield before[0], before[1].result()
            before = begun
        if before is not None:
            yield before[0], before[1].result()


def render_all(tokenizer: PreTrainedTokenizerBase, queries: Sequence[str]) -> list[list[int]]:
    """Renders each query up to where its answer begins, as `models.render` does, in one call."""
    template = chat_template(tokenizer)
    return template.encode(template.prompts(map(conversation, queries), answer=True))


def store_key(tokenizer: PreTrainedTokenizerBase, max_tokens: int, data: str) -> str:
    """Computes a hash of everything that a store is made from.

    Args:
        tokenizer: With its chat template.
        max_tokens: Longest query + response.
        data: The digest of the data.
    """
    if tokenizer.is_fast:
        words = tokenizer.backend_tokenizer.to_str()
    else:
        words = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    template = chat_template(tokenizer)
    special = sorted(map(str, tokenizer.special_tokens_map.items()))  # which a template may write
    parts = (_VERSION, data, max_tokens, words, template.source, sorted(template.control.items()), special)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class TokenStore:
    """Groups in tokens in a folder: `store[i]` reads the i-th group from the disk.

    `tokens` holds each group's query and then its responses; segment k of them, a query or a response, reaches from
    `bounds[k]` to `bounds[k + 1]`, and the segments of group i from `firsts[i]` to `firsts[i + 1]`. `scores` has one
    for each response, `ages` one for each group.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        arrays = {name: _mapped(folder / name, code) for name, code in _TYPES.items()}
        self._tokens, self._bounds, self._firsts, self._scores, self._ages = (arrays[name] for name in _TYPES)
        done = read_done(folder)
        if done is None:
            raise StageError(
                f"{folder} is damaged: its files do not have the sizes with which they were written. Remove it."
            )
        self.left_out: dict[str, int] = done.facts["left_out"]
        """What is not in it, by name: unrated and long responses, groups whose best response is too long, bad rows."""

    @staticmethod
    def build(
        folder: Path,
        groups: Iterable[AlignmentGroup],
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        left_out: Counter[str],
    ) -> None:
        """Tokenises groups into a folder, which appears whole or not at all; see `stream_tokens`.

        Args:
            folder: The store's.
            groups: Read once, some hundred at a time.
            tokenizer: With its chat template.
            max_tokens: Longest query + response.
            left_out: What has been left out of the groups while they were read; goes on counting.

        Raises:
            DataError: Nothing fits.
        """
        with new_folder(folder) as part:
            if not TokenStore.write(part, stream_tokens(groups, tokenizer, max_tokens, left_out), left_out):
                raise DataError(
                    f"{folder.parent}: none of the {left_out['long_groups'] + left_out['long_best_groups']} groups "
                    f"fits with its best response into max_tokens {max_tokens}"
                )

    @staticmethod
    def write(folder: Path, groups: Iterable[TokenGroup], left_out: Mapping[str, int]) -> int:
        """Writes a store's files into a folder that is there.

        Returns:
            How many groups it has.
        """
        num_groups = _write(folder, groups)
        mark_done(folder, list(_TYPES), inputs={}, facts={"left_out": dict(left_out)})
        return num_groups

    def __len__(self) -> int:
        return len(self._firsts) - 1

    @property
    def num_responses(self) -> int:
        """The number of responses of all groups."""
        return len(self._scores)

    @property
    def ages(self) -> NDArray[np.int32]:
        """How many generations ago each group was made."""
        return self._ages

    @property
    def num_replayed(self) -> int:
        """How many of its groups earlier generations made."""
        return int(np.count_nonzero(self._ages))

    def responses_of(self, index: int) -> slice:
        """Returns where the responses of a group stand among those of all groups."""
        # There are as many queries before a group as groups.
        return slice(int(self._firsts[index]) - index, int(self._firsts[index + 1]) - index - 1)

    def longest(self, num_responses: int | None) -> tuple[int, int]:
        """Returns the tokens of the longest query with a response, and of the longest group with so many responses."""
        lengths, queries = np.diff(self._bounds), self._firsts[:-1]
        group_of = np.repeat(np.arange(len(self)), np.diff(self._firsts))
        of_response = np.ones(len(lengths), dtype=bool)
        of_response[queries] = False
        group_of, responses = group_of[of_response], lengths[of_response]
        order = np.lexsort((-responses, group_of))  # each group's responses, the longest first
        starts = queries - np.arange(len(self))
        rank = np.arange(len(order)) - starts[group_of]
        sizes = responses[order]
        kept = sizes if num_responses is None else np.where(rank < num_responses, sizes, 0)
        text = lengths[queries] + sizes[starts]
        group = lengths[queries] + np.add.reduceat(kept, starts)
        return int(text.max()), int(group.max())

    def __getitem__(self, index: int) -> TokenGroup:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, end = self._firsts[index : index + 2].tolist()
        bounds = self._bounds[first : end + 1].tolist()
        tokens = self._tokens[bounds[0] : bounds[-1]].tolist()
        segments = [tokens[start - bounds[0] : stop - bounds[0]] for start, stop in itertools.pairwise(bounds)]
        scores = self._scores[self.responses_of(index)].tolist()
        return TokenGroup(segments[0], segments[1:], scores, age=int(self._ages[index]))


def _mapped(path: Path, code: str) -> NDArray[Any]:
    return np.memmap(path, dtype=np.dtype(code), mode="r").view(np.ndarray)


def _write(folder: Path, groups: Iterable[TokenGroup]) -> int:
    """Writes the arrays of a store.

    Returns:
        The number of groups.
    """
    num_groups = 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in _TYPES}
        arrays: dict[str, array[Any]] = {name: array(code) for name, code in _TYPES.items()}

        def flush() -> None:
            for name, values in arrays.items():
                values.tofile(files[name])
                del values[:]

        num_tokens = num_segments = 0
        arrays["bounds"].append(0)
        arrays["firsts"].append(0)
        for group in groups:
            for segment in (group.query, *group.responses):
                arrays["tokens"].extend(segment)
                num_tokens += len(segment)
                arrays["bounds"].append(num_tokens)
            num_groups += 1
            num_segments += 1 + len(group.responses)
            arrays["firsts"].append(num_segments)
            arrays["scores"].extend(group.scores)
            arrays["ages"].append(group.age)
            if len(arrays["tokens"]) >= FLUSH:
                flush()
        flush()
    return num_groups
