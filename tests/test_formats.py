"""Rows of files in every shape, as groups."""

import gzip
import json

import pytest
from msgspec.structs import replace

from salign import files
from salign.columns import Columns
from salign.dataset.formats import SHAPES, Groups, parse, reading_of, shape_of
from salign.errors import DataError
from salign.files import RowError, stream_rows
from salign.records import AlignmentGroup, Message


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


NAMES = {shape.name: shape for shape in SHAPES}


def parsed(row, name: str, score_range=None, weights=None) -> Groups:
    shape = NAMES[name]
    return parse(row, shape, reading_of(shape, score_range, weights or {}), Columns({}, ()))


def read(row, score_range=None, weights=None) -> AlignmentGroup:
    (group,) = parsed(row, shape_of(row).name, score_range, weights).groups
    return group


# --- rows of files -------------------------------------------------------------------------------

VALUES = [{"a": 1}, {"a": 'x]},[{ " \\ é \u2028'}, [], 12, -3.5e7, None, "text", {"b": [1, [2, {"c": []}]]}, True]


def rows(path) -> list:
    return list(stream_rows(path))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_by_pieces_of_any_size(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = tmp_path / "a.json"
    for values in (VALUES, [], [[]], [1], VALUES * 20):
        text = json.dumps(values, indent=indent, ensure_ascii=False)
        for around in (text, f" \n\t{text}\r\n \n", f"\ufeff{text}"):
            path.write_text(around, encoding="utf-8")
            assert rows(path) == list(enumerate(values, start=1))


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1,\n {]\n, 3]", "line 2: not valid JSON (Expecting property name enclosed in double quotes in row 2)"),
        ("[1,\n2 3]", "line 2: not valid JSON (Expecting ',' delimiter in row 2)"),
        ("[1,\n2,\n", "line 3: not valid JSON (Expecting value in row 3)"),
        ('[1,\n2,\n{"a": "x', "line 3: not valid JSON (Unterminated string starting at in row 3)"),
        ("[1,\n2", "line 2: not valid JSON (the array does not end)"),
        ("[", "line 1: not valid JSON (Expecting value in row 1)"),
        ("[1,]", "line 1: not valid JSON (Expecting value in row 2)"),
        ("[1] 2", ": there is more after the end of the array"),
        ('[]\n{"a": 1}', ": there is more after the end of the array"),
    ],
)
def test_a_broken_array_is_named_with_the_line(tmp_path, monkeypatch, chunk, text, said):
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        rows(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_lines_are_numbered_as_they_stand_in_the_file(tmp_path, compressed):
    text = '\n \n{"a": 1}\n\n7\r\n{"a": "\u2028é"}'.encode()
    path = tmp_path / ("a.jsonl.gz" if compressed else "a.jsonl")
    path.write_bytes(gzip.compress(text) if compressed else text)
    assert rows(path) == [(3, {"a": 1}), (5, 7), (6, {"a": "\u2028é"})]


def test_a_line_that_is_no_json_comes_as_an_error_and_the_next_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1\n{"a": 2}\n')
    (_, broken), second = rows(tmp_path / "a.jsonl")
    assert "not valid JSON (Expecting ',' delimiter at column" in str(broken)
    assert second == (2, {"a": 2})


def test_an_empty_file_has_no_rows(tmp_path):
    for text in ("", "\n \n"):
        (tmp_path / "a.jsonl").write_text(text)
        assert rows(tmp_path / "a.jsonl") == []


def test_a_damaged_file_is_named(tmp_path):
    whole = gzip.compress(json.dumps([VALUES] * 5000).encode())
    for name, content in (
        ("cut.json.gz", whole[: len(whole) // 2]),
        ("none.json.gz", b"[1]"),
        ("latin.json", '[{}, "ü"]'.encode("latin-1")),
        ("latin.jsonl", '{}\n"ü"'.encode("latin-1")),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: not UTF-8 text, or damaged"):
            rows(tmp_path / name)


# --- shapes --------------------------------------------------------------------------------------


STORY = {"norm": "n", "situation": "S.", "intention": "I.", "moral_action": "good", "immoral_action": "bad"}


def test_a_story_is_a_pair():
    group = read(STORY)
    assert (group.query, group.responses, group.scores) == ("S. I. What happens next?", ("good", "bad"), (7.0, 1.0))
    with pytest.raises(RowError, match="no text in the field 'moral_action'"):
        parsed({**STORY, "moral_action": " "}, "moral_stories")


def test_the_columns_tell_the_shape():
    assert shape_of({"query": "q", "responses": [], "scores": [], "models": []}).name == "groups"
    assert shape_of({"prompt": "p", "chosen": "a", "rejected": "b", "messages": []}).name == "preference"
    assert shape_of({"chosen": "a", "rejected": "b"}).name == "preference"
    assert shape_of({"prompt": "p", "completion": "a", "label": True}).name == "unpaired"
    assert shape_of(STORY).name == "moral_stories"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "id": 1}, "it has the columns text, id; wanted are responses, scores (groups); situation, "),
        ({}, "it has the columns (none)"),
        (["a"], "not an object but list; wanted are the columns responses"),
        (
            {"prompt": "a", "chosen": "b", "rejekted": "c"},
            "it has the columns prompt, chosen, rejekted; preference is nearest and lacks rejected, perhaps columns: "
            "{rejected: rejekted}; wanted are",
        ),
    ],
)
def test_a_row_of_no_shape_is_told_the_known_ones(row, said):
    with pytest.raises(ValueError, match="wanted are") as caught:
        shape_of(row)
    assert said in str(caught.value)


PAIR = AlignmentGroup("What color is the sky?", ("It is blue.", "It is green."), (7.0, 1.0))
ASKED, GOOD, BAD = user(PAIR.query), assistant(PAIR.responses[0]), assistant(PAIR.responses[1])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PAIR.query, "chosen": " It is blue.", "rejected": " It is green."},
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": None, "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "score_chosen": None},
        {"prompt": PAIR.query, "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},  # as UltraFeedback, binarized
        {"prompt": [ASKED], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": PAIR.query, "chosen": [GOOD], "rejected": [BAD]},
        {
            "chosen": f"\n\nHuman: {PAIR.query}\n\nAssistant: It is blue.",
            "rejected": f"\n\nHuman: {PAIR.query}\n\nAssistant: It is green.",
        },
        {"prompt": f"\n\nHuman: {PAIR.query}\n\nAssistant:", "chosen": " It is blue.", "rejected": " It is green."},
        {
            "prompt": f"### Instruction:\n{PAIR.query}\n\n### Response:",
            "chosen": "It is blue.",
            "rejected": "It is green.",
        },
    ],
    ids=["plain", "chat", "implied", "null", "ultrafeedback", "twice", "mixed", "hh", "hh prompt", "alpaca"],
)
def test_preferences_of_every_form_are_one_group(row):
    assert read(row) == PAIR


@pytest.mark.parametrize("row", [{"chosen": "I think it is so.", "rejected": "I think it is not."}, {"prompt": None}])
def test_what_two_texts_begin_with_is_no_prompt(row):
    """It was cut off as one: 'I think it is'."""
    with pytest.raises(RowError, match="there is no prompt: it may stand in prompt, question, instruction, query"):
        read({"chosen": "I think it is so.", "rejected": "I think it is not.", **row})


@pytest.mark.parametrize("column", ["prompt", "question", "instruction", "query"])
@pytest.mark.parametrize("shape", ["preference", "unpaired", "rated", "groups"])
def test_a_prompt_stands_in_any_of_its_columns(column, shape):
    rest = {
        "preference": {"chosen": "I think so.", "rejected": "I think not."},
        "unpaired": {"completion": "I think so.", "label": 1},
        "rated": {"response": "I think so.", "score": "7"},
        "groups": {"responses": ["I think so."], "scores": [7]},
    }[shape]
    group = read({column: PAIR.query, "prompt" if column != "prompt" else "query": None, **rest})
    assert (group.query, group.responses[0], group.scores[0]) == (PAIR.query, "I think so.", 7.0)


def test_two_different_prompts_are_refused_and_the_same_twice_is_one():
    row = {"prompt": "May I?", "question": "Must I?", "chosen": "a", "rejected": "b"}
    with pytest.raises(RowError, match="prompt and question hold different texts"):
        read(row)
    assert read({**row, "question": "May I?"}).query == "May I?"


def test_turns_before_the_last_are_context():
    """Training gives them to the model's own template as turns."""
    system = {"role": "system", "content": "Be kind."}
    kind = Message("system", "Be kind.")
    group = read({"chosen": [system, ASKED, GOOD], "rejected": [system, ASKED, BAD]})
    assert (group.query, group.context) == (PAIR.query, (kind,))
    talk = [system, user("Hi"), assistant("Hello"), ASKED]
    turns = (Message("user", "Hi"), Message("assistant", "Hello"))
    for row in (
        {"chosen": [*talk, GOOD], "rejected": [*talk, BAD]},
        {"prompt": talk, "completion": [GOOD], "label": True},
        {"prompt": PAIR.query, "system": "Be kind.", "history": [["Hi", "Hello"]], "chosen": "a", "rejected": "b"},
        {
            "system": "Be kind.",
            "conversations": [{"from": role, "value": text} for role, text in HUMAN],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
    ):
        group = read(row)
        assert (group.query, group.context) == (PAIR.query, (kind, *turns))
        assert group.messages == [*talk]
    said = f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {PAIR.query}\n\nAssistant: "
    expected = replace(PAIR, context=turns)
    assert read({"chosen": f"{said}It is blue.", "rejected": f"{said}It is green."}) == expected
    assert read({"prompt": said, "chosen": "It is blue.", "rejected": "It is green."}) == expected
    # What one speaker says in two messages is one: templates want them to alternate.
    twice = said.replace("Human: Hi", "Human: Hi\n\nHuman: there")
    assert read({"prompt": twice, "chosen": "a", "rejected": "b"}).context[0] == Message("user", "Hi\n\nthere")


HUMAN = [("human", "Hi"), ("gpt", "Hello"), ("human", PAIR.query)]


def test_what_an_instruction_is_about_belongs_to_it():
    row = {"instruction": "Sum up.", "input": "A text.", "chosen": "a", "rejected": "b"}
    assert read(row).query == "Sum up.\n\nInput:\nA text."
    assert read({**row, "input": ""}).query == "Sum up."
    with pytest.raises(RowError, match="a prompt of several messages, and it is ambiguous"):
        read({**row, "history": [["x", "y"]], "instruction": [user("a"), assistant("b"), user("c")]})


def test_scores_of_a_pair_are_taken_where_they_are_there():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 5.5, "score_rejected": 2}
    assert read(row).scores == (5.5, 2.0)
    assert read({**row, "score_chosen": 10.0, "score_rejected": 1}, (1, 10)).scores == (7.0, 1.0)
    assert read({**row, "score_chosen": 5.5, "score_rejected": 5.5}, (1, 10)).scores == (4.0, 4.0)
    assert read({**row, "score_chosen": 1.0, "score_rejected": 0}, (0, 1)).scores == (7.0, 1.0)


def test_a_scale_of_ones_own_is_mapped_and_has_no_placeholders():
    row = {"query": "q", "responses": ["a", "b", "c", "d"], "scores": [-1, 8, 3.5, None]}
    (group,), num_unrated, _ = parsed(row, "groups", (-1, 8))
    assert (group.scores, num_unrated) == ((1.0, 7.0, 4.0), 1)
    (group,), num_unrated, _ = parsed(row, "groups")
    assert (group.responses, group.scores, num_unrated) == (("c",), (3.5,), 3)


def test_an_unpaired_row_is_a_group_of_one():
    row = {"prompt": PAIR.query, "completion": " It is blue.", "label": True}
    assert read(row) == AlignmentGroup(PAIR.query, ("It is blue.",), (7.0,))
    assert read({**row, "label": False}).scores == (1.0,)
    assert read({"prompt": [ASKED], "completion": [GOOD], "label": True}) == read(row)


CHOICE = {"prompt": "p", "chosen": "a", "rejected": "b"}
ONE = {"prompt": "p", "completion": "a", "label": True}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**CHOICE, "rejected": " a"}, "chosen and rejected are the same"),
        ({**CHOICE, "rejected": ""}, "a response is empty"),
        ({**CHOICE, "prompt": " "}, "the query is empty"),
        ({**CHOICE, "prompt": ""}, "there is no prompt"),
        ({**CHOICE, "prompt": 3}, "prompt is neither a text nor a list of messages"),
        ({**CHOICE, "chosen": None}, "chosen is neither a text nor a list of messages"),
        ({**CHOICE, "chosen": [assistant("a")]}, "of chosen and rejected, one is a conversation and the other a text"),
        ({**CHOICE, "chosen": [user("a")], "rejected": [user("b")]}, "but has user"),
        ({**CHOICE, "chosen": [], "rejected": []}, "but has none"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "there is no prompt"),
        ({"prompt": [GOOD], "chosen": [GOOD], "rejected": [BAD]}, "the prompt does not end with a user message"),
        (
            {"chosen": [ASKED, GOOD, ASKED, GOOD], "rejected": [ASKED, BAD]},
            "one assistant message after the prompt, but has assistant, user, assistant",
        ),
        ({**CHOICE, "chosen": [{"role": "tool", "content": "x"}]}, "a message of chosen must be {role, content}"),
        ({**CHOICE, "chosen": [{"role": "user", "content": [{"text": "x"}]}]}, "a message of chosen must be"),
        ({**CHOICE, "chosen": ["a"]}, "a message of chosen must be"),
        ({**CHOICE, "score_chosen": 3}, "one of chosen and rejected has a score"),
        ({**CHOICE, "score_chosen": "3 of 7", "score_rejected": 1}, "score_chosen is '3 of 7', not a number"),
        ({**CHOICE, "score_chosen": True, "score_rejected": 1}, "score_chosen is True"),
        ({**CHOICE, "score_chosen": 2, "score_rejected": 3.5}, "score_chosen 2 is below score_rejected 3.5"),
        (
            {**CHOICE, "score_chosen": 9.5, "score_rejected": 1},
            "score 9.5 is outside the scale 1..7; state the file's own",
        ),
        ({**CHOICE, "score_chosen": float("nan"), "score_rejected": 1}, "score nan is outside the scale"),
        ({**CHOICE, "chosen": "half \ud800"}, "the text contains half a character"),
        ({**ONE, "label": 2}, "the label is 2; it must be true or false, or 1 or 0"),
        ({**ONE, "label": None}, "the label is None"),
        ({"completion": "a", "label": True}, "there is no prompt"),
        ({**ONE, "completion": [user("a")]}, "completion must have exactly one assistant message"),
        ({**ONE, "completion": 3}, "completion is neither a text"),
    ],
)
def test_a_malformed_row_is_told_why(row, said):
    with pytest.raises(ValueError) as caught:
        read(row)
    assert said in str(caught.value)


def test_a_row_of_another_shape_than_the_files_is_malformed():
    with pytest.raises(ValueError, match="scores missing; a row of groups has responses, scores"):
        parsed({"query": "q", "responses": ["a"]}, "groups")
    with pytest.raises(ValueError, match="chosen, rejected missing"):
        parsed(ONE, "preference")
    with pytest.raises(ValueError, match="not an object but str"):
        parsed("text", "unpaired")


def test_a_score_outside_a_scale_of_ones_own_is_named():
    with pytest.raises(ValueError, match=r"score 11.0 is outside the scale 0..10"):
        read({"query": "q", "responses": ["a"], "scores": [11]}, (0, 10))


def test_transcripts_of_hh_are_read(shared_data):
    """Most differ in the last reply alone; the others are told apart."""
    read_, refused = 0, []
    for _, row in stream_rows(shared_data / "eval" / "hh_harmless_test.jsonl.gz"):
        try:
            group = read(row)
        except ValueError as error:
            refused.append(str(error))
            continue
        read_ += 1
        assert row["chosen"].rstrip().endswith(group.responses[0])
        assert row["rejected"].rstrip().endswith(group.responses[1])
        assert "Assistant:" not in group.query
        assert bool(group.context) == (row["chosen"].count("\n\nHuman:") > 1)
    assert read_ > 2200
    assert not [said for said in refused if "but has" not in said and "empty" not in said and "same" not in said]
