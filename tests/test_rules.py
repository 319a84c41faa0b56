"""Ratings by rules: exact values, and that they go where observers' ratings go."""

import sys
from collections import Counter

import pytest
from actors import QUESTIONS, SMALL, Actor, live
from pydantic import TypeAdapter, ValidationError

from salign import compose
from salign.config import Criterion, DatasetSection, Gates, Rule, SocietySection
from salign.config.effects import sections_in
from salign.dataset.gathering import build_groups
from salign.errors import ConfigError, StageError
from salign.evaluation.figures import sample_row
from salign.evaluation.judged import Item, Sample
from salign.evaluation.versions import versions_of
from salign.society import rules
from salign.society.check import check_society
from salign.society.functions import check_functions
from salign.society.protocols import protocol_of
from salign.society.rules import RULES, rating_by_rule

SHORT = {"name": "short", "scale": [0, 9], "rule": {"kind": "length", "max_words": 4}}
POLITE = {"name": "polite", "rule": {"kind": "pattern", "pattern": "(?i)please"}}
RULES_ALONE = [SHORT, POLITE]


def rated(rule, answer, question="Why is the sky so very blue?"):
    return rating_by_rule(Criterion(name="x", scale=(0, 8), rule=rule), question, answer)


def test_every_rule_of_a_config_has_a_function():
    assert set(RULES) == set(sections_in(Rule))


@pytest.mark.parametrize(
    ("rule", "answer", "rating"),
    [
        ({"kind": "length", "max_words": 4}, "one two three four", 8),
        ({"kind": "length", "max_words": 4}, "one two three four five six", 4),
        ({"kind": "length", "max_words": 4}, "one " * 9, 0),
        ({"kind": "length", "min_words": 4, "max_words": 8}, "one", 2),
        ({"kind": "length", "min_words": 4, "max_words": 8}, "", 0),
        ({"kind": "length", "max_words": 8}, "", 0),
        ({"kind": "length", "max_words": 8}, " \n", 0),
        ({"kind": "pattern", "pattern": "b.d", "wanted": False}, "", 0),
        ({"kind": "refusal"}, "", 0),
        ({"kind": "pattern", "pattern": "b.d"}, "a bad end", 8),
        ({"kind": "pattern", "pattern": "^b.d"}, "a bad end", 0),
        ({"kind": "pattern", "pattern": "^b.d", "wanted": False}, "a bad end", 8),
        ({"kind": "refusal"}, "I cannot help with that.", 0),
        ({"kind": "refusal"}, "Gladly.", 8),
        ({"kind": "refusal", "wanted": True}, "I cannot help with that.", 8),
        ({"kind": "copy"}, "because it is", 8),
        ({"kind": "copy"}, "the sky is so", 8),
        ({"kind": "copy"}, "The sky so very blue?", 0),
        ({"kind": "copy"}, "is the sky so large", 8 * (1 - 4 / 5)),
        ({"kind": "copy"}, "", 0),
    ],
)
def test_rules_by_hand(rule, answer, rating):
    assert rated(TypeAdapter(Rule).validate_python(rule), answer) == pytest.approx(rating)


def test_a_search_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr(rules, "SEARCH_S", 0.01)
    rule = TypeAdapter(Rule).validate_python({"kind": "pattern", "pattern": "(a|aa)+$"})
    with pytest.raises(ConfigError, match=r"pattern '\(a\|aa\)\+\$' is not done with an answer of 1,001 characters"):
        rated(rule, "a" * 1000 + "!")


@pytest.mark.parametrize("pattern", ["(", "a**", "\\", "a{4294967296}", "(" * 1000])
def test_what_is_no_pattern_is_said(pattern):
    with pytest.raises(ValidationError, match="is no regular expression"):
        TypeAdapter(Rule).validate_python({"kind": "pattern", "pattern": pattern})


def test_a_society_is_rated_by_rules_without_a_call():
    life = live(Actor(), criteria=RULES_ALONE, questions=QUESTIONS[:4])
    rule, num_rated = Criterion(**SHORT), 0
    for interaction in life.interactions:
        for turn in interaction.turns:
            if turn.observed:
                num_rated += 1
                assert set(turn.observed) == {"short", "polite"}
                assert turn.observed_rating("short") == rating_by_rule(rule, interaction.topic, turn.text)
    assert num_rated == 2 * len(life.interactions)
    by_observers = live(Actor(), questions=QUESTIONS[:4])
    calls = [sum(item.num_calls for item in each.interactions) for each in (by_observers, life)]
    assert calls[0] - calls[1] == 2 * num_rated
    assert (
        protocol_of(SocietySection(**{**SMALL, "criteria": RULES_ALONE})).max_calls
        < protocol_of(SocietySection(**SMALL)).max_calls
    )


def test_a_rule_that_all_texts_meet_alike_is_no_fault():
    """A judge that gives one rating to all is gated; a model that has learnt a rule is not."""
    life = live(Actor(lambda _: None), criteria=[{**POLITE, "rule": {"kind": "pattern", "pattern": "."}}])
    gates = Gates(min_rated_share=0, max_flagged_share=1, max_repeated_share=1, min_rating_sd=0.05)
    facts = {"num_calls": 1, "num_refused_calls": 0, "served": {}, "recall": {}}
    assert life.simulation.validity.rating_sds["polite"] == 0
    life.simulation.validity.ratings.pop("feedback")
    life.simulation.validity.check(gates, 0, facts)


def test_training_data_is_scored_by_a_rule():
    how = {"criteria": RULES_ALONE, "protocol": {"kind": "sample"}}
    life = live(Actor(), questions=QUESTIONS[:4], **how)
    protocol = protocol_of(SocietySection(**{**SMALL, **how}))
    groups = list(build_groups(life.interactions, protocol, DatasetSection(), Counter()))
    assert groups
    rule = Criterion(**SHORT)
    for group in groups:
        expected = [rule.on_common_scale(rating_by_rule(rule, "Why?", text)) for text in group.responses]
        assert group.scores == pytest.approx(expected)


def silent(numbers):
    """Says nothing as those of its answers."""

    def say(call):
        if call.sampling is None:
            return None
        of_answer = call.step.partition(":")[2]
        return "" if of_answer in map(str, numbers) else f"Ask {call.agent}, {call.round}."

    return Actor(say)


SAMPLED = {"protocol": {"kind": "sample", "num_answers": 3}, "criteria": RULES_ALONE, "questions": QUESTIONS[:4]}


def learnt(life, **section):
    protocol = protocol_of(SocietySection(**{**SMALL, **{key: SAMPLED[key] for key in ("protocol", "criteria")}}))
    left_out = Counter()
    return list(build_groups(life.interactions, protocol, DatasetSection(**section), left_out)), left_out


def test_an_empty_answer_has_the_lowest_rating_and_is_one_to_learn_from():
    """Were it left out, nothing in the reward would speak against it."""
    life = live(silent([0]), **SAMPLED)
    for interaction in life.interactions:
        assert interaction.failure is None
        first, *others = interaction.turns
        assert (first.text, first.observed_rating("short"), first.observed_rating("polite")) == ("", 0, 1)
        assert all(turn.observed_rating("short") == 9 for turn in others)
    groups, left_out = learnt(life)
    assert groups
    assert all(group.responses[0] == "" and group.scores == (1, *[7] * (len(group.scores) - 1)) for group in groups)
    assert left_out["empty"] == 0
    # What an agent remembers is what it said.
    recalled = [turn.recalled for interaction in life.interactions for turn in interaction.turns if turn.recalled]
    own = [one.answer for memory in recalled for one in memory.all if one.source == "own"]
    assert all(answer.startswith("Ask") for answer in own)


def test_an_empty_answer_is_never_the_best():
    life = live(silent([0]), **SAMPLED)
    groups, left_out = learnt(life, criteria=["polite"])  # both are at the end of the scale
    assert not any("" in group.responses for group in groups)
    assert left_out["empty"] == len(groups) > 0
    assert left_out["cut"] == 0


def test_a_sample_of_empty_answers_alone_fails():
    life = live(silent([0, 1, 2]), **SAMPLED)
    assert {interaction.failure for interaction in life.interactions} == {"the answer is empty"}
    assert learnt(life)[0] == []


def test_a_society_that_mostly_says_nothing_does_not_count():
    life = live(silent([0, 1]), **SAMPLED)
    gates = Gates(min_rated_share=0, max_flagged_share=1)
    facts = {"num_calls": 1, "num_refused_calls": 0, "served": {}, "recall": {}}
    with pytest.raises(StageError, match=r"repeat what was said to another question .* of them are empty"):
        life.simulation.validity.check(gates, 0, facts)


def test_who_asks_observers_gets_no_rating_of_an_empty_answer():
    actor = silent([1])
    life = live(actor, **{**SAMPLED, "criteria": [SHORT, {"name": "alignment"}]})
    for interaction in life.interactions:
        ratings = [(turn.observed_rating("short"), turn.observed_rating("alignment")) for turn in interaction.turns]
        assert [short for short, _ in ratings] == [9, 0, 9]
        assert ratings[1][1] is None
    rated = {call.step for call in actor.calls if call.step.startswith("observe")}
    assert rated == {"observe:answer:0:alignment", "observe:answer:2:alignment"}


def test_an_evaluation_rates_held_out_answers_by_the_rules_too():
    sample = Sample(Item("questions", 0, "Why?", "Why?"), "one two three four")
    metrics = sample_row(sample, [Criterion(**SHORT), Criterion(**POLITE)])["metrics"]
    assert (metrics["short"], metrics["polite"]) == (9, 1)
    unanswered = sample_row(Sample(sample.item, None), [Criterion(**SHORT)])
    assert unanswered["metrics"]["short"] is None
    silent = Sample(sample.item, None, finish="stop")
    assert sample_row(silent, [Criterion(**SHORT)])["metrics"]["short"] == 0
    thinking = Sample(sample.item, None, finish="length", thinking="cut")
    assert sample_row(thinking, [Criterion(**SHORT)])["metrics"]["short"] is None
    assert "short" not in sample_row(Sample(Item("hh", 0, "Why?", "Why?"), "Gladly."), [Criterion(**SHORT)])["metrics"]


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        ({"name": "short"}, "short needs a wording, by which observers are asked, or a rule, or a scorer"),
        ({**SHORT, "wording": "How short is it?"}, "short needs a wording"),
        ({**SHORT, "name": "alignment"}, "alignment is what observers rate by their wording of it"),
        ({"name": "x", "rule": {"kind": "pattern", "pattern": "(a"}}, "is no regular expression"),
        ({"name": "x", "rule": {"kind": "length", "min_words": 9, "max_words": 4}}, "min_words 9 exceeds max_words 4"),
        ({"name": "x", "rule": {"kind": "length", "max_words": 0}}, "greater than or equal to 1"),
    ],
)
def test_rules_that_cannot_be_are_refused(criterion, said):
    with pytest.raises(ValidationError) as refused:
        Criterion(**criterion)
    assert said in str(refused.value)


# --- functions of the user's own -----------------------------------------------------------------

MODULE = """
import itertools
calls = itertools.count()
def words(question, answer): return min(1, len(answer.split()) / 4)
def counts(question, answer): return next(calls) % 2
def too_much(question, answer): return 7
def nothing(question, answer): return None
def not_a_number(question, answer): return float("nan")
def fails(question, answer): return 1 / len(answer)
number = 3
"""


@pytest.fixture
def function(tmp_path, monkeypatch):
    """Makes criteria of the functions of a module of the user's own, which are allowed."""
    name = f"mine_{tmp_path.name}"  # a module is imported once
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    others = ("words", "counts", "too_much", "nothing", "not_a_number", "fails", "number", "missing")
    monkeypatch.setenv("SALIGN_RULES", ", ".join([*(f"{name}.{one}" for one in others), "no_such_package.rate"]))

    def made(what: str) -> Criterion:
        path = what if "." in what else f"{name}.{what}"
        return Criterion(name="own", scale=(0, 8), rule={"kind": "function", "function": path})

    return made


def test_a_function_of_the_users_rates(function, tmp_path):
    own = function("words")
    assert [rating_by_rule(own, "q", answer) for answer in ("", "one", "one two three four five")] == [0, 2, 8]
    (path,) = check_functions([own, own, Criterion(**SHORT)])
    assert path.parent == tmp_path
    config = compose.parse({"society": {"criteria": [own.model_dump()]}}, "test")
    before = versions_of(config, {}, [], {})
    path.write_text(MODULE + "# changed\n")
    changed = {name for name, version in versions_of(config, {}, [], {}).items() if version != before[name]}
    assert changed == {f"function {own.rule.function}"}


def test_what_is_not_allowed_is_not_imported(function, monkeypatch):
    own = function("words")
    for allowed in ("", "other.words", f"{own.rule.function}_more"):
        monkeypatch.setenv("SALIGN_RULES", allowed)
        with pytest.raises(ConfigError, match=r"export SALIGN_RULES=.*mine_.*\.words"):
            check_society(SocietySection(**{**SMALL, "criteria": [own]}), 0)
    assert own.rule.function.partition(".")[0] not in sys.modules


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("counts", r"gives 0 for the answer '', and 1 when it is asked again|depend on the two texts alone"),
        ("too_much", "gives 7 for an answer of 0 characters: it must give a number from 0"),
        ("nothing", "gives None for an answer"),
        ("not_a_number", "gives nan for an answer"),
        ("fails", "fails on an answer of 0 characters \\(ZeroDivisionError: division by zero\\)"),
        ("number", "is int, and no function of a file of Python"),
        ("missing", "cannot be imported \\(AttributeError: module"),
        ("no_such_package.rate", "cannot be imported \\(ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_a_function_that_is_no_rule_is_named_before_anything_is_asked(function, what, said):
    with pytest.raises(ConfigError, match=said):
        check_functions([function(what)])


@pytest.mark.parametrize("name", ["words", "os.system('true')", "a..b", ".a.b", "a.b ", "a.b\n", "a-b.c"])
def test_what_is_no_dotted_path_is_no_function(name):
    with pytest.raises(ValidationError, match="function"):
        TypeAdapter(Rule).validate_python({"kind": "function", "function": name})
