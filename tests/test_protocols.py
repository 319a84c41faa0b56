"""What holds for every protocol, present and future: a new one passes through here by being named in the registry."""

import functools
import hashlib
import re
from collections import Counter
from typing import Any

import pytest
from actors import NO_DIGIT, QUESTIONS, SMALL, Actor, Life, live, metered, random_delay

from salign.config import Config, DatasetSection, RunSection, SampleProtocol, SocietySection
from salign.dataset.gathering import build_groups
from salign.errors import CallRejectedError
from salign.records import Turn
from salign.report.society import SocietyReader
from salign.society import prompts
from salign.society.calls import Speaker, UnansweredError, spoken
from salign.society.protocols import PROTOCOLS, protocol_of
from salign.society.protocols.base import Protocol
from salign.society.protocols.messages import Update
from salign.society.protocols.sample import Sample

KINDS = sorted(PROTOCOLS)
# Every draft recalls: the questions come again, and whatever is near is near enough.
MUCH_RECALL = {"questions": QUESTIONS[:4], "max_recall_distance": 2.0}
ASKED = {"feed": {"questions": QUESTIONS[:1]}}
"""So few, that several posts are about one."""
NEEDS = {"relay": {"topology": {"kind": "layers", "sizes": [3, 3, 3]}}}
"""What a society must be for a protocol."""
FEW = {"relay": {"topology": {"kind": "layers", "sizes": [2, 2, 2]}}}
"""The same of fewer agents."""
NEVER_UNRATED = {"feed", "game"}
"""Those whose data is scored by what agents do, which is always known."""
REMEMBERS_NOTHING = {"game"}
"""Those in which nothing that an agent said is shown to anybody, or remembered: moves are numbers."""
GOLDEN = {
    "game": "7bc9903a12137575344f499ae54bc31db04eeb3d3bb8001212217ee918aec006",
    "dialogue": "636ae079bc06f47f8001d0ad582b8d59030fef49cf7a584139d6fd894a460ca3",
    "feed": "d75f412367651ac6d771941f309b847caf318929628fb1045a2e9187080396b2",
    "relay": "039859e4b18794e19fd6136f8f0ec9c20b6009d1d126e2336273c7dd35419884",
    "critics": "a513957ed89423c7b20f8d13a4434a0e45b1c7703b88a65e6921ff3b26d77e44",
    "norms": "ecf7d840db03a6d94f9810fafa42e9cf245fe6fc4d2033cb207f841f30e5680c",
    "rehearsal": "40b8da8ed103276394903150a16861901dcb0d10ca6713a173c5716fe3e795e9",
    "deliberation": "035606054adf87203ca0f665539853d3fb0f6fc7070ce73a2085d1fdc928e425",
    "back_scatter": "853ef577ce208b123bda4ee064020ece8abc34a143ac07e9a703ec5d037c1b5e",
    "sample": "0e12caffb04390281762c20aee4fba863806feea4ff8290b634b02409aa9dc99",
}
every_protocol = pytest.mark.parametrize("kind", KINDS)


def held(kind: str, actor: Actor | None = None, **how) -> Life:
    """The life of two worlds by a protocol."""
    return live(
        actor or Actor(),
        protocol={"kind": kind},
        **{"numbers": (0, 1), **MUCH_RECALL, **ASKED.get(kind, {}), **NEEDS.get(kind, {}), **how},
    )


@functools.cache
def plain_life(kind: str) -> Life:
    """What nothing disturbs."""
    return held(kind)


def plainly_held(kind: str) -> bytes:
    return plain_life(kind).file


def test_each_is_in_the_registry_under_the_name_that_a_config_gives_it():
    for kind in KINDS:
        society = SocietySection(protocol={"kind": kind})
        assert type(protocol_of(society)) is PROTOCOLS[society.protocol.kind]
    assert SocietySection().protocol.kind == "back_scatter"


@every_protocol
def test_its_figures_have_names_that_are_mirrored(kind):
    assert all(name.endswith(("_share", "_mean")) for name in PROTOCOLS[kind].figures)


@every_protocol
def test_its_section_says_whether_an_audience_is_drawn(kind):
    """One that answers for its members without one would hold every interaction alone, and nothing else would fail."""
    answers = PROTOCOLS[kind].answer is not Protocol.answer
    assert SocietySection(protocol={"kind": kind}).has_audience == answers


@every_protocol
def test_its_section_says_whether_agents_give_numbers_without_an_audience(kind):
    """An engine is measured for ratings only if it is asked for such."""
    agents, observers = Actor(), Actor()
    held(kind, agents, observer=Speaker(metered(observers)), without=["audience"])
    gives = any(call.sampling is None for call in agents.calls)
    assert not gives or SocietySection(protocol={"kind": kind}).protocol.asks_for_numbers
    protocol = protocol_of(SocietySection(protocol={"kind": kind}))
    by_digits = [name for name in protocol.asked if protocol.society.criterion(name).has_digits]
    assert any(call.sampling is None for call in observers.calls) == bool(by_digits)


@pytest.mark.slow
@every_protocol
@pytest.mark.parametrize(
    "how",
    [
        {"schedule": "lockstep"},
        {"gate": 1},
        {"num_ranks": 2},
        {"num_ranks": 4, "gate": 2},
        {"max_alive": 2},
        {"delay": 1},
        {"delay": 2, "num_ranks": 3},
    ],
    ids=str,
)
def test_the_bytes_are_the_same_however_the_work_is_cut(kind, how):
    given = dict(how)
    actor = Actor(delay=random_delay(given.pop("delay"))) if "delay" in given else Actor()
    assert held(kind, actor, **given).file == plainly_held(kind)


@pytest.mark.slow
@every_protocol
@pytest.mark.parametrize("how", [{"delay": 1}, {"delay": 2, "num_ranks": 2}], ids=str)
def test_the_bytes_are_the_same_also_where_calls_are_refused(kind, how):
    """Of several calls at once, all count that are made, however late they are answered after one that is refused."""
    given = dict(how)
    slow = Actor(_refused, random_delay(given.pop("delay")))
    assert held(kind, slow, **given).file == refused_to(kind)


def _refused(call):
    return CallRejectedError("refused") if call.seed % 7 == 0 else None


@functools.cache
def refused_to(kind: str) -> bytes:
    return held(kind, Actor(_refused)).file


@every_protocol
def test_the_bytes_are_those_of_yesterday(kind):
    """Whoever changes a prompt, a seed or the record changes these, and says so in the changelog."""
    assert hashlib.sha256(plainly_held(kind)).hexdigest() == GOLDEN.get(kind)


@pytest.mark.slow
@every_protocol
@pytest.mark.parametrize(("rating", "memory"), [("logprob", "answers"), ("parse", "answers"), ("parse", "stream")])
def test_nobody_has_seen_the_marks_around_what_it_wrote(kind, rating, memory):
    """What an agent said is shown under a key that it had not been shown: so it cannot write the mark that ends it."""
    said = {}

    def say(call):
        if call.sampling is None:
            return None
        text = f"Said {call.seed}."
        said.setdefault(call.place, []).append((text, _keys(call.prompt)))
        return f"Rating: {1 + call.seed % 7} Reason: {text}" if call.prompt.form == "rating" else text

    actor = Actor(say)
    held(kind, actor, numbers=(0,), rating=rating, memory={"kind": memory})
    shown = 0
    for call in actor.calls:
        for text, known in said.get(call.place, ()):
            if text in call.prompt.user:
                shown += 1
                keys = _keys(call.prompt)
                assert keys, f"{call.step} is shown what was said without a mark"
                assert not keys & known, call.step
    assert shown > 10 or kind in REMEMBERS_NOTHING


def _keys(prompt) -> set[str]:
    return set(re.findall(r"(?<!\w)[bcdfghjklmnpqrstvwxz]{6}(?!\w)", f"{prompt.system} {prompt.user}"))


@pytest.mark.slow
@every_protocol
@pytest.mark.parametrize("how", [{"delay": 1}, {"delay": 2, "num_ranks": 3}], ids=str)
@pytest.mark.parametrize("importance", ["ratings", "asked"])
def test_the_bytes_are_the_same_also_where_agents_keep_what_they_lived_through(kind, how, importance):
    given = dict(how)
    slow = Actor(delay=random_delay(given.pop("delay")))
    there = held(kind, slow, numbers=(0,), memory=little_memory(importance), **given).file
    assert there == in_lockstep(kind, importance)


def little_memory(importance: str) -> dict[str, Any]:
    """Little is kept, so that what is forgotten matters."""
    return {"kind": "stream", "max_kept": 5, "importance": importance}


@functools.cache
def in_lockstep(kind: str, importance: str) -> bytes:
    return held(kind, numbers=(0,), schedule="lockstep", memory=little_memory(importance)).file


@pytest.mark.slow
@every_protocol
@pytest.mark.parametrize("memory", ["answers", "stream"])
def test_only_the_past_is_read(kind, memory):
    """Each text says of which round it is; what is recalled as said in the society was said in an earlier one."""

    def say(call):
        if call.sampling is None:
            return None
        return f"Rating: {1 + call.seed % 7} Reason: of round {call.round}."

    how = {"numbers": (0,), "rating": "parse", "max_rounds": 4, "memory": {"kind": memory}}
    life = held(kind, Actor(say, random_delay(3)), **how)
    own = [
        (interaction.round, one.answer)
        for interaction in life.interactions
        for turn in interaction.turns
        for one in (() if turn.recalled is None else turn.recalled.all)
        if one.source in ("own", "heard")
    ]
    assert own or kind in REMEMBERS_NOTHING, "nothing of the own is recalled, so nothing is shown"
    for round_, answer in own:
        assert int(answer.rstrip(".").split()[-1]) < round_


@pytest.mark.slow
@every_protocol
@pytest.mark.parametrize("ending", ["refused", "empty"])
def test_whatever_is_not_answered_ends_in_a_record_and_not_in_an_error(kind, ending):
    """One call after another, by its name, for all interactions of a world."""
    plain = Actor()
    # Of two ranks: what another process says must not end the run either.
    how = {
        "numbers": (0,),
        "max_rounds": 2,
        "num_ranks": 2,
        "audience_size": 2,
        **FEW.get(kind, {"topology": {"size": 2}}),
    }
    num_interactions = len(held(kind, plain, **how).interactions)
    names = sorted({call.step for call in plain.calls if call.agent == 1})
    assert names
    for name in names:

        def say(call, name=name):
            if call.step != name:
                return None
            if ending == "refused":
                return CallRejectedError("refused")
            return NO_DIGIT if call.sampling is None else ""

        life = held(kind, Actor(say), **how)
        assert len(life.interactions) == num_interactions
        for interaction in life.interactions:
            if interaction.failure is None:
                assert interaction.turn(PROTOCOLS[kind].observed[-1]) is not None


@pytest.mark.slow
@every_protocol
def test_a_survey_changes_nothing_of_what_agents_do(kind):
    trust = {"name": "trust", "wording": "How far do you trust others? Answer from 1 (not at all) to 7 (wholly)."}
    asked, plain = held(kind, survey={"questions": [trust]}), plain_life(kind)

    def beside(life):
        return [
            (item.key, [turn for turn in item.turns if turn.role != "survey"], item.failure)
            for item in life.interactions
        ]

    assert beside(asked) == beside(plain)
    assert asked.file != plain.file
    assert held(kind, survey={"questions": [trust]}, num_ranks=3).file == asked.file


@pytest.mark.slow
@every_protocol
def test_the_estimate_of_calls_is_an_upper_bound(kind):
    for settings in ({}, {"audience_size": 0}, {"without": ["feedback_text"]}, {"without": ["audience"]}):
        society = SocietySection(protocol={"kind": kind}, **{**SMALL, **NEEDS.get(kind, {}), **settings})
        life = held(kind, numbers=(0,), num_rating_retries=0, **settings)
        most = max(interaction.num_calls for interaction in life.interactions)
        assert 0 < most <= protocol_of(society).max_calls


@every_protocol
def test_what_is_held_can_be_learnt_from_and_reported(kind, tmp_path):
    # What is written on a feed is little, and most of what an actor says of its own is flagged.
    life = held(kind, Actor(lambda call: f"Said by {call.agent} in {call.round}." if call.step == "write" else None))
    society = SocietySection(protocol={"kind": kind}, **{**SMALL, **NEEDS.get(kind, {})})
    protocol = protocol_of(society)
    left_out: Counter[str] = Counter()
    groups = list(build_groups(life.interactions, protocol, DatasetSection(), left_out))
    assert any(len(group.responses) > 1 for group in groups)
    assert left_out["unrated"] > 0 or kind in NEVER_UNRATED
    assert {interaction.protocol for interaction in life.interactions} == {kind}
    reader = SocietyReader(Config(run=RunSection(name="r", root=tmp_path), society=society), [])
    for interaction in life.interactions:
        reader.add(interaction)
    shown = reader.end()
    roles = Counter(turn.role for interaction in life.interactions for turn in interaction.turns)
    assert set(protocol.observed) <= set(roles)
    assert {turn["role"] for sample in shown.samples for turn in sample["turns"]} == set(roles)
    assert all(shown.means[role, criterion] for role in protocol.observed for criterion in protocol.criteria)
    for round_ in life.rounds:
        metrics = round_.metrics(protocol)
        for criterion in protocol.criteria:
            low, high = society.criterion(criterion).scale
            assert low <= metrics[f"sim/{criterion}_mean"] <= high


class Pair(Sample):
    """The leader answers, and so does the first of its audience."""

    rates_silence = False

    async def interact(self, conversation):
        seat, agent = conversation.seat, conversation.agent
        reply = await agent.generate(prompts.draft(seat.question, seat.recalled), self.society.draft, "answer")
        said = conversation.say("answer", spoken(reply, "answer"), seat.recalled)
        await conversation.ask(seat.audience[:1], said)
        return [Update(said)]

    async def answer(self, calls, state, question, query):
        asked = prompts.draft(question, state.recalled)
        reply = await calls.generate(asked, self.society.draft, f"answer:{state.agent}")
        return Turn(state.agent, "answer", "" if state.agent == 4 else reply.text, recalled=state.recalled)


def test_observers_rate_what_a_member_says_if_its_role_is_observed(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "sample", Pair)
    monkeypatch.setattr(SampleProtocol, "asks_audience", True)
    one, three = (held("sample", num_ranks=num_ranks, max_rounds=3) for num_ranks in (1, 3))
    for interaction in one.interactions:
        first, second = interaction.turns
        assert (first.agent, second.agent != first.agent) == (interaction.agent, True)
        for turn in interaction.turns:
            assert set(turn.observed) == ({"alignment", "engagement"} if turn.text else set())
    assert three.file == one.file
    protocol = protocol_of(SocietySection(protocol={"kind": "sample"}))
    of_one, of_three = ({(r.world, r.number): r.metrics(protocol) for r in life.rounds} for life in (one, three))
    assert of_three == of_one


@pytest.mark.parametrize("error", [CallRejectedError("refused"), UnansweredError("no answer")], ids=["refused", "none"])
def test_a_member_that_cannot_say_what_it_is_asked_for_is_a_failure_in_the_record_wherever_it_lives(monkeypatch, error):
    class Silent(Pair):
        async def answer(self, calls, state, question, query):
            turn = await super().answer(calls, state, question, query)
            if state.agent in (3, 4):
                raise error
            return turn

    monkeypatch.setitem(PROTOCOLS, "sample", Silent)
    monkeypatch.setattr(SampleProtocol, "asks_audience", True)
    one, two = (held("sample", num_ranks=num_ranks, max_rounds=3) for num_ranks in (1, 2))
    assert two.file == one.file
    failed = [interaction for interaction in one.interactions if interaction.failure is not None]
    assert 0 < len(failed) < len(one.interactions)
    for interaction in failed:
        assert interaction.failure == str(error)
        assert [turn.agent for turn in interaction.turns] == [interaction.agent]
        assert interaction.num_calls == 4  # the member's, too


# --- sample ---------------------------------------------------------------------------------------


def test_a_sample_is_several_answers_of_one_agent_and_nobody_is_asked():
    life = live(Actor(), protocol={"kind": "sample", "num_answers": 3}, questions=QUESTIONS[:4])
    for interaction in life.interactions:
        assert [turn.role for turn in interaction.turns] == ["answer"] * 3
        assert {turn.agent for turn in interaction.turns} == {interaction.agent}
        assert len({turn.text for turn in interaction.turns}) == 3
        assert all(set(turn.observed) == {"alignment", "engagement"} for turn in interaction.turns)
        assert interaction.num_calls >= 3 * (1 + 2)


def test_a_sample_without_chance_is_refused():
    with pytest.raises(ValueError, match="the same answer each time"):
        SocietySection(protocol={"kind": "sample"}, draft={"temperature": 0})
