"""Groups as files for other trainers, and back."""

import contextlib
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest

from salign.commands.export import main
from salign.config import GroupsData
from salign.dataset.export import export, preference_rows, unpaired_rows
from salign.dataset.groups import read_groups
from salign.errors import DataError, exit_code_of
from salign.records import AlignmentGroup, Message, to_line

ROOT = Path(__file__).parents[1]
GROUPS = [
    AlignmentGroup("A?", ("a1", "a2", "a3", "a4"), (2.0, 6.5, 6.5, 4.0), "imitation", {"question": "A?"}),
    AlignmentGroup("B?\nb ✓", ("b1", "b2"), (3.0, 3.0)),
    AlignmentGroup("C?", ("c1", "c2"), (1.0, 4.25)),
    AlignmentGroup("D?", ("d1",), (7.0,)),
]
BEST = [("A?", "a2", "a4", 6.5, 4.0), ("A?", "a2", "a1", 6.5, 2.0), ("C?", "c2", "c1", 4.25, 1.0)]
ALL = [*BEST[:2], ("A?", "a3", "a4", 6.5, 4.0), ("A?", "a3", "a1", 6.5, 2.0), ("A?", "a4", "a1", 4.0, 2.0), BEST[2]]


def read(path) -> list[AlignmentGroup]:
    return list(read_groups(GroupsData(kind="groups", path=path), Counter()))


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize(("pairs", "expected"), [("best", BEST), ("all", ALL)])
def test_pairs_come_back_with_their_scores(tmp_path, pairs, expected, conversational):
    out = tmp_path / "deep" / "out.jsonl"
    done = export(GROUPS, out, lambda group: preference_rows(group, pairs, conversational=conversational))
    assert (done.num_groups, done.num_rows, done.num_without) == (4, len(expected), 2)
    found = [(group.query, *group.responses, *group.scores) for group in read(out)]
    assert found == expected


def test_preferences_have_the_columns_of_trl(tmp_path):
    group = GROUPS[2]
    plain, chat = (next(preference_rows(group, "all", conversational=flag)) for flag in (False, True))
    assert plain == {"prompt": "C?", "chosen": " c2", "rejected": " c1", "score_chosen": 4.25, "score_rejected": 1.0}
    assert chat["prompt"] == [{"role": "user", "content": "C?"}]
    assert chat["chosen"] == [{"role": "assistant", "content": "c2"}]
    assert chat["rejected"] == [{"role": "assistant", "content": "c1"}]


@pytest.mark.parametrize("conversational", [False, True])
def test_unpaired_rows_come_back_with_their_labels(tmp_path, conversational):
    out = tmp_path / "out.jsonl"
    done = export(GROUPS, out, lambda group: unpaired_rows(group, 4.0, conversational=conversational))
    assert (done.num_rows, done.num_without) == (9, 0)
    assert [row["label"] for row in rows(out)] == [False, True, True, False, False, False, False, True, True]
    assert set(rows(out)[0]) == {"prompt", "completion", "label"}
    assert [(group.query, group.responses, group.scores) for group in read(out)] == [
        (group.query, group.responses, tuple(7.0 if score > 4 else 1.0 for score in group.scores))
        for group in GROUPS
        if max(group.scores) > 4  # of the others nothing good is known
    ]


def test_groups_come_back_as_they_are(tmp_path):
    export(GROUPS, tmp_path / "out.jsonl", None)
    assert read(tmp_path / "out.jsonl") == GROUPS
    assert (tmp_path / "out.jsonl").read_text() == "".join(map(to_line, GROUPS))


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"nothing to write to .*out\.jsonl: none of the 1 groups has two responses"):
        export(GROUPS[1:2], out, lambda group: preference_rows(group, "all", conversational=False))
    (tmp_path / "g.jsonl").write_text("".join(map(to_line, GROUPS)) + "oh\n")
    groups = read_groups(GroupsData(kind="groups", path=tmp_path / "g.jsonl"), Counter())
    with pytest.raises(DataError, match="row 5: not valid JSON"):
        export(groups, out, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.jsonl"]


def job(*args: str) -> subprocess.CompletedProcess[str]:
    """What jobs/export.py does, in this process."""
    out, error = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["export.py", *args]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        code = exit_code_of(main)
    return subprocess.CompletedProcess(args, code, out.getvalue(), error.getvalue())


def test_the_job_exports_a_file(tmp_path):
    released = {
        "query": "### Instruction:\nMay I?\n\n### Response:",
        "responses": ["a", "b", "c"],
        "scores": [5, 2, -1],
    }
    (tmp_path / "sandbox.json").write_text(json.dumps([released]))
    given = (str(tmp_path / "sandbox.json"), "--to", "preference", str(tmp_path / "out.jsonl"), "--pairs", "best")
    command = [sys.executable, str(ROOT / "jobs" / "export.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(": ", 1)[1] == (
        "1 rows of 1 groups; left out: 1 unrated responses, 0 repeated responses, 0 malformed rows, 0 groups without a "
        "pair\n"
    )
    assert [row["chosen"] for row in rows(tmp_path / "out.jsonl")] == [" a"]
    done = job(str(tmp_path / "sandbox.json"), "--to", "unpaired", str(tmp_path / "out.jsonl"), "--threshold", "1.5")
    assert [row["label"] for row in rows(tmp_path / "out.jsonl")] == [True, True]


def test_the_job_reads_another_scale_and_skips_what_is_malformed(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 10.0, "score_rejected": 1.0}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\nnothing\n")
    given = (str(tmp_path / "p.jsonl"), "--to", "groups", str(tmp_path / "out.jsonl"))
    assert "row 1: score 10.0 is outside the scale 1..7" in job(*given).stderr
    assert "row 2: not valid JSON" in job(*given, "--score-range", "1", "10").stderr
    assert "not a scale" in job(*given, "--score-range", "10", "1").stderr
    done = job(*given, "--score-range", "1", "10", "--skip-bad")
    assert "1 malformed rows" in done.stdout, done.stderr
    assert read(tmp_path / "out.jsonl") == [AlignmentGroup("p", ("a", "b"), (7.0, 1.0))]


def test_the_job_maps_columns_and_leaves_others_out(tmp_path):
    row = {"text": "p", "chosen": "a", "rejected": "b", "tone": "x"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    given = (str(tmp_path / "p.jsonl"), "--to", "groups", str(tmp_path / "out.jsonl"))
    assert "the columns 'text', 'tone' would be left unread" in job(*given).stderr
    done = job(*given, "--column", "prompt=text", "--ignore-columns", "tone")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out.jsonl") == [AlignmentGroup("p", ("a", "b"), (7.0, 1.0))]
    assert "--column 'prompt' must have the form NAME=COLUMN" in job(*given, "--column", "prompt").stderr


def test_turns_before_the_query_are_messages_or_a_transcript(tmp_path):
    context = (Message("user", "Hi"), Message("assistant", "Hello"))
    group = AlignmentGroup("C?", ("c1", "c2"), (1.0, 4.25), context=context)
    plain, chat = (next(preference_rows(group, "all", conversational=flag)) for flag in (False, True))
    assert plain["prompt"] == "Human: Hi\n\nAssistant: Hello\n\nHuman: C?"
    assert chat["prompt"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "C?"},
    ]
    for conversational in (False, True):
        out = tmp_path / f"{conversational}.jsonl"
        export([group], out, lambda group, c=conversational: preference_rows(group, "all", conversational=c))
        (back,) = read(out)
        assert (back.query, back.context, back.responses) == ("C?", context, ("c2", "c1"))


def test_the_job_refuses_what_it_cannot_read(tmp_path):
    (tmp_path / "g.jsonl").write_text(to_line(GROUPS[0]))
    same = job(str(tmp_path / "g.jsonl"), "--to", "groups", str(tmp_path / "g.jsonl"))
    assert (same.returncode, same.stderr.startswith("error: "), "is the file that is read" in same.stderr) == (
        2,
        True,
        True,
    )
    none = job(str(tmp_path / "none.jsonl"), "--to", "groups", str(tmp_path / "out.jsonl"))
    assert (none.returncode, "no data file" in none.stderr) == (2, True)
    folder = job(str(tmp_path), "--to", "groups", str(tmp_path / "out.jsonl"))
    assert (folder.returncode, "is no run's folder" in folder.stderr) == (2, True)
