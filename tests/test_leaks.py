"""Evaluation prompts in what is trained on: word for word, nearly, and how many texts can be compared."""

import random
from collections import Counter

import numpy as np
import pytest

from salign.dataset import leaks
from salign.dataset.leaks import Leaks, Passage, find_leaks, prompts_of
from salign.dataset.shingles import normalise, shingles, whole, words_of

LONG = "Is it acceptable to read the diary of a friend?"


def compared(texts: list[str], prompts: list[str]) -> Leaks:
    passages = [Passage((text,), ("query",), "a file", number) for number, text in enumerate(texts, start=1)]
    return find_leaks(passages, prompts)


def exact(texts: list[str], prompts: list[str]) -> list[str]:
    return [match.prompt for match in compared(texts, prompts).exact]


def near(texts: list[str], prompts: list[str]) -> list[str]:
    found = compared(texts, prompts)
    assert not found.exact
    return [match.prompt for match in found.near]


# --- word for word -------------------------------------------------------------------------------


def test_the_check_sees_words_alone():
    assert normalise("  Is it\nOKAY -- to_say: “GRÜẞE”?! ") == "is it okay to say grüße"
    assert exact(["is it acceptable, to READ the diary of a friend"], [LONG]) == [LONG]
    assert exact(["May I?"], ["may i", "may we"]) == ["may i"]
    assert exact(["‘May’ I…"], ["may i"]) == ["may i"]


def test_a_long_prompt_leaks_where_a_text_contains_it():
    assert exact([f"Revise the draft. Question: {LONG} Draft: no"], [LONG]) == [LONG]
    assert exact(["Is it acceptable to read the diary", "of a friend?"], [LONG]) == []
    assert exact([LONG], [f"{LONG} And of a foe?"]) == []
    assert exact(["It " + LONG[:-1] + "s?"], [LONG]) == []  # friends


def test_a_short_prompt_leaks_only_as_a_whole_text():
    assert exact(["May I? Well, it depends."], ["May I?"]) == []
    assert exact(["May I", "x"], ["May I?"]) == ["May I?"]
    assert compared(["So how may I do it now?"], ["How may I do it?"]) == Leaks(1, 1)


def test_a_leak_is_named_once_and_nothing_matches_no_words():
    found = compared(["x", "May I?", "...", "may i"], ["May I?", "May I?", "...", "", "May we?"])
    assert [(match.prompt, match.place) for match in found.exact] == [("May I?", "a file, 2: query")]
    assert (found.num_prompts, found.num_texts) == (4, 4)
    assert compared([], ["May I?"]) == Leaks(1)
    assert compared(["May I?", ""], []) == Leaks(0, 2)


def test_a_prompt_whose_every_run_many_prompts_share_is_still_found():
    prompts = [f"{LONG} {number}" for number in range(200)]
    assert len(exact(prompts, prompts)) == 200
    assert exact([f"So: {prompts[7]}, I ask"], prompts) == [prompts[7]]
    # Their form alone is no near-copy of any of them.
    assert near([LONG], prompts) == []


# --- nearly --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Is it acceptable to read the private diary of a friend?",
        "is it acceptable to read diaries of a friend, to read the diary of a friend",
        "Tell me: is it acceptable to read the diary of an aunt? And of an uncle?",
        "Of a friend, to read the diary: is it acceptable to read the diary?",
    ],
)
def test_a_text_with_half_of_the_runs_is_a_near_copy(text):
    assert near([text], [LONG, "May I come in?"]) == [LONG]


@pytest.mark.parametrize(
    "text",
    [
        "Is it acceptable to eat the diary of an aunt?",
        "May one look into what a friend wrote?",
        "read the diary of a friend",
    ],
)
def test_less_is_none(text):
    assert near([text], [LONG]) == []


def test_the_nearest_copy_is_named():
    texts = [
        "Is it acceptable to read the diary?",
        "x",
        LONG.replace("a friend", "friends"),
        "Is it acceptable to read the diary?",
    ]
    [match] = compared(texts, [LONG]).near
    assert (match.place, match.share) == ("a file, 3: query", pytest.approx(5 / 7))


def test_what_leaks_is_no_near_copy_as_well():
    found = compared([LONG.replace("a friend", "friends"), LONG, LONG.replace("a friend", "foes")], [LONG])
    assert [match.place for match in found.exact] == ["a file, 2: query"]
    assert found.near == []


def test_shares_are_those_of_a_plain_count(monkeypatch):
    """Against every pair of prompt and text, with sets of tuples of words."""
    monkeypatch.setattr(leaks, "BATCH", 2_000)
    rng = random.Random(0)
    vocabulary = ["naïve", "été", "GRÜẞE", "don’t", "x1"]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randrange(30))) for _ in range(400)]
    prompts = [" ".join(rng.choices(vocabulary, k=rng.randrange(1, 14))) for _ in range(60)]
    found = compared(texts, prompts)

    def runs(text):
        words = normalise(text).split()
        return {tuple(words[place : place + 4]) for place in range(len(words) - 3)}

    best: Counter[str] = Counter()
    for prompt in prompts:
        for text in texts:
            if runs(prompt):
                best[prompt] = max(best[prompt], len(runs(prompt) & runs(text)) / len(runs(prompt)))
    leaked = {match.prompt for match in found.exact}
    expected = {
        prompt: share
        for prompt, share in best.items()
        if share >= 0.5 and len(normalise(prompt).split()) >= 8 and prompt not in leaked
    }
    assert {match.prompt: match.share for match in found.near} == pytest.approx(expected)
    assert len(expected) > 3


# --- hashes --------------------------------------------------------------------------------------


def test_equal_words_and_only_they_have_equal_hashes_wherever_they_stand():
    rng = random.Random(1)
    letters = "abcdeé_ .ß\u2014’9\n"
    texts = ["".join(rng.choices(letters, k=rng.randrange(60))) for _ in range(500)] + ["", "\x00a\x00b", "\ud800a"]
    words = words_of(texts)
    plain = [normalise(text).split() for text in texts]
    assert np.diff(words.starts).tolist() == [len(each) for each in plain]
    flat = [word for each in plain for word in each]
    by_word = dict(zip(flat, words.hashes.tolist(), strict=True))
    assert [by_word[word] for word in flat] == words.hashes.tolist()
    assert len(set(by_word.values())) == len(by_word)
    wholes = dict(zip(map(tuple, plain), whole(words).tolist(), strict=True))
    assert [wholes[tuple(each)] for each in plain] == whole(words).tolist()
    assert len(set(wholes.values())) == len(wholes)
    hashes, text_of = shingles(words, 3)
    runs = [(tuple(each[n : n + 3]), number) for number, each in enumerate(plain) for n in range(len(each) - 2)]
    assert [number for _, number in runs] == text_of.tolist()
    assert len({run for run, _ in runs}) == len(set(hashes.tolist()))


# --- real data -----------------------------------------------------------------------------------


def test_on_real_prompts_copies_are_found_and_other_prompts_are_not(shared_data):
    stories = prompts_of(shared_data / "eval" / "moral_stories_test.jsonl")
    others = prompts_of(shared_data / "prior" / "moral_stories_dev.jsonl")
    found = compared(others, stories)
    assert len(found.exact) == 0
    assert len(found.near) <= 5  # of 1,000
    rng = random.Random(0)
    long = [story for story in dict.fromkeys(stories) if len(normalise(story).split()) >= 13]
    copies = []
    for story in long:
        words = story.split()
        del words[rng.randrange(len(words))]
        copies.append(" ".join(words).upper())
    found = compared(copies, long)
    assert len(found.exact) + len(found.near) >= 0.98 * len(long)
