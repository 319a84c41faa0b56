"""Rehearsal: who is in the scene, what is dropped, who reacts, what counts as harm, and what is learnt from it."""

from collections import Counter

import pytest
from actors import QUESTIONS, SMALL, Actor, certain, live

from salign.config import DatasetSection, SocietySection
from salign.dataset.gathering import build_groups
from salign.society.protocols import protocol_of
from salign.society.wordings.rehearsal import Person, lines_of, named_in, people_of

PLAUSIBILITY = {"The door opens.": 6, "The moon falls.": 2, "A child cries.": 5, "Somebody laughs.": 7}
HARM = {"The door opens.": 1, "A child cries.": 6, "Somebody laughs.": 2, "Ann shouts.": 5, "Ben waits.": 1}
NOTICED = {
    "The door opens.": "Ann and Ben.",
    "The moon falls.": "Nobody.",
    "A child cries.": "Nobody.",
    "Somebody laughs.": "BEN",
}
PLANNED = list(PLAUSIBILITY)


def say(call):
    step = call.step.split(":")[0]
    last = call.prompt.user.split("What happened:")[-1]
    if call.sampling is None and step in ("plausibility", "harm"):
        found = PLAUSIBILITY if step == "plausibility" else HARM
        [rating] = [rating for text, rating in found.items() if last.count(text) and _is_last(text, last)]
        return certain(rating)
    if call.sampling is None:
        return certain({"draft": 3, "revision": 6}[call.step.split(":")[1]])
    if step == "notices":
        [named] = [named for text, named in NOTICED.items() if _is_last(text, last)]
        return named
    if step == "react":
        return "Ann shouts." if call.step.endswith(":0") else "Ben waits."
    return {
        "asker": "A neighbour, out of worry.",
        "people": "1. **Ann**: a nurse\n2. Ben: her son\n3. Cid: a stranger\n4. Dora: too many",
        "plan": "\n".join(f"{number}. {text}" for number, text in enumerate(PLANNED, start=1)),
    }.get(step, f"This is {call.step}.")


def _is_last(text, happened):
    lines = [line.partition(". ")[2] for line in happened.splitlines() if line[:1].isdigit()]
    return lines[-1] == text


def held(told=say, **settings):
    actor = Actor(told)
    life = live(actor, protocol={"kind": "rehearsal"}, questions=QUESTIONS[:4], max_rounds=1, **settings)
    return actor, life


def test_a_scene_is_played_step_by_step():
    actor, life = held()
    interaction = life.interactions[4]
    assert interaction.failure is None
    roles = [turn.role for turn in interaction.turns]
    happened = ["event", "consequence", "event", "event", "consequence", "event", "event"]
    assert roles == ["draft", "asker", "people", "plan", *happened, "harm", "revision"]
    events = [(turn.text, turn.role, turn.data["by"], turn.data["dropped"]) for turn in interaction.turns[4:11]]
    assert events == [
        ("The door opens.", "event", "plan", False),
        ("Ann shouts.", "consequence", "Ann", False),
        ("Ben waits.", "event", "Ben", False),
        ("The moon falls.", "event", "plan", True),
        ("A child cries.", "consequence", "plan", False),
        ("Somebody laughs.", "event", "plan", False),
        ("Ben waits.", "event", "Ben", False),
    ]
    door = interaction.turns[4].data
    assert (door["step"], door["plausibility"], door["harm"], door["noticed_by"]) == (1, 6, 1, ["Ann", "Ben"])
    asked = {call.step: call.prompt.user for call in actor.calls if call.agent == 4}
    # What was dropped did not happen, and nobody noticed it.
    assert "The moon falls." not in asked["plausibility:3"]
    assert "notices:2" not in asked
    assert "Cid" in asked["plan"]
    assert "Dora" not in asked["plan"]
    # The harm is named by what was harmful alone, and the answer is written by that.
    assert "Ann shouts." in asked["harm"]
    assert "A child cries." in asked["harm"]
    assert "Ben waits." not in asked["harm"]
    assert "This is harm." in asked["revision"]


def test_a_draft_of_which_no_harm_comes_stands():
    def harmless(call):
        return certain(1) if call.sampling is None and call.step.startswith("harm") else say(call)

    actor, life = held(harmless)
    for interaction in life.interactions:
        assert interaction.turn("revision").text == interaction.turn("draft").text
        assert interaction.turn("harm") is None
        assert set(interaction.turn("revision").observed) == {"alignment", "engagement"}
    assert not [call for call in actor.calls if call.step == "revision"]


def test_a_scene_without_people_or_events_is_a_failure():
    for step, failure in (("people", "there is nobody in the scene"), ("plan", "nothing happens in the scene")):
        _, life = held(lambda call, step=step: "" if call.step == step else say(call))
        assert {interaction.failure for interaction in life.interactions} == {failure}


def test_ratings_in_words_are_read_from_the_modulator():
    def words(call):
        if call.prompt.form != "rating":
            return say(call)
        rating = 1 if call.step.startswith("harm") else 7
        return f"Rating: {rating} Reason: so."

    _, life = held(words, rating="parse")
    for interaction in life.interactions:
        events = interaction.turns_of("event")
        assert {turn.data["plausibility"] for turn in events if turn.data["by"] == "plan"} == {7}
        assert {turn.data["harm"] for turn in events} == {1}


def test_the_most_calls_are_those_of_a_scene_in_which_all_notice_all():
    def all_notice(call):
        if call.sampling is None and call.step.split(":")[0] in ("plausibility", "harm"):
            return certain(7)
        if call.step.startswith("notices"):
            return "Ann, Ben and Cid."
        return say(call)

    _, life = held(all_notice)
    bound = protocol_of(SocietySection(protocol={"kind": "rehearsal"}, **SMALL)).max_calls
    assert {interaction.num_calls for interaction in life.interactions} == {bound}


def test_draft_and_revision_are_graded_and_the_named_harm_is_worth_what_it_led_to():
    _, life = held()
    protocol = protocol_of(SocietySection(protocol={"kind": "rehearsal"}, **SMALL))
    imitation, critic = build_groups(life.interactions[:1], protocol, DatasetSection(), Counter())
    assert dict(zip(imitation.responses, imitation.scores, strict=True)) == {
        "This is draft.": 3,
        "This is revision.": 6,
    }
    assert (critic.kind, critic.responses, critic.scores) == ("self_critic", ("This is harm.",), (6,))
    assert "This is draft." in critic.query
    [metrics] = [round_.metrics(protocol) for round_ in life.rounds]
    assert metrics["sim/consequences_mean"] == 2
    assert metrics["sim/dropped_share"] == pytest.approx(1 / 4)
    assert metrics["sim/rewritten_share"] == 1


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (
            "1. One thing\n2) Another\n\n- a third\n* **fourth**\n(5) five",
            ["One thing", "Another", "a third", "fourth"],
        ),
        ("First this. Then that! And then?", ["First this.", "Then that!", "And then?"]),
        ("  \n", []),
        ("2026 was a year.\n3 people come", ["2026 was a year.", "3 people come"]),
    ],
)
def test_lists_are_read_as_models_write_them(text, items):
    assert lines_of(text, 4) == items


def test_people_have_names_and_whoever_has_none_a_number():
    text = "Ann: a nurse\nsomebody who walks by\nann: again\nA very long introduction that is not a name at all: x"
    assert [person.name for person in people_of(text, 4)] == ["Ann", "Person 2", "Person 3", "Person 4"]
    assert people_of("Ann: a nurse", 3) == [Person("Ann", "a nurse")]


def test_only_whole_names_count_as_named():
    people = [Person("Ann", ""), Person("Person 1", ""), Person("B.", "")]
    assert [person.name for person in named_in("annual; person 12, B.", people)] == ["B."]
    assert [person.name for person in named_in("ANN and Person 1", people)] == ["Ann", "Person 1"]
