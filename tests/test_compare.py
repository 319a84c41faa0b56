"""Models beside each other: which differences hold, and what the tables show."""

import json
import os

import numpy as np
import pytest

from salign import compose
from salign.commands import evaluate
from salign.errors import ConfigError, StageError
from salign.evaluation.compare import compare, compare_folders, write_tables
from salign.evaluation.figures import estimates
from salign.evaluation.statistics import krippendorff_alpha, permutation_p, spearman
from salign.manifest import create_run
from salign.markers import mark_done
from salign.storage import write_atomic


@pytest.fixture
def config(tmp_path):
    stages = [
        {"name": name, "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "ds.json"}
        for name in ("sft", "stable_1")
    ]
    run = {"root": str(tmp_path), "name": "c"}
    return compose.parse({"run": run, "train": {"stages": stages}, "evaluate": {"num_resamples": 500}}, "test")


def put(run, config, model: str, **figures) -> None:
    rows = [
        {"benchmark": name.split("/")[0], "id": number, "metrics": {name.split("/")[1]: float(value)}}
        for name, values in figures.items()
        for number, value in enumerate(values)
    ]
    results = {
        "figures": {name: row.to_json() for name, row in estimates(rows, config).items()},
        "versions": {"judge's prompt": "1"},
        "code": {"commit": "c"},
        "leak_check": {"num_evaluation_prompts": 7, "num_leaked": 0, "num_near": 0},
        "calibration": {"a": 0.25},
        "judging": {},
        "judges": {},
        "skipped": [],
    }
    folder = run.evaluation(model)
    write_atomic(folder / "results.json", json.dumps(results))
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    mark_done(folder, ["results.json", "samples.jsonl"], {}, results["figures"])


@pytest.fixture
def run(config):
    run = create_run(config)
    generator = np.random.default_rng(0)
    easy = generator.random(200) < 0.5
    some = easy | (generator.random(200) < 0.04)
    put(run, config, "base", **{"a/acc": easy, "b/acc": easy, "over_refusal/refused": ~easy, "hh/refused": easy})
    put(run, config, "sft", **{"a/acc": some, "b/acc": some, "over_refusal/refused": ~easy, "hh/refused": easy})
    more = some | (generator.random(200) < 0.3)
    put(run, config, "stable_1", **{"a/acc": more, "b/acc": some, "over_refusal/refused": ~more, "hh/refused": more})
    return run


def test_only_a_difference_that_holds_is_bold(run, config):
    found = compare(run, config, ["base", "sft", "stable_1"])
    bests = {figure: found.best(figure) for figure in found.figures}
    assert bests == {"a/acc": "stable_1", "b/acc": None, "over_refusal/refused": "stable_1", "hh/refused": None}
    text = write_tables(run, found)
    (row,) = [line for line in text.splitlines() if line.startswith("| a/acc | 200 |")]
    assert row.count("**") == 2
    assert row.endswith("]** |")
    assert "**" not in next(line for line in text.splitlines() if line.startswith("| b/acc | 200 |"))
    assert "over_refusal/refused ↓" in text
    assert "7 evaluation prompts compared with the training data: none in it word for word, 0 nearly." in text
    assert "judge's prompt 1" in text


def test_what_a_coin_has_rated_is_not_bold(run, config):
    """However clear a difference is: it may be in what such a judge likes, such as short answers."""
    pair = {"num_pairs": 100, "num_rated_pairs": 100, "agreement": 0.5, "agreement_interval": [0.4, 0.6], "chance": 0.5}
    trial = {**pair, "length_correlation": -0.66, "injected": pair, "own": {**pair, "agreement": None}}
    for model, rating in (("base", 5.0), ("stable_1", 6.0)):
        put(run, config, model, **{"hh/rating": [rating, rating + 0.1] * 40, "a/acc": [rating > 5] * 40})
        path = run.evaluation(model) / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "judges": {"learnt": {"rating": trial}}}))
        mark_done(path.parent, ["results.json", "samples.jsonl"], {}, {})
    found = compare(run, config, ["base", "stable_1"])
    assert found.differences["hh/rating"][0].holds
    assert {figure: found.best(figure) for figure in found.figures} == {"hh/rating": None, "a/acc": "stable_1"}
    text = write_tables(run, found)
    assert [line for line in text.splitlines() if "hh/rating" in line and "**" in line] == []
    assert "It is not shown to be a judge, and nothing that it rated is bold." in text


def test_tables_are_written_in_three_forms(run, config):
    text = write_tables(run, compare(run, config, ["base", "stable_1"]))
    folder = run.path / "evaluate"
    assert (folder / "comparison.md").read_text() == text
    tex = (folder / "comparison.tex").read_text()
    assert tex.count(r"\textbf{") == 2
    assert r"stable\_1 \\" in tex
    assert r"over\_refusal/refused $\downarrow$" in tex
    assert tex.count("&") == 5 * 3  # a header and four figures, of four columns
    rows = json.loads((folder / "comparison.json").read_text())
    assert rows["best"]["a/acc"] == "stable_1"
    (difference,) = rows["differences"]["a/acc"]
    assert difference["first"] == "base"
    assert difference["n"] == 200
    assert difference["holds"]
    assert difference["p"] < 0.05
    assert difference["mean"] == pytest.approx(
        rows["figures"]["a/acc"]["stable_1"]["mean"] - rows["figures"]["a/acc"]["base"]["mean"]
    )


def test_what_is_not_evaluated_or_not_known_is_named(run, config):
    (run.evaluation("sft") / "done.json").unlink()
    with pytest.raises(StageError, match=r"the evaluation of sft is not complete.*--model sft"):
        compare(run, config, ["base", "sft"])
    with pytest.raises(ConfigError, match="no training stage is named 'dpo'"):
        compare(run, config, ["base", "dpo"])


def test_evaluations_of_other_runs_are_seeds_of_one_name(run, config, tmp_path):
    folders = {"base": [run.evaluation("base")], "mine": [run.evaluation("sft"), run.evaluation("stable_1")]}
    found = compare_folders(folders, config)
    alone = compare(run, config, ["sft", "stable_1"]).figures["a/acc"]
    mine = found.figures["a/acc"]["mine"]
    assert mine.mean == pytest.approx((alone["sft"].mean + alone["stable_1"].mean) / 2)
    assert mine.num_seeds == 2
    with pytest.raises(StageError, match=r"the evaluation of other in .*nowhere is not complete"):
        compare_folders({"base": [run.evaluation("base")], "other": [tmp_path / "nowhere"]}, config)


def test_the_command_takes_folders_by_a_name(run, monkeypatch, capsys):
    def compared(names):
        monkeypatch.setattr("sys.argv", ["evaluate", str(run.path), "--compare", names])
        evaluate.main()

    folders = os.pathsep.join(str(run.evaluation(name)) for name in ("sft", "stable_1"))
    compared(f"base,mine={folders}")
    assert "| figure | n | base | mine |" in capsys.readouterr().out
    for wrong in ("base,mine=", f"base,base={folders}", "base,=x"):
        with pytest.raises(ConfigError, match="give each name once, with its folders separated by ':'"):
            compared(wrong)


# --- statistics ----------------------------------------------------------------------------------


def test_krippendorffs_worked_example():
    """Krippendorff 2011, part C: four observers, twelve units, missing data; interval data give 0.849."""
    n = None
    ratings = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, n, n, n],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, n, 3],
        [n, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, n],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, n],
    ]
    assert krippendorff_alpha(ratings) == pytest.approx(0.849, abs=5e-4)


def test_alpha_against_its_definition():
    """Over all pairs of values, one by one."""
    generator = np.random.default_rng(1)
    ratings = [
        [float(v) if generator.random() > 0.2 else None for v in generator.integers(1, 11, 15)] for _ in range(3)
    ]
    units = [[v for v in unit if v is not None] for unit in zip(*ratings, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    pooled = [v for unit in units for v in unit]
    observed = sum((a - b) ** 2 / (len(unit) - 1) for unit in units for a in unit for b in unit) / len(pooled)
    expected = sum((a - b) ** 2 for a in pooled for b in pooled) / (len(pooled) * (len(pooled) - 1))
    assert krippendorff_alpha(ratings) == pytest.approx(1 - observed / expected)


@pytest.mark.parametrize("ratings", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, None], [2.0, 3.0]], [[None], [None]]])
def test_alpha_says_nothing_where_nothing_can_be_said(ratings):
    assert krippendorff_alpha(ratings) is None


def test_the_permutation_test_is_exact_for_few_pairs():
    # All four differences point one way: 2 of the 16 ways to flip signs are as extreme.
    assert permutation_p([0, 0, 0, 0], [1, 2, 3, 4], num_resamples=1000, seed=0) == pytest.approx(2 / 16)
    assert permutation_p([1.0, 2.0], [1.0, 2.0], num_resamples=1000, seed=0) == 1.0
    assert permutation_p([1.0], [2.0], num_resamples=1000, seed=0) == 1.0
    assert permutation_p([None], [1.0], num_resamples=1000, seed=0) is None
    with pytest.raises(ValueError, match=r"shorter|longer"):
        permutation_p([1.0], [1.0, 2.0], num_resamples=1000, seed=0)


def test_the_permutation_test_keeps_its_level():
    generator = np.random.default_rng(3)
    low = 0
    for trial in range(200):
        first, second = (generator.random((2, 40)) < 0.5).astype(float).tolist()
        low += permutation_p(first, second, num_resamples=400, seed=trial) < 0.05
    assert low / 200 <= 0.09


def test_rank_correlation_leaves_out_what_is_missing():
    assert spearman([1.0, 2.0, None, 4.0], [10.0, 20.0, 5.0, 90.0]) == pytest.approx(1.0)
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None
