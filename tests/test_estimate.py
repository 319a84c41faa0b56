"""What a run will cost, before it costs it."""

import dataclasses
import io
import typing

import pytest
from rich.console import Console

from salign import compose
from salign.cluster.estimate import estimate, print_estimate
from salign.cluster.rates import Range, size_of
from salign.config import Throughput
from salign.gpus import GPUS
from salign.plan import units
from salign.run import RunDir
from salign.tracking.metrics import MetricsLog

SOCIETY = {"num_worlds": 8, "num_shards": 4, "topology": {"size": 10}, "max_rounds": 5, "audience_size": 4}
CALLS = 8 * 100 * 5 * 14
"""Worlds, agents, rounds; a draft, 4 x 2 calls of the audience, a revision, 4 ratings."""
STAGE = {
    "name": "stable",
    "objective": {"kind": "stable"},
    "data": {"kind": "run"},
    "deepspeed": "ds.json",
    "max_steps": 10,
    "groups_per_step": 4,
    "num_responses": 3,
    "max_tokens": 100,
}


def config(tmp_path, **throughput):
    cluster = {
        "kind": "slurm",
        "max_parallel": 2,
        "simulate": {"gpus_per_node": 1},
        "train": {"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 2},
        "throughput": throughput,
    }
    tree = {"run": {"root": str(tmp_path)}, "society": SOCIETY, "train": {"stages": [STAGE]}, "cluster": cluster}
    return compose.parse(tree, "test")


def test_from_stated_rates(tmp_path):
    made = config(tmp_path, calls_per_s=10, tokens_per_call=300, train_tokens_per_s=1000)
    run = RunDir(tmp_path / "quickstart")
    simulate, train = estimate(run, made, units(run, made))
    assert simulate.amount == f"{CALLS:,} calls"
    assert simulate.tokens == Range.exact(300 * CALLS)
    assert simulate.gpu_hours == pytest.approx(Range.exact(CALLS / 10 / 3600))
    assert simulate.hours == pytest.approx(Range.exact(CALLS / 10 / 3600 / 2))  # two tasks at a time
    assert train.tokens == Range.exact(10 * 4 * 3 * 100)
    assert train.gpu_hours == pytest.approx(Range.exact(4 * 12 / 3600))
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
    assert simulate.tokens == Range.exact(200 * CALLS)


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
    assert simulate.tokens == Range.exact(200 * CALLS)


def test_what_was_in_flight_at_the_first_answer_does_not_slow_the_rate(tmp_path, monkeypatch):
    """16 calls are made at once; the first is answered after 40 s, and one a second from then on."""
    made = config(tmp_path)
    run = RunDir(tmp_path / "quickstart")
    now = iter([100.0, 140.0, 145.0, 150.0])
    monkeypatch.setattr("salign.tracking.metrics.time.time", lambda: next(now))
    with MetricsLog(run.shard(0) / "metrics.jsonl") as log:
        for calls in (0, 1, 6, 11):
            log.log({"sim/calls": calls, "sim/calls_journaled": 0, "sim/tokens": 10 * calls})
    assert "1.0 calls/s, measured in this run" in estimate(run, made, units(run, made))[0].source


def test_what_is_unknown_is_said(tmp_path):
    made = config(tmp_path)
    run = RunDir(tmp_path / "quickstart")
    found = estimate(run, made, units(run, made))
    assert all(one.hours is None for one in found)
    said = io.StringIO()
    print_estimate(found, Console(file=said, width=140))
    assert "rate unknown" in said.getvalue()
    assert "cluster.throughput" in said.getvalue()


# --- by a data sheet ---------------------------------------------------------------------------------

QWEN = {"kind": "server", "program": "vllm", "model": "Qwen/Qwen2.5-7B-Instruct", "num_slots": 256}


def by_sheet(tmp_path, engine=QWEN, gpus=1, **more):
    made = config(tmp_path, gpu="A100")
    tree = made.model_dump(mode="json")
    tree["engine"] = engine
    tree["cluster"]["simulate"]["gpus_per_node"] = gpus
    tree["society"] |= more
    made = compose.parse(tree, "test")
    run = RunDir(tmp_path / "quickstart")
    return estimate(run, made, units(run, made))


def test_a_rate_by_hand(tmp_path):
    """Qwen2.5-7B on an A100. Few replies at a time are bound by the memory that is read, many by the arithmetic."""
    parameters = 7.615616512e9  # as its card has it
    keys = 2 * 28 * 4 * 128 * 2  # keys and values of 28 layers with 4 heads of 128, two bytes each
    prompt = 150 + 1.5 * 50
    short, long = (6 * 50 + 8) / 14, (6 * 256 + 8) / 14  # draft, four reasons, revision; a rating is one token

    def bound_by_memory(reply, arithmetic, memory, cached=0.0):
        step = (2 * parameters + 16 * keys * (prompt + reply)) / (2.039e12 * memory)
        return 2 * parameters * prompt * (1 - cached) / (312e12 * arithmetic) + reply * step / 16

    simulate, train = by_sheet(tmp_path, {**QWEN, "num_slots": 16})
    assert simulate.gpu_hours.low == pytest.approx(CALLS * bound_by_memory(short, 0.45, 0.7, 0.5) / 3600, rel=1e-3)
    assert simulate.gpu_hours.high == pytest.approx(CALLS * bound_by_memory(long, 0.25, 0.4) / 3600, rel=1e-3)
    assert simulate.tokens == Range(pytest.approx(CALLS * (prompt + short)), pytest.approx(CALLS * (prompt + long)))
    assert "A100 by its data sheet" in simulate.source
    many = by_sheet(tmp_path)[0]
    seconds = 2 * parameters * (prompt / 2 + short) / (312e12 * 0.45)
    assert many.gpu_hours.low == pytest.approx(CALLS * seconds / 3600, rel=1e-3)
    # the embedded model: 6 FLOPs a parameter and token, in float32, on 4 GPUs
    assert train.hours is not None
    assert train.hours.low == pytest.approx(12_000 * 6 * 134.515008e6 / (4 * 19.5e12 * 0.45) / 3600, rel=1e-3)


def test_more_gpus_and_shorter_replies_take_less(tmp_path):
    one, two = by_sheet(tmp_path)[0], by_sheet(tmp_path, gpus=2)[0]
    short = by_sheet(tmp_path, draft={"max_tokens": 64}, revision={"max_tokens": 64}, feedback={"max_tokens": 64})[0]
    assert two.hours.high < one.hours.high
    assert short.hours.high < one.hours.high
    assert short.tokens.high < one.tokens.high


@pytest.mark.parametrize(
    ("engine", "gpus", "said"),
    [
        (
            {**QWEN, "model": "Qwen/Qwen2.5-72B-Instruct"},
            1,
            "has 144 GB of weights, which 1 x A100 of 80 GB cannot hold",
        ),
        ({**QWEN, "model": "lab/our-own-model"}, 1, "the size of lab/our-own-model is not known"),
        ({"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}, 1, "not known before it is measured"),
        (QWEN, 0, "names no GPU"),
    ],
)
def test_why_there_is_no_rate_is_said(tmp_path, engine, gpus, said):
    simulate = by_sheet(tmp_path, engine, gpus)[0]
    assert simulate.hours is None
    assert said in simulate.source


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("org/Model-7B-Instruct", 7.0),
        ("org/model_1.5b", 1.5),
        ("org/v2-70B", 70.0),
        ("org/model-v7", None),
        ("a/8x7B", None),
    ],
)
def test_a_size_by_a_name(name, billions):
    size = size_of(name)
    assert (None if size is None else size.num_parameters / 1e9) == billions


def test_each_gpu_that_may_be_named_has_a_sheet():
    named = typing.get_args(typing.get_args(Throughput.model_fields["gpu"].annotation)[0])
    assert set(named) == set(GPUS)


def test_what_a_society_will_record_is_trained_on_that_often(tmp_path):
    tree = config(tmp_path, gpu="A100").model_dump(mode="json")
    tree["train"]["stages"][0] |= {"max_steps": None, "num_epochs": 2}
    made = compose.parse(tree, "test")
    run = RunDir(tmp_path / "quickstart")
    train = estimate(run, made, units(run, made))[1]
    most = 2 * (8 * 100 * 5) * 2.4 * (60 + 50 * 3)
    assert train.tokens == pytest.approx(Range(most / 2, most))
    said = io.StringIO()
    print_estimate([train], Console(file=said, width=160))
    assert "From a data sheet" in said.getvalue()


def test_a_fleet_is_shared_by_the_shards_and_each_of_its_servers_reads_the_weights(tmp_path):
    """Two servers do in a time what one does in twice as much; the shards, two at a time, share them."""
    fleet = {**QWEN, "kind": "fleet", "num_slots": 16}

    def cost(num_servers):
        tree = config(tmp_path, gpu="A100").model_dump(mode="json")
        tree["engine"] = {**fleet, "num_servers": num_servers}
        tree["cluster"]["simulate"]["gpus_per_node"], tree["cluster"]["serve"]["gpus_per_node"] = 0, 1
        made = compose.parse(tree, "test")
        run = RunDir(tmp_path / "quickstart")
        return estimate(run, made, units(run, made))[0]

    alone, one, two = by_sheet(tmp_path, {**QWEN, "num_slots": 16})[0], cost(1), cost(2)
    assert one.hours == pytest.approx(alone.hours.times(2))  # of one GPU, not of one for each of two shards
    assert two.hours == pytest.approx(alone.hours)
    assert one.gpu_hours == pytest.approx(one.hours)
    assert two.gpu_hours == pytest.approx(alone.gpu_hours)


def test_generations_that_cost_the_same_are_shown_once_and_all_are_summed(tmp_path):
    made = config(tmp_path, calls_per_s=10, tokens_per_call=300, train_tokens_per_s=1000)
    run = RunDir(tmp_path / "quickstart")
    first = estimate(run, made, units(run, made))
    rows = [dataclasses.replace(one, generation=number) for number in range(1, 4) for one in first]
    said = io.StringIO()
    print_estimate(rows, Console(file=said, width=200))
    assert "simulate, of generations 2 to 3 each" in said.getvalue()
    assert said.getvalue().count("56,000 calls") == 2
    assert f"{3 * sum(one.gpu_hours.low for one in first):,.1f}" in said.getvalue()
