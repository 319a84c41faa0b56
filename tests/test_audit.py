"""The audit of rated groups: each figure against one that can be counted by hand."""

import json
import sys

import numpy as np
import pytest

from salign.commands import audit as command
from salign.errors import ConfigError, DataError
from salign.records import AlignmentGroup
from salign.report.audit import agreement, audit, duplicates, people, within


def group(query: str, *rated: tuple[str, float]) -> AlignmentGroup:
    texts, scores = zip(*rated, strict=True)
    return AlignmentGroup(query, texts, scores, "imitation")


LONG = "How do I tell my neighbor that his dog barks the whole night long"


def test_prompts_that_repeat_others_are_found():
    groups = [
        group(LONG, ("Go over and say so kindly.", 5)),
        group(LONG.upper() + "!", ("Do.", 5)),
        group(LONG.replace("whole night", "entire night"), ("Go over and say so, kindly!", 5)),
        group("Something else that nobody has asked before in any way", ("No.", 1)),
    ]
    found = duplicates(groups)
    assert (found["num_exact_prompts"], found["num_near_prompts"], found["num_repeated_responses"]) == (1, 1, 1)
    num_runs = len(LONG.split()) - 3
    num_shared = num_runs - 3  # the word that differs is the last but one
    assert found["near"] == [[LONG, groups[2].query, round(num_shared / (num_runs * 2 - num_shared), 3)]]


def test_length_is_correlated_inside_a_prompt():
    """Long prompts with high scores for all say nothing of length."""
    words = np.array([1.0, 2, 3, 101, 102, 103])
    score = np.array([3.0, 2, 1, 7, 6, 5])
    found = within(words, score, np.array([0, 0, 0, 1, 1, 1]))
    assert found.mean == -1
    assert found.n == 2


def test_scores_are_compared_with_length_and_refusal():
    groups = [
        group("a", ("one", 1), ("one two", 2), ("I cannot help with that, no", 7)),
        group("b", ("one two three", 4), ("I cannot help with that", 6), ("one", 5)),
        group("c", ("alone", 3)),
    ]
    scores = audit(groups)["scores"]
    assert scores["num_refusing"] == 2
    assert scores["refusing_minus_others"].mean == pytest.approx((7 - 1.5 + 6 - 4.5) / 2)
    assert scores["longest_is_best"]["share"].mean == 1.0
    assert scores["longest_is_best"]["chance"] == pytest.approx(1 / 3)


def test_the_words_of_a_lexicon_are_whole_words():
    groups = [group("damn it", ("Damn.", 1), ("A dam.", 4)), group("b", ("Damnation", 3), ("so DAMN sure", 5))]
    found = audit(groups, lexicon=["damn ", ""])["lexicon"]
    assert (found["num_prompts"], found["num_responses"]) == (1, 2)
    assert found["most"] == [("damn", 2)]
    assert found["with_minus_without"].mean == pytest.approx((-3 + 2) / 2)


def test_prompts_that_differ_in_the_people_named_are_compared():
    groups = [
        group("Why are Muslims like that?", ("x", 2), ("I cannot help with that", 4)),
        group("Why are Christians like that?", ("x", 6)),
        group("Why are christians and muslims like that?", ("x", 1)),  # names both
        *(group(f"Is my wife {number} right?", ("x y", 4)) for number in range(5)),
    ]
    found = people(groups)
    assert found["swapped"]["num_pairs"] == 1
    assert found["swapped"]["gap"].mean == 3
    assert list(found["named"]) == ["gender: woman"]
    assert found["named"]["gender: woman"]["num_prompts"] == 5
    assert found["named"]["gender: woman"]["median_words"] == 2


def test_two_raters_agree_as_far_as_they_do():
    one = [group("a", ("x", 1), ("y", 2), ("z", 3)), group("b", ("x", 5))]
    other = [group("a", ("z", 7), ("y", 4), ("x", 6), ("w", 1))]
    found = agreement(one, other)
    assert found["num_responses"] == 3
    assert found["pairs"].mean == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="no response in common"):
        agreement(one, [group("c", ("x", 1))])


def test_a_file_is_audited_by_a_command(tmp_path, monkeypatch, capsys):
    rows = [{"query": LONG, "responses": ["Ask him.", "Shout at him at once."], "scores": [6, 2]}]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "e.txt").write_text(LONG + "?\nA question that is in no data at all\n")
    (tmp_path / "w.txt").write_text("shout\n")
    given = [str(tmp_path / "g.jsonl"), "--against", str(tmp_path / "e.txt"), "--second", str(tmp_path / "g.jsonl")]
    given += ["--lexicon", str(tmp_path / "w.txt"), "--json", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["audit", *given])
    command.main()
    said = capsys.readouterr().out
    assert "evaluation prompts in it, of 2: 1 word for word" in said
    assert "two raters of 2 responses agree on 1.000" in said
    assert "in 0 prompts and 1 responses" in said
    assert json.loads((tmp_path / "a.json").read_text())["noise"]["pairs"]["mean"] == 1


def test_what_cannot_be_audited_is_refused_with_a_remedy(tmp_path, monkeypatch):
    (tmp_path / "g.jsonl").write_text(json.dumps({"query": "q", "responses": ["r"]}) + "\n")
    monkeypatch.setattr(sys, "argv", ["audit", str(tmp_path / "g.jsonl")])
    with pytest.raises(DataError, match="scores"):
        command.main()
    (tmp_path / "g.jsonl").write_text(json.dumps({"query": "q", "responses": ["r"], "scores": [1]}) + "\n")
    monkeypatch.setattr(sys, "argv", ["audit", str(tmp_path / "g.jsonl"), "--json", str(tmp_path / "g.jsonl" / "a")])
    with pytest.raises(ConfigError, match=r"--json .* cannot be written"):
        command.main()
