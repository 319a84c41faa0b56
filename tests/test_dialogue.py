"""Agents with private goals talk; each side is rated; what was said is something to learn from."""

import json
import re
from collections import Counter

import pytest
from actors import QUESTIONS, Actor, live

from salign.config import DatasetSection, JsonProfiles, SocietySection
from salign.dataset.gathering import build_groups
from salign.errors import DataError
from salign.society.profiles import load_profiles
from salign.society.protocols import protocol_of
from salign.society.wordings.dialogue import names

PEOPLE = load_profiles(SocietySection(profiles={"kind": "people"}))


def society(**section):
    return SocietySection(
        protocol={"kind": "dialogue", **section},
        topology={"size": 3},
        max_rounds=2,
        stopping=None,
        num_initial_memories=0,
        max_recall_distance=2.0,
    )


def say(call):
    """Says where in the talk it is; observers give 7 of 10."""
    if "Rating:" in call.prompt.user:
        return "Rating: 7 Reason: so it is"
    return f"word {call.step} of {call.round}"


def talks(told=say, **section):
    actor = Actor(told)
    life = live(actor, society=society(**section), questions=QUESTIONS[:4])
    return life.interactions, actor


def spoken(interaction):
    return [turn for turn in interaction.turns if turn.role in ("opening", "utterance")]


def test_the_cast_speaks_by_turns_and_each_side_is_rated():
    held, _ = talks(num_candidates=1, max_turns=5)
    assert len(held) == 8
    for interaction in held:
        first, second = (member.agent for member in interaction.agents)
        said = spoken(interaction)
        assert [turn.agent for turn in said] == [first, second, first, second, first]
        assert [turn.role for turn in said] == ["opening"] * 2 + ["utterance"] * 3
        assert not any(turn.observed for turn in said)
        closings = interaction.turns_of("closing")
        assert [(turn.agent, turn.text) for turn in closings] == [(first, said[4].text), (second, said[3].text)]
        for turn in closings:
            assert len(turn.observed) == 7
            assert {given.rating for given in turn.observed.values()} == {7.0}


def test_goal_and_secret_are_told_to_their_side_and_to_its_observers_alone():
    held, actor = talks(num_candidates=1, max_turns=4)
    for interaction in held:
        sides = [PEOPLE[member.profile] for member in interaction.agents]
        calls = [call for call in actor.calls if call.place == interaction.key]
        for place, (own, other) in enumerate((sides, sides[::-1])):
            mine = [call for call in calls if call.step in (f"utterance:{n}:0" for n in range(place, 4, 2))]
            rated = [call for call in calls if call.step.startswith(f"observe:closing:{place}:")]
            assert (len(mine), len(rated)) == (2, 7)
            for call in (*mine, *rated):
                assert own.goal in call.prompt.user
                assert own.secret in call.prompt.user
                assert other.goal not in call.prompt.user
                assert other.secret not in call.prompt.user
            assert all(call.prompt.system.startswith(f"You are {own.name}. {own.persona}") for call in mine)


def test_who_speaks_hears_all_that_was_said_and_nothing_that_was_not():
    held, actor = talks(num_candidates=3, max_turns=6)
    for interaction in held:
        calls = {call.step: call.prompt.user for call in actor.calls if call.place == interaction.key}
        said = spoken(interaction)
        for number in range(6):
            heard = calls[f"utterance:{number}:0"]
            assert all(turn.text in heard for turn in said[:number])
            left = [turn.text for turn in interaction.turns_of("candidate")]
            assert not any(text in heard for text in left)


def test_candidates_are_rated_by_the_first_criterion_and_one_is_drawn_whatever_its_rating():
    held, _ = talks(num_candidates=4, max_turns=2)
    drawn = Counter()
    for interaction in held:
        for number in (0, 1):
            here = [turn for turn in interaction.turns if turn.data.get("state") == number]
            assert Counter(turn.role for turn in here) == {"opening": 1, "candidate": 3}
            assert all(set(turn.observed) == {"goal"} for turn in here)
            drawn[here[0].text.split()[1]] += 1
    assert len(drawn) > 2, "not always the same"


def test_a_talk_ends_when_somebody_leaves():
    held, _ = talks(lambda call: " leave." if call.step == "utterance:3:0" else say(call), num_candidates=1)
    for interaction in held:
        assert [turn.text for turn in spoken(interaction)][-1] == " leave."
        assert [turn.text.split()[1] for turn in interaction.turns_of("closing")] == ["utterance:2:0", "utterance:1:0"]
        figures = dict(protocol_of(society()).measure(interaction))
        assert (figures["left_share"], figures["utterances_mean"]) == (1.0, 3.0)


def test_who_leaves_before_all_have_spoken_has_not_talked():
    held, _ = talks(lambda call: "LEAVE" if call.step == "utterance:1:0" else say(call), num_candidates=1)
    assert {interaction.failure for interaction in held} == {"somebody left before all had spoken"}


def learnt(interactions, **section):
    return list(build_groups(interactions, protocol_of(society(**section)), DatasetSection(), Counter()))


def test_at_each_state_the_candidates_are_a_group():
    section = {"num_candidates": 3, "max_turns": 4}
    held, _ = talks(**section)
    groups = learnt(held, **section)
    assert len(groups) == 4 * len(held)
    for group in groups:
        assert len(group.responses) == 3
        assert group.scores == pytest.approx([1 + 6 * 7 / 10] * 3)
        assert "What you want of this talk" in group.query
        number = int(group.responses[0].split(":")[1])
        assert group.query.count("word utterance:") == number


@pytest.mark.parametrize(("rating", "reached"), [(7, True), (6, False)])
def test_of_one_candidate_whole_talks_are_learnt_of_sides_that_reach_their_goal(rating, reached):
    section = {"num_candidates": 1, "max_turns": 4}

    def told(call):
        side = call.step.startswith("observe:closing:0:goal")
        return f"Rating: {rating if side else 0} Reason: so" if "Rating:" in call.prompt.user else say(call)

    held, _ = talks(told, **section)
    groups = learnt(held, **section)
    assert len(groups) == (2 * len(held) if reached else 0)
    leaders = {turn.text for interaction in held for turn in spoken(interaction)[::2]}
    assert {text for group in groups for text in group.responses} == (leaders if reached else set())
    shares = [dict(protocol_of(society()).measure(interaction)) for interaction in held]
    assert all("reached_share" in share for share in shares)


def test_more_than_two_may_talk():
    held, _ = talks(num_speakers=3, num_candidates=1, max_turns=6)
    for interaction in held:
        assert [turn.agent for turn in spoken(interaction)] == [member.agent for member in interaction.agents] * 2


def test_turns_that_do_not_reach_round_are_a_mistake_of_the_config():
    with pytest.raises(ValueError, match="max_turns 2 is less than num_speakers 3"):
        society(num_speakers=3, max_turns=2)


# --- what each side alone knows ---------------------------------------------------------------------


FACTS = [
    {"persona": f"person {n}", "goal": "g", "name": f"N{n}", "question": f"Where is key {n}?", "answer": f"box {n}"}
    for n in range(9)
]


def informed(tmp_path, rows=FACTS, **section):
    path = tmp_path / "people.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return society(**section).model_copy(update={"profiles": JsonProfiles(kind="json", path=path)})


def test_what_a_side_alone_knows_is_found_out_if_it_is_said_in_the_talk(tmp_path):
    """The first of each pair tells what it knows; who is asked answers with what it has been shown."""

    def told(call):
        user = call.prompt.user
        if "From what was said" in user:
            said = user.split("The talk so far")[1].split("From what was said")[0]
            return next(iter(re.findall(r"box \d", said)), "UNKNOWN").upper()
        if call.step == "utterance:0:0":
            return "It is in " + re.search(r"What you alone know: .*\? (box \d)", user)[1] + ", you see."
        return say(call)

    section = informed(tmp_path, asks_facts=True, num_candidates=1, max_turns=4)
    actor = Actor(told)
    life = live(actor, society=section, questions=QUESTIONS[:4])
    protocol = protocol_of(section)
    for interaction in life.interactions:
        first, second = (FACTS[member.profile] for member in interaction.agents)
        findings = {turn.agent: turn for turn in interaction.turns_of("finding")}
        leader, other = (member.agent for member in interaction.agents)
        assert findings[other].data == {"of": leader, "question": first["question"], "found": True}
        assert findings[leader].data == {"of": other, "question": second["question"], "found": False}
        assert interaction.num_calls <= protocol.max_calls == 4 + 14 + 2
        for call in actor.calls:
            if call.place == interaction.key and call.step in ("utterance:0:0", "utterance:1:0"):
                own, its = (first, second) if call.step.startswith("utterance:0") else (second, first)
                assert f"What you alone know: {own['question']} {own['answer']}" in call.prompt.user
                assert f"What you want to find out from the others: {its['question']}" in call.prompt.user
                assert its["answer"] not in call.prompt.user.split("The talk so far")[0]
    assert {round_.metrics(protocol)["sim/found_share"] for round_ in life.rounds} == {0.5}


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("In Box 3.", "box 3", True),
        ("in box 33", "box 3", False),
        ("UNKNOWN", "box 3", False),
        ("", "box", False),
        ("x", " . ", False),
    ],
)
def test_an_answer_counts_if_its_words_stand_there_whole(text, answer, found):
    assert names(text, answer) == found


@pytest.mark.parametrize(
    ("section", "row", "said"),
    [
        ({"asks_facts": True}, {"persona": "p", "goal": "g"}, "no text in the field 'question'"),
        ({"asks_facts": True}, {"persona": "p", "goal": "g", "question": "q"}, "no text in the field 'answer'"),
        ({}, {"persona": "p", "goal": "g", "question": "q", "answer": "a"}, "'question', and it is told to nobody"),
    ],
)
def test_facts_that_are_missing_or_told_to_nobody_are_named_with_their_row(tmp_path, section, row, said):
    with pytest.raises(DataError, match=said):
        load_profiles(informed(tmp_path, [row], **section))


def test_the_embedded_people_know_nothing_alone():
    with pytest.raises(DataError, match="the embedded people have none"):
        load_profiles(society(asks_facts=True))
