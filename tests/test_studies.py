"""Surveys, which change nothing, and interventions, which change what they say for whom they say from then on."""

import re

import pytest
from actors import PRIOR, QUESTIONS, SMALL, Actor, certain, live, make_setting, metered

from salign import compose
from salign.config import Config, RunSection, SocietySection
from salign.errors import ConfigError
from salign.report.record import RunRecord, WorldPath
from salign.report.studies import opinions
from salign.society.calls import Speaker
from salign.society.protocols import protocol_of

TRUST = {"name": "trust", "wording": "How far do you trust others? Answer from 1 (not at all) to 7 (wholly)."}
WEALTH = {"name": "wealth", "scale": [0, 100], "wording": "What is wealth worth? Answer from 0 to 100 (all)."}
SURVEY = {"questions": [TRUST, WEALTH], "every": 2}


# --- surveys --------------------------------------------------------------------------------------


def test_every_so_many_rounds_all_or_a_panel_answer_out_of_what_they_remember_then():
    actor = Actor()
    life = live(actor, survey={**SURVEY, "share": 0.4}, max_rounds=4, questions=QUESTIONS[:2], max_recall_distance=2.0)
    asked = {}
    for item in life.interactions:
        answers = item.turns_of("survey")
        if item.round % 2:
            assert not answers
        elif answers:
            asked.setdefault(item.round, set()).add(item.agent)
            assert [turn.data["question"] for turn in answers] == ["trust", "wealth"]
            # What it remembers is as it stands after the round.
            own = [turn.recalled for turn in answers if turn.recalled is not None and turn.recalled.source == "own"]
            revision = item.turn("revision")
            assert all(memory.answer == revision.text for memory in own if memory.question == item.topic)
    assert asked[2] == asked[4]
    assert len(asked[2]) == 4
    sources = {t.recalled.source for i in life.interactions for t in i.turns_of("survey") if t.recalled is not None}
    assert "own" in sources


def test_an_opinion_is_read_on_the_scale_of_its_question():
    life = live(Actor(), survey={**SURVEY, "every": 1}, max_rounds=2)
    opinions = {"trust": [], "wealth": []}
    for item in life.interactions:
        for turn in item.turns_of("survey"):
            opinions[turn.data["question"]].append(turn.data["opinion"])
            assert (turn.mass is None) == (turn.data["question"] == "wealth" or turn.data["opinion"] is None)
    assert set(opinions["trust"]) <= {None, *range(1, 8)}
    assert max(value for value in opinions["wealth"] if value is not None) > 50


def test_a_broadcast_about_the_question_of_the_survey_is_what_its_answer_is_given_out_of():
    subject = TRUST["wording"].partition("?")[0] + "?"
    told = {"name": "news", "from_round": 2, "agents": [4], "broadcast": {"question": subject, "answer": "Nobody."}}
    actor = Actor()
    life = live(actor, survey={"questions": [TRUST]}, interventions=[told], max_recall_distance=0.01)
    for item in life.interactions:
        [turn] = item.turns_of("survey")
        heard = item.agent == 4 and item.round >= 2
        assert (turn.recalled is not None) == heard
        if heard:
            assert (turn.recalled.source, turn.recalled.answer) == ("broadcast", "Nobody.")
    asked = [(call.round, call.prompt.user) for call in actor.calls if call.step == "survey:4:trust"]
    assert [("Nobody." in prompt) for _, prompt in sorted(asked)] == [False, True, True]


def test_opinions_are_curves_with_their_spread(tmp_path):
    def say(call):
        if not call.step.startswith("survey"):
            return None
        return certain(2 + 2 * (call.agent % 2)) if call.sampling is None else "Rating: 50 Reason: so."

    protocol = protocol_of(SocietySection(**SMALL, survey=SURVEY))
    life = live(Actor(say), survey=SURVEY, max_rounds=2)
    before, after = sorted(life.rounds, key=lambda round_: round_.number)
    assert before.metrics(protocol)["sim/survey_trust_mean"] is None
    metrics = after.metrics(protocol)
    assert metrics["sim/survey_trust_mean"] == pytest.approx((5 * 2 + 4 * 4) / 9)
    assert metrics["sim/survey_trust_sd"] == pytest.approx(2 * (5 * 4 / 81) ** 0.5)
    assert (metrics["sim/survey_wealth_mean"], metrics["sim/survey_wealth_sd"]) == (50, 0)
    config = Config(run=RunSection(name="r", root=tmp_path), society=protocol.society)
    path = WorldPath(0, "mixed_half_half", (before.metrics(protocol), metrics), None)
    plot = opinions(RunRecord(tmp_path, config, {}, {}, paths=[path]))
    assert [row[:3] for row in plot.rows] == [["trust", 2, metrics["sim/survey_trust_mean"]], ["wealth", 2, 50]]
    # An answer that cannot be read is missing from what could be read.
    unread = live(Actor(lambda call: "" if "wealth" in call.step else None), survey=SURVEY, max_rounds=2)
    assert unread.simulation.validity.num_missing_ratings >= 9


@pytest.mark.parametrize("how", [{"num_ranks": 3}, {"schedule": "lockstep"}, {"gate": 1}], ids=str)
def test_the_bytes_are_the_same_however_the_work_is_cut(how):
    study = {
        "survey": {**SURVEY, "every": 1},
        "interventions": [
            {"name": "told", "from_round": 2, "label": "bad", "broadcast": {"question": QUESTIONS[1], "answer": "No."}},
            {"name": "moved", "from_round": 3, "share": 0.5, "links": {"kind": "complete", "num_agents": 9}},
        ],
        "max_recall_distance": 2.0,
        "numbers": (0, 1),
    }
    assert live(Actor(), **study, **how).file == live(Actor(), **study).file


def test_the_estimate_counts_the_survey():
    society = SocietySection(**SMALL, survey={**SURVEY, "every": 1})
    life = live(Actor(), survey={**SURVEY, "every": 1}, num_rating_retries=0, max_rounds=1)
    most = protocol_of(society).most_calls(9)
    assert most == protocol_of(SocietySection(**SMALL)).most_calls(9) + 18
    assert sum(item.num_calls for item in life.interactions) <= most


# --- interventions --------------------------------------------------------------------------------


def intervened(*interventions, actor=None, **settings):
    actor = actor or Actor()
    whole = [{"name": f"one{number}", **one} for number, one in enumerate(interventions)]
    return actor, live(actor, interventions=whole, questions=QUESTIONS[:4], **settings)


def test_before_an_intervention_nothing_is_different():
    _, changed = intervened({"from_round": 3, "instructions": "Be brief."}, max_rounds=4)
    plain = live(Actor(), questions=QUESTIONS[:4], max_rounds=4)
    assert [item for item in changed.interactions if item.round < 3] == [i for i in plain.interactions if i.round < 3]
    assert changed.of_round(3) != plain.of_round(3)


def test_instructions_are_the_system_text_of_those_whom_it_is_on_from_then_on():
    actor, _ = intervened({"from_round": 2, "agents": [4, 7], "instructions": "Be brief."})
    for call in actor.calls:
        if call.step == "draft":
            told = call.round >= 2 and call.agent in (4, 7)
            assert (call.prompt.system == "Be brief.") == told
        elif call.step.startswith(("rating", "reason")):
            member = int(call.step.split(":")[1])
            assert call.prompt.system.startswith("Be brief.") == (call.round >= 2 and member in (4, 7))


def test_of_two_interventions_the_later_in_the_list_counts():
    one, other = ({"from_round": 2, "instructions": text} for text in ("Be brief.", "Be long."))
    actor, _ = intervened(one, {**other, "agents": [0]})
    said = {call.agent: call.prompt.system for call in actor.calls if call.step == "draft" and call.round == 2}
    assert said == {agent: "Be long." if agent == 0 else "Be brief." for agent in range(9)}


def test_a_part_gives_another_engine_and_stands_in_the_record():
    first, second = Actor(), Actor()
    second.identity = "other"
    mixture = [{"name": "large", "share": 0.0, "instructions": "Be large."}]
    speakers = [Speaker(metered(first)), Speaker(metered(second), "Be large.")]
    wanted = [{"name": "swap", "from_round": 2, "label": "good", "part": "large"}]
    life = live(first, speakers=speakers, mixture=mixture, interventions=wanted, questions=QUESTIONS[:4])
    for item in life.interactions:
        swapped = item.round >= 2 and item.agents[0].label == "good"
        assert (item.agents[0].part, item.agents[0].engine) == (("large", "other") if swapped else (None, "actor"))
    assert {call.prompt.system for call in second.calls if call.step == "draft"} == {"Be large."}


def test_links_say_whom_they_hear_from_then_on():
    line = {"kind": "isolated", "num_agents": 9}
    _, life = intervened({"from_round": 2, "agents": [0, 1], "links": line})
    for item in life.interactions:
        alone = item.round >= 2 and item.agent in (0, 1)
        assert (not item.turns_of("feedback")) == alone


def test_a_broadcast_is_recalled_where_a_question_is_near_to_it():
    told = {"question": QUESTIONS[0], "answer": "It was on the news."}
    actor, life = intervened({"from_round": 2, "agents": [3, 5], "broadcast": told}, max_recall_distance=0.01)
    heard = {
        (item.round, item.agent)
        for item in life.interactions
        for turn in item.turns_of("draft")
        if turn.recalled is not None and turn.recalled.source == "broadcast"
    }
    asked = {(item.round, item.agent) for item in life.interactions if item.topic == QUESTIONS[0] and item.round >= 2}
    answered = {
        (item.round, item.agent)
        for item in life.interactions
        if any(
            other.agent == item.agent and other.topic == QUESTIONS[0] and other.round < item.round
            for other in life.interactions
        )
    }
    assert heard == {(round_, agent) for round_, agent in asked if agent in (3, 5)} - answered
    assert heard, "nobody was asked it"
    drafts = [call for call in actor.calls if call.step == "draft" and (call.round, call.agent) in heard]
    assert all("It was on the news." in call.prompt.user for call in drafts)


@pytest.mark.parametrize(("who", "num"), [({"share": 0.5}, 4), ({"label": "bad"}, 4), ({"agents": [1, 2]}, 2), ({}, 9)])
def test_how_many_an_intervention_is_on_is_known(who, num):
    from salign.society.world import World

    society = SocietySection(**SMALL, interventions=[{"name": "x", "from_round": 1, "instructions": "Hi", **who}])
    setting = make_setting([Speaker(metered(Actor()))], society=society, prior=PRIOR)
    assert World(setting, 0).interventions == {"x": num}


@pytest.mark.parametrize(
    ("society", "message"),
    [
        ({"from_round": 6, "instructions": "Hi"}, "the intervention x begins in round 6, and max_rounds is 5"),
        ({"from_round": 0, "instructions": "Hi"}, "from_round"),
        ({"from_round": 1}, "x changes nothing: give it instructions, part, links or broadcast"),
        ({"from_round": 1, "part": "large"}, "the intervention x names the part large, and the mixture has: none"),
        (
            {"from_round": 1, "instructions": "Hi", "agents": [9]},
            "x names agent 9, and agents are numbered from 0",
        ),
        ({"from_round": 1, "instructions": "Hi", "agents": [1], "share": 0.5}, "by number and by label or share"),
        ({"from_round": 1, "instructions": "Hi", "agents": [1, 1]}, "x names an agent twice"),
        ({"from_round": 1, "instructions": "Hi", "share": 0.01}, "x is on nobody: its share 0.01 of 9 agents"),
        ({"from_round": 1, "instructions": "Hi", "label": "bad"}, "x is on nobody: no population has agents labelled"),
        (
            {"from_round": 1, "links": {"kind": "complete", "num_agents": 8}},
            "has links of 8 agents, and the society",
        ),
    ],
)
def test_an_intervention_that_does_nothing_is_refused_before_anything_is_paid(society, message):
    raw = {"topology": {"size": 3}, "max_rounds": 5, "populations": ["all_good"], "stopping": None}
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose.parse({"run": {"name": "r"}, "society": {**raw, "interventions": [{"name": "x", **society}]}}, "test")


def test_a_broadcast_to_agents_without_memory_is_refused():
    told = {"name": "x", "from_round": 1, "broadcast": {"question": "Why?", "answer": "So."}}
    with pytest.raises(ConfigError, match="x broadcasts to agents without memory"):
        compose.parse({"run": {"name": "r"}, "society": {"without": ["memory"], "interventions": [told]}}, "test")


def test_names_are_given_once():
    twice = [{"name": "x", "from_round": 1, "instructions": "Hi"}] * 2
    with pytest.raises(ConfigError, match="two interventions are called x"):
        compose.parse({"run": {"name": "r"}, "society": {"interventions": twice}}, "test")
    with pytest.raises(ConfigError, match="two questions are called trust"):
        compose.parse({"run": {"name": "r"}, "society": {"survey": {"questions": [TRUST, TRUST]}}}, "test")
