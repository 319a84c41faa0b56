"""What a stage is trained on: several data together, the society's by kind, and earlier generations'."""

import dataclasses
import json
from collections import Counter

import pytest

from salign import compose
from salign.config import KINDS
from salign.errors import ConfigError, DataError
from salign.manifest import create_run
from salign.markers import mark_done
from salign.plan import complete, find_unit, units
from salign.records import ReplayedGroup
from salign.run import RunDir
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
    groups, digest, inputs = stage_groups(run, config.stage("a"), 0, left_out)
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


# --- replay --------------------------------------------------------------------------------------


def replaying(tmp_path, *shares: float, generation: int = 3):
    """What a generation trains on, and its plan; generation g has ten groups, whose queries begin with g."""
    data = {"kind": "run", "replay": list(shares)}
    stage = {"name": "a", "objective": {"kind": "sft"}, "data": data, "deepspeed": "z.json"}
    config = compose.parse(
        {
            "run": {"root": str(tmp_path), "name": "loop"},
            "train": {"stages": [stage]},
            "generations": {"num": 3},
            "cluster": {"num_ranks": 1},
        },
        "test",
    )
    first = create_run(config)
    for number in range(1, generation + 1):
        dataset = first.generation(number).dataset
        if not dataset.exists():
            dataset.mkdir(parents=True)
            rows = [
                {"query": f"{number} {n}", "responses": ["a"], "scores": [7], "kind": "imitation"} for n in range(10)
            ]
            (dataset / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            counts = {kind: {"num_groups": 10 * (kind == "imitation")} for kind in KINDS}
            (dataset / "card.json").write_text(json.dumps({"kinds": counts}))
            mark_done(dataset, ["groups.jsonl", "card.json"], {}, {})
    return first.generation(generation), config.stage("a")


def test_earlier_generations_are_replayed_by_their_shares(tmp_path):
    run, stage = replaying(tmp_path, 0.5, 0.2)
    groups, digest, inputs = stage_groups(run, stage, 0, Counter())
    groups = list(groups)
    assert Counter((group.query[0], getattr(group, "age", 0)) for group in groups) == {
        ("3", 0): 10,
        ("2", 1): 5,
        ("1", 2): 2,
    }
    assert set(inputs) == {"dataset", "generation-1/dataset", "generation-2/dataset"}
    assert list(stage_groups(run, stage, 0, Counter())[0]) == groups
    again = stage_groups(run, stage, 1, Counter())
    assert list(again[0]) != groups  # another seed draws others
    assert again[1] != digest


@pytest.mark.parametrize(("generation", "shares", "replayed"), [(1, [1.0], 0), (2, [0.0, 1.0], 0), (2, [1.0, 1.0], 10)])
def test_a_generation_replays_those_that_there_are(tmp_path, generation, shares, replayed):
    run, stage = replaying(tmp_path, *shares, generation=generation)
    groups = [group for group in stage_groups(run, stage, 0, Counter())[0] if isinstance(group, ReplayedGroup)]
    assert len(groups) == replayed


def test_a_stage_is_trained_again_when_what_it_replayed_has_changed(tmp_path):
    run, stage = replaying(tmp_path, 1.0)
    config = run.config()
    unit = find_unit(units(run, config), "train", "a")
    assert dict(unit.replayed) == {"generation-2/dataset": run.first.generation(2).dataset}
    inputs = stage_groups(run, stage, 0, Counter())[2]
    run.stage("a").mkdir(parents=True)
    mark_done(run.stage("a"), [], inputs, {})
    alone = [dataclasses.replace(unit, needs=())]
    assert complete(alone) == {"train/a"}
    earlier = run.first.generation(2).dataset
    (earlier / "card.json").write_text("{}")
    mark_done(earlier, ["card.json"], {}, {})
    assert complete(alone) == set()


def test_replay_needs_generations():
    with pytest.raises(ConfigError, match=r"train\.stages\.stable\.data replays earlier generations, and generations"):
        compose.load(compose.shipped("quickstart.yaml"), ["train.stages.stable.data={kind: run, replay: [0.5]}"])


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_policy_gradient_replays_nothing(kind):
    data = {"kind": "run", "replay": [0.5]}
    stage = {"name": "a", "objective": {"kind": kind}, "data": data, "deepspeed": "z.json"}
    said = rf"train\.stages\.a\.data replays .* the one that {kind} takes them to be of: leave `replay` out"
    with pytest.raises(ConfigError, match=said):
        compose.parse({"train": {"stages": [stage]}, "generations": {"num": 2}}, "test")
