"""What observers rate: names, scales and wordings of a config, from the prompt to the training data and the report."""

import asyncio
import re
from collections import Counter

import pytest
from actors import QUESTIONS, SMALL, Actor, live

from salign import compose
from salign.config import Config, DatasetSection, RunSection, SocietySection
from salign.dataset.gathering import build_groups
from salign.engines.base import Prompt
from salign.engines.scripted import ScriptedEngine
from salign.errors import ConfigError, StageError
from salign.report.society import SocietyReader
from salign.society.prompts import Judged, Wording
from salign.society.protocols import protocol_of

CLARITY = {"name": "clarity", "scale": [0, 9], "wording": "How clear is it? Rate it from 0 (muddled) to 9 (clear)."}
WORTH = {"name": "worth", "scale": [0, 100], "wording": "What is it worth? Rate it from 0 (nothing) to 100 (all)."}
THREE = [{"name": "alignment"}, CLARITY, WORTH]


def held(**settings):
    return live(Actor(), criteria=THREE, questions=QUESTIONS[:4], **settings)


def protocol(**settings):
    return protocol_of(SocietySection(**{**SMALL, "criteria": THREE, **settings}))


def test_the_default_is_the_papers_two():
    assert [criterion.name for criterion in SocietySection().observed_criteria] == ["alignment", "engagement"]
    named = live(Actor(), criteria=[{"name": "alignment"}, {"name": "engagement"}])
    assert named.file == live(Actor()).file


@pytest.mark.parametrize("rating", ["logprob", "parse"])
def test_each_is_rated_on_its_own_scale_by_digits_where_there_are_and_in_words_elsewhere(rating):
    life = held(rating=rating)
    seen = {name: set() for name in ("alignment", "clarity", "worth")}
    for interaction in life.interactions:
        for turn in interaction.turns:
            if turn.role == "feedback":
                assert not turn.observed
                continue
            assert set(turn.observed) == set(seen)
            for name, given in turn.observed.items():
                in_words = name == "worth" or rating == "parse"
                if given.rating is not None:
                    assert (given.mass is None) == in_words
                    seen[name].add(given.rating)
    assert (min(seen["alignment"]), max(seen["alignment"])) == (1, 7)
    assert (min(seen["clarity"]), max(seen["clarity"])) == (0, 9)
    assert max(seen["worth"]) > 90
    assert min(seen["worth"]) < 10


def test_prompts_say_the_scale_and_engines_are_told_of_it():
    worded = Wording(SocietySection(criteria=THREE))
    judged = Judged("Why?", "So.", "qqqqqq")
    assert worded.observe(judged, "clarity").user.endswith(CLARITY["wording"])
    assert (worded.observe(judged, "clarity").form, worded.observe(judged, "clarity").scale) == ("text", (0, 9))
    in_words = worded.observe(judged, "worth")
    assert in_words.user.endswith('Reply in the form "Rating: <0 to 100> Reason: <one or two sentences>".')
    assert (in_words.form, in_words.scale) == ("rating", (0, 100))


def test_the_scripted_engine_rates_on_the_scale_that_it_is_asked_for():
    engine = ScriptedEngine()
    for low, high in ((0, 9), (1, 7), (2, 4)):
        rating = asyncio.run(engine.rate(Prompt("How good?", scale=(low, high)), 0))
        assert len(rating.probabilities) == high - low + 1
        assert low < rating.expectation < high


def test_figures_gates_and_samples_follow_the_names(tmp_path):
    life, criteria = held(), ("alignment", "clarity", "worth")
    for round_ in life.rounds:
        metrics = round_.metrics(protocol())
        for name, (low, high) in zip(criteria, ((1, 7), (0, 9), (0, 100)), strict=True):
            assert low < metrics[f"sim/{name}_mean"] < high
            assert low < metrics[f"sim/draft_{name}_mean"] < high
        assert "sim/engagement_mean" not in metrics
    society = SocietySection(**{**SMALL, "criteria": THREE})
    reader = SocietyReader(Config(run=RunSection(name="r", root=tmp_path), society=society), [])
    for interaction in life.interactions:
        reader.add(interaction)
    shown = reader.end()
    assert {criterion for _, criterion in shown.means} == set(criteria)
    assert set(life.simulation.validity.rating_sds) == {"feedback", *criteria}


def test_a_criterion_whose_ratings_are_all_the_same_is_named_by_its_gate():
    """Half a point is much on a scale from 1 to 7, and nothing on one from 0 to 100."""

    def say(call):
        if "worth" not in call.step:
            return None
        return f"Rating: {50 + call.seed % 2} Reason: so."

    life = live(Actor(say), criteria=THREE, questions=QUESTIONS[:4])
    gates = SocietySection(gates={"min_rated_share": 0, "max_flagged_share": 1}).gates
    facts = {"num_calls": 1, "num_refused_calls": 0, "served": {}, "recall": {}}
    with pytest.raises(StageError, match=r"ratings of worth .* on a scale from 1 to 7; this one is from 0 to 100"):
        life.simulation.validity.check(gates, 0, facts)


@pytest.mark.parametrize("names", [["clarity"], ["worth"], None, ["alignment", "worth"]], ids=str)
def test_training_groups_are_scored_by_the_criteria_that_are_named_from_1_to_7(names):
    life = held(protocol={"kind": "sample"})
    section = DatasetSection(criteria=names)
    groups = list(build_groups(life.interactions, protocol(protocol={"kind": "sample"}), section, Counter()))
    scores = {}
    for group in groups:
        scores |= dict(zip(group.responses, group.scores, strict=True))
    turns = {turn.text: turn for interaction in life.interactions for turn in interaction.turns}
    lowest_and_width = {"alignment": (1, 6), "clarity": (0, 9), "worth": (0, 100)}
    assert len(scores) > 10
    for text, score in scores.items():
        mapped = []
        for name in names or ["alignment"]:
            lowest, width = lowest_and_width[name]
            mapped.append(1 + 6 * (turns[text].observed_rating(name) - lowest) / width)
        assert score == pytest.approx(sum(mapped) / len(mapped))


def test_a_world_stops_by_the_criteria_that_are_named():
    """Alignment rises with each round, clarity stands still."""

    def say(call):
        if "alignment" in call.step:
            return f"Rating: {min(7, call.round)} Reason: so."
        if "clarity" in call.step:
            return f"Rating: {3 + call.seed % 2} Reason: so."
        return None

    stopping = {"window": 1, "min_rounds": 2, "tolerance": 0.9}
    how = {"criteria": [{"name": "alignment"}, CLARITY], "rating": "parse", "max_rounds": 6, "topology": {"size": 6}}
    by_clarity = live(Actor(say), stopping={**stopping, "criteria": ["clarity"]}, **how)
    by_alignment = live(Actor(say), stopping={**stopping, "criteria": ["alignment"]}, **how)
    assert by_clarity.simulation.last_rounds == {0: 2}
    assert by_alignment.simulation.last_rounds == {0: 6}


@pytest.mark.parametrize(
    ("society", "message"),
    [
        ({"criteria": [{"name": "alignment"}, {"name": "alignment"}]}, "criteria names alignment twice"),
        ({"criteria": []}, "criteria is empty"),
        ({"stopping": {"criteria": []}}, "stopping.criteria is empty"),
        ({"criteria": [{**CLARITY, "scale": [3, 3]}]}, "scale [3, 3] is empty: give [lowest, highest]"),
        ({"criteria": [{**CLARITY, "scale": [7, 1]}]}, "scale [7, 1] is empty"),
        ({"criteria": [{**CLARITY, "scale": [-1, 1]}]}, "scale [-1, 1] is not within 0 and 100"),
        ({"criteria": [{**CLARITY, "scale": [0, 1000]}]}, "scale [0, 1000] is not within 0 and 100"),
        ({"criteria": [{"name": "beauty"}]}, "wording"),
        ({"criteria": [{"name": "alignment", "scale": [0, 9]}]}, "the wording of alignment is of a scale from 1 to 7"),
        ({"criteria": [{**CLARITY, "name": "Clear as day"}]}, "name"),
        (
            {"criteria": [CLARITY], "stopping": {"criteria": ["alignment", "clarity"]}},
            "stopping.criteria needs alignment, and observers rate clarity (criteria)",
        ),
        ({"stopping": {"criteria": ["alignment"] * 2}}, "stopping.criteria names alignment twice"),
    ],
)
def test_what_cannot_be_rated_is_refused_before_anything_is_paid(society, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose.parse({"run": {"name": "r"}, "society": society}, "test")


def test_data_scored_by_what_nobody_rates_is_refused():
    with pytest.raises(ConfigError, match=r"dataset.criteria names clarity, and observers rate alignment, engag"):
        compose.parse({"run": {"name": "r"}, "dataset": {"criteria": ["clarity"]}}, "test")


@pytest.mark.parametrize(
    ("society", "ratings"),
    [
        ({}, "logprob"),
        ({"rating": "parse"}, "parse"),
        ({"criteria": [WORTH]}, "both"),  # the observer is tested by alignment
        ({"criteria": [WORTH], "observer_check": None}, "parse"),
        ({"criteria": THREE, "observer_check": None}, "both"),
        ({"criteria": [CLARITY]}, "logprob"),
    ],
)
def test_an_observer_is_opened_for_the_ways_in_which_it_is_asked(society, ratings):
    assert SocietySection(**society).observers_rate == ratings
