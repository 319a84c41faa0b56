"""Reflection: agents describe themselves anew, keep what is rated higher, and go by it from the next round on."""

import pytest
from actors import NO_DIGIT, QUESTIONS, SMALL, Actor, certain, live

from salign.config import SocietySection
from salign.society.protocols import protocol_of

RATED = {1: 3, 2: 5, 3: 4, 4: 6}
"""How descriptions of which round are rated."""


def say(call):
    if call.step.startswith("reflection"):
        return certain(RATED[call.round]) if call.sampling is None else f"I am as of round {call.round}."
    return None


def held(told=say, every=1, **settings):
    actor = Actor(told)
    how = {"questions": QUESTIONS[:4], "max_rounds": 4, "reflection": {"every": every}, **settings}
    return actor, live(actor, **how)


def test_a_description_is_kept_if_it_is_rated_higher_than_the_one_before():
    _, life = held()
    for item in life.interactions:
        [turn] = item.turns_of("reflection")
        assert (turn.agent, turn.text) == (item.agent, f"I am as of round {item.round}.")
        assert set(turn.data["ratings"].values()) == {RATED[item.round]}
        assert turn.data["kept"] == (item.round != 3)
    protocol = protocol_of(SocietySection(**SMALL, reflection={"every": 1}))
    kept = {round_.number: round_.metrics(protocol)["sim/description_kept_share"] for round_ in life.rounds}
    assert kept == {1: 1, 2: 1, 3: 0, 4: 1}


def test_agents_go_by_what_they_kept_from_the_next_round_on():
    actor, _ = held()
    known = {1: None, 2: 1, 3: 2, 4: 2}
    seen = 0
    for call in actor.calls:
        # Whoever drafts, judges and revises; not the observers.
        if call.step == "draft" or call.step.startswith(("rating", "reason")):
            for round_ in RATED:
                told = f"I am as of round {round_}." in str(call.prompt.system)
                assert told == (known[call.round] == round_)
                seen += told
        if call.step.startswith("observe"):
            assert "I am as of" not in call.prompt.system
    assert seen > 50


def test_only_every_so_many_rounds():
    _, life = held(every=3)
    assert {item.round for item in life.interactions if item.turns_of("reflection")} == {3}


@pytest.mark.parametrize(
    ("step", "answer"), [("reflection:clarity", NO_DIGIT), ("reflection", "")], ids=["unrated", "silent"]
)
def test_what_is_not_said_or_cannot_be_rated_is_not_kept(step, answer):
    def told(call):
        kind, *rest = call.step.split(":")
        return answer if ":".join([kind, *rest[1:]]) == step else say(call)

    _, life = held(told)
    turns = [turn for item in life.interactions for turn in item.turns_of("reflection")]
    assert len(turns) == 36
    assert not any(turn.data["kept"] for turn in turns)


@pytest.mark.parametrize("how", [{"num_ranks": 3}, {"schedule": "lockstep"}, {"gate": 1}], ids=str)
@pytest.mark.parametrize("kind", ["back_scatter", "sample", "norms"])
def test_the_bytes_are_the_same_however_the_work_is_cut(kind, how):
    study = {
        "reflection": {"every": 2},
        "protocol": {"kind": kind},
        "survey": {"questions": [{"name": "mood", "wording": "How are you? Answer from 1 (ill) to 7 (well)."}]},
    }
    assert live(Actor(), **study, **how).file == live(Actor(), **study).file


def test_the_estimate_counts_it():
    society = SocietySection(**SMALL, reflection={"every": 1})
    _, life = held(lambda call: None, num_rating_retries=0, max_rounds=1)
    assert sum(item.num_calls for item in life.interactions) <= protocol_of(society).most_calls(9)
