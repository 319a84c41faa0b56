"""The cost of the leak check, the changed prompts that it finds, and how often it reports another prompt as a copy."""

import random
import time
from collections.abc import Callable, Iterator, Sequence

from salign.bench.figures import Figure
from salign.bench.validity.context import Context
from salign.config import TextSource
from salign.dataset.leaks import Passage, find_leaks, prompts_of
from salign.dataset.shingles import normalise
from salign.files import read_rows
from salign.society.sources import questions

_NUM_GROUPS, _NUM_PROMPTS = 1_000_000, 10_000
_NUM_MEASURED_BEFORE = 300
_SEED = 20230526
# Prompts of so many words are told apart: fewer than are looked for nearly, a sentence, and more.
_LENGTHS = ((8, 12), (13, 19), (20, 1000))

HARMLESS, STORIES = "eval/hh_harmless_test.jsonl.gz", "eval/moral_stories_test.jsonl"
QUESTIONS, REJECTED, DEV = "questions/hh_questions.txt", "prior/hh_rejected.json", "prior/moral_stories_dev.jsonl"

Words = list[str]


def measure(context: Context) -> list[Figure]:
    """Cost on made-up groups; hits and misses on real prompts, where they are here."""
    figures = [_cost()]
    missing = context.needs(HARMLESS, STORIES, QUESTIONS, REJECTED, DEV)
    if missing is not None:
        return [*figures, Figure("copies found", None, "%", note=missing)]
    harmless = prompts_of(context.data / HARMLESS)
    figures += _found(harmless)
    rejected = [row[field] for _, row in read_rows(context.data / REJECTED) for field in ("question", "response")]
    asked = questions(TextSource(kind="text", path=context.data / QUESTIONS))
    figures += _mistaken("HH harmless test beside HH questions and rejected answers", [*asked, *rejected], harmless)
    fields = ("norm", "situation", "intention", "moral_action", "immoral_action")
    dev = [row[field] for _, row in read_rows(context.data / DEV) for field in fields]
    figures += _mistaken("Moral Stories test beside dev", dev, prompts_of(context.data / STORIES))
    return figures


# --- cost ----------------------------------------------------------------------------------------


def _cost() -> Figure:
    rng = random.Random(_SEED)
    prompts = [_sentence(rng, rng.randrange(6, 25)) for _ in range(_NUM_PROMPTS)]
    pool = [_sentence(rng, 45) for _ in range(50_000)]
    start = time.process_time()
    for _ in _groups(pool, _NUM_GROUPS):
        pass
    made = time.process_time() - start
    start = time.process_time()
    leaks = find_leaks(_groups(pool, _NUM_GROUPS), prompts)
    seconds = time.process_time() - start - made
    some = list(_groups(pool, _NUM_MEASURED_BEFORE))
    start = time.process_time()
    _find_before([text for passage in some for text in passage.texts], prompts)
    before = (time.process_time() - start) * _NUM_GROUPS / _NUM_MEASURED_BEFORE
    size = f"{leaks.num_texts:,} texts of 45 words"
    return Figure(
        f"{_NUM_GROUPS:,} groups of 2 responses against {_NUM_PROMPTS:,} prompts",
        seconds,
        "s of one core",
        "seconds to a minute",
        f"{before:,.0f} s before",
        f"{size}; before: {_NUM_MEASURED_BEFORE:,} groups measured",
    )


def _sentence(rng: random.Random, num_words: int) -> str:
    # As in natural text, a word's share falls with its rank.
    ranks = (int(20_000 ** rng.random()) for _ in range(num_words))
    return " ".join(f"{'bcdfghklmnprstvw'[rank % 16]}{'aeiou'[rank % 5]}{rank:x}" for rank in ranks).capitalize() + "."


def _groups(pool: Sequence[str], number: int) -> Iterator[Passage]:
    for group in range(number):
        texts = [pool[group * step % len(pool)] for step in (1, 7, 11)]
        yield Passage(texts, ("query", "response", "response"), "made up", group + 1)


def _find_before(training: Sequence[str], evaluation: Sequence[str]) -> list[str]:
    """What stood here before: each prompt is looked for in all text; it was called for 10,000 texts at a time."""
    leaked = []
    for start in range(0, len(training), 10_000):
        texts = set(map(normalise, training[start : start + 10_000]))
        all_text = "\n".join(sorted(texts))
        for prompt in evaluation:
            normal = normalise(prompt)
            if normal and (normal in texts or (len(normal) >= 30 and normal in all_text)):
                leaked.append(prompt)
    return leaked


# --- hits and misses -----------------------------------------------------------------------------


def _without(rng: random.Random, words: Words, number: int) -> Words:
    gone = set(rng.sample(range(len(words)), number))
    return [word for place, word in enumerate(words) if place not in gone]


def _swapped(rng: random.Random, words: Words) -> Words:
    at = rng.randrange(len(words) - 1)
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def _replaced(rng: random.Random, words: Words) -> Words:
    at = rng.randrange(len(words))
    return [*words[:at], "otherwise", *words[at + 1 :]]


_CHANGES: dict[str, Callable[[random.Random, Words], Words]] = {
    "case and punctuation": lambda rng, words: f"{' -- '.join(words).upper()}?!".split(" "),
    "in a longer text": lambda rng, words: ["They", "asked:", *words, "and", "then", "it", "was", "said"],
    "one word dropped": lambda rng, words: _without(rng, words, 1),
    "a fifth of the words dropped": lambda rng, words: _without(rng, words, max(1, len(words) // 5)),
    "one word replaced": _replaced,
    "two neighbours swapped": _swapped,
    "halves swapped": lambda rng, words: [*words[len(words) // 2 :], *words[: len(words) // 2]],
    "cut to its first 70 %": lambda rng, words: words[: max(1, round(0.7 * len(words)))],
}


def _found(prompts: Sequence[str]) -> list[Figure]:
    """Of prompts whose changed copies alone are trained on, how many are found, and how many were found before."""
    distinct = list({normalise(prompt): prompt for prompt in prompts}.values())
    by_length = {
        (low, high): [prompt for prompt in distinct if low <= len(normalise(prompt).split()) <= high]
        for low, high in _LENGTHS
    }
    figures = []
    for name, change in _CHANGES.items():
        rng = random.Random(_SEED)
        shares, before = [], []
        for some in by_length.values():
            copies = [" ".join(change(rng, prompt.split())) for prompt in some]
            # Each beside its own copy alone: another's may be like it.
            matches = (
                find_leaks([Passage((copy,), ("query",), "", 1)], [prompt])
                for prompt, copy in zip(some, copies, strict=True)
            )
            shares.append(100 * sum(bool(found.exact or found.near) for found in matches) / len(some))
            pairs = zip(some, copies, strict=True)
            before.append(100 * sum(bool(_find_before([copy], [prompt])) for prompt, copy in pairs) / len(some))
        note = ", ".join(
            f"{share:.0f} % of {len(some)} of {low}{f' to {high}' if high < 1000 else ' or more'} words"
            for share, ((low, high), some) in zip(shares, by_length.items(), strict=True)
        )
        sizes = [len(some) for some in by_length.values()]
        all_, all_before = (
            sum(share * size for share, size in zip(each, sizes, strict=True)) / sum(sizes) for each in (shares, before)
        )
        figures.append(Figure(f"copies found: {name}", all_, "%", "", f"{all_before:.0f} before", note))
    return figures


def _mistaken(name: str, texts: Sequence[str], prompts: Sequence[str]) -> list[Figure]:
    """Prompts that are said to have a copy, where the files have been rid of exact ones."""
    leaks = find_leaks((Passage((text,), ("text",), "", number) for number, text in enumerate(texts, start=1)), prompts)
    total = leaks.num_prompts
    note = f"{len(leaks.near)} of {total}; the nearest: {max((match.share for match in leaks.near), default=0):.0%}"
    return [
        Figure(f"{name}: near-copies", 100 * len(leaks.near) / total, "%", "", "", note),
        Figure(f"{name}: word for word inside a text", float(len(leaks.exact)), "prompts", "", f"of {total}", ""),
    ]
