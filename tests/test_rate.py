"""`salign rate`: rates any file of groups or answers by itself."""

import json
import sys

import pytest

from salign.commands import rate
from salign.commands.main import run
from salign.engines.base import RatingReply
from salign.engines.scripted import ScriptedEngine
from salign.errors import ConfigError, DataError, EngineError

SHORT = "{name: short, rule: {kind: length, max_words: 2}}"
POLITE = "{name: polite, scale: [0, 1], rule: {kind: pattern, pattern: please}}"
GROUPS = [
    {"query": "Why?", "responses": ["one two", "please a b c", "one two three"], "scores": [2, 6, 5]},
    {"query": "And?", "responses": ["yes", "please"], "context": [{"role": "user", "content": "Hm"}], "scores": [3, 3]},
]


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "groups.jsonl", GROUPS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rated(file, *words, out="out.jsonl"):
    target = file.parent / out
    run(["rate", str(file), str(target), *words])
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_rules_give_exact_scores_weighted_and_the_ratings_are_kept(file, capsys):
    first, second = rated(file, "--observer", SHORT, "--observer", POLITE, "--weight", "polite=3")
    assert first["scores"] == pytest.approx([(7 + 3 * 1) / 4, (1 + 3 * 7) / 4, (4 + 3 * 1) / 4])
    assert first["provenance"]["ratings"] == {"short": [7.0, 1.0, 4.0], "polite": [0.0, 1.0, 0.0]}
    assert second["context"] == [{"role": "user", "content": "Hm"}]
    said = capsys.readouterr().out
    assert "short rates the better answer higher in 50% of 36 labelled pairs" in said
    assert "5 responses of 2 groups" in said
    # Of 2 < 6, 2 < 5 and 5 < 6 the second is turned round.
    assert "agree with the file's own in 67% of 3 pairs of responses (95 % interval 21% to 94%)" in said


@pytest.mark.parametrize(
    "rows",
    [
        [{"query": "Why?", "responses": ["one two", "one two three"]}],
        [{"query": "Why?", "responses": ["one two", "one two three"], "scores": [None, 3]}],
        [{"prompt": "Why?", "response": "one two"}, {"prompt": "Why?", "response": "one two three"}],
        [{"prompt": "Why?", "completion": "one two"}, {"prompt": "Why?", "completion": "one two three"}],
    ],
)
def test_answers_need_no_score(tmp_path, rows):
    (group,) = rated(write(tmp_path / "rows.jsonl", rows), "--observer", SHORT, "--check", "null")
    assert (group["query"], group["responses"], group["scores"]) == ("Why?", ["one two", "one two three"], [7.0, 4.0])


def test_what_cannot_be_rated_is_counted_and_left_out(file, capsys, monkeypatch):
    before = ScriptedEngine.rate

    async def refuse(self, prompt, seed):
        return RatingReply(None, 0.0, 1, 0) if "please" in prompt.user else await before(self, prompt, seed)

    monkeypatch.setattr(ScriptedEngine, "rate", refuse)
    how = ["--engine", "{kind: scripted}", "--check", "null", "--observer", "alignment", "--observer", SHORT]
    first, second = rated(file, *how)
    assert first["responses"] == ["one two", "one two three"]
    assert second["responses"] == ["yes"]
    assert "left out without a rating: 2 (missing: 2 by alignment, 0 by short)" in capsys.readouterr().out


def test_what_was_answered_is_not_asked_again(file, monkeypatch):
    """An engine that fails in the middle leaves its answers in the journal, which goes when the file is there."""
    asked = []
    rate_of_before = ScriptedEngine.rate

    async def fail(self, prompt, seed):
        asked.append(prompt.user)
        if len(asked) == 4:
            raise EngineError("the server is gone")
        return await rate_of_before(self, prompt, seed)

    monkeypatch.setattr(ScriptedEngine, "rate", fail)
    how = ["--engine", "{kind: scripted, max_in_flight: 1}", "--check", "null", "--observer", "alignment"]
    with pytest.raises(EngineError):
        rated(file, *how)
    assert not file.with_name("out.jsonl").exists()
    with pytest.raises(ConfigError, match="criteria"):  # of other criteria they say nothing
        rated(file, *how, "--observer", SHORT)
    interrupted = rated(file, *how)
    assert len(asked) < 2 * 5
    assert not file.with_name("out.jsonl.calls").exists()
    assert interrupted == rated(file, *how, out="whole.jsonl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--observer", "kindness"], "kindness needs a wording, by which observers are asked"),
        (["--observer", "{name: x, rule: {kind: nothing}}"], "rule"),
        (
            ["--observer", SHORT, "--weight", "shrt=2"],
            "--weight 'shrt=2' must have the form NAME=NUMBER",
        ),
        (["--observer", SHORT, "--weight", "short=0"], "a number above 0"),
        (["--observer", SHORT, "--observer", SHORT], "criteria names short twice"),
        (["--observer", SHORT, "--check", "{num_pairs: 0}"], "num_pairs"),
        (["--observer", "{name: x, scorer: {kind: reward_model, model: ./none}}"], "none"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(tmp_path, words, said):
    with pytest.raises(ConfigError) as refused:
        run(["rate", str(tmp_path / "absent.jsonl"), str(tmp_path / "out.jsonl"), *words])
    assert said in str(refused.value)


def test_a_file_that_is_not_there_costs_no_call(tmp_path, monkeypatch):
    monkeypatch.setattr(ScriptedEngine, "rate", None)  # which would be called
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        rated(tmp_path / "absent.jsonl", "--engine", "{kind: scripted}", "--observer", "alignment")


def test_a_place_that_takes_no_files_costs_no_call(file, monkeypatch):
    monkeypatch.setattr(ScriptedEngine, "rate", None)  # which would be called
    with pytest.raises(DataError, match="/proc takes no files"):
        rated(file, "--engine", "{kind: scripted}", "--observer", "alignment", out="/proc/x")


def test_a_file_with_nothing_to_rate_and_the_file_itself_are_refused(tmp_path, file, monkeypatch):
    with pytest.raises(DataError):
        rated(write(tmp_path / "empty.jsonl", []), "--observer", SHORT, "--check", "null")
    monkeypatch.setattr(sys, "argv", ["salign rate", str(file), str(file), "--observer", SHORT])
    with pytest.raises(ConfigError, match="is the file that is read"):
        rate.main()
