"""What agents remember that keep what they lived through: against Generative Agents' sum, in plain Python."""

import itertools
import random

import pytest
from actors import QUESTIONS, Actor, live

from salign.config import SocietySection, StreamMemory
from salign.records import Recalled
from salign.report.society import SocietyReader
from salign.society.embedders import embed
from salign.society.memory import InternalMemory, QuestionTable
from salign.society.protocols import protocol_of
from salign.society.recalls import recalls_of
from salign.society.stream import Heard, Stream, num_tokens, within

WORDS = ["tax", "sister", "truth", "work", "friend", "money"]
ASKED = [" ".join(some) for size in (1, 2, 3) for some in itertools.combinations(WORDS, size)]
TABLE = QuestionTable(ASKED, embed(SocietySection().embedder, ASKED), 0.9)


def section(**settings) -> StreamMemory:
    return StreamMemory(kind="stream", **settings)


def slowly(lived, how: StreamMemory, question: int, after_round: int) -> list[str]:
    """The texts that come to mind; `lived` are (round, number, text, importance) in order, initial ones of round 0."""
    there = [one for one in lived if one[0] == 0] + [one for one in lived if 0 < one[0] <= after_round][-how.max_kept :]
    apart = {number: TABLE.between(question, [TABLE.questions[number]])[0] for _, number, *_ in there}
    there = [one for one in there if apart[one[1]] < TABLE.max_distance]
    parts = (
        (how.recency_weight, [how.decay ** (after_round - round_) for round_, *_ in there]),
        (how.importance_weight, [importance for *_, importance in there]),
        (how.relevance_weight, [1 - apart[number] for _, number, *_ in there]),
    )
    scores = [0.0] * len(there)
    for weight, values in parts:
        for place, value in enumerate(values):
            if max(values) > min(values):
                scores[place] += weight * (value - min(values)) / (max(values) - min(values))
    order = sorted(range(len(there)), key=lambda place: (-round(scores[place], 9), -place))
    distinct = dict.fromkeys((there[place][1], there[place][2]) for place in order)
    return [text for _, text in distinct][: how.num_recalled]


@pytest.mark.parametrize("seed", range(40))
def test_the_sum_is_that_of_the_paper_and_what_nobody_can_read_is_forgotten(seed):
    chance = random.Random(seed)
    weights = {f"{name}_weight": chance.choice([0, 0.5, 1, 3]) for name in ("recency", "importance")}
    how = section(
        **weights,
        relevance_weight=chance.choice([0.5, 1]),
        num_recalled=chance.choice([1, 3, 50]),
        max_kept=chance.choice([1, 4, 100]),
        max_tokens=1000,
    )
    initial = {number: f"initial {number}" for number in chance.sample(range(len(ASKED)), 5)}
    stream, lived = Stream(initial), [(0, number, initial[number], 0.5) for number in sorted(initial)]
    for round_ in range(1, 12):
        heard = [
            Heard(f"text {chance.randrange(30)}", chance.choice([None, 3]), chance.randrange(9) / 8) for _ in range(3)
        ]
        numbers = [chance.randrange(len(ASKED)) for _ in heard]
        # As in a world: what was read two rounds ago is read no more.
        stream.remember(heard, numbers, round_, how.max_kept, max(0, round_ - 2))
        lived += [(round_, number, one.text, one.importance) for number, one in zip(numbers, heard, strict=True)]
        for after_round in (max(0, round_ - 2), round_ - 1, round_):
            question = chance.randrange(len(ASKED))
            found = stream.recall(how, TABLE, question, after_round)
            assert ([] if found is None else [one.answer for one in found.all]) == slowly(
                lived, how, question, after_round
            )
    assert stream.num_versions <= how.max_kept + 6  # and those of two rounds


def test_by_relevance_alone_the_nearest_of_the_own_answers_is_recalled_as_without_a_stream():
    how = section(recency_weight=0, importance_weight=0, num_recalled=1)
    plain, stream = InternalMemory({0: "a", 1: "b"}), Stream({0: "a", 1: "b"})
    for round_, number in enumerate(random.Random(1).sample(range(2, len(ASKED)), 20), start=1):
        plain.remember(number, f"own {number}", round_)
        stream.remember([Heard(f"own {number}", None, 0.5)], [number], round_, how.max_kept)
    compared = 0
    for question in range(len(ASKED)):
        one, other = plain.recall(TABLE, question, 20), stream.recall(how, TABLE, question, 20)
        assert (one is None) == (other is None)
        if one is not None:
            assert other.distance == one.distance
            compared += 1
    assert compared > 20


def test_a_memory_has_its_source_and_who_said_it():
    stream = Stream({0: "begun"})
    stream.remember([Heard("told", 7, 1.0), Heard("answered", None, 0.0)], [0, 0], 1, 100)
    found = stream.recall(section(), TABLE, 0, 1)
    assert {(one.answer, one.source, one.by) for one in found.all} == {
        ("begun", "initial", None),
        ("told", "heard", 7),
        ("answered", "own", None),
    }
    assert [one.answer for one in stream.recall(section(), TABLE, 0, 0).all] == ["begun"]


# --- bounded -----------------------------------------------------------------------------------------


def said(text: str) -> Recalled:
    return Recalled("q", text, "own", 0.1)


def test_what_is_recalled_has_so_many_tokens_and_what_was_left_out_is_counted():
    whole = within([said("one two three"), said("four")], 100)
    assert [one.answer for one in whole.all] == ["one two three", "four"]
    assert whole.num_left_out == 0
    cut = within([said("one two three four five"), said("sixteen")], 4)  # twelve bytes
    assert [one.answer for one in cut.all] == ["one two", "six"]
    assert cut.num_left_out == num_tokens("one two three four five") - num_tokens("one two") + 2
    assert within([said("one two")], 1).answer == "one"
    assert within([said("我认为每个人")], 2).answer == "我认"
    for text in ("", "a", "abc d", "é" * 7, "\U0001f600", "word " * 50):
        for most in range(1, 30):
            found = within([said(text), said("next")], most)
            assert sum(num_tokens(one.answer) for one in found.all) <= most


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="all weights are 0"):
        section(recency_weight=0, importance_weight=0, relevance_weight=0)


# --- in a society ------------------------------------------------------------------------------------

MUCH_RECALL = {"questions": QUESTIONS[:4], "max_recall_distance": 2.0, "max_rounds": 4}


def test_feedback_is_remembered_by_whom_it_was_said_to_and_counts_by_its_rating():
    life = live(Actor(), memory={"kind": "stream", "recency_weight": 0, "relevance_weight": 0}, **MUCH_RECALL)
    heard = recalled = 0
    told: dict[int, list] = {}
    for interaction in life.interactions:
        draft = interaction.turn("draft")
        known = told.get(interaction.agent, [])
        for one in () if draft is None or draft.recalled is None else draft.recalled.all:
            recalled += 1
            if one.source == "heard":
                heard += 1
                turn = next(turn for turn in known if (turn.agent, turn.text) == (one.by, one.answer))
                # By importance alone what is far from the middle comes first.
                if turn.rating is not None:
                    assert abs(turn.rating - 4) >= 1
        if interaction.failure is None:
            told.setdefault(interaction.agent, []).extend(interaction.turns_of("feedback"))
    assert 0 < heard < recalled
    figures = recalls_of(life.interactions, ("draft",)).figures()["draft"]
    assert figures["heard_share"] > 0.1


def test_answers_alone_are_cut_as_well_where_the_config_says_so():
    def say(call):
        return None if call.sampling is None else "word " * 20

    life = live(Actor(say), memory={"kind": "answers", "max_tokens": 5}, **MUCH_RECALL)
    recalled = [turn.recalled for item in life.interactions for turn in item.turns if turn.recalled is not None]
    own = [one for one in recalled if one.source == "own"]
    assert {(one.answer, one.num_left_out) for one in own} == {("word word word", 34 - 5)}
    assert {one.num_left_out for one in recalled if one.source == "initial"} == {0}


def test_an_agent_says_itself_what_matters_with_one_call_more():
    asked = Actor()
    live(asked, memory={"kind": "stream", "importance": "asked"}, **MUCH_RECALL)
    plain = Actor()
    life = live(plain, memory={"kind": "stream"}, **MUCH_RECALL)
    calls = [call for call in asked.calls if call.step.startswith("importance")]
    assert len({(call.place, call.step) for call in calls}) == len(calls) > 0.5 * len(life.interactions)
    assert not [call for call in plain.calls if call.step.startswith("importance")]
    society = SocietySection(memory={"kind": "stream", "importance": "asked"})
    without = SocietySection(memory={"kind": "stream"})
    assert protocol_of(society).most_calls(100) == protocol_of(without).most_calls(100) + 100


def test_the_report_shows_all_that_came_to_mind(tmp_path):
    from salign.config import Config, RunSection

    life = live(Actor(), memory={"kind": "stream"}, **MUCH_RECALL)
    reader = SocietyReader(Config(run=RunSection(name="r", root=tmp_path)), [])
    for interaction in life.interactions:
        reader.add(interaction)
    samples = reader.end().samples
    assert {one["source"] for item in samples for turn in item["turns"] for one in turn["recalled"]} >= {"heard", "own"}
    assert max(len(turn["recalled"]) for item in samples for turn in item["turns"]) == 3
