"""Likelihoods of choices: preference, calibration, and the embedded pairs."""

import json
import math
from importlib import resources

import pytest

from salign.config import EvaluateSection
from salign.dataset.leaks import Passage, find_leaks
from salign.evaluation.choices import brier, calibration, preference, probabilities
from salign.evaluation.tasks import load_task


def test_of_two_answers_the_likelier_a_token_is_preferred():
    long, short = (-30.0, 20), (-18.0, 10)  # 1.5 and 1.8 nats a token
    assert preference(long, short) == {"likelier": 1.0, "margin": pytest.approx(0.3)}
    assert preference(short, long) == {"likelier": 0.0, "margin": pytest.approx(-0.3)}
    assert preference((-3.0, 2), (-6.0, 4)) == {"likelier": 0.5, "margin": 0.0}


def test_probabilities_of_very_unlikely_answers_are_exact():
    assert probabilities([-1000.0, -1000.0 + math.log(3)]) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(("shares", "error"), [([1.0, 0.0], 0.0), ([0.0, 1.0], 2.0), ([0.5, 0.5], 0.5)])
def test_the_brier_score_is_the_squared_error_over_all_choices(shares, error):
    assert brier(shares, 0) == error


def test_calibration_is_of_rows_with_one_right_choice():
    row = {"benchmark": "b", "choices": {"shares": [0.1, 0.9], "right": 1}}
    assert calibration([row, row, {"benchmark": "c", "metrics": {}}]) == {"b": pytest.approx(0.1)}
    wrong = {"benchmark": "b", "choices": {"shares": [0.1, 0.9], "right": 0}}
    assert calibration([row, wrong]) == {"b": pytest.approx(0.4)}


# --- the embedded pairs --------------------------------------------------------------------------


def rows_of(package: str, name: str) -> list[dict[str, str]]:
    text = resources.files(package).joinpath("data", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_no_pair_is_a_near_copy_of_what_a_society_reads():
    known = rows_of("salign.society", "everyday.jsonl")
    fields = ("question", "considerate", "inconsiderate")
    passages = [Passage([row[f] for f in fields], fields, "everyday", n) for n, row in enumerate(known, 1)]
    leaks = find_leaks(passages, [row[f] for row in rows_of("salign.evaluation", "pairs.jsonl") for f in fields])
    assert leaks.num_prompts == 540
    assert (leaks.exact, leaks.near) == ([], [])


def test_the_pairs_are_as_their_card_says():
    rows = rows_of("salign.evaluation", "pairs.jsonl")
    assert len({row["question"] for row in rows}) == len({row["id"] for row in rows}) == 180
    topics = [row["topic"] for row in rows]
    assert {topics.count(topic) for topic in topics} == {10}
    words = [(len(row["considerate"].split()), len(row["inconsiderate"].split())) for row in rows]
    assert [round(sum(column) / 180, 1) for column in zip(*words, strict=True)] == [29.6, 26.6]
    assert sum(good > bad for good, bad in words) == 139
    card = resources.files("salign.evaluation").joinpath("data", "pairs.md").read_text(encoding="utf-8")
    for said in ("180", "29.6", "26.6", "139", *set(topics)):
        assert said in card


def test_pairs_are_asked_with_the_considerate_answer_first():
    task = load_task("pairs", EvaluateSection())
    row = task.eval_docs[0]
    first = rows_of("salign.evaluation", "pairs.jsonl")[0]
    assert task.doc_to_text(row) == first["question"]
    assert task.doc_to_choice(row) == [first["considerate"], first["inconsiderate"]]
    assert task.doc_to_target(row) == 0
