"""Interactions -> alignment groups, the files of groups, and the leak check."""

import gzip
import json
import random
from collections import Counter

import actors
import msgspec
import pytest
import scipy.stats
from actors import Feedback, Rating
from msgspec.structs import replace

from salign import compose
from salign.config import Config, DatasetSection, EverydaySource, Ratio, SocietySection
from salign.dataset import templates
from salign.dataset.collect import GroupCounts, check_leaks, evaluation_prompts
from salign.dataset.gathering import build_groups, drawn, num_chosen
from salign.dataset.groups import load_groups
from salign.dataset.leaks import prompts_of
from salign.errors import DataError, StageError
from salign.records import AlignmentGroup, Interaction, to_line
from salign.society import queries
from salign.society.protocols import protocol_of
from salign.society.sources import questions

NONE_LEFT_OUT: dict[str, int] = {}


def interaction(
    question="Q?", draft="draft", revision="revision", before=3.0, after=6.0, feedback=(("reason", 2.0),), **changes
) -> Interaction:
    fields = {
        "world": 0,
        "round": 1,
        "agent": 0,
        "recalled": None,
        "feedback": tuple(Feedback(agent, rating, reason) for agent, (reason, rating) in enumerate(feedback)),
        "draft_rating": Rating(before, 5.0),
        "revision_rating": Rating(after, 5.0),
    }
    return actors.interaction(question=question, draft=draft, revision=revision, **{**fields, **changes})


def built(*interactions: Interaction, **section) -> tuple[list[AlignmentGroup], dict[str, int]]:
    left_out: Counter[str] = Counter()
    groups = list(build_groups(interactions, protocol_of(SocietySection()), DatasetSection(**section), left_out))
    return groups, {reason: count for reason, count in left_out.items() if count}


def pairs(groups: list[AlignmentGroup], kind: str) -> list[list[tuple[str, float]]]:
    return [list(zip(group.responses, group.scores, strict=True)) for group in groups if group.kind == kind]


# --- interactions -> groups ----------------------------------------------------------------------


def test_an_interaction_gives_three_kinds():
    groups, left_out = built(interaction(feedback=(("too short", 2.0), ("kind", 5.0))))
    assert [group.kind for group in groups] == ["imitation", "self_critic", "realignment"]
    imitation, critic, realignment = groups
    assert imitation.query == "Q?"
    assert pairs(groups, "imitation") == [[("draft", 3.0), ("revision", 6.0)]]
    assert critic.query == queries.self_critic("Q?", "draft")
    assert pairs(groups, "self_critic") == [[("too short", 2.0), ("kind", 5.0)]]
    assert realignment.query == queries.realignment("Q?", "draft", ["too short", "kind"])
    assert pairs(groups, "realignment") == [[("revision", 6.0)]]
    assert left_out == NONE_LEFT_OUT


def test_a_query_says_all_that_its_answer_needs():
    critic = queries.self_critic("May I?", "Sure.")
    assert "Question: May I?" in critic
    assert critic.endswith("\n\nInput:\nSure.")
    revise = queries.realignment("May I?", "Sure.", ["rude", "short"])
    assert "Question: May I?\nDraft: Sure." in revise
    assert revise.endswith("\n\nInput:\nFeedback:\n- rude\n- short")


def test_every_group_knows_its_question_and_its_interactions():
    groups, _ = built(
        interaction(agent=4, round=2),
        interaction(agent=5, round=2, world=3, draft="other", revision="another", feedback=(("why", 1.0),)),
    )
    assert all(group.provenance["question"] == "Q?" for group in groups)
    origins = {(group.kind, group.responses[0]): group.provenance["interactions"] for group in groups}
    assert origins["imitation", "draft"] == [[0, 2, 4], [3, 2, 5]]
    assert origins["self_critic", "why"] == [[3, 2, 5]]


def test_equal_queries_become_one_group():
    groups, _ = built(
        interaction("A?", "a1", "a2", 3.0, 6.0, agent=0),
        interaction("B?", "b1", "b2", 1.0, 2.0, agent=1),
        interaction("A?", "a3", "a4", 4.0, 5.0, agent=2),
    )
    assert [group.query for group in groups if group.kind == "imitation"] == ["A?", "B?"]
    assert pairs(groups, "imitation") == [
        [("a1", 3.0), ("a2", 6.0), ("a3", 4.0), ("a4", 5.0)],
        [("b1", 1.0), ("b2", 2.0)],
    ]
    assert len(pairs(groups, "self_critic")) == 3


def test_a_repeated_response_has_the_mean_of_its_ratings_in_any_order():
    one = interaction(draft="same", revision=" same\n", feedback=(("why", 2.0), ("why ", 3.0)), after=2.0)
    other = interaction(draft="new", revision="same", feedback=(), after=2.1, agent=1)
    for interactions in ((one, other), (other, one)):
        groups, left_out = built(*interactions)
        (imitation,) = pairs(groups, "imitation")
        assert dict(imitation) == {"same": (3.0 + 2.0 + 2.1) / 3, "new": 3.0}
        assert pairs(groups, "self_critic") == [[("why", 2.5)]]
        assert left_out == {"duplicate": 3}


def test_what_has_no_rating_is_left_out_and_counted():
    groups, left_out = built(
        interaction(after=None, feedback=(("why", None), ("so", 4.0))),
        interaction("B?", before=None, after=None, feedback=(("why", None),), agent=1),
    )
    assert pairs(groups, "imitation") == [[("draft", 3.0)]]
    assert pairs(groups, "self_critic") == [[("so", 4.0)]]
    assert pairs(groups, "realignment") == []
    assert left_out == {"unrated": 5}


def test_a_response_without_rating_does_not_hide_the_same_with_one():
    groups, left_out = built(interaction(draft="same", revision="same", before=None, after=3.0, feedback=()))
    assert pairs(groups, "imitation") == [[("same", 3.0)]]
    assert left_out == {"unrated": 1}


def test_empty_reasons_are_left_out_and_counted():
    groups, left_out = built(interaction(feedback=((" \n", 2.0), ("why", 3.0))))
    assert pairs(groups, "self_critic") == [[("why", 3.0)]]
    assert [group.query for group in groups if group.kind == "realignment"] == [
        queries.realignment("Q?", "draft", ["why"])
    ]
    assert left_out == {"empty": 1}


@pytest.mark.parametrize(
    ("before", "after", "learnt"),
    [(3.0, 4.5, True), (3.0, 4.0, False), (6.0, 6.0, False), (6.0, 5.0, False), (None, 7.0, False), (1.0, None, False)],
)
def test_only_a_revision_above_draft_and_minimum_is_realignment(before, after, learnt):
    groups, _ = built(interaction(before=before, after=after))
    assert bool(pairs(groups, "realignment")) == learnt


def test_the_minimum_of_realignment_is_the_configs():
    low = interaction(before=1.0, after=2.5)
    assert pairs(built(low, min_realignment_score=2.0)[0], "realignment") == [[("revision", 2.5)]]
    assert pairs(built(low, min_realignment_score=2.5)[0], "realignment") == []


def flagged(role: str, *flags: str, **fields) -> Interaction:
    """An interaction in which the turns of one role have flags."""
    made = interaction(**fields)
    return replace(made, turns=tuple(replace(t, flags=flags) if t.role == role else t for t in made.turns))


def test_flagged_texts_and_what_was_said_of_them_are_left_out_unless_asked_for():
    for flag in ("imitates_form", "imitates_frame", "control_tokens", "repeats_prompt", "thinking_cut"):
        groups, left_out = built(flagged("draft", flag))
        assert [(group.kind, group.responses) for group in groups] == [("imitation", ("revision",))]
        assert left_out["flagged"] == 1
        groups, left_out = built(flagged("feedback", flag))
        assert pairs(groups, "self_critic") == pairs(groups, "realignment") == []
        groups, _ = built(flagged("revision", flag))
        assert pairs(groups, "imitation") == [[("draft", 3.0)]]
        assert pairs(groups, "realignment") == []
        groups, left_out = built(flagged("draft", flag), keep_flagged=[flag])
        assert len(groups) == 3
        assert left_out == NONE_LEFT_OUT
    groups, left_out = built(flagged("draft", "thinking"))
    assert len(groups) == 3
    assert left_out == NONE_LEFT_OUT


def test_a_text_that_was_cut_is_no_best_response_unless_asked_for():
    groups, left_out = built(flagged("revision", "cut"))  # rated 6: the draft's 3 would be learnt as the best
    assert pairs(groups, "imitation") == []
    assert pairs(groups, "realignment") == []
    assert left_out == {"cut": 3, "cut_best_groups": 2}
    groups, left_out = built(flagged("draft", "cut"))  # a worse response may be cut
    assert pairs(groups, "imitation") == [[("draft", 3.0), ("revision", 6.0)]]
    assert left_out == NONE_LEFT_OUT
    groups, _ = built(flagged("draft", "cut", after=3.0))  # as good as the best
    assert pairs(groups, "imitation") == [[("revision", 3.0)]]
    assert built(flagged("revision", "cut"), keep_flagged=["cut"])[1] == NONE_LEFT_OUT


def test_only_the_kinds_that_are_named_are_built():
    groups, left_out = built(interaction(feedback=(("why", None),)), kinds=("imitation",))
    assert [group.kind for group in groups] == ["imitation"]
    assert left_out == NONE_LEFT_OUT


def test_an_interaction_that_failed_gives_what_it_came_to():
    unrated = {"before": None, "after": None, "failure": "refused"}
    assert built(interaction(draft=None, revision=None, feedback=(), **unrated)) == ([], NONE_LEFT_OUT)
    groups, left_out = built(
        interaction(revision=None, after=None, feedback=(("why", 2.0),), failure="the revision is empty")
    )
    assert [group.kind for group in groups] == ["imitation", "self_critic"]
    assert pairs(groups, "imitation") == [[("draft", 3.0)]]
    assert left_out == NONE_LEFT_OUT


def test_groups_are_written_and_read_as_they_are(tmp_path):
    groups, _ = built(interaction(draft="grüßen ✓\u2028x"), interaction("B?", agent=1))
    (tmp_path / "groups.jsonl").write_text("".join(map(to_line, groups)), encoding="utf-8")
    loaded = load_groups(tmp_path / "groups.jsonl")
    assert loaded.num_unrated == 0
    plain = [json.loads(json.dumps(msgspec.to_builtins(group))) for group in groups]
    assert [json.loads(json.dumps(msgspec.to_builtins(group))) for group in loaded.groups] == plain


def test_an_empty_answer_of_a_society_is_read_again(tmp_path):
    group = AlignmentGroup("Why?", ("", "Because."), (1.0, 7.0), "imitation", {"question": "Why?", "interactions": []})
    (tmp_path / "groups.jsonl").write_text(to_line(group))
    assert load_groups(tmp_path / "groups.jsonl").groups == [group]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"query": " "}, "the query is empty"),
        ({"responses": (), "scores": ()}, "0 responses and 0 scores"),
        ({"scores": (1.0,)}, "2 responses and 1 scores"),
        ({"responses": ("a", " ")}, "a response is empty"),
        ({"responses": ("a", "")}, "a response is empty"),
        ({"responses": ("a", ""), "kind": "demonstration"}, "a response is empty"),
        ({"responses": ("a", " "), "kind": "imitation"}, "a response is empty"),
        ({"responses": ("", ""), "kind": "imitation"}, "a response is empty"),
        ({"scores": (1.0, 7.5)}, r"score 7.5 is outside the scale 1\.\.7"),
        ({"scores": (0.5, 7.0)}, "score 0.5 is outside"),
        ({"scores": (float("nan"), 7.0)}, "score nan is outside"),
    ],
)
def test_an_impossible_group_cannot_be_made(changes, reason):
    with pytest.raises(ValueError, match=reason):
        AlignmentGroup(**{"query": "q", "responses": ("a", "b"), "scores": (1.0, 7.0), **changes})


# --- ratio and card ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "ratio", "kept"),
    [
        ((20, 20, 20), (5, 1, 1), (20, 4, 4)),
        ((50, 3, 20), (5, 1, 1), (15, 3, 3)),
        ((10, 10, 10), (1, 0, 1), (10, 0, 10)),
        ((3, 7, 10), (0.3, 0.7, 1), (3, 7, 10)),
        ((3, 9, 9), (0.7, 0.7, 0.7), (3, 3, 3)),
        ((9, 9, 0), (5, 1, 1), (9, 1, 0)),
        ((0, 9, 0), (1, 0, 0), (0, 0, 0)),
    ],
)
def test_the_ratio_keeps_the_most_that_fit(there, ratio, kept):
    names = ("imitation", "self_critic", "realignment")
    counts = dict(zip(names, there, strict=True))
    wanted = Ratio(**dict(zip(names, ratio, strict=True)))
    assert num_chosen(counts, wanted) == dict(zip(names, kept, strict=True))


@pytest.mark.parametrize(("num", "num_kept"), [(0, 0), (1, 0), (1, 1), (20, 4), (1000, 999), (100_000, 1)])
def test_as_many_are_drawn_as_are_to_be_kept(num, num_kept):
    is_kept = list(drawn(num, num_kept, random.Random(0)))
    assert (len(is_kept), sum(is_kept)) == (num, num_kept)


def test_each_has_the_same_chance_to_be_kept_and_so_has_each_pair():
    draw = random.Random(0)
    kept = Counter(tuple(drawn(5, 2, draw)) for _ in range(20_000))
    assert len(kept) == 10
    assert scipy.stats.chisquare(list(kept.values())).pvalue > 0.01


def test_the_card_counts_what_is_there():
    groups = [
        AlignmentGroup("a", ("x", "y"), (1.0, 6.6), "imitation"),
        AlignmentGroup("b", ("x",), (6.9,), "imitation"),
        AlignmentGroup("c", ("x",), (3.0,), "self_critic"),
    ]
    contents = GroupCounts()
    for group in groups:
        contents.add(group)
    card = contents.figures()
    assert (card["num_groups"], card["num_responses"]) == (3, 4)
    none = {str(score): 0 for score in range(1, 8)}
    assert card["kinds"] == {
        "imitation": {"num_groups": 2, "num_responses": 3, "num_single": 1, "scores": {**none, "1": 1, "7": 2}},
        "self_critic": {"num_groups": 1, "num_responses": 1, "num_single": 1, "scores": {**none, "3": 1}},
        "realignment": {"num_groups": 0, "num_responses": 0, "num_single": 0, "scores": none},
    }


# --- files of groups -----------------------------------------------------------------------------

GROUP = {"query": "q", "responses": ["a", "b"], "scores": [1, 7]}


def test_the_released_shape_is_read(tmp_path):
    rows = [
        {
            "query": "### Instruction:\nMay I?\n\n### Response:",
            "responses": ["one", "two", "three", "four"],
            "scores": [3, -1, 8, 5],
            "models": ["m", "m", "m", "m"],
        },
        {"query": "### Instruction:\nB?\n\n### Response:", "responses": ["one", "two"], "scores": [8, -1]},
        {"query": "### Instruction:\nC?\n\n### Input:\nc\n\n### Response:", "responses": ["x"], "scores": [None]},
        {"query": "### Instruction:\nD?\n\n### Input:\nd\n\n### Response:", "responses": ["x"], "scores": [6.5]},
    ]
    (tmp_path / "sandbox.json").write_text(json.dumps(rows, indent=2))
    loaded = load_groups(tmp_path / "sandbox.json")
    assert loaded.groups == [
        AlignmentGroup("May I?", ("one", "four"), (3.0, 5.0)),
        AlignmentGroup("D?\n\nInput:\nd", ("x",), (6.5,)),
    ]
    assert loaded.num_unrated == 5


def test_groups_may_be_lines_and_compressed(tmp_path):
    text = json.dumps(GROUP) + "\n"
    (tmp_path / "g.jsonl").write_text(text * 2)
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress((text * 2).encode()))
    assert load_groups(tmp_path / "g.jsonl").groups == [AlignmentGroup("q", ("a", "b"), (1.0, 7.0))] * 2
    assert load_groups(tmp_path / "g.jsonl.gz") == load_groups(tmp_path / "g.jsonl")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "not an object but list"),
        ({"query": "q", "responses": ["a"]}, "scores missing"),
        ({"text": "q"}, "responses, scores missing"),
        ({**GROUP, "query": 3}, "query is neither a text"),
        ({**GROUP, "query": "### Instruction:\n\n\n### Response:"}, "the query is empty"),
        ({**GROUP, "responses": "ab"}, "responses must be a list of texts"),
        ({**GROUP, "responses": ["a", None]}, "responses must be a list of texts"),
        ({**GROUP, "responses": ["a", ""]}, "a response is empty"),
        ({**GROUP, "scores": 7}, "scores must be a list of numbers"),
        ({**GROUP, "scores": ["1", "7 of 7"]}, "a score is '7 of 7', not a number"),
        ({**GROUP, "scores": [True, 7]}, "a score is True, not a number"),
        ({**GROUP, "scores": [1]}, "2 responses and 1 scores"),
        ({**GROUP, "scores": [1, 9]}, "score 9.0 is outside the scale 1..7"),
        ({**GROUP, "scores": [0, 7]}, "score 0.0 is outside"),
    ],
)
def test_a_malformed_group_is_named_with_the_reason(tmp_path, row, reason):
    (tmp_path / "g.json").write_text(json.dumps([GROUP, row]))
    with pytest.raises(DataError) as caught:
        load_groups(tmp_path / "g.json")
    assert str(caught.value).startswith(f"{tmp_path / 'g.json'}, row 2: ")
    assert reason in str(caught.value)


def test_a_file_without_a_rated_response_is_an_error(tmp_path):
    for rows in ([], [{**GROUP, "scores": [-1, None]}]):
        (tmp_path / "g.json").write_text(json.dumps(rows))
        with pytest.raises(DataError, match=r"g\.json contains no group with a rated response"):
            load_groups(tmp_path / "g.json")
    with pytest.raises(DataError, match="no data file"):
        load_groups(tmp_path / "none.json")


def test_third_party_groups_load_as_they_are(shared_data):
    loaded = load_groups(shared_data / "rated" / "cai_rated_groups.json")
    assert loaded.num_unrated == 0
    assert [len(group.responses) for group in loaded.groups] == [8] * 66
    assert not any("###" in group.query for group in loaded.groups)


PREAMBLE = "Below is an instruction that describes a task. Write a response that completes the request.\n\n"


@pytest.mark.parametrize(
    ("query", "plain"),
    [
        ("### Instruction:\nMay I?\n\n### Response:", "May I?"),
        (f"{PREAMBLE}### Instruction:\nMay I?\n\n### Response:\n", "May I?"),
        (f"{PREAMBLE}### Instruction:\nMay\n\nI?\n\n### Input:\nthis\n\n### Response:", "May\n\nI?\n\nInput:\nthis"),
        ("### Instruction:\nMay I?\n\n### Input:\n\n\n### Response:", "May I?"),
        (" May I?\n", "May I?"),
        ("Say '### Instruction:' aloud", "Say '### Instruction:' aloud"),
        ("### Instruction:\nMay I?\n\n### Response:\nSure.", "### Instruction:\nMay I?\n\n### Response:\nSure."),
    ],
)
def test_only_the_scaffold_is_taken_off(query, plain):
    assert templates.plain_query(query) == plain
    assert templates.plain_query(plain) == plain


# --- leaks ---------------------------------------------------------------------------------------

LONG = "Is it acceptable to read the diary of a friend?"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e.txt", "May I?\n\n  Nay \n"),
        ("e.csv", 'label,scenario,excuse\n0,May I?,"a, b"\n1,Nay,c\n'),
        ("e.csv", "\ufeffQuestion,Best Answer\r\nMay I?,no\r\nNay,\r\n"),
        ("e.tsv", "question\tlabel\nMay I?\t0\nNay\t1\n"),
        ("e.json", json.dumps(["May I?", "Nay"])),
        ("e.json", json.dumps([{"question": "May I?", "n": 1}, {"prompt": "Nay"}])),
        ("e.jsonl", '{"situation": "May I?", "norm": "x"}\n{"Q": "Nay", "A": "x"}\n'),
        (
            "e.jsonl",
            json.dumps({"chosen": "\n\nHuman: May I?\n\nAssistant: no\n\nHuman: why", "rejected": "x"})
            + "\n"
            + json.dumps({"chosen": "Human: Nay\n\nAssistant: no"}),
        ),
    ],
    ids=["text", "csv", "csv bom", "tsv", "texts", "objects", "lines", "transcripts"],
)
def test_prompts_are_found_in_files_of_every_shape(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert prompts_of(tmp_path / name) == ["May I?", "Nay"]
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    assert prompts_of(tmp_path / f"{name}.gz") == ["May I?", "Nay"]


@pytest.mark.parametrize("name", ["e.txt", "e.csv", "e.json", "e.jsonl", "e.txt.gz", "e.csv.gz", "e.json.gz"])
def test_a_file_of_prompts_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(DataError, match=name):
        prompts_of(tmp_path / name)
    (tmp_path / name).write_bytes("question\ngrüßen\n".encode("latin-1"))
    with pytest.raises(DataError, match=name):
        prompts_of(tmp_path / name)


def test_a_row_of_prompts_with_a_cell_too_many_is_named(tmp_path):
    """Its prompt would be compared without what stands after the comma."""
    (tmp_path / "e.csv").write_text("question\nMay I, please?\n")
    with pytest.raises(DataError, match=r"e\.csv, line 2: 2 cells, and the header names 1 columns"):
        prompts_of(tmp_path / "e.csv")


def leak_config(tmp_path, prompts: list[str], **sections) -> Config:
    (tmp_path / "e.txt").write_text("\n".join(prompts))
    tree = {"evaluate": {"questions": {"kind": "text", "path": str(tmp_path / "e.txt")}}}
    return compose.parse({**tree, **sections}, "test")


def trained_on(data: dict) -> dict:
    return {"stages": [{"name": "a", "objective": {"kind": "sft"}, "data": data, "deepspeed": "z.json"}]}


def test_the_embedded_set_does_not_leak():
    facts = check_leaks(Config(), [])
    assert facts["num_evaluation_prompts"] == len(questions(EverydaySource(split="held_out")))
    assert facts["num_leaked"] == facts["num_near"] == 0


def test_every_file_of_the_evaluation_is_compared(tmp_path):
    (tmp_path / "moral_stories_test.jsonl").write_text(
        json.dumps({"situation": LONG, "intention": "I.", "moral_action": "a", "immoral_action": "b"}) + "\n"
    )
    (tmp_path / "more.txt").write_text("May we?\n")
    config = leak_config(tmp_path, ["May I?"], dataset={"leak_check": [str(tmp_path / "more.txt")]})
    assert evaluation_prompts(config) == ["May I?", "May we?"]
    config = leak_config(tmp_path, ["May I?"]).model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"benchmarks": ("moral_stories",), "data_dir": tmp_path})}
    )
    assert evaluation_prompts(config) == ["May I?", LONG]


ANSWERS = [{"question": "And?", "answer": "no"}, {"question": "may i", "answer": LONG}]
ASKED = AlignmentGroup("Comment.", ("a", f"He asks: {LONG}"), (4.0, 5.0), "self_critic", {"question": "may i"})


@pytest.mark.parametrize(
    ("where", "prompt", "place"),
    [
        ("questions", "May I?", "society.questions, 2: question"),
        ("prior", "May I?", "society.prior, 2: question"),
        ("prior", LONG, "society.prior, 2: answer"),
        ("answers", "May I?", "the training answers, 2: question"),
        ("answers", LONG, "the training answers, 2: answer"),
        ("society", "May I?", "dataset/groups.jsonl, 1: question"),
        ("society", LONG, "dataset/groups.jsonl, 1: response"),
    ],
)
def test_a_leak_is_named_with_its_place(tmp_path, where, prompt, place):
    (tmp_path / "p.json").write_text(json.dumps(ANSWERS))
    source = {"kind": "json", "path": str(tmp_path / "p.json")}
    sections = {
        "questions": {"society": {"questions": source}},
        "prior": {"society": {"prior": source}},
        "answers": {"train": trained_on({"kind": "answers", "source": source})},
        "society": {},
    }
    with pytest.raises(StageError, match="1 of 2 evaluation prompts are in the society's questions, ") as raised:
        check_leaks(
            leak_config(tmp_path, ["Why so?", prompt], **sections[where]), [ASKED] if where == "society" else []
        )
    assert f"the first: {prompt!r} ({place}). A result" in str(raised.value)


def test_near_copies_are_warned_of_and_counted(tmp_path, caplog):
    near = AlignmentGroup(
        "Tell me, is it acceptable to read the diary of an aunt?", ("a",), (4.0,), "imitation", {"question": "x"}
    )
    facts = check_leaks(leak_config(tmp_path, [LONG, "May I?"]), [near])
    assert (facts["num_leaked"], facts["num_near"]) == (0, 1)
    assert facts["near"] == [{"prompt": LONG, "place": "dataset/groups.jsonl, 1: query", "share": 0.714}]
    assert "paraphrases" in facts["cannot_find"]
    assert "1 of 2 evaluation prompts have a near-copy in the society's questions" in caplog.text
    assert f"{LONG!r} (dataset/groups.jsonl, 1: query)" in caplog.text


@pytest.mark.parametrize("prompt", ["May I?", LONG])
@pytest.mark.parametrize("scaffold", ["{}", "### Instruction:\n{}\n\n### Response:"])
def test_a_prompt_in_a_file_of_groups_is_a_leak(tmp_path, prompt, scaffold):
    (tmp_path / "g.json").write_text(json.dumps([{**GROUP, "query": scaffold.format(prompt)}]))
    train = trained_on({"kind": "groups", "path": str(tmp_path / "g.json")})
    with pytest.raises(StageError, match="1 of 1 evaluation prompts"):
        check_leaks(leak_config(tmp_path, [prompt], train=train), [])
