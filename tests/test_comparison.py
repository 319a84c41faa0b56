"""Several runs on one page: intervals over worlds, and differences between worlds of one seed."""

import json
import re
from dataclasses import asdict
from statistics import fmean, stdev

import pytest

from salign import compose
from salign.errors import ConfigError
from salign.manifest import create_run
from salign.report.comparison import (
    Interval,
    by_round,
    differences,
    metrics_of,
    overall,
    read_compared,
    to_json,
    write_comparison,
)
from salign.society.shard import run_shard


def simulate(folder, name, *, seed=0, **society):
    small = {
        "num_worlds": 3,
        "topology": {"size": 3},
        "audience_size": 2,
        "max_rounds": 4,
        "stopping": None,
        "observer_check": None,
        "num_initial_memories": 4,
        "gates": {"min_rated_share": 0, "max_repeated_share": 1, "max_flagged_share": 1},
    }
    tree = {"run": {"root": str(folder), "name": name, "seed": seed}, "engine": {"kind": "scripted"}}
    run = create_run(compose.parse({**tree, "society": {**small, **society}}, "test"))
    run_shard(run, run.config(), 0)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    one = simulate(folder, "one")
    return one, simulate(folder, "other", wording="reference", max_rounds=3), simulate(folder, "elsewhere", seed=1)


def test_an_interval_is_students():
    assert Interval.of([2.0]) == Interval(2.0, None, None, 1)
    found = Interval.of([1.0, 2.0, 3.0])
    half = 4.302653 * stdev([1, 2, 3]) / 3**0.5  # t with 2 degrees of freedom
    assert (found.mean, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))


def test_what_so_few_worlds_can_see_is_the_quantiles_of_t_together():
    found = Interval.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    error = stdev(range(6)) / 6**0.5
    assert found.visible == pytest.approx((2.570582 + 0.919544) * error, rel=1e-5)  # t with 5 degrees of freedom
    assert Interval.of([2.0]).visible is None


def test_a_change_is_the_outcome_above_the_first_answer_and_the_table_is_there_as_json(runs, tmp_path):
    compared = read_compared(runs)
    first, other, _ = compared
    for path in first.paths:
        for row in path.rounds:
            assert row["sim/alignment_change_mean"] == row["sim/alignment_mean"] - row["sim/draft_alignment_mean"]
    found = json.loads(to_json(compared))
    name = "sim/alignment_change_mean"
    assert found["first"] == "one"
    middle = fmean(fmean(path.values(name)) for path in first.paths)
    assert found["figures"][name]["one"]["mean"] == pytest.approx(middle)
    difference = overall(first, other, name)
    assert found["differences"][name] == {
        "other": {**asdict(difference), "visible": difference.visible},
        "elsewhere": None,
    }
    page = tmp_path / "comparison.html"
    write_comparison(runs, page)
    assert page.with_suffix(".json").read_text() == to_json(compared)


def test_curves_are_means_over_worlds(runs):
    compared = read_compared(runs[:2])
    name = "sim/alignment_mean"
    assert name in metrics_of(compared)
    one = compared[0]
    for round_, found in by_round(one.paths, name).items():
        values = [path.rounds[round_ - 1][name] for path in one.paths]
        assert found == Interval.of(values)
        assert found.n == 3


def test_differences_are_paired_by_world_over_the_rounds_that_both_have(runs):
    first, other = read_compared(runs[:2])
    name = "sim/alignment_mean"
    found = differences(first, other, name)
    assert list(found) == [1, 2, 3]  # of four and three
    expected = [
        fmean(theirs.rounds[n][name] - ours.rounds[n][name] for n in range(3))
        for ours, theirs in zip(first.paths, other.paths, strict=True)
    ]
    assert overall(first, other, name).mean == pytest.approx(fmean(expected))
    assert overall(first, other, name).n == 3
    assert overall(first, first, name) == Interval(0.0, 0.0, 0.0, 3)


def test_worlds_of_other_seeds_or_populations_are_not_paired(runs, tmp_path):
    first, elsewhere = read_compared([runs[0], runs[2]])
    assert overall(first, elsewhere, "sim/alignment_mean") is None
    other = simulate(tmp_path, "bad", populations=["all_bad"])
    assert overall(first, read_compared([other])[0], "sim/alignment_mean") is None


def test_the_page_holds_the_figures_and_needs_no_network(runs, tmp_path):
    page = tmp_path / "comparison.html"
    write_comparison(runs, page)
    text = page.read_text(encoding="utf-8")
    compared = read_compared(runs)
    found = overall(compared[0], compared[1], "sim/alignment_mean")
    assert f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]" in text
    assert "not paired" in text
    drawn = json.loads(re.search(r'<script type="application/json" id="record">(.*?)</script>', text, re.DOTALL)[1])
    assert {"sim-alignment_mean", "sim-alignment_mean-difference"} <= set(drawn["plots"])
    assert "default-src &#39;none&#39;" in text


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    again = simulate(tmp_path, "one")
    assert [one.name for one in read_compared([runs[0], again])] == [str(runs[0].path), str(again.path)]


def test_a_run_without_a_complete_round_is_named(runs, tmp_path):
    tree = {"run": {"root": str(tmp_path), "name": "empty"}, "engine": {"kind": "scripted"}}
    empty = create_run(compose.parse(tree, "test"))
    with pytest.raises(ConfigError, match=r"empty has no round of a society that is complete"):
        write_comparison([runs[0], empty], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
