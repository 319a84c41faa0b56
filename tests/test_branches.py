"""A list of stages that branches, with data of several origins, as every reader of it must understand it."""

import re
from pathlib import Path

import pytest

from salign import compose
from salign.cluster.estimate import estimate
from salign.cluster.rates import Range
from salign.plan import units
from salign.run import RunDir
from salign.tracking.sync import lineage
from salign.training.card import Facts, model_card
from salign.training.memory import most_row_tokens

FACTS = Facts({"num_steps": 3}, "0123456789abcdef", 1, 2)
ROWS = [{"train/global_step": 1, "train/loss": 4.0}]
COMMON = {"deepspeed": "ds.json", "groups_per_step": 4, "max_tokens": 100, "num_responses": 3}
FILE = {"kind": "groups", "path": "/third/party/hh.jsonl"}
HUB = {"kind": "dataset", "path": "somebody/preferences"}
OWN = {"kind": "answers"}
ANSWERS = {"kind": "answers", "source": {"kind": "json", "path": "/third/party/alpaca.json"}}
STAGES = [
    {"name": "sft", "objective": {"kind": "sft"}, "data": {"kind": "answers"}},
    {"name": "stable", "objective": {"kind": "stable"}, "data": {"kind": "several", "parts": [{"kind": "run"}, FILE]}},
    {"name": "dpo", "objective": {"kind": "dpo"}, "data": {"kind": "several", "parts": [FILE, HUB]}, "start": "base"},
    {"name": "coh", "objective": {"kind": "coh"}, "data": {"kind": "run"}, "start": "sft", "num_tokens": 5000},
    {
        "name": "more",
        "objective": {"kind": "sft"},
        "data": {"kind": "several", "parts": [{"kind": "answers"}, ANSWERS]},
    },
]


@pytest.fixture
def config(tmp_path):
    tree = {
        "run": {"root": str(tmp_path), "name": "mine"},
        "train": {"stages": [{**COMMON, **stage} for stage in STAGES]},
        "evaluate": {"models": ["base", "dpo", "stable"]},
        "cluster": {"kind": "slurm", "throughput": {"train_tokens_per_s": 100}},
    }
    return compose.parse(tree, "test")


@pytest.fixture
def run(config):
    return RunDir(config.run.root / config.run.name)


def card(config, name: str) -> str:
    return " ".join(model_card(config, config.stage(name), config.model, FACTS, ROWS).split())


def test_ancestry_follows_start_and_not_the_order_of_the_list(config):
    ancestry = {stage.name: config.train.ancestry(stage.name) for stage in config.train.stages}
    assert ancestry == {
        "sft": ("base",),
        "stable": ("base", "sft"),
        "dpo": ("base",),
        "coh": ("base", "sft"),
        "more": ("base", "sft", "coh"),
    }
    assert [config.train.start_of(name) for name in ancestry] == ["base", "sft", "base", "sft", "coh"]


def test_the_card_names_the_models_that_a_stage_was_trained_from(config):
    base = "`HuggingFaceTB/SmolLM2-135M-Instruct`"
    assert f"{base} -> **`dpo`**." in card(config, "dpo")
    assert f"{base} -> `sft` -> **`stable`**." in card(config, "stable")
    assert f"{base} -> `sft` -> `coh` -> **`more`**." in card(config, "more")


def test_the_card_says_of_each_part_who_made_it(config):
    assert "simulated society" in card(config, "coh").split("## Data")[1]
    stable = card(config, "stable").split("## Data")[1]
    assert "simulated society" in stable
    assert "from the file `hh.jsonl`" in stable
    dpo = card(config, "dpo").split("## Data")[1]
    assert "simulated society" not in dpo
    assert "from the file `hh.jsonl`" in dpo
    assert "from the dataset `somebody/preferences`" in dpo


def test_the_lineage_links_what_each_stage_was_made_from(config, run):
    links = {}
    for consumer, producer, artifact in lineage(run, config):
        links.setdefault(consumer, []).append((producer, artifact))
    assert links == {
        "train-mine-stable": [("simulate-mine", "mine-data"), ("train-mine-sft", "mine-sft")],
        "train-mine-coh": [("simulate-mine", "mine-data"), ("train-mine-sft", "mine-sft")],
        "train-mine-more": [("train-mine-coh", "mine-coh")],
        "evaluate-mine-dpo": [("train-mine-dpo", "mine-dpo")],
        "evaluate-mine-stable": [("train-mine-stable", "mine-stable")],
    }


def test_the_plan_waits_for_what_each_stage_is_made_from(config, run):
    needs = {unit.key: unit.needs for unit in units(run, config) if unit.stage == "train"}
    assert needs == {
        "train/sft": (),
        "train/stable": ("train/sft", "dataset"),
        "train/dpo": (),
        "train/coh": ("train/sft", "dataset"),
        "train/more": ("train/coh",),
    }


def test_bad_rows_are_skipped_in_every_part(config):
    changed = compose.differences(config, compose.skipping_bad(config))
    assert changed == [f"train.stages.{name}.data.parts" for name in ("stable", "dpo", "more")]
    skipping = {
        stage.name: [getattr(getattr(part, "source", part), "skip_bad", None) for part in stage.parts]
        for stage in compose.skipping_bad(config).train.stages
    }
    own, others = None, True  # what the run makes itself, or has embedded, has no malformed rows
    assert skipping == {
        "sft": [own],
        "stable": [own, others],
        "dpo": [others, others],
        "coh": [own],
        "more": [own, others],
    }


def test_a_budget_of_tokens_is_estimated_and_hindsight_has_one_text_a_group(config, run):
    found = {one.stage: one for one in estimate(run, config, units(run, config))}
    # 4 groups of one text of 100 tokens at most in a step; the last step begins below the budget
    assert found["train coh"].tokens == Range.exact(5000 - 1 + 4 * 100)
    assert found["train coh"].amount == "13 steps or more"
    assert found["train coh"].hours == pytest.approx(Range.exact(5399 / 100 / 3600))
    assert found["train dpo"].tokens is None
    responses = {stage.name: stage.max_responses for stage in config.train.stages}
    assert responses == {"sft": 1, "stable": 3, "dpo": 3, "coh": 1, "more": 1}
    assert {name: most_row_tokens(config.stage(name)) for name in responses} == {
        name: 100 * count for name, count in responses.items()
    }


def test_the_compared_baselines_all_start_from_the_base():
    compared = compose.load(Path(__file__).parents[1] / "configs" / "compare.yaml")
    base = "`HuggingFaceTB/SmolLM2-135M-Instruct`"
    for stage in compared.train.stages:
        assert f"{base} -> **`{stage.name}`**." in card(compared, stage.name)


def test_nobody_but_the_config_looks_into_the_data_of_a_stage():
    package = Path(compose.__file__).parent
    readers = [
        str(path.relative_to(package))
        for path in sorted(package.rglob("*.py"))
        if path.parent.name != "config" and re.search(r"\bstage\.data\b", path.read_text(encoding="utf-8"))
    ]
    assert readers == []
