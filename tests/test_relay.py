"""Artifacts travel along a directed acyclic graph."""

import pytest
from actors import Actor, certain, live

from salign.config import DatasetSection, LayersTopology, SocietySection
from salign.dataset.gathering import build_groups
from salign.errors import CallRejectedError, ConfigError
from salign.society.check import check_society
from salign.society.protocols import protocol_of
from salign.society.topology import make_topology

# 0 and 1 are heard by 2; 2 and 0 are heard by 3, so one link skips a layer.
SKIPPING = "0 2\n1 2\n2 3\n0 3\n"


def relay(actor, topology, **how):
    return live(actor, protocol={"kind": "relay", **how.pop("protocol", {})}, topology=topology, **how)


def topology_of(tmp_path, text):
    path = tmp_path / "links.txt"
    path.write_text(text)
    return {"kind": "edges", "path": path, "directed": True}


def said(call):
    """Who made a text of which round stands in it."""
    return f"Made by {call.agent} in {call.round}." if call.sampling is not None else None


def test_layers_hear_the_layer_before_them():
    topology = make_topology(LayersTopology(kind="layers", sizes=(2, 1, 2)))
    assert [list(topology.neighbours(agent)) for agent in range(5)] == [[], [], [0, 1], [2], [2]]
    assert [topology.layers.of(agent) for agent in range(5)] == [0, 0, 1, 2, 2]
    assert [topology.layers.is_last(agent) for agent in range(5)] == [False, False, False, True, True]
    assert topology.layers.num == 3


def test_all_that_work_on_a_task_are_asked_the_same_and_take_over_what_was_made_of_it(tmp_path):
    actor = Actor(said)
    life = relay(actor, topology_of(tmp_path, SKIPPING), audience_size=0, max_rounds=6)
    layer = {0: 0, 1: 0, 2: 1, 3: 2}
    questions: dict[int, set[str]] = {}
    for interaction in life.interactions:
        artifact = interaction.turn("artifact")
        begun = interaction.round - layer[interaction.agent]  # the round in which the first agents worked on it
        assert artifact.data["task"] == begun + 2
        questions.setdefault(begun, set()).add(interaction.topic)
        expected = {0: [], 1: [], 2: [0, 1], 3: [0, 2]}[interaction.agent] if begun >= 1 else None
        if begun >= 1:
            assert artifact.data["from"] == expected
            assert artifact.data["nodes"] == {0: 1, 1: 1, 2: 3, 3: 4}[interaction.agent]
        assert artifact.data["is_last"] == (interaction.agent == 3)
    assert all(len(asked) == 1 for asked in questions.values())
    # What is joined is what the others made when it was their turn, also two rounds before.
    for call in actor.calls:
        if call.step == "start" and call.agent == 3 and call.round >= 3:
            assert f"Made by 0 in {call.round - 2}." in call.prompt.user
            assert f"Made by 2 in {call.round - 1}." in call.prompt.user


def test_who_has_nothing_to_take_over_drafts_and_one_artifact_alone_needs_no_call():
    life = relay(Actor(said), {"kind": "layers", "sizes": [1, 1, 1]}, audience_size=0, max_rounds=3)
    for interaction in life.interactions:
        start, artifact = interaction.turn("start"), interaction.turn("artifact")
        alone = interaction.round == 1 or interaction.agent == 0
        assert start.data["from"] == ([] if alone else [interaction.agent - 1])
        assert artifact.data["nodes"] == 1 + min(interaction.agent, interaction.round - 1)
        if start.data["from"]:
            assert start.text == f"Made by {interaction.agent - 1} in {interaction.round - 1}."
            assert start.recalled is None
        assert artifact.text == f"Made by {interaction.agent} in {interaction.round}."


def test_an_artifact_that_was_not_made_is_not_waited_for(tmp_path):
    def told(call):
        return CallRejectedError("refused") if call.agent == 1 else said(call)

    life = relay(Actor(told), topology_of(tmp_path, SKIPPING), audience_size=0, max_rounds=4)
    for interaction in life.interactions:
        assert (interaction.failure is not None) == (interaction.agent == 1)
        if interaction.agent == 2 and interaction.round > 1:
            assert interaction.turn("artifact").data["from"] == [0]
            assert interaction.turn("artifact").data["nodes"] == 2


def test_a_critic_looks_as_often_as_it_is_told():
    life = relay(Actor(said), {"kind": "layers", "sizes": [2, 2]}, audience_size=0, protocol={"num_looks": 3})
    for interaction in life.interactions:
        assert [turn.role for turn in interaction.turns] == ["start", *["critique", "artifact"] * 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n1 2\n2 0\n", r"a circle \(agent 0 hears 2 hears 1 hears 0\).*remove one of them"),
        ("0 1\n1 0\n", r"a circle"),
    ],
)
def test_a_circle_is_named_before_anything_is_paid(tmp_path, text, message):
    society = SocietySection(protocol={"kind": "relay"}, topology=topology_of(tmp_path, text), audience_size=0)
    with pytest.raises(ConfigError, match=message):
        check_society(society, 0)


def test_links_that_go_both_ways_carry_no_relay():
    with pytest.raises(ConfigError, match=r"links of society.topology must go one way"):
        check_society(SocietySection(protocol={"kind": "relay"}), 0)


def test_what_gets_better_is_learnt_with_its_critique():
    def told(call):
        if call.sampling is None:
            return None
        return {"start": "Bad.", "critique:0": "Say more.", "artifact:0": f"Better {call.round}."}[call.step]

    def rates(call):
        return certain(2 if "Bad." in call.prompt.user else 6) if call.sampling is None else told(call)

    life = relay(Actor(rates), {"kind": "layers", "sizes": [3]}, audience_size=0, max_rounds=1, questions=["Why?"])
    protocol = protocol_of(SocietySection(protocol={"kind": "relay"}))
    groups = {group.kind: group for group in build_groups(life.interactions, protocol, DatasetSection(), {})}
    assert dict(zip(groups["imitation"].responses, groups["imitation"].scores, strict=True)) == {
        "Bad.": 2,
        "Better 1.": 6,
    }
    assert "Say more." in groups["realignment"].query
    assert groups["realignment"].responses == ("Better 1.",)


def test_figures_compare_the_first_agents_with_the_last_and_count_who_worked_on_an_artifact():
    life = relay(Actor(said), {"kind": "layers", "sizes": [2, 2]}, audience_size=0, max_rounds=3)
    protocol = protocol_of(SocietySection(protocol={"kind": "relay"}))
    first, *_, last = (round_.metrics(protocol) for round_ in life.rounds)
    assert (first["sim/taken_over_share"], last["sim/taken_over_share"]) == (0, 0.5)
    assert (first["sim/last_nodes_mean"], last["sim/last_nodes_mean"]) == (1, 3)
    pairs = [pair for interaction in life.interactions for pair in protocol.relate(interaction)]
    assert {x for name, x, _ in pairs if name == "tokens_by_nodes"} == {1, 3}
