"""What a file of rated groups is like: repetitions, what scores follow, who is named, how far raters agree.

Nothing here judges a text. An audit counts, with intervals; what a count means, whoever trains on it decides.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salign.dataset.collect import passages_of_groups
from salign.dataset.leaks import RUN, find_leaks
from salign.dataset.shingles import normalise, shingles, words_of
from salign.errors import DataError
from salign.evaluation.statistics import Estimate, bootstrap_mean, spearman
from salign.records import AlignmentGroup
from salign.society.refusals import refusal_position

NEAR = 0.5
"""Of the runs of four words that two prompts have, how many they must share to be near-duplicates (Jaccard)."""
# What so many prompts have in common is the form of the data.
_MAX_PROMPTS_OF_RUN = 50

GROUPS_OF_PEOPLE: dict[str, tuple[tuple[str, ...], ...]] = {
    "gender": (
        ("man", "men", "boy", "boys", "husband", "father", "brother", "son", "boyfriend", "he", "him", "his"),
        ("woman", "women", "girl", "girls", "wife", "mother", "sister", "daughter", "girlfriend", "she", "her", "hers"),
    ),
    "religion": (
        ("christian", "christians"),
        ("muslim", "muslims"),
        ("jewish", "jews", "jew"),
        ("hindu", "hindus"),
        ("buddhist", "buddhists"),
        ("atheist", "atheists"),
    ),
    "origin": (
        ("white", "whites", "caucasian"),
        ("black", "blacks", "african"),
        ("asian", "asians", "chinese"),
        ("mexican", "mexicans", "hispanic", "latino"),
        ("indian", "indians"),
        ("arab", "arabs"),
    ),
    "orientation": (
        ("straight", "heterosexual"),
        ("gay", "gays", "lesbian", "lesbians", "homosexual"),
        ("transgender", "trans"),
    ),
    "age": (("young", "teenager", "teenagers"), ("old", "elderly", "senior", "seniors")),
}
"""English words that name groups of people, by what they differ in; a row is one group, called by its first word.
A short list of our own: who is not named by it is not looked at."""


_ROW_OF = {kind: {word: words[0] for words in rows for word in words} for kind, rows in GROUPS_OF_PEOPLE.items()}
_FEWEST_PROMPTS = 5
Array = NDArray[Any]


@dataclass
class _Responses:
    """Of every response with a score: [responses]."""

    group: list[int] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    refuses: list[bool] = field(default_factory=list)
    lexicon: list[bool] = field(default_factory=list)


def audit(
    groups: Sequence[AlignmentGroup],
    *,
    prompts: Sequence[str] = (),
    second: Sequence[AlignmentGroup] = (),
    lexicon: Iterable[str] = (),
) -> dict[str, Any]:
    """Audits groups of rated responses, of which there is at least one.

    Args:
        groups: All of a file.
        prompts: Of evaluations, which should not be in it.
        second: The same responses with the scores of another rater.
        lexicon: Words or phrases whose occurrences are counted.

    Returns:
        Figures by part; `None` where there is nothing to measure.
    """
    pattern = _pattern(lexicon)
    responses = _Responses()
    for number, group in enumerate(groups):
        for text, score in zip(group.responses, group.scores, strict=True):
            responses.group.append(number)
            responses.score.append(score)
            responses.words.append(len(text.split()))
            responses.refuses.append(refusal_position(text) is not None)
            responses.lexicon.append(pattern is not None and pattern.search(text) is not None)
    return {
        "size": _size(groups, responses),
        "duplicates": duplicates(groups),
        "scores": _scores(responses),
        "people": people(groups),
        "lexicon": None if pattern is None else _lexicon(groups, responses, pattern),
        "leaks": find_leaks(passages_of_groups("FILE", groups), prompts).facts() if prompts else None,
        "noise": agreement(groups, second) if second else None,
    }


def _size(groups: Sequence[AlignmentGroup], responses: _Responses) -> dict[str, Any]:
    sizes = Counter(len(group.responses) for group in groups)
    return {
        "num_groups": len(groups),
        "num_responses": len(responses.score),
        "responses_per_group": {str(size): sizes[size] for size in sorted(sizes)},
        "median_words": float(np.median(responses.words)),
        "num_groups_with_one_score": sum(len(set(group.scores)) == 1 for group in groups),
    }


# --- duplicates ----------------------------------------------------------------------------------


def duplicates(groups: Sequence[AlignmentGroup]) -> dict[str, Any]:
    """Finds prompts that repeat others, and responses that stand under several prompts.

    Returns:
        Of each the number and the first: prompts that equal an earlier one but for case and punctuation (`exact`);
        pairs of prompts with at least half of their runs of four words in common (`near`: Jaccard); responses of at
        least five words that stand under several prompts (`repeated`).
    """
    normal = [normalise(group.query) for group in groups]
    first: dict[str, int] = {}
    exact = [(first[text], number) for number, text in enumerate(normal) if first.setdefault(text, number) != number]
    distinct = sorted(first.values())
    near = _near([groups[number].query for number in distinct])
    under: dict[str, set[str]] = defaultdict(set)
    for text, group in zip(normal, groups, strict=True):
        for response in group.responses:
            if len(response.split()) >= 5:
                under[normalise(response)].add(text)
    repeated = [response for response, queries in under.items() if len(queries) > 1]
    return {
        "num_exact_prompts": len(exact),
        "num_near_prompts": len({later for _, later, _ in near}),
        "num_repeated_responses": len(repeated),
        "exact": [groups[number].query for _, number in exact[:3]],
        "near": [
            [groups[distinct[one]].query, groups[distinct[other]].query, round(share, 3)]
            for one, other, share in near[:3]
        ],
        "repeated": repeated[:3],
    }


def _near(texts: Sequence[str]) -> list[tuple[int, int, float]]:
    """Pairs of texts, the earlier first, with the Jaccard similarity of their runs of words."""
    hashes, text_of = shingles(words_of(texts), RUN)
    both = np.unique(np.stack([hashes.astype(np.uint64), text_of.astype(np.uint64)], axis=1), axis=0)
    num_runs = np.bincount(both[:, 1].astype(np.int64), minlength=len(texts))
    starts = np.flatnonzero(np.r_[True, both[1:, 0] != both[:-1, 0]])
    shared: Counter[tuple[int, int]] = Counter()
    for start, end in itertools.pairwise([*starts.tolist(), len(both)]):
        if 1 < end - start <= _MAX_PROMPTS_OF_RUN:
            shared.update(itertools.combinations(both[start:end, 1].tolist(), 2))
    found = []
    for (one, other), num in shared.items():
        share = num / (int(num_runs[one]) + int(num_runs[other]) - num)
        if share >= NEAR:
            found.append((one, other, share))
    return sorted(found, key=lambda row: (-row[2], row[0], row[1]))


# --- what scores follow --------------------------------------------------------------------------


def _scores(responses: _Responses) -> dict[str, Any]:
    score, words = np.array(responses.score), np.array(responses.words, dtype=np.float64)
    refuses, group = np.array(responses.refuses), np.array(responses.group)
    return {
        "length": within(words, score, group),
        "longest_is_best": _longest_is_best(words, score, group),
        "num_refusing": int(refuses.sum()),
        "refusing_minus_others": _refusing_minus_others(refuses, score, group),
    }


def within(first: Array, second: Array, group: Array) -> Estimate | None:
    """Computes the mean over groups of Spearman's correlation inside them, with its 95 % interval over groups.

    Inside a group the prompt is the same, so that what long prompts or hard ones do to scores is not taken for length.

    Args:
        first: [responses]
        second: [responses]
        group: Which group each response is of, in ascending order. [responses]
    """
    pairs = (spearman(first[here].tolist(), second[here].tolist()) for here in _members(group))
    return _mean([value for value in pairs if value is not None])


def _members(group: Array) -> list[slice]:
    """Where the responses of each group stand."""
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]).tolist()
    return [slice(start, end) for start, end in itertools.pairwise([*starts, len(group)])]


def _mean(values: Sequence[float]) -> Estimate | None:
    return bootstrap_mean(values, num_resamples=2000, seed=0) if values else None


def _longest_is_best(words: Array, score: Array, group: Array) -> dict[str, Any] | None:
    """How often the best response of a group is its longest, and how often it would be by chance."""
    hits, chance = list[float](), list[float]()
    for here in _members(group):
        if np.unique(words[here]).size > 1 and np.unique(score[here]).size > 1:
            best, longest = score[here] == score[here].max(), words[here] == words[here].max()
            hits.append(float((best & longest).sum() / best.sum()))
            chance.append(float(longest.mean()))
    return {"share": _mean(hits), "chance": sum(chance) / len(chance)} if hits else None


def _refusing_minus_others(refuses: Array, score: Array, group: Array) -> Estimate | None:
    """Mean score of the responses that refuse minus that of the others, over groups that have both."""
    members = [here for here in _members(group) if 0 < refuses[here].sum() < len(refuses[here])]
    return _mean([float(score[here][refuses[here]].mean() - score[here][~refuses[here]].mean()) for here in members])


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    kept = sorted({word.strip().lower() for word in words if word.strip()}, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, kept))})(?!\w)", re.IGNORECASE) if kept else None


def _lexicon(groups: Sequence[AlignmentGroup], responses: _Responses, pattern: re.Pattern[str]) -> dict[str, Any]:
    """Where the words of a lexicon occur: in how many prompts and responses, and how such responses are scored."""
    found = Counter(
        word.lower() for group in groups for text in group.responses for word in set(pattern.findall(text.lower()))
    )
    has, score, group = np.array(responses.lexicon), np.array(responses.score), np.array(responses.group)
    return {
        "num_prompts": sum(pattern.search(one.query) is not None for one in groups),
        "num_responses": int(has.sum()),
        "with_minus_without": _refusing_minus_others(has, score, group),
        "most": found.most_common(10),
    }


# --- who is named --------------------------------------------------------------------------------


def people(groups: Sequence[AlignmentGroup]) -> dict[str, Any]:
    """Compares how prompts are answered that name different groups of people.

    Returns:
        `named`: for each group of people that at least five prompts name, and none of the same kind beside it, the
        number of prompts, the mean of their scores' means, the share of responses that refuse, and the median number of
        words. `swapped`: pairs of prompts that are the same but for words that name another group of the same kind,
        with the mean gap of their scores' means, the larger minus the smaller.
    """
    named: dict[str, list[AlignmentGroup]] = defaultdict(list)
    masked: dict[str, dict[str, int]] = defaultdict(dict)
    for number, group in enumerate(groups):
        words = normalise(group.query).split()
        for kind, rows in _ROW_OF.items():
            there = {rows[word] for word in words if word in rows}
            if len(there) == 1:
                label = f"{kind}: {there.pop()}"
                named[label].append(group)
                text = " ".join("*" if word in rows else word for word in words)
                masked[f"{kind} {text}"].setdefault(label, number)
    pairs = [
        (one, other) for by_label in masked.values() for one, other in itertools.combinations(by_label.values(), 2)
    ]
    gaps = [abs(_middle(groups[one]) - _middle(groups[other])) for one, other in pairs]
    return {
        "named": {label: _answered(of_label) for label, of_label in named.items() if len(of_label) >= _FEWEST_PROMPTS},
        "swapped": {
            "num_pairs": len(pairs),
            "gap": _mean(gaps),
            "first": [[groups[one].query, groups[other].query] for one, other in pairs[:3]],
        },
    }


def _middle(group: AlignmentGroup) -> float:
    return sum(group.scores) / len(group.scores)


def _answered(groups: Sequence[AlignmentGroup]) -> dict[str, Any]:
    texts = [text for group in groups for text in group.responses]
    return {
        "num_prompts": len(groups),
        "score": _mean([_middle(group) for group in groups]),
        "refusing": sum(refusal_position(text) is not None for text in texts) / len(texts),
        "median_words": float(np.median([len(text.split()) for text in texts])),
    }


# --- how far scores can be trusted ---------------------------------------------------------------


def agreement(groups: Sequence[AlignmentGroup], second: Sequence[AlignmentGroup]) -> dict[str, Any]:
    """Compares the scores of the same responses by two raters.

    Returns:
        `pairs`, the share of pairs of responses to one prompt that both raters put in the same order, of those to which
        both give different scores: a reward learnt from the one can be right about the other in no more of them, but by
        chance. `correlation`: Spearman's inside a prompt, mean over prompts. `num_responses` that both scored.

    Raises:
        DataError: They have no response in common.
    """
    other = {
        (group.query, text): score
        for group in second
        for text, score in zip(group.responses, group.scores, strict=True)
    }
    same, correlations, num = list[float](), list[float](), 0
    for group in groups:
        rows = zip(group.responses, group.scores, strict=True)
        both = [(score, other[group.query, text]) for text, score in rows if (group.query, text) in other]
        num += len(both)
        decided = [(a - c) * (b - d) for (a, b), (c, d) in itertools.combinations(both, 2) if a != c and b != d]
        same += [float(product > 0) for product in decided]
        if both and (value := spearman(*map(list, zip(*both, strict=True)))) is not None:
            correlations.append(value)
    if not num:
        raise DataError("the two files have no response in common, so their scores cannot be compared")
    return {"num_responses": num, "pairs": _mean(same), "correlation": _mean(correlations)}
