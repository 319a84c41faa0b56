"""What a run will cost, before it costs it."""

import io

import pytest
from rich.console import Console

from salign import compose
from salign.cluster.estimate import estimate, print_estimate
from salign.plan import units
from salign.run import RunDir
from salign.tracking.metrics import MetricsLog


def config(tmp_path, **throughput):
    stage = {
        "name": "stable",
        "objective": {"kind": "stable"},
        "data": {"kind": "run"},
        "deepspeed": "ds.json",
        "max_steps": 10,
        "groups_per_step": 4,
        "num_responses": 3,
        "max_tokens": 100,
    }
    cluster = {
        "kind": "slurm",
        "max_parallel": 2,
        "simulate": {"gpus_per_node": 1},
        "train": {"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 2},
        "throughput": throughput,
    }
    society = {"num_worlds": 8, "num_shards": 4, "topology": {"size": 10}, "max_rounds": 5, "audience_size": 4}
    tree = {"run": {"root": str(tmp_path)}, "society": society, "train": {"stages": [stage]}, "cluster": cluster}
    return compose.parse(tree, "test")


def test_from_stated_rates(tmp_path):
    made = config(tmp_path, calls_per_s=10, tokens_per_call=300, train_tokens_per_s=1000)
    run = RunDir(tmp_path / "quickstart")
    simulate, train = estimate(run, made, units(run, made))
    # 8 worlds, 100 agents, 5 rounds; a draft, 4 x 2 calls of the audience, a revision, 4 ratings
    calls = 8 * 100 * 5 * 14
    assert simulate.amount == f"{calls:,} calls"
    assert simulate.tokens == 300 * calls
    assert simulate.gpu_hours == pytest.approx(calls / 10 / 3600)
    assert simulate.hours == pytest.approx(calls / 10 / 3600 / 2)  # two tasks at a time
    assert train.tokens == 10 * 4 * 3 * 100
    assert train.gpu_hours == pytest.approx(4 * 12 / 3600)
    assert "cluster.throughput" in train.source


def test_a_run_that_has_begun_is_measured(tmp_path, monkeypatch):
    made = config(tmp_path, calls_per_s=10)
    run = RunDir(tmp_path / "quickstart")
    now = iter([100.0, 150.0])
    monkeypatch.setattr("salign.tracking.metrics.time.time", lambda: next(now))
    with MetricsLog(run.shard(0) / "metrics.jsonl") as log:
        log.log({"sim/calls": 0, "sim/tokens": 0})
        log.log({"sim/calls": 1000, "sim/tokens": 200_000})
    simulate = estimate(run, made, units(run, made))[0]
    assert "20.0 calls/s, measured in this run" in simulate.source
    assert simulate.tokens == 200 * 8 * 100 * 5 * 14


def test_what_a_journal_answers_at_once_is_no_rate(tmp_path, monkeypatch):
    """A shard that was killed takes a moment for the calls that it had noted, and its time for the others."""
    made = config(tmp_path)
    run = RunDir(tmp_path / "quickstart")
    now = iter([100.0, 150.0])
    monkeypatch.setattr("salign.tracking.metrics.time.time", lambda: next(now))
    with MetricsLog(run.shard(0) / "metrics.jsonl") as log:
        log.log({"sim/calls": 0, "sim/calls_journaled": 0, "sim/tokens": 0})
        log.log({"sim/calls": 1000, "sim/calls_journaled": 900, "sim/tokens": 200_000})
    simulate = estimate(run, made, units(run, made))[0]
    assert "2.0 calls/s, measured in this run" in simulate.source
    assert simulate.tokens == 200 * 8 * 100 * 5 * 14


def test_what_is_unknown_is_said(tmp_path):
    made = config(tmp_path)
    run = RunDir(tmp_path / "quickstart")
    found = estimate(run, made, units(run, made))
    assert all(one.hours is None for one in found)
    said = io.StringIO()
    print_estimate(found, Console(file=said, width=140))
    assert "rate unknown" in said.getvalue()
    assert "cluster.throughput" in said.getvalue()
