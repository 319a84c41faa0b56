"""What the society records, as lines of a file."""

import json

import pytest
from actors import interaction

from salign.errors import DataError
from salign.records import INTERACTION_VERSION, read_interactions, to_bytes, to_line

FAILED = interaction(part=None, recalled=None, draft=None, feedback=(), revision=None, failure="refused")


@pytest.mark.parametrize("record", [interaction(), FAILED])
def test_an_interaction_comes_back_from_its_line(record, tmp_path):
    line = to_line(record)
    assert line.count("\n") == 1
    assert to_bytes(record) == line.encode()
    path = tmp_path / "interactions.jsonl"
    path.write_text(line + to_line(FAILED), encoding="utf-8")
    assert list(read_interactions(path)) == [record, FAILED]


def test_an_interaction_of_another_version_is_refused(tmp_path):
    path = tmp_path / "interactions.jsonl"
    path.write_text(to_line(interaction()) + to_line(interaction(version=99)), encoding="utf-8")
    with pytest.raises(DataError, match=r"interactions\.jsonl, line 2: .*version 99"):
        list(read_interactions(path))


def test_an_interaction_of_the_first_version_is_refused_for_its_version(tmp_path):
    """It knew of no parts: not for a missing field."""
    path = tmp_path / "interactions.jsonl"
    old = {name: value for name, value in json.loads(to_line(interaction(version=1))).items() if name != "part"}
    path.write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(DataError, match=f"version 1, this code reads {INTERACTION_VERSION}"):
        list(read_interactions(path))


@pytest.mark.parametrize(
    "line",
    [b'{"version":3}', b"[]", b'{"version":3', b'"text"', b'{"version":3,"surprise":2}', b"\xff", b"[" * 100_000],
)
def test_a_malformed_interaction_is_named_by_file_and_line(line, tmp_path):
    path = tmp_path / "interactions.jsonl"
    path.write_bytes(to_bytes(interaction()) + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=r"interactions\.jsonl, line 3: not an interaction: "):
        list(read_interactions(path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"rating":5.25', '"rating":"5"', r"Expected `float \| null`, got `str` - at `\$\.turns\[\d\]\.rating`"),
        ('"round":2', '"round":2.5', r"Expected `int`, got `float` - at `\$\.round`"),
        ('"source":"own"', '"source":"hearsay"', r"Invalid enum value 'hearsay' - at `\$\.turns"),
        ('"agents":[{"agent":3,', '"agents":[{"age":3,', r"unknown field `age` - at `\$\.agents"),
        ('"turns":[', '"turns":[null,', r"Expected `object`, got `null` - at `\$\.turns\[\d\]`"),
    ],
)
def test_a_field_of_another_type_is_named_with_what_it_should_be(old, new, message, tmp_path):
    line = to_line(interaction())
    assert old in line
    path = tmp_path / "interactions.jsonl"
    path.write_text(line.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=f"line 1: not an interaction: .*{message}"):
        list(read_interactions(path))


def test_an_interaction_that_nobody_leads_is_refused(tmp_path):
    path = tmp_path / "interactions.jsonl"
    path.write_text(to_line(interaction(agents=())), encoding="utf-8")
    with pytest.raises(DataError, match=r"length >= 1 - at `\$\.agents`"):
        list(read_interactions(path))
