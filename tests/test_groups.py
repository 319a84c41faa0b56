"""Groups from files and datasets, row by row."""

import gzip
import json
import random
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from salign import compose
from salign.config import AnswersData, DatasetData, GroupsData
from salign.dataset import scratch
from salign.dataset.collect import check_leaks
from salign.dataset.groups import digest_of, read_groups
from salign.errors import DataError, StageError
from salign.files import stream_rows
from salign.records import AlignmentGroup, to_line

GROUP = {"query": "q", "responses": ["a", "b"], "scores": [1, 7]}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
NONE = {"unrated_responses": 0, "repeated_responses": 0, "bad_rows": 0}


def lines(path, rows) -> GroupsData:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return GroupsData(kind="groups", path=path)


def read(data) -> tuple[list[AlignmentGroup], dict[str, int]]:
    left_out: Counter[str] = Counter()
    return list(read_groups(data, left_out)), dict(left_out)


def test_our_own_groups_come_back_as_they_are(tmp_path):
    groups = [
        AlignmentGroup("May I?", ("no", "yes"), (6.5, 2.25), "imitation", {"interactions": [[0, 1, 2]]}),
        AlignmentGroup("B?", ("✓\u2028",), (1.0,), "self_critic", {"question": "B?"}),
    ]
    assert read(lines(tmp_path / "g.jsonl", map(to_line, groups))) == (groups, NONE)


def test_unpaired_rows_with_one_prompt_are_one_group_wherever_they_stand(tmp_path):
    rows = [
        {"prompt": "B?", "completion": " yes", "label": True},
        {"prompt": "A?", "completion": "one", "label": False},
        {"prompt": [{"role": "user", "content": "B? "}], "completion": "\u0000", "label": False},
        {"prompt": "C?", "completion": "x", "label": True},
        {"prompt": "A?", "completion": "two", "label": True},
        {"prompt": "A?", "completion": "three", "label": False},
    ]
    assert read(lines(tmp_path / "k.jsonl", rows)) == (
        [
            AlignmentGroup("B?", ("yes", "\u0000"), (7.0, 1.0)),
            AlignmentGroup("A?", ("one", "two", "three"), (1.0, 7.0, 1.0)),
            AlignmentGroup("C?", ("x",), (7.0,)),
        ],
        NONE,
    )


def test_many_unpaired_rows_are_gathered_as_a_dictionary_would(tmp_path):
    draw = random.Random(0)
    rows = [
        {"prompt": f"{draw.randrange(700)}?", "completion": f"{n}", "label": draw.random() < 0.5} for n in range(5000)
    ]
    expected: dict[str, list] = {}
    for row in rows:
        expected.setdefault(row["prompt"], []).append((row["completion"], 7.0 if row["label"] else 1.0))
    groups, left_out = read(lines(tmp_path / "k.jsonl", rows))
    with_good = [(query, rated) for query, rated in expected.items() if any(score == 7.0 for _, score in rated)]
    assert [(g.query, list(zip(g.responses, g.scores, strict=True))) for g in groups] == with_good
    # Of the others the best response, which is learnt, would be a bad one.
    assert left_out["only_bad_groups"] == len(expected) - len(with_good) > 0


def test_keys_with_the_same_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(scratch, "hash", lambda _: 7, raising=False)
    with scratch.gathering("rows") as rows:
        for row, key in enumerate("abcaba"):
            rows.add(key, row)
        assert list(rows.gathered()) == [("a", [0, 3, 5]), ("b", [1, 4]), ("c", [2])]


ONE = [{"prompt": "p", "completion": "a", "label": True}]


def test_a_temporary_file_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(StageError, match=r"rows with the same prompt are collected .*none.* Set TMPDIR"):
        read(lines(tmp_path / "k.jsonl", ONE))


def test_a_temporary_file_that_there_is_no_room_for_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("r+b"))  # noqa: SIM115
    with pytest.raises(StageError, match=r"No space left on device\. Set TMPDIR"):
        read(lines(tmp_path / "k.jsonl", ONE))


BAD = [
    ('{"query": "q"\n', "row 2: not valid JSON"),
    ({**GROUP, "scores": [1]}, "row 2: 2 responses and 1 scores"),
    ({**GROUP, "responses": ["a", " "]}, "row 2: a response is empty"),
    ({**GROUP, "scores": [1, 9]}, "row 2: score 9.0 is outside the scale 1..7"),
    (PAIR, "row 2: responses, scores missing"),
    (["x"], "row 2: not an object but list"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_malformed_row_is_an_error_or_counted(tmp_path, row, said):
    data = lines(tmp_path / "g.jsonl", [GROUP, row, {**GROUP, "query": "z"}])
    with pytest.raises(DataError) as caught:
        read(data)
    assert str(caught.value).startswith(f"{data.path}, {said}")
    groups, left_out = read(data.model_copy(update={"skip_bad": True}))
    assert [group.query for group in groups] == ["q", "z"]
    assert left_out == {**NONE, "bad_rows": 1}


def test_rows_before_the_first_of_a_shape_may_be_skipped(tmp_path):
    data = lines(tmp_path / "g.jsonl", ["oh\n", {"text": "x"}, PAIR, GROUP])
    with pytest.raises(DataError, match=r"g\.jsonl, row 1: not valid JSON"):
        read(data)
    skipping = data.model_copy(update={"skip_bad": True})
    assert read(skipping) == ([AlignmentGroup("p", ("a", "b"), (7.0, 1.0))], {**NONE, "bad_rows": 3})
    unpaired = {"prompt": "p", "completion": "a", "label": "yes"}
    skipping = lines(tmp_path / "k.jsonl", [unpaired, {**unpaired, "label": True}]).model_copy(
        update={"skip_bad": True}
    )
    assert read(skipping) == ([AlignmentGroup("p", ("a",), (7.0,))], {**NONE, "bad_rows": 1})


def test_a_file_of_which_nothing_remains_is_an_error_also_when_skipping(tmp_path):
    for rows in ([], ["oh\n"], [{**GROUP, "scores": [None, 8]}], [{**PAIR, "chosen": ""}]):
        data = lines(tmp_path / "g.jsonl", rows).model_copy(update={"skip_bad": True})
        with pytest.raises(DataError, match=r"g\.jsonl contains no group with a rated response"):
            read(data)


def test_a_scale_of_ones_own(tmp_path):
    rows = [{**GROUP, "scores": [0, 10]}, {**GROUP, "scores": [8, 5]}]
    data = lines(tmp_path / "g.jsonl", rows)
    with pytest.raises(
        DataError, match=r"row 1: score 0.0 is outside the scale 1..7; state the file's own scale with score_"
    ):
        read(data)
    groups, _ = read(data.model_copy(update={"score_range": (0.0, 10.0)}))
    assert [group.scores for group in groups] == [(1.0, 7.0), (pytest.approx(5.8), 4.0)]


@pytest.mark.parametrize("value", [[7, 1], [1, 1], [1], [True, 7], "x", [1, float("inf")]])
def test_a_scale_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="score_range"):
        GroupsData(kind="groups", path=tmp_path, score_range=value)


HEADER = {"prompt": "prompt", "completion": "completion", "label": "label"}


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["lines", "compressed", "array", "unpaired", "csv", "parquet"])
def test_a_large_file_is_read_without_being_in_memory(tmp_path, shape):
    """What is in memory at a time is far below the file's size."""
    count, filler = 3000, "word " * 400
    if shape == "unpaired":
        rows = [{"prompt": f"{n % 1000}?", "completion": f"{n} {filler}", "label": True} for n in range(count)]
    else:
        rows = [{"query": f"{n}?", "responses": [filler], "scores": [3]} for n in range(count)]
    if shape in ("csv", "parquet"):
        rows = [{"prompt": f"{n % 1000}?", "completion": f"{n} {filler}", "label": 1} for n in range(count)]
    path = tmp_path / {"compressed": "g.jsonl.gz", "csv": "g.csv", "parquet": "g.parquet"}.get(shape, "g.jsonl")
    text = json.dumps(rows) if shape == "array" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if shape == "compressed" else text.encode())
    if shape == "csv":
        path.write_text("".join(f"{row['prompt']},{row['completion']},{row['label']}\n" for row in [HEADER, *rows]))
    if shape == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=500)
    size = len(text)
    del rows, text
    tracemalloc.start()
    try:
        seen = sum(len(group.responses) for group in read_groups(GroupsData(kind="groups", path=path), Counter()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == count
    assert peak < 0.3 * size


@pytest.mark.parametrize(
    "rows",
    [
        [GROUP, {**GROUP, "query": "z", "scores": [None, 3]}],
        [PAIR, {**PAIR, "prompt": "z"}],
        [
            {
                "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": text}],
                "rejected": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "b"}],
                "score_chosen": score,
                "score_rejected": 1.0,
            }
            for text, score in (("a", 4.0), ("c", 6.5))
        ],
        [{"prompt": "p", "completion": text, "label": text == "a"} for text in "abc"],
    ],
    ids=["groups", "preference", "conversations", "unpaired"],
)
def test_a_dataset_has_the_groups_of_a_file(tmp_path, rows):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "splits")
    expected = read(lines(tmp_path / "g.jsonl", rows))
    for name in ("one", "splits"):
        assert read(DatasetData(kind="dataset", path=str(tmp_path / name))) == expected


def test_a_malformed_row_of_a_dataset_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([PAIR, {**PAIR, "chosen": "b"}]).save_to_disk(tmp_path / "d")
    data = DatasetData(kind="dataset", path=str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"d, row 2: chosen and rejected are the same"):
        read(data)
    assert read(data.model_copy(update={"skip_bad": True}))[1] == {**NONE, "bad_rows": 1}
    with pytest.raises(DataError, match=r"none \(split train\) does not load"):
        read(DatasetData(kind="dataset", path=str(tmp_path / "none")))


def test_the_digest_is_of_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    found = []
    for number, rows in enumerate(([GROUP], [GROUP, GROUP])):
        data = lines(tmp_path / f"{number}.jsonl", rows)
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / f"{number}")
        folder = DatasetData(kind="dataset", path=str(tmp_path / f"{number}"))
        found += [data, data.model_copy(update={"score_range": (0, 7)}), data.model_copy(update={"skip_bad": True})]
        found.append(folder)
    found.append(AnswersData(kind="answers"))
    assert [digest_of(data) for data in found] == [digest_of(data) for data in found]
    assert len({digest_of(data) for data in found}) == len(found)
    copy = lines(tmp_path / "copy.jsonl", [GROUP])
    assert digest_of(copy) == digest_of(found[0])


def test_third_party_groups_are_read_row_by_row(shared_data):
    path = shared_data / "rated" / "cai_rated_groups.json"
    groups, left_out = read(GroupsData(kind="groups", path=path))
    assert left_out == NONE
    assert list(stream_rows(path)) == list(enumerate(json.loads(path.read_text()), start=1))
    assert [len(group.responses) for group in groups] == [8] * 66
    first = next(read_groups(GroupsData(kind="groups", path=path), Counter()))
    assert first == groups[0]


def test_third_party_drafts_and_revisions_are_no_groups(shared_data):
    path = shared_data / "rated" / "cai_critique_revision.jsonl"
    with pytest.raises(DataError, match=r"row 1: it has the columns set, question, draft, steps.*wanted are"):
        read(GroupsData(kind="groups", path=path))


@pytest.mark.parametrize("kind", ["groups", "dataset"])
def test_a_launch_reads_all_rows_and_compares_them(tmp_path, kind):
    """Every shape is looked through for mistakes, and for prompts of the evaluation, before anything runs."""
    datasets = pytest.importorskip("datasets")

    def check(*rows: dict) -> int:
        path = lines(tmp_path / "p.jsonl", rows).path
        if kind == "dataset":
            path = tmp_path / f"d{len(rows)}{rows[-1]['prompt'][0]}"
            datasets.Dataset.from_list(list(rows)).save_to_disk(path)
        stage = {"name": "a", "objective": {"kind": "sft"}, "data": {"kind": kind, "path": str(path)}, "deepspeed": "z"}
        (tmp_path / "e.txt").write_text("May I?")
        evaluate = {"questions": {"kind": "text", "path": str(tmp_path / "e.txt")}}
        facts = check_leaks(compose.parse({"train": {"stages": [stage]}, "evaluate": evaluate}, "test"), ())
        return facts["num_evaluation_prompts"]

    assert check(PAIR) == 1
    with pytest.raises(StageError, match=r"1 of 1 evaluation prompts .* the first: 'May I\?'"):
        check(PAIR, {**PAIR, "prompt": "may i"})
    with pytest.raises(DataError, match="row 3: chosen and rejected are the same"):
        check(PAIR, PAIR, {**PAIR, "chosen": "b"})
