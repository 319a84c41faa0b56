"""Stages that are trained with several seeds: their copies, and intervals over items and seeds."""

import json

import numpy as np
import pytest

from salign import compose
from salign.errors import ConfigError
from salign.evaluation.compare import compare, markdown
from salign.evaluation.figures import estimates
from salign.evaluation.statistics import bootstrap_mean, holm, means_over_seeds, nested_difference, nested_mean
from salign.manifest import create_run
from salign.markers import mark_done
from salign.plan import units
from salign.report.curves import evaluation
from salign.report.record import read_run
from salign.storage import write_atomic


def stage(name: str, **given) -> dict:
    return {"name": name, "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "z.json", **given}


def parse(tmp_path, stages, seeds=3, **evaluate):
    section = {"num_resamples": 500, **evaluate}
    tree = {"run": {"root": str(tmp_path), "name": "r"}, "train": {"seeds": seeds, "stages": stages}}
    return compose.parse({**tree, "evaluate": section}, "test")


# --- copies --------------------------------------------------------------------------------------


def test_every_stage_has_a_copy_for_each_seed_that_builds_on_copies(tmp_path):
    config = parse(
        tmp_path, [stage("sft"), stage("stable"), stage("dpo", start="base")], models=["base", "sft", "stable"]
    )
    starts = {one.name: config.train.start_of(one.name) for one in config.train.stages}
    assert starts == {
        **{"sft": "base", "stable": "sft", "dpo": "base"},
        **{"sft-seed1": "base", "stable-seed1": "sft-seed1", "dpo-seed1": "base"},
        **{"sft-seed2": "base", "stable-seed2": "sft-seed2", "dpo-seed2": "base"},
    }
    assert config.train.last.name == "dpo"
    assert config.compared_models == ("base", "sft", "stable")
    copies = ("sft-seed1", "sft-seed2", "stable-seed1", "stable-seed2")
    assert config.evaluated_models == ("base", "sft", "stable", *copies)
    needs = {unit.key: unit.needs for unit in units(create_run(config), config)}
    assert needs["train/stable-seed2"] == ("train/sft-seed2",)
    assert needs["evaluate/stable-seed2"] == ("train/stable-seed2",)


def test_a_resolved_config_has_the_same_stages_again(tmp_path):
    config = parse(tmp_path, [stage("sft"), stage("stable")])
    tree = config.model_dump(mode="json")
    assert compose.parse(tree, "again") == config
    tree["train"]["stages"][0]["max_steps"] = 7
    assert {one.max_steps for one in compose.parse(tree, "again").train.stages} == {7, None}
    assert compose.parse(tree, "again").train.stages[2].max_steps == 7
    tree["train"]["seeds"] = 1
    with pytest.raises(ConfigError, match=r"stages\.sft-seed1 has the name of a copy of sft, and train.seeds is 1"):
        compose.parse(tree, "again")


def test_without_seeds_nothing_is_copied(tmp_path):
    config = parse(tmp_path, [stage("sft"), stage("x-seed1")], seeds=1)
    assert [one.name for one in config.train.stages] == ["sft", "x-seed1"]
    assert config.evaluated_models == ("base", "x-seed1")


@pytest.mark.parametrize("seeds", [0, 101, "two"])
def test_impossible_numbers_of_seeds(tmp_path, seeds):
    with pytest.raises(ConfigError, match=r"train\.seeds"):
        parse(tmp_path, [stage("sft")], seeds=seeds)


# --- intervals over items and seeds ----------------------------------------------------------------


def test_the_interval_is_as_wide_as_the_variance_of_items_and_seeds():
    """Against the variance of a mean in a two-level design, known in closed form."""
    generator = np.random.default_rng(0)
    k, n, of_seeds, of_items = 4, 400, 0.3, 1.0
    widths = []
    for number in range(60):
        values = generator.normal(0, of_items, n)[None, :] + generator.normal(0, of_seeds, k)[:, None]
        found = nested_mean(values.tolist(), num_resamples=400, seed=number)
        widths.append((found.high - found.low) / 3.92)
    expected = of_seeds**2 / k + of_items**2 / n
    assert np.mean(np.square(widths)) == pytest.approx(expected, rel=0.25)


def test_items_are_paired_and_seeds_are_not():
    items = np.random.default_rng(0).normal(0, 5, 300)
    first, second = [items.tolist()], [(items + 1).tolist(), (items + 1.2).tolist()]
    found = nested_difference(first, second, num_resamples=500, seed=0)
    assert found.mean == pytest.approx(1.1)
    assert (found.n, found.num_seeds) == (300, 2)
    # Items cancel; what is left is one of three draws of two seeds, scaled up.
    assert found.low == pytest.approx(1.1 - 0.1 * 2**0.5)
    assert found.high == pytest.approx(1.1 + 0.1 * 2**0.5)


def test_with_one_seed_it_is_the_bootstrap_over_items():
    values = np.random.default_rng(1).random(200).tolist()
    both = nested_mean([values], num_resamples=4000, seed=0), bootstrap_mean(values, num_resamples=4000, seed=0)
    assert both[0].mean == pytest.approx(both[1].mean)
    assert both[0].low == pytest.approx(both[1].low, abs=0.004)


def test_an_item_that_one_seed_lacks_is_left_out():
    values = [[1.0, None, 3.0], [1.0, 9.0, 5.0]]
    found = nested_mean(values, num_resamples=100, seed=0)
    assert (found.mean, found.n, found.num_missing) == (2.5, 2, 1)
    assert means_over_seeds(values) == [1.0, None, 4.0]
    assert nested_mean([[None], [1.0]], num_resamples=100, seed=0).mean is None
    with pytest.raises(ValueError, match="cannot be paired"):
        nested_difference([[1.0]], [[1.0, 2.0]], num_resamples=100, seed=0)


def test_holm_corrects_in_steps():
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06], nan_ok=True)
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_smallest_visible_difference_is_that_of_a_textbook():
    """Cohen 1988: 2.80 standard errors for 80 % power at 5 %, two-sided."""
    values = np.random.default_rng(2).normal(0, 1, 400).tolist()
    found = bootstrap_mean(values, num_resamples=4000, seed=0)
    assert found.visible == pytest.approx(2.80 / 400**0.5, rel=0.1)


# --- comparison ------------------------------------------------------------------------------------


def put(run, config, model: str, values) -> None:
    rows = [{"benchmark": "a", "id": n, "metrics": {"acc": float(value)}} for n, value in enumerate(values)]
    about = {
        "versions": {},
        "code": {},
        "judging": {},
        "judges": {},
        "calibration": {"a": float(len(model))},
        "skipped": [],
    }
    leaks = {"num_evaluation_prompts": 1, "num_leaked": 0, "num_near": 0}
    figures = {name: row.to_json() for name, row in estimates(rows, config).items()}
    folder = run.evaluation(model)
    write_atomic(folder / "results.json", json.dumps({"figures": figures, "leak_check": leaks, **about}))
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    mark_done(folder, ["results.json", "samples.jsonl"], {}, figures)


def test_seeds_that_disagree_make_no_difference(tmp_path):
    config = parse(tmp_path, [stage("sft")])
    run = create_run(config)
    base = np.random.default_rng(0).random(400)
    for model, by in (("base", 0), ("sft", 0.2), ("sft-seed1", -0.05), ("sft-seed2", 0.03)):
        put(run, config, model, base + by)
    found = compare(run, config, ["base", "sft"])
    assert found.figures["a/acc"]["sft"].num_seeds == 3
    (difference,) = found.differences["a/acc"]
    assert difference.estimate.mean == pytest.approx(0.06)
    assert difference.p is not None
    assert difference.p < 0.01  # of items alone
    assert not difference.holds
    assert found.facts["calibration"]["sft"] == {"a": pytest.approx(7.0)}
    assert "3 seeds" in str(found.figures["a/acc"]["sft"])
    assert "sft" in markdown(found)


def test_seeds_that_agree_do(tmp_path):
    config = parse(tmp_path, [stage("sft")])
    run = create_run(config)
    base = np.random.default_rng(0).random(400)
    for model, by in (("base", 0), ("sft", 0.2), ("sft-seed1", 0.18), ("sft-seed2", 0.22)):
        put(run, config, model, base + by)
    found = compare(run, config, ["base", "sft"])
    (plot,) = evaluation(read_run(run, config))
    mean, points = plot.figure["data"]
    assert (mean["y"], points["y"]) == (["base", "sft"], ["sft"] * 3)
    assert points["x"] == pytest.approx([base.mean() + by for by in (0.2, 0.18, 0.22)])
    assert found.differences["a/acc"][0].holds
    assert found.best("a/acc") == "sft"
