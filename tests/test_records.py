"""What the society records, as lines of a file."""

import json

import pytest
from actors import interaction

from salign.errors import DataError
from salign.records import INTERACTION_VERSION, Interaction, read_interactions, to_bytes, to_line

FAILED = interaction(part=None, recalled=None, draft=None, feedback=(), revision=None, failure="refused")


@pytest.mark.parametrize("record", [interaction(), FAILED])
def test_an_interaction_comes_back_from_its_line(record, tmp_path):
    line = to_line(record)
    assert line.count("\n") == 1
    assert to_bytes(record) == line.encode()
    assert Interaction.from_json(json.loads(line)) == record
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


@pytest.mark.parametrize("line", ['{"version":3}', "[]", '{"version":3', '"text"', '{"version":3,"surprise":2}'])
def test_a_malformed_interaction_is_named_by_file_and_line(line, tmp_path):
    path = tmp_path / "interactions.jsonl"
    path.write_text(to_line(interaction()) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"interactions\.jsonl, line 3: "):
        list(read_interactions(path))
