"""Where questions and answers come from: the embedded set, and files of the common shapes."""

import gzip
import json
from collections import Counter
from importlib import resources

import pytest

from salign.config import (
    CsvSource,
    DatasetSource,
    EverydaySource,
    HHSource,
    JsonSource,
    MoralStoriesSource,
    ParquetSource,
    TextSource,
)
from salign.errors import DataError
from salign.files import read_rows
from salign.society.sources import Choices, Exemplar, load, questions

ROWS = [
    {"question": "May I keep the change?", "answer": "Only if it is yours."},
    {"question": "Soll ich grüßen?", "answer": "Ja ✓"},
]
LABELS = ("bad", "good")
LOADED = [Exemplar(row["question"], row["answer"], "good") for row in ROWS]


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def json_source(path, text: str, **fields) -> JsonSource:
    path.write_text(text, encoding="utf-8")
    return JsonSource(kind="json", path=path, **fields)


# --- the embedded set ----------------------------------------------------------------------------


def test_the_embedded_set_is_large_and_its_splits_are_disjoint():
    society, held_out = (questions(EverydaySource(split=split)) for split in ("society", "held_out"))
    assert len(society) + len(held_out) >= 150
    assert len(held_out) >= 30
    assert not set(society) & set(held_out)
    assert questions(EverydaySource()) == society


@pytest.mark.parametrize("split", ["society", "held_out"])
def test_every_embedded_question_has_one_good_and_one_bad_answer(split):
    labels: dict[str, list] = {}
    answers = []
    for exemplar in load(EverydaySource(split=split)):
        labels.setdefault(exemplar.question, []).append(exemplar.label)
        answers.append(exemplar.answer)
    assert all(sorted(found) == ["bad", "good"] for found in labels.values())
    assert all(answer.strip() for answer in answers)
    assert len(set(answers)) == len(answers)


def test_the_topics_are_balanced_in_both_splits():
    text = resources.files("salign.society").joinpath("data/everyday.jsonl").read_text(encoding="utf-8")
    topic_of = {row["question"]: row["topic"] for row in map(json.loads, text.splitlines())}
    assert len(set(topic_of.values())) == 9
    for split in ("society", "held_out"):
        counts = Counter(topic_of[question] for question in questions(EverydaySource(split=split)))
        assert len(counts) == 9
        assert len(set(counts.values())) == 1


def test_questions_are_distinct_and_in_order(tmp_path):
    source = json_source(tmp_path / "q.jsonl", jsonl([ROWS[1], ROWS[0], ROWS[1]]))
    assert questions(source) == [ROWS[1]["question"], ROWS[0]["question"]]
    assert len(load(source)) == 3


# --- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q.txt", "q.txt.gz"])
def test_a_text_has_one_question_a_line(tmp_path, name):
    raw = "\ufeffMay I?\n\n  Soll ich grüßen? \r\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    found = load(TextSource(kind="text", path=tmp_path / name))
    assert found == [Exemplar("May I?"), Exemplar("Soll ich grüßen?")]


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_a_text_without_questions_is_an_error(tmp_path, text):
    (tmp_path / "q.txt").write_text(text)
    with pytest.raises(DataError, match=r"q\.txt contains no question"):
        load(TextSource(kind="text", path=tmp_path / "q.txt"))


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.json", json.dumps(ROWS)),
        ("q.json", json.dumps(ROWS, indent=1, ensure_ascii=False)),
        ("q.json", "\ufeff" + json.dumps(ROWS)),
        ("q.json", "\n " + json.dumps(ROWS, indent=1)),
        ("q.jsonl", jsonl(ROWS)),
        ("q.jsonl", "\n" + jsonl(ROWS).replace("\n", "\n\n")),
        ("q.jsonl", "\ufeff" + jsonl(ROWS).strip()),
        ("q.json.gz", json.dumps(ROWS)),
        ("q.jsonl.gz", jsonl(ROWS)),
    ],
    ids=["array", "indented", "bom", "space first", "lines", "blank lines", "bom lines", "gz", "gz lines"],
)
def test_an_array_and_json_lines_are_read_alike(tmp_path, name, text):
    raw = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert load(JsonSource(kind="json", path=tmp_path / name)) == LOADED


def test_rows_carry_the_line_that_they_stand_in(tmp_path):
    (tmp_path / "q.jsonl").write_text("\n".join(["1", "", "3"]))
    assert read_rows(tmp_path / "q.jsonl") == [(1, 1), (3, 3)]


def test_fields_have_the_names_that_the_config_says(tmp_path):
    rows = [{"q": "a?", "a": "one", "y": "bad"}, {"q": "b?", "a": "two", "y": "good"}]
    source = json_source(tmp_path / "q.json", json.dumps(rows), question="q", answer="a", label="y")
    assert load(source) == [Exemplar("a?", "one", "bad"), Exemplar("b?", "two", "good")]


def test_rows_may_hold_questions_alone(tmp_path):
    source = json_source(tmp_path / "q.jsonl", jsonl([{"question": " a? "}, ROWS[0]]))
    assert load(source) == [Exemplar("a?"), LOADED[0]]


@pytest.mark.parametrize(
    ("row", "fields", "reason"),
    [
        ({"answer": "x"}, {}, "no text in the field 'question'; it has answer"),
        ({"question": "a?", "answer": ""}, {}, "no text in the field 'answer'"),
        ({"question": "a?", "answer": 3}, {}, "no text in the field 'answer'"),
        ({"question": "  ", "answer": "x"}, {}, "no text in the field 'question'"),
        ("a?", {}, "it is not an object but str"),
        (["a?"], {}, "it is not an object but list"),
        (
            {"question": "a?", "answer": "x", "y": "fine"},
            {"label": "y"},
            "the label is 'fine'; it must be 'good'",
        ),
        ({"question": "a?", "answer": "x"}, {"label": "y"}, "no text in the field 'y'; it has question, answer"),
        ({"question": "a?", "y": "bad"}, {"label": "y"}, "no text in the field 'answer'; it has question, y"),
    ],
)
def test_a_malformed_row_is_named_with_the_reason(tmp_path, row, fields, reason):
    good = {"question": "b?", "answer": "x", "y": "good"} if fields else {"question": "b?", "answer": "x"}
    for name, text in (("q.json", json.dumps([good, row])), ("q.jsonl", jsonl([good, row]))):
        with pytest.raises(DataError) as caught:
            load(json_source(tmp_path / name, text, **fields))
        assert str(caught.value).startswith(f"{tmp_path / name}, row 2: ")
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("q.jsonl", jsonl(ROWS) + '\n{"question": "a?', "row 4"),
        ("q.jsonl", "a?\n", "row 1"),
        ("q.json", '[{"question": "a?"},\n{"question" "b?"}]', "line 2"),
        ("q.json", '[{"question": "a?"}', "line 1"),
    ],
)
def test_malformed_json_is_named_with_line_and_reason(tmp_path, name, text, where):
    with pytest.raises(DataError, match=rf"{name}, {where}: not valid JSON \(.+\)"):
        load(json_source(tmp_path / name, text))


def test_an_array_without_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"q\.json contains no question"):
        load(json_source(tmp_path / "q.json", "[]"))


# --- files that cannot be read -------------------------------------------------------------------


def file_source(kind: str, path):
    sources = {"text": TextSource, "json": JsonSource, "hh": HHSource, "moral_stories": MoralStoriesSource}
    return sources[kind](kind=kind, path=path)


@pytest.mark.parametrize("kind", ["text", "json", "hh", "moral_stories"])
def test_a_file_that_is_missing_is_named(tmp_path, kind):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match=f"no data file {path}"):
            load(file_source(kind, path))


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("latin.txt", '{"question": "grüßen?"}\n'.encode("latin-1")),
        ("plain.gz", b'{"question": "a?"}\n'),
        ("torn.gz", gzip.compress(jsonl(ROWS).encode())[:-12]),
        ("damaged.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + b"\xff" * 40),
    ],
    ids=["latin-1", "not compressed", "torn", "damaged"],
)
def test_a_file_that_is_damaged_or_no_text_is_named(tmp_path, kind, name, raw):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=name):
        load(file_source(kind, tmp_path / name))


# --- HH transcripts ------------------------------------------------------------------------------


def hh(tmp_path, **row) -> list[Exemplar]:
    (tmp_path / "hh.jsonl").write_text(jsonl([row]))
    return load(HHSource(kind="hh", path=tmp_path / "hh.jsonl"))


def test_of_a_transcript_the_first_question_and_its_answer_are_taken(tmp_path):
    start = "\n\nHuman: May I\nkeep it?\n\nAssistant: "
    found = hh(
        tmp_path,
        chosen=f"{start}Ask first.\n\nThen see: \n\nHuman: Whom?\n\nAssistant: The owner.",
        rejected=f"{start}Sure, Assistant: says so.",
    )
    assert found == [
        Exemplar("May I\nkeep it?", "Ask first.\n\nThen see:", "good"),
        Exemplar("May I\nkeep it?", "Sure, Assistant: says so.", "bad"),
    ]


def test_a_transcript_may_begin_without_blank_lines(tmp_path):
    found = hh(tmp_path, chosen="Human: a?\n\nAssistant: b", rejected="Human: a?\n\nAssistant: c")
    assert [(item.answer, item.label) for item in found] == [("b", "good"), ("c", "bad")]


def test_an_empty_answer_is_passed_over(tmp_path):
    found = hh(tmp_path, chosen="\n\nHuman: a?\n\nAssistant: b", rejected="\n\nHuman: a?\n\nAssistant: ")
    assert [item.label for item in found] == ["good"]


@pytest.mark.parametrize("text", ["a?", "\n\nHuman: a?", "\n\nAssistant: b\n\nHuman: a?"])
def test_what_is_no_transcript_is_named(tmp_path, text):
    with pytest.raises(DataError, match=r"hh\.jsonl, row 1: 'rejected' is not a transcript"):
        hh(tmp_path, chosen="\n\nHuman: a?\n\nAssistant: b", rejected=text)


def test_a_transcript_without_its_other_side_is_named(tmp_path):
    with pytest.raises(DataError, match=r"hh\.jsonl, row 1: no text in the field 'rejected'; it has chosen"):
        hh(tmp_path, chosen="\n\nHuman: a?\n\nAssistant: b")


def test_what_the_human_says_is_never_an_answer(tmp_path):
    with pytest.raises(DataError, match="'chosen' is not a transcript"):
        hh(
            tmp_path,
            chosen="\n\nHuman: a?\n\nHuman: well?\n\nAssistant: b",
            rejected="\n\nHuman: a?\n\nAssistant: c",
        )


# --- Moral Stories -------------------------------------------------------------------------------

STORY = {
    "norm": "Return what you borrow.",
    "situation": "Ada has a neighbour's ladder.",
    "intention": "Ada wants to paint her house.",
    "moral_action": "Ada asks to keep it until Sunday.",
    "immoral_action": "Ada sells it.",
}


def test_a_moral_story_is_a_question_with_a_good_and_a_bad_answer(tmp_path):
    (tmp_path / "m.jsonl").write_text(jsonl([STORY]))
    question = "Ada has a neighbour's ladder. Ada wants to paint her house. What happens next?"
    assert load(MoralStoriesSource(kind="moral_stories", path=tmp_path / "m.jsonl")) == [
        Exemplar(question, "Ada asks to keep it until Sunday.", "good"),
        Exemplar(question, "Ada sells it.", "bad"),
    ]


@pytest.mark.parametrize("field", ["situation", "intention", "moral_action", "immoral_action"])
def test_a_moral_story_that_lacks_a_part_is_named(tmp_path, field):
    (tmp_path / "m.jsonl").write_text(jsonl([STORY, {k: v for k, v in STORY.items() if k != field}]))
    with pytest.raises(DataError, match=rf"m\.jsonl, row 2: no text in the field '{field}'"):
        load(MoralStoriesSource(kind="moral_stories", path=tmp_path / "m.jsonl"))


# --- Hugging Face datasets -----------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "saved"
    rows = [{"q": row["question"], "a": row["answer"], "y": label} for row, label in zip(ROWS, LABELS, strict=True)]
    datasets.Dataset.from_list(rows).save_to_disk(folder / "one")
    both = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:1])}
    datasets.DatasetDict(both).save_to_disk(folder / "splits")
    return folder


def dataset_source(path, **changes) -> DatasetSource:
    return DatasetSource(kind="dataset", path=str(path), question="q", answer="a", label="y", **changes)


def test_a_saved_dataset_is_read(saved):
    expected = [Exemplar(row["question"], row["answer"], label) for row, label in zip(ROWS, LABELS, strict=True)]
    assert load(dataset_source(saved / "one")) == expected
    assert load(dataset_source(saved / "splits")) == expected
    assert load(dataset_source(saved / "splits", split="test")) == expected[:1]


def test_a_split_or_a_dataset_that_is_not_there_is_named(saved, tmp_path):
    with pytest.raises(DataError, match=r"splits \(split validation\) does not load"):
        load(dataset_source(saved / "splits", split="validation"))
    with pytest.raises(DataError, match="written by save_to_disk"):
        load(dataset_source(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        load(dataset_source(tmp_path / "empty"))


def test_a_row_of_a_dataset_is_named(saved):
    with pytest.raises(DataError, match=r"one, row 1: no text in the field 'question'; it has q, a, y"):
        load(DatasetSource(kind="dataset", path=str(saved / "one")))


def test_a_reply_that_chosen_and_rejected_share_has_no_label(tmp_path):
    """Transcripts of several turns differ in the last one."""
    same = "\n\nHuman: May I?\n\nAssistant: You may.\n\nHuman: Sure?\n\nAssistant: "
    rows = [
        {"chosen": same + "Yes, gladly.", "rejected": same + "Go away."},
        {"chosen": "\n\nHuman: And I?\n\nAssistant: Please do.", "rejected": "\n\nHuman: And I?\n\nAssistant: No."},
    ]
    (tmp_path / "hh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(HHSource(kind="hh", path=tmp_path / "hh.jsonl")) == [
        Exemplar("May I?"),
        Exemplar("And I?", "Please do.", "good"),
        Exemplar("And I?", "No.", "bad"),
    ]


def test_what_a_question_is_about_comes_after_it(tmp_path):
    rows = [
        {"instruction": "Sum up.", "input": "A text.", "output": "It."},
        {"instruction": "Hi", "input": "", "output": "Ho"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    source = JsonSource(kind="json", path=tmp_path / "a.json", question="instruction", input="input", answer="output")
    found = [(exemplar.question, exemplar.answer) for exemplar in load(source)]
    assert found == [("Sum up.\n\nInput:\nA text.", "It."), ("Hi", "Ho")]


# --- columns, tables, malformed rows -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("q.csv", "question\nMay I?\n", "csv"),
        ("q.tsv.gz", "question\tanswer\nMay I?\tNo.\n", "csv"),
        ("q.jsonl", '{"question": "May I?"}\n', "json"),
        ("q.txt", '{"question": "May I?"}\n', "json"),
        ("q", '[\n"May I?"\n]', "json"),
    ],
)
def test_a_table_is_no_text_of_one_question_a_line(tmp_path, name, text, kind):
    """Its lines were taken for questions, header and all."""
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    with pytest.raises(DataError, match=rf"one question a line\. Say {{kind: {kind}, "):
        load(TextSource(kind="text", path=tmp_path / name))


def test_a_question_may_begin_with_a_bracket(tmp_path):
    (tmp_path / "q.txt").write_text("[Be honest.] May I?\n{Sure?}\n")
    assert questions(TextSource(kind="text", path=tmp_path / "q.txt")) == ["[Be honest.] May I?", "{Sure?}"]


@pytest.mark.parametrize("name", ["q.csv", "q.tsv", "q.csv.gz"])
def test_a_table_is_read(tmp_path, name):
    tab = "\t" if ".tsv" in name else ","
    text = (
        f"id{tab}Question{tab}a{tab}good{tab}note\n1{tab}May I?{tab}No.{tab}0{tab}\n2{tab}And I?{tab}Yes.{tab}1{tab}\n"
    )
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    source = CsvSource(kind="csv", path=tmp_path / name, question="Question", answer="a", label="good")
    assert load(source) == [Exemplar("May I?", "No.", "bad"), Exemplar("And I?", "Yes.", "good")]
    with pytest.raises(DataError, match="is of kind csv, and the config says kind: json"):
        load(JsonSource(kind="json", path=tmp_path / name))


def test_parquet_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "q.parquet")
    assert load(ParquetSource(kind="parquet", path=tmp_path / "q.parquet")) == LOADED


@pytest.mark.parametrize("kind", ["json", "hh", "moral_stories"])
def test_a_column_that_is_not_read_is_refused_by_name(tmp_path, kind):
    """What an instruction is about stood in `input`, and was left out without a word."""
    row = {
        "json": {"question": "Sum up.", "answer": "It.", "input": "A text."},
        "hh": {"chosen": "Human: a?\n\nAssistant: b", "rejected": "Human: a?\n\nAssistant: c", "input": "x"},
        "moral_stories": {**STORY, "input": "x"},
    }[kind]
    (tmp_path / "q.jsonl").write_text(jsonl([row | {"source": "here", "system": ""}] * 2))
    source = file_source(kind, tmp_path / "q.jsonl")
    with pytest.raises(DataError, match=r"q\.jsonl, row 1: the column 'input' would be left unread.* \(2 rows\)"):
        load(source)
    assert load(source.model_copy(update={"ignore_columns": ("input",)}))
    if kind == "json":
        assert load(source.model_copy(update={"input": "input"}))[0].question == "Sum up.\n\nInput:\nA text."


def test_a_field_of_another_name_is_suggested(tmp_path):
    source = json_source(tmp_path / "q.jsonl", jsonl([{"Question": "a?"}]))
    with pytest.raises(DataError, match="no text in the field 'question'; it has Question; did you mean 'Question'"):
        load(source)


@pytest.mark.parametrize("kind", ["json", "hh", "moral_stories"])
def test_malformed_rows_are_skipped_and_counted_if_that_is_asked_for(tmp_path, caplog, kind):
    good = {
        "json": ROWS[0],
        "hh": {"chosen": "Human: a?\n\nAssistant: b", "rejected": "Human: a?\n\nAssistant: c"},
        "moral_stories": STORY,
    }[kind]
    (tmp_path / "q.jsonl").write_text(jsonl([good, {"text": "x"}, 7, good]) + "oh\n")
    source = file_source(kind, tmp_path / "q.jsonl")
    with pytest.raises(DataError, match=r"q\.jsonl, row 2: no text in .*; row 3: .*; row 5: not valid JSON"):
        load(source)
    exemplars = load(source.model_copy(update={"skip_bad": True}))
    assert len(exemplars) == (2 if kind == "json" else 4)
    assert f"3 malformed rows of {tmp_path / 'q.jsonl'} were skipped (skip_bad)" in caplog.text
    (tmp_path / "q.jsonl").write_text("oh\n")
    with pytest.raises(DataError, match="contains no question"):
        load(source.model_copy(update={"skip_bad": True}))


# --- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["4", "5"], "5", 1),
        (["4", "5"], "A", 0),
        (["four", "five"], 1, 1),
        ({"text": ["four", "five"], "label": ["1", "2"]}, "2", 1),
        (["four", "five"], None, None),
    ],
)
def test_a_question_lists_its_choices_and_knows_the_right_one(tmp_path, choices, answer, right):
    row = {"question": "2 + 2?", "choices": choices, "answer": answer}
    [found] = load(json_source(tmp_path / "q.jsonl", jsonl([row]), choices="choices"))
    texts = tuple(choices["text"] if isinstance(choices, dict) else choices)
    assert found.question == f"2 + 2?\n1. {texts[0]}\n2. {texts[1]}"
    assert found.choices == Choices("2 + 2?", texts, right)
    assert (found.answer, found.label) == ((None, None) if right is None else (texts[right], "good"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": ["four"], "answer": 0}, "1 choices in 'choices'; there must be 2 to 9"),
        ({"choices": ["four", "four"], "answer": 0}, "two of the choices in 'choices' are the same"),
        ({"choices": "four|five", "answer": 0}, "'choices' must be a list of texts"),
        ({"choices": ["four", ""], "answer": 0}, "'choices' must be a list of texts"),
        ({"choices": ["four", "five"], "answer": 2}, "'answer' is 2: neither the text, the letter nor the number"),
        ({"choices": ["four", "five"], "answer": True}, "'answer' is True"),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}, "answer": "A"}, "has 2 texts, and not as many labels"),
    ],
)
def test_choices_that_are_none_are_refused_by_row(tmp_path, row, said):
    with pytest.raises(DataError, match=r"row 1|line 1") as error:
        load(json_source(tmp_path / "q.jsonl", jsonl([{"question": "q", **row}]), choices="choices"))
    assert said in str(error.value)


def test_an_answer_is_labelled_or_one_of_several():
    with pytest.raises(ValueError, match="label and choices are both given"):
        JsonSource(kind="json", path="x.jsonl", label="good", choices="choices")
