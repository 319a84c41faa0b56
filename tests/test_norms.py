"""Norms: who holds which, who cites and takes on which, and how they spread through a society."""

import re

import pytest
from actors import QUESTIONS, SMALL, Actor, certain, live

from salign import compose
from salign.config import SocietySection
from salign.engines.base import RatingReply
from salign.errors import ConfigError
from salign.seeds import rng
from salign.society.protocols import protocol_of
from salign.society.topology import draw_audience, make_topology

NORM = "Say the truth."
OTHER = "Be brief."
PROTOCOL = {"kind": "norms", "norms": [NORM], "entrepreneurs": 0.12, "merge_every": None}


def citing(call, takes_on=lambda call: True):
    """Whoever holds a norm cites the first; whoever is offered one takes it on by a rule."""
    step = call.step.split(":")[0]
    if step == "cite":
        return certain(1, call.prompt.scale)
    if step == "fit":
        return certain(7 if takes_on(call) else 1)
    return certain(1 + call.seed % 7) if call.sampling is None else None


def held(told=citing, protocol=PROTOCOL, **settings):
    actor = Actor(told)
    return actor, live(actor, **{"protocol": protocol, "questions": QUESTIONS[:4], **settings})


def holders(life, norm=NORM):
    """Who holds a norm after which round."""
    rounds = {}
    for item in life.interactions:
        if norm in item.turn("revision").data["norms"]:
            rounds.setdefault(item.round, set()).add(item.agent)
    return rounds


def simulated(society, takes_on, num_rounds, seed=0, world=0):
    """Who holds the norm after which round, by the rule alone: no calls, no prompts, no schedule."""
    topology = make_topology(society.topology, seed, world)
    num = topology.num_agents
    size = max(1, round(society.protocol.entrepreneurs * num))
    now = set(rng(seed, world, "entrepreneurs").sample(range(num), size))
    rounds = {}
    for round_ in range(1, num_rounds + 1):
        after = set(now)
        for agent in range(num):
            audience = draw_audience(society, topology, agent, seed, world, round_, agent)
            if agent not in now and now & set(audience) and takes_on(round_, agent):
                after.add(agent)
        now = rounds[round_] = after
    return rounds


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("how", [{}, {"num_ranks": 3}], ids=str)
def test_a_norm_spreads_as_a_simulation_of_the_rule_says(share, how):
    def takes_on(round_, agent):
        return rng("rule", round_, agent).random() < share

    told = lambda call: citing(call, lambda call: takes_on(call.round, call.agent))  # noqa: E731
    settings = {"topology": {"size": 6}, "max_rounds": 5, "audience_size": 2}
    _, life = held(told, **settings, **how)
    society = SocietySection(**{**SMALL, **settings, "protocol": PROTOCOL})
    expected = simulated(society, takes_on, 5)
    assert holders(life) == expected
    assert len(expected[1]) < 36
    assert (len(expected[5]) > len(expected[1])) == (share > 0)
    shares = {r.number: r.metrics(protocol_of(society))["sim/norm_1_share"] for r in life.rounds}
    assert shares == {number: pytest.approx(len(there) / 36) for number, there in expected.items()}


def test_what_an_agent_holds_stands_in_what_it_is_told_and_nobody_elses_does():
    actor, life = held(lambda call: citing(call, lambda call: False))
    [entrepreneur] = holders(life)[1]
    for call in actor.calls:
        if call.step in ("draft", "revision"):
            assert (NORM in str(call.prompt.system)) == (call.agent == entrepreneur)
        elif call.step.startswith(("rating", "reason")):
            member = int(call.step.split(":")[1])
            assert (NORM in call.prompt.system) == (member == entrepreneur)
            assert ("breaks the norm with the number 1" in call.prompt.system) == (member == entrepreneur)
    cited = [turn for item in life.interactions for turn in item.turns_of("feedback") if turn.data.get("norm")]
    assert {turn.agent for turn in cited} == {entrepreneur}
    assert {turn.data["norm"] for turn in cited} == {NORM}


def test_a_norm_that_does_not_fit_is_a_conflict_and_one_that_is_held_is_not_tried_again():
    _, refused = held(lambda call: citing(call, lambda call: False))
    protocol = protocol_of(SocietySection(**{**SMALL, "protocol": PROTOCOL}))
    tried = [turn for item in refused.interactions for turn in item.turns_of("norm")]
    assert tried
    assert not any(turn.data["adopted"] for turn in tried)
    conflicts = sum(round_.metrics(protocol)["sim/conflicts_mean"] * 9 for round_ in refused.rounds)
    assert conflicts == pytest.approx(len(tried))
    _, adopted = held()
    takers = [item.agent for item in adopted.interactions for turn in item.turns_of("norm")]
    assert len(takers) == len(set(takers))


def test_nobody_cites_where_the_choice_is_none_or_cannot_be_read():
    for answer in (lambda call: certain(0, call.prompt.scale), lambda call: RatingReply(None, 0.0, 1, 0)):
        _, life = held(lambda call, answer=answer: answer(call) if call.step.startswith("cite") else citing(call))
        assert all(turn.data.get("norm") is None for i in life.interactions for turn in i.turns_of("feedback"))
        assert len(holders(life)[3]) == 1


def test_there_is_room_for_so_many_norms():
    protocol = {**PROTOCOL, "norms": [NORM, OTHER], "max_norms": 2}

    def second_first(call):
        if call.step.startswith("cite"):
            _, num = call.prompt.scale
            return certain(1 + call.agent % num, call.prompt.scale)
        return citing(call)

    _, life = held(second_first, protocol, max_rounds=4)
    sizes = [len(item.turn("revision").data["norms"]) for item in life.interactions]
    assert max(sizes) == 2


def test_from_time_to_time_norms_are_put_together():
    protocol = {**PROTOCOL, "norms": [NORM, OTHER], "merge_every": 2}

    def say(call):
        if call.step == "merged":
            return "1. Say the truth, briefly.\n2. Say the truth, briefly."
        return citing(call)

    actor, life = held(say, protocol, max_rounds=3)
    merged = [item for item in life.interactions if item.turn("merged") is not None]
    assert {item.round for item in merged} == {2}
    assert all(item.turn("revision").data["norms"] == ["Say the truth, briefly."] for item in merged)
    asked = [call for call in actor.calls if call.step == "merged"]
    assert all(NORM in call.prompt.system and OTHER in call.prompt.system for call in asked)
    # Whoever put its norms together cites what it holds since then.
    changed = {item.agent for item in merged}
    later = {
        turn.data["norm"] for item in life.of_round(3) for turn in item.turns_of("feedback") if turn.agent in changed
    }
    assert later == {"Say the truth, briefly."}


def test_a_list_that_is_doubtful_is_none_to_go_by():
    protocol = {**PROTOCOL, "norms": [NORM, OTHER], "merge_every": 1}
    repeated = "Put your norms together: say once what several of them say, and leave out what you no longer hold."
    _, life = held(lambda call: repeated if call.step == "merged" else citing(call), protocol, max_rounds=2)
    assert any(item.turn("merged") is not None for item in life.interactions)
    assert all(norm in (NORM, OTHER) for item in life.interactions for norm in item.turn("revision").data["norms"])


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({"norms": []}, "norms"),
        ({"norms": [NORM, NORM]}, "norms names 'Say the truth.' twice"),
        ({"norms": [NORM, OTHER], "max_norms": 1}, "there are 2 norms, and max_norms is 1"),
    ],
)
def test_norms_that_cannot_be_held_are_refused(protocol, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose.parse({"run": {"name": "r"}, "society": {"protocol": {"kind": "norms", **protocol}}}, "test")
