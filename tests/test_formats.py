"""Rows of files in every shape, as groups."""

import gzip
import json

import pytest

from salign.dataset import formats
from salign.dataset.formats import RowError, parse, shape_of, stream_rows
from salign.errors import DataError
from salign.records import AlignmentGroup


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(row, score_range=None) -> AlignmentGroup | None:
    return parse(row, shape_of(row), score_range)[0]


# --- rows of files -------------------------------------------------------------------------------

VALUES = [{"a": 1}, {"a": 'x]},[{ " \\ é \u2028'}, [], 12, -3.5e7, None, "text", {"b": [1, [2, {"c": []}]]}, True]


def rows(path) -> list:
    return list(stream_rows(path))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_by_pieces_of_any_size(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(formats, "_CHUNK", chunk)
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
        ("[1,\n {]\n, 3]", "line 2: no valid JSON (Expecting property name enclosed in double quotes in row 2)"),
        ("[1,\n2 3]", "line 2: no valid JSON (Expecting ',' delimiter in row 2)"),
        ("[1,\n2,\n", "line 3: no valid JSON (Expecting value in row 3)"),
        ('[1,\n2,\n{"a": "x', "line 3: no valid JSON (Unterminated string starting at in row 3)"),
        ("[1,\n2", "line 2: no valid JSON (the array does not end)"),
        ("[", "line 1: no valid JSON (Expecting value in row 1)"),
        ("[1,]", "line 1: no valid JSON (Expecting value in row 2)"),
        ("[1] 2", ": there is more after the end of the array"),
        ('[]\n{"a": 1}', ": there is more after the end of the array"),
    ],
)
def test_a_broken_array_is_named_with_the_line(tmp_path, monkeypatch, chunk, text, said):
    monkeypatch.setattr(formats, "_CHUNK", chunk)
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
    assert "no valid JSON (Expecting ',' delimiter at column" in str(broken)
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
        with pytest.raises(DataError, match=f"{name}: no UTF-8 text, or damaged"):
            rows(tmp_path / name)


# --- shapes --------------------------------------------------------------------------------------


STORY = {"norm": "n", "situation": "S.", "intention": "I.", "moral_action": "good", "immoral_action": "bad"}


def test_a_story_is_a_pair():
    group = parse(STORY, "moral_stories", None)[0]
    assert (group.query, group.responses, group.scores) == ("S. I. What happens next?", ("good", "bad"), (7.0, 1.0))
    with pytest.raises(RowError, match="no text in the field 'moral_action'"):
        parse({**STORY, "moral_action": " "}, "moral_stories", None)


def test_the_columns_tell_the_shape():
    assert shape_of({"query": "q", "responses": [], "scores": [], "models": []}) == "groups"
    assert shape_of({"prompt": "p", "chosen": "a", "rejected": "b", "messages": []}) == "preference"
    assert shape_of({"chosen": "a", "rejected": "b"}) == "preference"
    assert shape_of({"prompt": "p", "completion": "a", "label": True}) == "unpaired"
    assert shape_of(STORY) == "moral_stories"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "id": 1}, "it has the columns text, id; wanted are query, responses, scores (groups); chosen, "),
        ({}, "it has the columns (none)"),
        (["a"], "no object but list; wanted are the columns query"),
        ({"prompt": "a", "chosen": "b"}, "it has the columns prompt, chosen; wanted are"),
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


def test_texts_share_their_beginning_in_whole_words():
    assert read({"chosen": "The sky is blue.", "rejected": "The sky is black."}) == AlignmentGroup(
        "The sky is", ("blue.", "black."), (7.0, 1.0)
    )
    assert read({"chosen": "Is it?\nYes", "rejected": "Is it?\nYes, sure"}) == AlignmentGroup(
        "Is it?", ("Yes", "Yes, sure"), (7.0, 1.0)
    )


def test_more_than_one_turn_is_a_transcript():
    system = {"role": "system", "content": "Be kind."}
    assert (
        read({"chosen": [system, ASKED, GOOD], "rejected": [system, ASKED, BAD]}).query == f"Be kind.\n\n{PAIR.query}"
    )
    talk = [system, user("Hi"), assistant("Hello"), ASKED]
    expected = f"Be kind.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {PAIR.query}"
    assert read({"chosen": [*talk, GOOD], "rejected": [*talk, BAD]}).query == expected
    assert read({"prompt": talk, "completion": [GOOD], "label": True}).query == expected
    said = f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {PAIR.query}\n\nAssistant: "
    assert read({"chosen": f"{said}It is blue.", "rejected": f"{said}It is green."}) == AlignmentGroup(
        expected.removeprefix("Be kind.\n\n"), PAIR.responses, PAIR.scores
    )


def test_scores_of_a_pair_are_taken_where_they_are_there():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 5.5, "score_rejected": 2}
    assert read(row).scores == (5.5, 2.0)
    assert read({**row, "score_chosen": 10.0, "score_rejected": 1}, (1, 10)).scores == (7.0, 1.0)
    assert read({**row, "score_chosen": 5.5, "score_rejected": 5.5}, (1, 10)).scores == (4.0, 4.0)
    assert read({**row, "score_chosen": 1.0, "score_rejected": 0}, (0, 1)).scores == (7.0, 1.0)


def test_a_scale_of_ones_own_is_mapped_and_has_no_placeholders():
    row = {"query": "q", "responses": ["a", "b", "c", "d"], "scores": [-1, 8, 3.5, None]}
    group, num_unrated = parse(row, "groups", (-1, 8))
    assert (group.scores, num_unrated) == ((1.0, 7.0, 4.0), 1)
    group, num_unrated = parse(row, "groups", None)
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
        ({**CHOICE, "prompt": 3}, "prompt is no text and no list of messages"),
        ({**CHOICE, "chosen": None}, "chosen is no text and no list of messages"),
        ({**CHOICE, "chosen": [assistant("a")]}, "one of chosen and rejected is a conversation and the other a text"),
        ({**CHOICE, "chosen": [user("a")], "rejected": [user("b")]}, "and comes to user"),
        ({**CHOICE, "chosen": [], "rejected": []}, "and comes to none"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "there is no prompt"),
        ({"chosen": "a b", "rejected": "c b"}, "there is no prompt: chosen and rejected do not begin with the same"),
        ({"chosen": "above", "rejected": "about"}, "there is no prompt"),
        ({"prompt": [GOOD], "chosen": [GOOD], "rejected": [BAD]}, "the prompt does not end with a message of the user"),
        (
            {"chosen": [ASKED, GOOD, ASKED, GOOD], "rejected": [ASKED, BAD]},
            "one message of the assistant after the prompt, and comes to assistant, user, assistant",
        ),
        ({**CHOICE, "chosen": [{"role": "tool", "content": "x"}]}, "a message of chosen must be {role, content}"),
        ({**CHOICE, "chosen": [{"role": "user", "content": [{"text": "x"}]}]}, "a message of chosen must be"),
        ({**CHOICE, "chosen": ["a"]}, "a message of chosen must be"),
        ({**CHOICE, "score_chosen": 3}, "score_rejected is None; both scores must be numbers, or both be missing"),
        ({**CHOICE, "score_chosen": "3", "score_rejected": 1}, "score_chosen is '3'"),
        ({**CHOICE, "score_chosen": True, "score_rejected": 1}, "score_chosen is True"),
        ({**CHOICE, "score_chosen": 2, "score_rejected": 3.5}, "score_chosen 2 is below score_rejected 3.5"),
        (
            {**CHOICE, "score_chosen": 9.5, "score_rejected": 1},
            "score 9.5 is outside the scale 1..7; say the file's own",
        ),
        ({**CHOICE, "score_chosen": float("nan"), "score_rejected": 1}, "score nan is outside the scale"),
        ({**CHOICE, "chosen": "half \ud800"}, "the text holds half of a character"),
        ({**ONE, "label": 1}, "the label is 1; it must be true or false"),
        ({**ONE, "label": None}, "the label is None"),
        ({"completion": "a", "label": True}, "prompt missing; a row of unpaired has prompt, completion, label"),
        ({**ONE, "completion": [user("a")]}, "completion must come to one message of the assistant"),
        ({**ONE, "completion": 3}, "completion is no text"),
    ],
)
def test_a_malformed_row_is_told_why(row, said):
    with pytest.raises(ValueError) as caught:
        read(row)
    assert said in str(caught.value)


def test_a_row_of_another_shape_than_the_files_is_malformed():
    with pytest.raises(ValueError, match="scores missing; a row of groups has query, responses, scores"):
        parse({"query": "q", "responses": ["a"]}, "groups", None)
    with pytest.raises(ValueError, match="chosen, rejected missing"):
        parse(ONE, "preference", None)
    with pytest.raises(ValueError, match="no object but str"):
        parse("text", "unpaired", None)


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
        assert "Assistant:" in group.query or not group.query.startswith("Human:")
    assert read_ > 2200
    assert not [said for said in refused if "and comes to" not in said and "empty" not in said and "same" not in said]
