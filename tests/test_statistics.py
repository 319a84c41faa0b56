"""Means with intervals against simulated truth, and the files of metrics."""

import math

import numpy as np
import pytest

from salign.errors import DataError
from salign.evaluation.statistics import Estimate, bootstrap_mean, paired_difference
from salign.tracking.metrics import MetricsLog, keep_rows, read_metrics

# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["ratings", "right or wrong", "skewed"])
def test_the_interval_covers_the_truth_about_95_percent_of_the_time(shape):
    generator = np.random.default_rng(11)
    draw, truth = {
        "ratings": (lambda: generator.choice([1.0, 4.0, 6.0, 7.0], size=60, p=[0.1, 0.4, 0.4, 0.1]), 4.8),
        "right or wrong": (lambda: (generator.random(80) < 0.3).astype(float), 0.3),
        "skewed": (lambda: generator.exponential(2.0, size=120), 2.0),
    }[shape]
    covered = 0
    for trial in range(500):
        found = bootstrap_mean(draw().tolist(), num_resamples=400, seed=trial)
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 500 <= 0.98


def test_the_interval_of_a_difference_covers_it_and_uses_the_pairs():
    generator = np.random.default_rng(5)
    covered, narrower = 0, 0
    for trial in range(300):
        difficulty = generator.normal(4, 2, size=80)  # an item that is hard for one is hard for the other
        first = (difficulty + generator.normal(0, 0.5, size=80)).tolist()
        second = (difficulty + generator.normal(0.3, 0.5, size=80)).tolist()
        found = paired_difference(first, second, num_resamples=400, seed=trial)
        covered += found.low <= 0.3 <= found.high
        alone = bootstrap_mean(first, num_resamples=400, seed=trial)
        narrower += found.high - found.low < alone.high - alone.low
    assert 0.90 <= covered / 300 <= 0.985
    assert narrower == 300


@pytest.mark.parametrize("num_resamples", [999, 1000, 2500])
def test_a_large_sample_agrees_with_the_normal_interval(num_resamples):
    values = np.random.default_rng(0).normal(5, 2, size=2000)
    found = bootstrap_mean(values.tolist(), num_resamples=num_resamples, seed=0)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.25 * half)


def test_the_same_seed_gives_the_same_interval():
    values = [1.0, 2.0, 4.0, 7.0, 3.0]
    one, same, other = (bootstrap_mean(values, num_resamples=1500, seed=seed) for seed in (3, 3, 4))
    assert one == same
    assert one.mean == other.mean
    many = [bootstrap_mean([*values, math.pi, math.e], num_resamples=100, seed=seed) for seed in (3, 4)]
    assert many[0] != many[1]


def test_missing_values_are_left_out_and_counted():
    found = bootstrap_mean([None, 2.0, None, 4.0], num_resamples=100, seed=0)
    assert (found.mean, found.n, found.num_missing) == (3.0, 2, 2)
    assert found == Estimate(**{**bootstrap_mean([2.0, 4.0], num_resamples=100, seed=0).to_json(), "num_missing": 2})


@pytest.mark.parametrize("values", [[], [None, None]])
def test_nothing_has_no_mean(values):
    found = bootstrap_mean(values, num_resamples=100, seed=0)
    assert found == Estimate(None, None, None, 0, len(values))
    assert str(found) == f"none of {len(values)} rated"


def test_values_that_are_all_the_same_have_no_width():
    assert bootstrap_mean([0.0] * 5, num_resamples=100, seed=0) == Estimate(0.0, 0.0, 0.0, 5, 0)
    assert str(bootstrap_mean([0.0], num_resamples=100, seed=0)) == "0.000 [0.000, 0.000] (n = 1)"


def test_a_difference_is_second_minus_first_over_the_pairs():
    found = paired_difference([1.0, None, 3.0, 4.0], [2.0, 9.0, None, 6.0], num_resamples=100, seed=0)
    assert (found.mean, found.low, found.high, found.n, found.num_missing) == (1.5, 1.0, 2.0, 2, 2)


def test_values_of_other_items_cannot_be_paired():
    with pytest.raises(ValueError, match="2 and 1 values cannot be paired"):
        paired_difference([1.0, 2.0], [1.0], num_resamples=100, seed=0)


# --- metrics -------------------------------------------------------------------------------------


def logged(path, *rows: dict) -> None:
    with MetricsLog(path) as log:
        for row in rows:
            log.log(row)


def steps(rows: list[dict]) -> list[int]:
    return [row["step"] for row in rows]


def test_a_row_can_be_read_as_soon_as_it_is_logged(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    assert read_metrics(path) == []
    with MetricsLog(path) as log:
        log.log({"step": 1, "loss": 0.5, "grüße": 1})
        (row,) = read_metrics(path)
    assert row.pop("time") > 0
    assert row == {"step": 1, "loss": 0.5, "grüße": 1}


def test_a_log_that_is_opened_again_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, {"step": 1})
    logged(path, {"step": 2})
    assert steps(read_metrics(path)) == [1, 2]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', '{"step": 3, "name": "gr\u00fc'])
def test_a_torn_last_line_is_passed_over(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    logged(path, {"step": 1}, {"step": 2})
    with path.open("ab") as file:
        file.write(torn.encode()[:-1] if "\u00fc" in torn else torn.encode())
    assert steps(read_metrics(path)) == [1, 2]
    assert steps(read_metrics(path, last_bytes=1 << 16)) == [1, 2]


def test_a_damaged_line_in_the_middle_is_not_hidden(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 1}\n{"st\n{"step": 3, "time": 1}\n')
    with pytest.raises(DataError, match="is not a row of metrics"):
        read_metrics(path)


def last_steps(tmp_path, last_bytes: int, size: int) -> list[int]:
    """Of five rows of that many bytes each."""
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}, "ü": 1, "time": 0}}'.encode() for step in range(5)]
    path.write_bytes(b"".join(line + b" " * (size - 1 - len(line)) + b"\n" for line in lines))
    return steps(read_metrics(path, last_bytes=last_bytes))


def test_a_row_that_the_last_bytes_cut_is_passed_over(tmp_path):
    for last_bytes in (*range(1, 40), *range(41, 80), *range(81, 120)):
        assert last_steps(tmp_path, last_bytes, size=40) == list(range(5))[5 - last_bytes // 40 :], last_bytes
    for last_bytes in (200, 201, 1 << 16):
        assert last_steps(tmp_path, last_bytes, size=40) == [0, 1, 2, 3, 4]


def test_a_row_that_fills_the_last_bytes_is_read(tmp_path):
    assert last_steps(tmp_path, 40, size=40) == [4]
    assert last_steps(tmp_path, 120, size=40) == [2, 3, 4]


def test_rows_that_a_restart_repeats_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, *({"step": step} for step in range(5)))
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    before = read_metrics(path)
    keep_rows(path, lambda row: row["step"] <= 2)
    assert read_metrics(path) == before[:3]
    logged(path, {"step": 3})
    assert steps(read_metrics(path)) == [0, 1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_there_is_nothing_to_drop_where_there_is_no_file(tmp_path):
    keep_rows(tmp_path / "metrics.jsonl", lambda row: False)
    assert list(tmp_path.iterdir()) == []
