"""A panel answers, hears each other, and votes."""

from math import comb

import pytest
from actors import NO_DIGIT, Actor, certain, live

from salign import compose
from salign.calibration import calibration_error
from salign.config import DatasetSection, SocietySection
from salign.dataset.gathering import build_groups
from salign.engines.base import RatingReply
from salign.errors import ConfigError
from salign.society.aggregation import places
from salign.society.protocols import protocol_of
from salign.society.protocols.deliberation import against
from salign.society.sources import Choices
from salign.society.wordings.ballots import Vote, read_vote

RULES = ("plurality", "borda", "instant_runoff", "minimax", "ranked_pairs", "range")
ASKED = "Is it?\n1. Yes\n2. No"
YES_OR_NO = {ASKED: Choices("Is it?", ("Yes", "No"), 0)}
FIVE = {
    "topology": {"kind": "complete", "num_agents": 5},
    "audience_size": 4,
    "without": ["memory", "feedback_text"],
    "questions": [ASKED],
    "choices": YES_OR_NO,
}


def deliberate(told=lambda call: None, *, rule="ranked_pairs", **how):
    """The life of a panel of five on a question of two choices, of which the first is right."""
    aggregation = {"ballots": rule}
    return live(Actor(told), protocol={"kind": "deliberation"}, aggregation=aggregation, **{**FIVE, **how})


def voter_of(call) -> int | None:
    """Who votes or answers by a call; None for an observer's or another call."""
    kind, *_, member = call.step.split(":")
    return int(member) if kind in ("answer", "vote") else None


def chooses(call, *, right: bool, share: float = 1.0) -> RatingReply:
    """A ballot for the right choice or the wrong one, wherever it stands, with a probability."""
    lines = call.prompt.user.split("\n")
    first = "1. Yes" in lines
    assert first != ("2. Yes" in lines)
    return RatingReply((share, 1 - share) if first == right else (1 - share, share), 0.9, 10, 0)


def shares(life, name: str) -> list[float]:
    return [value for round_ in life.rounds for value in round_.measured[name]]


# --- accuracy ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_panels_accuracy_is_the_binomial_sum_exactly_over_all_patterns(rule):
    """In round r of 32, the voters that are right are the ones in r-1; each pattern weighs what it is probable."""

    def told(call):
        voter = voter_of(call)
        return None if voter is None else chooses(call, right=bool((call.round - 1) >> voter & 1))

    life = deliberate(told, rule=rule, max_rounds=32)
    p = 0.7
    panel = corrupted = 0.0
    for number, round_ in enumerate(life.rounds):
        weight = p ** number.bit_count() * (1 - p) ** (5 - number.bit_count())
        protocol = protocol_of(SocietySection(protocol={"kind": "deliberation"}, aggregation={"ballots": rule}))
        figures = round_.metrics(protocol)
        panel += weight * figures["sim/accuracy_panel_share"]
        corrupted += weight * figures["sim/accuracy_corrupted_share"]
        assert figures["sim/accuracy_voted_share"] == number.bit_count() / 5
    assert panel == pytest.approx(sum(comb(5, k) * p**k * (1 - p) ** (5 - k) for k in (3, 4, 5)))
    # One is wrong whatever it thinks, so three of the other four must be right.
    assert corrupted == pytest.approx(sum(comb(4, k) * p**k * (1 - p) ** (4 - k) for k in (3, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_voters_that_are_right_by_chance_reach_the_binomial_sum(rule):
    def told(call):
        voter = voter_of(call)
        return None if voter is None else chooses(call, right=call.seed % 1000 < 650)

    found = shares(deliberate(told, rule=rule, max_rounds=30), "accuracy_panel_share")
    expected = sum(comb(5, k) * 0.65**k * 0.35 ** (5 - k) for k in (3, 4, 5))
    assert len(found) == 150
    assert abs(sum(found) / 150 - expected) < 4 * (expected * (1 - expected) / 150) ** 0.5


@pytest.mark.parametrize("rule", RULES)
def test_a_corrupt_ballot_puts_the_right_answer_last_and_the_best_wrong_one_first(rule):
    honest = [(3.0, 2.0, 1.0), (3.0, 1.0, 2.0), (2.0, 3.0, 1.0)]
    ballot = against(0, places(honest, rule, range(3)))
    assert min(ballot) == ballot[0]
    assert sorted(ballot) == [0.0, 0.5, 1.0]
    assert ballot[1] == 1.0  # which honest voters like better than the other


# --- calibration ---------------------------------------------------------------------------------


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    assert calibration_error([]) is None
    assert calibration_error([(1.0, 1.0), (1.0, 1.0)]) == 0
    assert calibration_error([(0.75, 1.0), (0.75, 1.0), (0.75, 1.0), (0.75, 0.0)]) == 0
    # Of two bins: 0.9 said of what is right half of the time, 0.1 of what never is.
    assert calibration_error([(0.9, 1.0), (0.9, 0.0), (0.1, 0.0), (0.1, 0.0)]) == pytest.approx(0.25)


def test_confidence_is_the_probability_of_the_choice_and_is_scored():
    def told(call):
        voter = voter_of(call)
        return None if voter is None else chooses(call, right=False, share=0.8)

    life = deliberate(told, max_rounds=1)
    protocol = protocol_of(SocietySection(protocol={"kind": "deliberation"}))
    figures = life.rounds[0].metrics(protocol)
    for when in ("alone", "voted"):
        assert figures[f"sim/accuracy_{when}_share"] == 0
        assert figures[f"sim/brier_{when}_mean"] == pytest.approx(0.64)
        assert figures[f"sim/ece_{when}_mean"] == pytest.approx(0.8)
    assert figures["sim/agreement_share"] == 1
    assert life.interactions[0].turns[0].data == {"candidate": 1, "ballot": [0.2, 0.8], "confidence": 0.8}
    assert life.interactions[0].turns[0].mass == 0.9


# --- who hears what ------------------------------------------------------------------------------


def test_each_member_hears_the_others_reasons_in_an_order_of_its_own():
    def told(call):
        voter = voter_of(call)
        if voter is not None:
            return certain(1 + voter % 2, (1, 2))
        kind, *_, member = call.step.split(":")
        return f"because of {member}" if kind == "reason" else None

    actor = Actor(told)
    live(actor, protocol={"kind": "deliberation"}, **{**FIVE, "without": ["memory"], "max_rounds": 1})
    orders = set()
    for call in actor.calls:
        if call.step.startswith("vote:1:"):
            heard = [line for line in call.prompt.user.split("\n") if line.startswith("- for ")]
            members = [int(line.split("because of ")[1][0]) for line in heard] if heard else []
            assert voter_of(call) not in members
            assert sorted([*members, voter_of(call)]) == [0, 1, 2, 3, 4]
            orders.add(tuple(members))
    assert len(orders) > 10


def test_free_answers_are_numbered_for_each_voter_anew_and_counted_as_one_if_they_are_the_same():
    def told(call):
        kind, *_, member = call.step.split(":")
        if kind == "answer":
            return "The same answer." if int(member) < 2 else f"Answer of {member}."
        if kind == "vote":  # for the same answer, wherever it stands
            lines = [line for line in call.prompt.user.split("\n") if line.startswith(("1. ", "2. ", "3. ", "4. "))]
            assert len(lines) == 4
            after = call.prompt.user.split("The same answer.")[0]
            return certain(int(after.rstrip().split("\n")[-1][0]), (1, 4))
        return None

    life = deliberate(told, questions=["Why?"], choices=None, max_rounds=1)
    for interaction in life.interactions:
        result = interaction.turn("result")
        assert result.text == "The same answer."
        assert {turn.data["candidate"] for turn in interaction.turns_of("vote")} == {result.data["candidate"]}
        assert [turn.data["candidate"] for turn in interaction.turns_of("answer")].count(result.data["candidate"]) == 2
        assert result.data["right"] is None
    assert {value for round_ in life.rounds for value in round_.measured["agreement_share"]} == {1.0}
    assert "accuracy_panel_share" not in life.rounds[0].measured


def test_a_panel_of_which_nobody_can_vote_fails():
    life = deliberate(lambda call: NO_DIGIT if voter_of(call) is not None else None, max_rounds=1)
    assert {interaction.failure for interaction in life.interactions} == {"no ballot of the panel could be read"}


def test_the_result_of_a_listed_question_is_said_as_who_was_surest_of_it_said_it():
    def told(call):
        voter = voter_of(call)
        if voter is not None:
            return chooses(call, right=True, share=0.5 + voter / 10)
        return f"I am {call.step[-1]}." if call.step.startswith("reason:answer") else None

    life = live(Actor(told), protocol={"kind": "deliberation"}, **{**FIVE, "without": ["memory"], "max_rounds": 1})
    assert {interaction.turn("result").text for interaction in life.interactions} == {"Yes\nI am 4."}


# --- in words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "vote"),
    [
        ("Ranking: 2 > 1 > 3 Confidence: 80 Reason: It is so.", Vote([1, 2, 0], 0.8, "It is so.")),
        ("**Ranking:** 3, 1 Confidence: 100%", Vote([1, 0, 2], 1.0, "")),
        ("Answer: 2", Vote([0, 2, 0], None, "")),
        ("Ranking: 1 > 2. Confidence: 300. It is.", Vote([2, 1, 0], None, "It is.")),
        ("Ranking: 1 > 4", None),
        ("Ranking: 1 > 1", None),
        ("Ranking: 12", None),
        ('He said "Ranking: 1 > 2"', None),
        ("I like 2.", None),
        ("", None),
    ],
)
def test_a_ballot_in_words_is_read_where_the_voter_gives_it(reply, vote):
    assert read_vote(reply, 3) == vote


def test_votes_in_words_are_asked_for_again_and_take_one_call_each():
    def told(call):
        voter = voter_of(call)
        if voter is None:
            return None
        order = "2 > 1" if "1. Yes" in call.prompt.user.split("\n") else "1 > 2"
        return "what?" if call.attempt == 0 and voter == 3 else f"Ranking: {order} Confidence: 60 Reason: it is."

    actor = Actor(told)
    settings = {**FIVE, "rating": "parse", "max_rounds": 1, "without": ["memory"], "num_rating_retries": 1}
    life = live(actor, protocol={"kind": "deliberation"}, **settings)
    for interaction in life.interactions:
        votes = interaction.turns_of("vote")
        assert [turn.data["ballot"] for turn in votes] == [[0, 1]] * 5
        assert {turn.text for turn in votes} == {"it is."}
    made = [(call.step, call.attempt) for call in actor.calls if call.place == (0, 1, 0) and voter_of(call) is not None]
    once = [(f"{kind}:{member}", 0) for kind in ("answer", "vote:1") for member in range(5)]
    assert sorted(made) == sorted([*once, ("answer:3", 1), ("vote:1:3", 1)])


# --- data ----------------------------------------------------------------------------------------


def test_answers_and_reasons_are_scored_by_where_the_panel_puts_their_candidate():
    def told(call):
        kind, *_, member = call.step.split(":")
        if kind == "answer":
            return f"Answer {member}."
        if kind == "vote":
            lines = call.prompt.user.split("\n")
            place = {lines[n + 1][-2]: int(line[0]) for n, line in enumerate(lines) if line[1:2] == "."}
            by_rank = [place[str(n)] for n in (2, 0, 1, 4, 3)]
            weights = {number: 5.0 - rank for rank, number in enumerate(by_rank)}
            return RatingReply(tuple(weights[n] / 15 for n in range(1, 6)), 1.0, 10, 0)
        return f"Reason of {member}." if kind == "reason" else None

    life = deliberate(told, questions=["Why?"], choices=None, max_rounds=1, without=["memory"])
    protocol = protocol_of(SocietySection(protocol={"kind": "deliberation"}))
    groups = {group.kind: group for group in build_groups(life.interactions, protocol, DatasetSection(), {})}
    scores = dict(zip(groups["imitation"].responses, groups["imitation"].scores, strict=True))
    assert scores == {"Answer 2.": 7, "Answer 0.": 5.5, "Answer 1.": 4, "Answer 4.": 2.5, "Answer 3.": 1}
    reasons = groups["self_critic"]
    assert set(reasons.scores) == {7}
    assert "Answer 2." in reasons.query and "Why?" in reasons.query


def test_a_panel_that_is_too_large_for_its_ballots_is_refused():
    with pytest.raises(ConfigError, match="audience_size 9 is too large for the protocol deliberation: at most 8"):
        compose.parse({"society": {"protocol": {"kind": "deliberation"}, "audience_size": 9}}, "config.yaml")
