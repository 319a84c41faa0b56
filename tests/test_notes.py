"""Notes are written once a round by their own agent, and read by anybody as they stood after the round before."""

import pytest
from actors import QUESTIONS, Actor, live, random_delay

from salign.config import SampleProtocol, SocietySection
from salign.records import Turn
from salign.society import prompts
from salign.society.calls import spoken
from salign.society.notes import Notes
from salign.society.protocols import PROTOCOLS, protocol_of
from salign.society.protocols.messages import Update
from salign.society.protocols.sample import Sample


def test_a_reader_sees_a_note_as_it_stood():
    notes = Notes()
    notes.write({"norm": "a"}, 1)
    notes.write({"norm": "b", "other": [1]}, 3)
    assert [notes.read("norm", round_) for round_ in range(5)] == [None, "a", "a", "b", "b"]
    assert notes.after(0) == {}
    assert notes.after(2) == {"norm": "a"}
    assert notes.after(3) == {"norm": "b", "other": [1]}


def test_versions_that_nobody_can_read_are_dropped():
    notes = Notes()
    for round_ in range(1, 100):
        notes.write({"norm": round_}, round_, read_after=max(0, round_ - 2))
    assert notes.num_versions == 3
    assert [notes.read("norm", round_) for round_ in (97, 98, 99)] == [97, 98, 99]


class Counting(Sample):
    """Each agent notes in which round it noted, and the sum of what all noted before; some rounds fail."""

    figures = {"noted": "What was noted"}  # noqa: RUF012 (as its base has it)

    async def interact(self, conversation):
        seat, agent = conversation.seat, conversation.agent
        reply = await agent.generate(prompts.draft(seat.question, seat.recalled), self.society.draft, "answer")
        everybody = await conversation.read(range(9), "noted")
        seen = [value for value in everybody if value is not None]
        asked = await conversation.ask(seat.audience, "Which round?")
        data = {"seen": seen, "own": dict(seat.notes), "told": [turn.data["noted"] for turn in asked]}
        said = conversation.say("answer", spoken(reply, "answer"), seat.recalled, data=data)
        return [Update(said, {"noted": [seat.round, len(seen)], "first": seat.notes.get("first", seat.round)})]

    async def answer(self, calls, state, question, query):
        return Turn(state.agent, "aside", question, data={"noted": state.notes.get("noted")})

    def measure(self, interaction):
        answer = interaction.turn("answer")
        if answer is not None:
            yield "noted", len(answer.data["seen"])


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "sample", Counting)
    monkeypatch.setattr(SampleProtocol, "asks_audience", True)


def society(**how):
    def say(call):
        return "" if call.step == "answer" and call.seed % 5 == 0 else None  # an interaction that fails notes nothing

    actor = Actor(say, random_delay(how.pop("delay", 0)))
    return live(actor, protocol={"kind": "sample"}, questions=QUESTIONS[:4], max_rounds=5, **how)


@pytest.mark.usefixtures("counting")
def test_notes_of_anybody_are_read_as_they_stood_after_the_round_before():
    life = society(delay=7)
    latest: dict[int, list[int]] = {}
    for round_ in range(1, 6):
        before = dict(latest)
        for interaction in life.of_round(round_):
            if interaction.failure is not None:
                continue
            data = interaction.turn("answer").data
            assert data["seen"] == [before[agent] for agent in sorted(before)]
            assert data["own"].get("noted") == before.get(interaction.agent)
            asked = [turn.agent for turn in interaction.turns_of("aside")]
            assert data["told"] == [before.get(agent) for agent in asked]
            latest[interaction.agent] = [round_, len(before)]
    assert any(interaction.failure for interaction in life.interactions)
    assert life.worlds[0].num_notes <= 9 * 2 * 3, "three versions of two notes at most"


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("how", [{"num_ranks": 3, "delay": 1}, {"schedule": "lockstep"}, {"gate": 1}], ids=str)
def test_notes_and_figures_are_the_same_however_the_work_is_cut(how):
    one, other = society(), society(**how)
    assert other.file == one.file
    protocol = protocol_of(SocietySection(protocol={"kind": "sample"}))
    figures = [
        {(r.world, r.number): r.metrics(protocol)["sim/noted"] for r in sorted(life.rounds, key=lambda r: r.number)}
        for life in (one, other)
    ]
    assert figures[0] == figures[1]
    assert figures[0][0, 1] == 0 < figures[0][0, 2]
