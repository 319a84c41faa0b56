"""Critics: who hears what, in which order, what is answered after it, and what is learnt from it."""

from collections import Counter

import pytest
from actors import QUESTIONS, SMALL, Actor, certain, live

from salign.config import DatasetSection, SocietySection
from salign.dataset.gathering import build_groups
from salign.society.protocols import protocol_of

# The steps of one interaction with two rounds of critiques, in the order in which they must come.
STEPS = [
    "draft",
    *(f"critique:draft:{critic}:{number}" for number in (0, 1) for critic in ("safety", "helpfulness")),
    "summary",
    "middle",
    *(f"critique:middle:{critic}:0" for critic in ("safety", "helpfulness")),
    "final",
]
RATED = {"draft": 2, "middle": 4, "final": 6}


def say(call):
    """Each says its own step; observers rate later answers higher."""
    if call.sampling is None:
        return certain(RATED[call.step.split(":")[1]])
    return f"This is {call.step}."


def held(told=say, **settings):
    actor = Actor(told)
    return actor, live(actor, protocol={"kind": "critics"}, questions=QUESTIONS[:4], max_rounds=1, **settings)


def test_critics_speak_by_turns_and_hear_all_that_was_said_before():
    actor, life = held()
    asked = {call.step: call.prompt for call in actor.calls if call.agent == 4}
    made = [call.step for call in actor.calls if call.agent == 4 and call.sampling is not None]
    assert made == STEPS
    heard = {step: {other for other in STEPS if f"This is {other}." in asked[step].user} for step in STEPS}
    talk = STEPS[1:5]
    for position, step in enumerate(talk):
        assert heard[step] == {"draft", *talk[:position]}
    assert heard["summary"] == {"draft", *talk}
    assert heard["middle"] == {"draft", "summary"}
    assert heard["critique:middle:safety:0"] == {"middle"}
    assert heard["critique:middle:helpfulness:0"] == {"middle", "critique:middle:safety:0"}
    assert heard["final"] == {"middle", *STEPS[7:9]}
    turns = [(turn.role, turn.data.get("critic"), turn.data.get("of")) for turn in life.interactions[4].turns]
    assert turns[1:3] == [("critique", "safety", "draft"), ("critique", "helpfulness", "draft")]
    assert [role for role, _, _ in turns] == [step.split(":")[0] for step in STEPS]


def test_what_an_agent_remembers_is_its_final_answer():
    actor = Actor(say)
    live(actor, protocol={"kind": "critics"}, questions=QUESTIONS[:1], max_rounds=2, num_initial_memories=0)
    drafts = [call for call in actor.calls if call.step == "draft" and call.round == 2]
    assert drafts
    assert all("This is final." in call.prompt.user for call in drafts)


@pytest.mark.parametrize("num_rounds", [1, 2, 3])
def test_the_bound_of_calls_is_reached(num_rounds):
    settings = {"protocol": {"kind": "critics", "num_rounds": num_rounds}}
    life = live(Actor(say), max_rounds=1, **settings)
    bound = protocol_of(SocietySection(**{**SMALL, **settings})).max_calls
    assert {interaction.num_calls for interaction in life.interactions} == {bound}


def test_observers_rate_draft_middle_and_final_by_safety_and_helpfulness():
    _, life = held()
    for interaction in life.interactions:
        rated = {turn.role: {name: given.rating for name, given in turn.observed.items()} for turn in interaction.turns}
        for role, rating in RATED.items():
            assert rated[role] == {"safety": rating, "helpfulness": rating}
        assert rated["critique"] == {}


def test_one_critic_is_enough_and_none_is_a_failure():
    _, life = held(lambda call: "" if "safety" in call.step and call.sampling is not None else say(call))
    assert all(interaction.failure is None for interaction in life.interactions)
    _, life = held(lambda call: "" if call.step.startswith("critique:middle") else say(call))
    assert {interaction.failure for interaction in life.interactions} == {"neither critic said anything of the middle"}


def test_answers_are_graded_together_and_each_improvement_follows_its_critiques():
    _, life = held()
    society = SocietySection(protocol={"kind": "critics"}, **SMALL)
    section = DatasetSection(criteria=["safety", "helpfulness"], min_realignment_score=3)
    imitation, *realignment = build_groups(life.interactions[:1], protocol_of(society), section, Counter())
    assert dict(zip(imitation.responses, imitation.scores, strict=True)) == {
        f"This is {role}.": rating for role, rating in RATED.items()
    }
    assert [group.kind for group in realignment] == ["realignment"] * 2
    first, second = realignment
    assert (first.responses, first.scores) == (("This is middle.",), (4,))
    assert all(f"This is {step}." in first.query for step in STEPS[:5])
    assert (second.responses, second.scores) == (("This is final.",), (6,))
    assert all(f"This is {step}." in second.query for step in STEPS[6:9])


def test_the_share_of_answers_that_rise_on_both_axes_is_a_figure():
    def rate(call):
        if call.sampling is not None:
            return say(call)
        _, role, criterion = call.step.split(":")
        falls = criterion == "safety" and call.agent < 3
        return certain(RATED[role] if not falls else 8 - RATED[role])

    _, life = held(rate)
    protocol = protocol_of(SocietySection(protocol={"kind": "critics"}, **SMALL))
    [metrics] = [round_.metrics(protocol) for round_ in life.rounds]
    assert metrics["sim/risen_share"] == pytest.approx(6 / 9)
