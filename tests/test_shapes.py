"""What becomes of the rows of each shape, of columns that no shape reads, and of a response that appears twice."""

import itertools
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from salign.columns import METADATA, METADATA_ENDINGS
from salign.config import DatasetData, GroupsData
from salign.dataset.conversations import BESIDE_PROMPT, PROMPTS
from salign.dataset.formats import SHAPES
from salign.dataset.groups import read_groups
from salign.dataset.rated import scaled, weighted
from salign.errors import DataError
from salign.records import AlignmentGroup, Message

# One row, or the rows of one prompt, of each shape, with the columns that the published data have.
ROWS = {
    "groups": [{"query": "q", "responses": ["a", "b"], "scores": ["6", 2], "kind": None, "models": ["x", "y"]}],
    "moral_stories": [
        {
            **{"ID": "1", "norm": "n", "situation": "S.", "intention": "I.", "label": "1"},
            **{"moral_action": "a", "moral_consequence": "c", "immoral_action": "b", "immoral_consequence": "d"},
        }
    ],
    "preference": [{"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 6, "score_rejected": "2"}],
    "pku_saferlhf": [
        {
            **{"prompt": "q", "response_0": "b", "response_1": "a", "prompt_source": "s", "response_0_source": "m"},
            **{"is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 1},
            **{"response_0_severity_level": 0, "response_1_harm_category": {"x": False}, "response_0_sha256": "0"},
        }
    ],
    "shp": [
        {
            **{"post_id": "p", "domain": "d", "upvote_ratio": 0.9, "history": "q", "c_root_id_A": "1"},
            **{"human_ref_A": "b", "human_ref_B": "a", "labels": 0, "score_A": 3, "score_B": 40, "score_ratio": 13.3},
            **{"created_at_utc_A": 1, "created_at_utc_B": 2, "seconds_difference": 1.0},
        }
    ],
    "ultrafeedback": [
        {
            **{"source": "s", "instruction": "q", "models": ["m"], "correct_answers": ["x"], "incorrect_answers": []},
            "completions": [
                {
                    **{"model": "m", "response": response, "overall_score": overall, "fine-grained_score": 4.0},
                    **{"principle": "helpfulness", "custom_system_prompt": "Help.", "critique": "c"},
                    "annotations": {
                        "helpfulness": {"Rating": helpful, "Rationale": "r"},
                        "honesty": {"Rating": "N/A"},
                    },
                }
                for response, overall, helpful in (("a", 8.5, "4"), ("b", 4.0, "2"))
            ],
        }
    ],
    "nectar": [
        {
            **{"prompt": "\n\nHuman: q\n\nAssistant: ", "turns": 1, "num_responses": 3, "good_natured": True},
            "source": ["s"],
            "answers": [{"answer": t, "model": "m", "rank": float(n)} for n, t in enumerate("abc", start=1)],
        }
    ],
    "helpsteer": [
        {
            **{"prompt": "q", "response": response, "helpfulness": grade, "correctness": 4 - grade},
            **{"coherence": 4, "complexity": 1, "verbosity": 1},
        }
        for response, grade in (("a", 4), ("b", 1))
    ],
    "unpaired": [{"prompt": "q", "completion": "a", "label": 1}, {"prompt": "q", "completion": "b", "label": "0"}],
    "beavertails": [
        {"prompt": "q", "response": text, "is_safe": text == "a", "category": {"x": text == "b"}} for text in "ab"
    ],
    "rated": [{"question": "q", "response": "a", "score": "6"}, {"question": "q", "response": "b", "score": 2.5}],
    "instruction": [{"instruction": "q", "input": "", "output": "a"}],
    "conversations": [{"id": "1", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}],
    "messages": [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}],
}
SCORES = {
    **dict.fromkeys(("groups", "preference"), (6.0, 2.0)),
    **dict.fromkeys(("moral_stories", "shp", "unpaired", "beavertails"), (7.0, 1.0)),
    "pku_saferlhf": (1 + 6 * 3 / 4, 1 + 6 * 3 / 4),  # both safe; one is the safer, the other the better
    "ultrafeedback": (6.0, 3.0),
    "nectar": (7.0, 4.0, 1.0),
    "helpsteer": (7.0, 2.5),
    "rated": (6.0, 2.5),
    **dict.fromkeys(("instruction", "conversations", "messages"), (7.0,)),
}


def write(path, rows) -> GroupsData:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return GroupsData(kind="groups", path=path)


def read(data, **changes) -> list[AlignmentGroup]:
    return list(read_groups(data.model_copy(update=changes), Counter()))


def test_every_shape_has_rows_here():
    assert set(ROWS) == {shape.name for shape in SHAPES}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_shape_become_a_group(tmp_path, name):
    (group,) = read(write(tmp_path / "g.jsonl", ROWS[name]))
    query = "S. I. What happens next?" if name == "moral_stories" else "q"
    found = dict(zip(group.responses, group.scores, strict=True))
    assert (group.query, found) == (query, dict(zip("abc", SCORES[name], strict=False)))


@pytest.mark.parametrize("name", ROWS)
def test_a_column_that_a_shape_does_not_read_is_refused_by_name(tmp_path, name):
    """Unless it is empty, metadata, or to be ignored."""
    rows = [
        {**row, "weight": 0.1, "tone": "", "created_at": "now", "prompt_id": 3, "Timestamp": 1} for row in ROWS[name]
    ]
    data = write(tmp_path / "g.jsonl", rows)
    with pytest.raises(DataError, match=r"row 1: the column 'weight'.* left unread.*ignore_columns: \[weight\]"):
        read(data)
    assert len(read(data, ignore_columns=("weight",))) == 1


@pytest.mark.parametrize("name", ["ultrafeedback", "nectar", "messages"])
def test_a_key_inside_a_column_is_refused_by_name_too(tmp_path, name):
    row = json.loads(json.dumps(ROWS[name][0]))
    column = {"ultrafeedback": "completions", "nectar": "answers", "messages": "messages"}[name]
    row[column][-1]["weight"] = 0.5
    data = write(tmp_path / "g.jsonl", [row])
    with pytest.raises(DataError, match=r"row 1: in .* the column 'weight' would be left unread"):
        read(data)
    assert len(read(data, ignore_columns=("weight",))) == 1


@pytest.mark.parametrize("name", ["preference", "unpaired", "rated", "helpsteer", "groups"])
def test_a_column_of_another_name_is_mapped(tmp_path, name):
    taken = "question" if name == "rated" else "query" if name == "groups" else "prompt"
    rows = [{("text" if key == taken else key): value for key, value in row.items()} for row in ROWS[name]]
    data = write(tmp_path / "g.jsonl", rows)
    with pytest.raises(DataError, match="'text'"):
        read(data)
    assert [group.query for group in read(data, columns={"prompt": "text"})] == ["q"]
    with pytest.raises(
        DataError, match="columns maps 'promt', which is not a column of any shape; did you mean 'prompt'"
    ):
        read(data, columns={"promt": "text"})
    with pytest.raises(DataError, match="columns maps txt, which the row lacks; it has"):
        read(data, columns={"prompt": "txt"})


def test_a_mapped_column_beside_one_of_that_name_is_refused(tmp_path):
    data = write(tmp_path / "g.jsonl", [{"prompt": "q", "text": "r", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"columns maps text to prompt.*ignore_columns: \[prompt\]"):
        read(data, columns={"prompt": "text"})
    (group,) = read(data, columns={"prompt": "text"}, ignore_columns=("prompt",))
    assert group.query == "r"
    with pytest.raises(ValueError, match="two names are mapped to the same column"):
        GroupsData(kind="groups", path=tmp_path, columns={"prompt": "x", "chosen": "x"})


def test_what_is_let_through_says_nothing_of_a_rows_meaning():
    for name in ("system", "input", "history", "weight", "label", "rank", "score", "rating", "context", "messages"):
        assert name not in METADATA
        assert not name.endswith(METADATA_ENDINGS)


# --- scores --------------------------------------------------------------------------------------


def test_attributes_are_weighed_as_the_config_says(tmp_path):
    data = write(tmp_path / "h.jsonl", ROWS["helpsteer"])
    (group,) = read(data, attribute_weights={"helpfulness": 1.0, "correctness": 3.0})
    assert dict(zip(group.responses, group.scores, strict=True)) == {"a": 1 + 6 * 1 / 4, "b": 1 + 6 * (1 + 9) / 16}
    (group,) = read(data, attribute_weights={"helpfulness": 1.0, "verbosity": -1.0})  # of 0-4 and 4-0
    assert dict(zip(group.responses, group.scores, strict=True)) == {"a": 1 + 6 * 7 / 8, "b": 1 + 6 * 4 / 8}
    with pytest.raises(DataError, match=r"attribute_weights names helpful; .*did you mean 'helpfulness'"):
        read(data, attribute_weights={"helpful": 1.0})
    with pytest.raises(ValueError, match="all weights are 0"):
        GroupsData(kind="groups", path=tmp_path, attribute_weights={"helpfulness": 0})
    pair = write(tmp_path / "p.jsonl", ROWS["preference"])
    with pytest.raises(DataError, match="rows of preference have no graded attributes"):
        read(pair, attribute_weights={"helpfulness": 1.0})


def test_ratings_of_ultrafeedback_by_attribute(tmp_path):
    data = write(tmp_path / "u.jsonl", ROWS["ultrafeedback"])
    (group,) = read(data, attribute_weights={"helpfulness": 1.0})
    assert group.scores == (1 + 6 * 3 / 4, 1 + 6 * 1 / 4)
    with pytest.raises(DataError, match="no group with a rated response"):
        read(data, attribute_weights={"honesty": 1.0})  # N/A in both


def test_of_two_unsafe_responses_none_is_rated_as_a_good_one(tmp_path):
    row = {**ROWS["pku_saferlhf"][0], "is_response_0_safe": False, "is_response_1_safe": False, "better_response_id": 1}
    (group,) = read(write(tmp_path / "g.jsonl", [row]))
    assert dict(zip(group.responses, group.scores, strict=True)) == {"a": 4.0, "b": 1.0}
    (group,) = read(write(tmp_path / "g.jsonl", [row]), attribute_weights={"safer": 1.0})
    assert dict(zip(group.responses, group.scores, strict=True)) == {"a": 7.0, "b": 1.0}


def test_a_scale_of_a_shape_is_its_own_unless_the_config_says_another(tmp_path):
    data = write(tmp_path / "u.jsonl", ROWS["ultrafeedback"])
    assert [group.scores for group in read(data, score_range=(0.0, 10.0))] == [(1 + 6 * 0.85, 1 + 6 * 0.4)]
    with pytest.raises(DataError, match=r"score 8.5 is outside the scale 1..5"):
        read(data, score_range=(1.0, 5.0))


def test_scales_are_mapped_in_order_and_onto_the_whole():
    draw = random.Random(0)
    for _ in range(300):
        low = draw.uniform(-9, 9)
        high = low + draw.uniform(0.1, 9)
        values = sorted([low, high, *(draw.uniform(low, high) for _ in range(5))])
        mapped = [scaled(value, (low, high)) for value in values]
        assert mapped == sorted(mapped)
        assert (mapped[0], mapped[-1]) == (1.0, pytest.approx(7.0))
        weights = {name: draw.choice([-1, 1]) * draw.uniform(0.1, 2) for name in "abc"}
        best = {name: high if weight > 0 else low for name, weight in weights.items()}
        worst = {name: low if weight > 0 else high for name, weight in weights.items()}
        assert weighted(best, weights, (low, high)) == pytest.approx(7.0)
        assert weighted(worst, weights, (low, high)) == pytest.approx(1.0)
        grades = {name: draw.uniform(low, high) for name in "abc"}
        better = {**grades, "a": min(max(grades["a"] + weights["a"] * 0.01, low), high)}
        assert weighted(better, weights, (low, high)) >= weighted(grades, weights, (low, high)) - 1e-12


@pytest.mark.parametrize("name", ["ultrafeedback", "nectar", "groups", "rated", "helpsteer"])
def test_a_score_that_is_no_number_is_refused(tmp_path, name):
    text = json.dumps(ROWS[name]).replace("8.5", '"8.5/10"').replace("2.0", '"first"').replace('"6"', '"six"')
    rows = json.loads(text.replace('"helpfulness": 4,', '"helpfulness": "high",'))
    with pytest.raises(DataError, match=r"is '\S+', not a number"):
        read(write(tmp_path / "g.jsonl", rows))


# --- one response twice --------------------------------------------------------------------------


def test_one_response_with_several_scores_has_their_mean_in_any_order(tmp_path):
    rated = [("Ask first.", 6), ("Ask first.", 2.1), (" Ask first.\n", 3.3), ("No.", 3)]
    for order in itertools.permutations(rated):
        responses, scores = zip(*order, strict=True)
        left_out: Counter[str] = Counter()
        data = write(tmp_path / "g.jsonl", [{"query": "May I?", "responses": responses, "scores": scores}])
        (group,) = read_groups(data, left_out)
        found = {response.strip(): score for response, score in zip(group.responses, group.scores, strict=True)}
        assert found == {"Ask first.": math.fsum((6, 2.1, 3.3)) / 3, "No.": 3.0}
        assert left_out["repeated_responses"] == 2


def test_rows_that_repeat_a_response_are_one_also(tmp_path):
    rows = [{"prompt": "q", "completion": text, "label": label} for text, label in (("a", 1), ("b", 0), ("a", 0))]
    left_out: Counter[str] = Counter()
    (group,) = read_groups(write(tmp_path / "g.jsonl", rows), left_out)
    assert (group.responses, group.scores, left_out["repeated_responses"]) == (("a", "b"), (4.0, 1.0), 1)


@pytest.mark.parametrize("name", ["rated", "helpsteer"])
def test_a_prompt_of_which_a_graded_row_is_malformed_is_left_out(tmp_path, name):
    """The malformed row's response may have been the best, and another would be learnt in its place."""
    best, worse = ROWS[name]
    taken = "question" if name == "rated" else "prompt"
    rows = [{**best, "response": " "}, worse, {**worse, taken: "r"}, {**best, taken: "r"}]
    left_out: Counter[str] = Counter()
    data = write(tmp_path / "g.jsonl", rows)
    groups = list(read_groups(data.model_copy(update={"skip_bad": True}), left_out))
    assert [group.query for group in groups] == ["r"]
    assert (left_out["bad_rows"], left_out["bad_row_groups"]) == (1, 1)


# --- conversations -------------------------------------------------------------------------------


def test_each_reply_of_a_conversation_is_shown_after_all_before_it(tmp_path):
    turns = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello"), ("human", "May I?"), ("gpt", "Do.")]
    data = write(tmp_path / "c.jsonl", [{"conversations": [{"from": role, "value": text} for role, text in turns]}])
    kind = Message("system", "Be kind.")
    first, second = read(data)
    assert (first.query, first.context, first.responses) == ("Hi", (kind,), ("Hello",))
    before = (kind, Message("user", "Hi"), Message("assistant", "Hello"))
    assert (second.query, second.context, second.responses, second.kind) == (
        "May I?",
        before,
        ("Do.",),
        "demonstration",
    )


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([("gpt", "Hello"), ("human", "Hi"), ("gpt", "x")], "does not end with a user message"),
        ([("human", "Hi"), ("system", "s"), ("gpt", "x")], "does not end with a user message"),
        ([("human", "Hi"), ("observation", "s")], "a message of conversations must be"),
        ([("human", "Hi")], "no assistant message"),
    ],
)
def test_a_conversation_of_another_order_is_refused(tmp_path, turns, said):
    data = write(tmp_path / "c.jsonl", [{"conversations": [{"from": role, "value": text} for role, text in turns]}])
    with pytest.raises(DataError, match=said):
        read(data)


def test_a_system_text_stands_in_a_column_of_its_own_or_in_the_messages(tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (group,) = read(write(tmp_path / "c.jsonl", [{"conversations": turns, "system": "Be kind."}]))
    assert (group.query, group.context) == ("Hi", (Message("system", "Be kind."),))
    both = [{"from": "system", "value": "Be brief."}, *turns]
    with pytest.raises(DataError, match="a column system, and its messages have a system text too"):
        read(write(tmp_path / "b.jsonl", [{"conversations": both, "system": "Be kind."}]))


def test_turns_of_helpsteer_are_context(tmp_path):
    prompt = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nMay I?"
    (group,) = read(write(tmp_path / "h.jsonl", [{**ROWS["helpsteer"][0], "prompt": prompt}]))
    assert (group.query, group.context) == ("May I?", (Message("user", "Hi"), Message("assistant", "Hello")))


def test_groups_with_context_come_back_as_they_are(tmp_path):
    """Also where the query looks like a transcript, or like one in Alpaca's scaffold."""
    from salign.records import to_line

    groups = [
        AlignmentGroup("q", ("a",), (7.0,), "demonstration", {"x": 1}, (Message("system", "s"),)),
        AlignmentGroup("Human: x\n\nAssistant: y", ("a",), (7.0,)),
    ]
    (tmp_path / "g.jsonl").write_text("".join(map(to_line, groups)))
    assert read(GroupsData(kind="groups", path=tmp_path / "g.jsonl")) == groups


def test_rows_with_one_query_and_different_turns_before_it_are_not_one_group(tmp_path):
    rows = [
        {"prompt": "q", "history": history, "completion": text, "label": 1}
        for text, history in (("a", []), ("b", [["x", "y"]]), ("c", []))
    ]
    assert [group.responses for group in read(write(tmp_path / "k.jsonl", rows))] == [("a", "c"), ("b",)]


# --- files, datasets, mistakes -------------------------------------------------------------------


def test_tables_and_parquet_hold_the_same_as_json_lines(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name in ("preference", "unpaired", "beavertails", "helpsteer", "rated", "shp", "instruction"):
        rows = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in ROWS[name]]
        expected = read(write(tmp_path / "g.jsonl", rows))
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        (tmp_path / "g.csv").write_text("\n".join(lines))
        assert read(GroupsData(kind="groups", path=tmp_path / "g.csv")) == expected
        if name not in ("preference", "unpaired", "rated"):  # columns of several types
            parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "g.parquet")
            assert read(GroupsData(kind="groups", path=tmp_path / "g.parquet")) == expected


def test_a_folder_as_downloaded_is_read_in_place(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    for split, rows in (("train", [pair, {**pair, "prompt": "r"}]), ("test", [pair])):
        datasets.Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    data = DatasetData(kind="dataset", path=str(folder))
    assert [group.query for group in read(data)] == ["q", "r"]
    assert [group.query for group in read(data, split="test")] == ["q"]
    with pytest.raises(DataError, match="has no split 'dev'; it has train, test"):
        read(data, split="dev")
    with pytest.raises(DataError, match=r"is a folder, and a folder has no revision \('main'\)"):
        read(data, revision="main")
    file = folder / "data" / "train-00000-of-00001.parquet"
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet is a Git LFS pointer, not the data"):
        read(data)


def test_a_part_of_a_folder_is_named_by_data_dir_or_name(tmp_path):
    pytest.importorskip("datasets")
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    for name in ("kind", "harsh"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", [{**pair, "prompt": name}])
    config = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/*"}]} for name in ("kind", "harsh")
    ]
    data = DatasetData(kind="dataset", path=str(tmp_path))
    assert [group.query for group in read(data, data_dir="harsh")] == ["harsh"]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(config)}\n---\n")
    assert [group.query for group in read(data, name="kind")] == ["kind"]
    with pytest.raises(DataError, match="does not load"):
        read(data, name="none")


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path):
    pytest.importorskip("datasets")
    from salign.dataset.groups import digest_of

    digests = []
    for text in ("a", "a", "c"):
        folder = tmp_path / f"copy{len(digests)}"
        folder.mkdir()
        write(folder / "train.jsonl", [{"prompt": "q", "chosen": text, "rejected": "b"}])
        digests.append(digest_of(DatasetData(kind="dataset", path=str(folder))))
    assert digests[0] == digests[1] != digests[2]


def test_all_mistakes_are_said_with_counts(tmp_path):
    good = {"query": "q", "responses": ["a"], "scores": [1]}
    rows = [good, {**good, "scores": [9]}, {**good, "scores": [9]}, {**good, "responses": [" "]}, good]
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "g.jsonl", rows))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'g.jsonl'}, row 2: score 9.0 is outside the scale 1..7; state")
    assert "(2 rows); row 4: a response is empty. Correct the file" in said
    with pytest.raises(DataError, match="and 3 more mistakes, in 8 rows altogether"):
        read(write(tmp_path / "g.jsonl", [good, *({**good, "scores": [9 + n]} for n in range(8))]))


def test_shapes_of_the_cases_load(shared_data):
    """With sensible scores: the better response is above."""
    files = sorted((shared_data.parent / "cases" / "shapes").glob("*.jsonl"))
    assert len(files) == 8
    for path in files:
        (group,) = read(GroupsData(kind="groups", path=path))
        assert len(group.responses) >= 2
        assert list(group.scores) == sorted(group.scores, reverse=True)
        assert group.scores[0] > group.scores[-1]
        assert group.query.endswith(("?", "."))
    (group,) = read(GroupsData(kind="groups", path=shared_data.parent / "cases" / "prompt_in_question.jsonl"))
    assert group.query == "May I skip the queue?"
    (group,) = read(GroupsData(kind="groups", path=shared_data.parent / "cases" / "same_response_twice.jsonl"))
    assert (group.responses, group.scores) == (("Ask first.", "No."), (4.0, 3.0))


# --- the documentation ---------------------------------------------------------------------------


def test_the_documentation_names_every_shape_and_column():
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    names = {shape.name for shape in SHAPES}
    columns = {column for shape in SHAPES for column in shape.columns} | set(PROMPTS) | set(BESIDE_PROMPT)
    harmless = {name for name in METADATA if name not in ("Unnamed: 0", "__index_level_0__")} | set(METADATA_ENDINGS)
    assert {name for name in names if not re.search(rf"^\| (\w+, )*{name}\b", text, re.MULTILINE)} == set()
    assert {column for column in columns | harmless if f"`{column}`" not in text} == set()
