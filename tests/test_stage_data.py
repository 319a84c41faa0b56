"""What a stage is trained on: several data together, and the society's by kind."""

import json
from collections import Counter

import pytest

from salign import compose
from salign.errors import DataError
from salign.markers import mark_done
from salign.run import RunDir, create_run
from salign.training.data import stage_groups

STORY = {"norm": "n", "situation": "S.", "intention": "I.", "moral_action": "good", "immoral_action": "bad"}


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = create_run(compose.parse({"run": {"root": str(tmp_path), "name": "r"}}, "test"))
    rows = [
        {"query": kind, "responses": ["a", "b"], "scores": [1, 7], "kind": kind, "provenance": {"question": "q"}}
        for kind in ("imitation", "imitation", "realignment")
    ]
    run.dataset.mkdir()
    (run.dataset / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mark_done(run.dataset, ["groups.jsonl"], {}, {})
    (tmp_path / "stories.jsonl").write_text(json.dumps(STORY) + "\n")
    (tmp_path / "groups.json").write_text(json.dumps([{"query": "q", "responses": ["a"], "scores": [None]}, {
        "query": "p", "responses": ["a", "b"], "scores": [3, None]}]))  # fmt: skip
    return run


def read(run: RunDir, data: dict) -> tuple[list[str], str, dict[str, str], Counter[str]]:
    stage = {"name": "a", "objective": {"kind": "sft"}, "data": data, "deepspeed": "z.json"}
    config = compose.parse({"train": {"stages": [stage]}, "cluster": {"num_ranks": 1}}, "test")
    left_out: Counter[str] = Counter()
    groups, digest, inputs = stage_groups(run, config.stage("a"), left_out)
    return [group.query for group in groups], digest, inputs, left_out


def test_several_data_are_read_one_after_the_other(run, tmp_path):
    stories = {"kind": "groups", "path": str(tmp_path / "stories.jsonl")}
    rated = {"kind": "groups", "path": str(tmp_path / "groups.json")}
    queries, digest, inputs, left_out = read(run, {"kind": "several", "parts": [stories, rated, {"kind": "run"}]})
    assert queries == ["S. I. What happens next?", "p", "imitation", "imitation", "realignment"]
    assert set(inputs) == {"dataset"}
    assert left_out["unrated_responses"] == 2
    # What is read decides: another order or another part is another digest.
    others = [[rated, stories, {"kind": "run"}], [stories, rated], [stories]]
    digests = {read(run, {"kind": "several", "parts": parts})[1] for parts in others}
    assert len({digest, *digests}) == 4
    assert read(run, {"kind": "several", "parts": [stories]})[1] == read(run, stories)[1]


def test_a_kind_that_is_left_out_is_not_trained_on(run):
    everything = read(run, {"kind": "run"})
    some = read(run, {"kind": "run", "kinds": ["imitation"]})
    assert everything[0] == ["imitation", "imitation", "realignment"]
    assert some[0] == ["imitation", "imitation"]
    assert everything[1] != some[1]
    with pytest.raises(DataError, match="has no group of the kinds self_critic"):
        read(run, {"kind": "run", "kinds": ["self_critic"]})
