"""What a run will cost, by what runs before it took."""

import copy
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from test_estimate import CALLS, SOCIETY, STAGE

from salign import compose
from salign.cluster import estimate as estimates
from salign.cluster.rates import Range
from salign.manifest import create_run
from salign.markers import begin_unit, mark_done
from salign.plan import units
from salign.run import RunDir
from salign.tracking.metrics import MetricsLog


def config(tmp_path, name="second", **changes):
    tree = {
        "run": {"root": str(tmp_path), "name": name},
        "society": copy.deepcopy(SOCIETY),
        "train": {"stages": [copy.deepcopy(STAGE)]},
        "evaluate": {"models": ["base", "stable"]},
        "engine": {"kind": "transformers"},
    }
    for path, value in changes.items():
        *above, last = path.split("__")
        section = tree
        for key in above:
            section = tree["train"]["stages"][0] if key == "stage" else section.setdefault(key, {})
        section[last] = value
    return compose.parse(tree, "test")


def took(folder, seconds):
    """A unit that is done, for which its process took so long."""
    now = iter([0.0, float(seconds)])
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("salign.markers.time.monotonic", now.__next__)
        begin_unit(folder)
        mark_done(folder, ["metrics.jsonl"] if (folder / "metrics.jsonl").exists() else [], {}, {})


def measured(made, calls_per_s=2.0):
    """A run that is done: 100 calls in each shard, with 20 s beside them; 3 steps of 100 tokens a second, with 30 s."""
    run = create_run(made)
    for shard in range(made.society.num_shards):
        now = iter([0.0, 100 / calls_per_s])
        with pytest.MonkeyPatch.context() as patch, MetricsLog(run.shard(shard) / "metrics.jsonl") as log:
            patch.setattr("salign.tracking.metrics.time.time", now.__next__)
            log.log({"sim/calls": 0, "sim/tokens": 0})
            log.log({"sim/calls": 100, "sim/calls_journaled": 0, "sim/tokens": 30_000})
        took(run.shard(shard), 100 / calls_per_s + 20)
    for stage in made.train.stages:
        with MetricsLog(run.stage(stage.name) / "metrics.jsonl") as log:
            for step in (1, 2, 3):
                row = {"train/global_step": step, "train/steps_most": 3, "train/num_tokens": 600 * step}
                log.log({**row, "perf/step_time_s": 6.0, "perf/tokens_per_s": 100.0})
        took(run.stage(stage.name), 18 + 30)
    for model, seconds in (("base", 80), ("stable", 100)):  # side by side, each on half of the machine
        took(run.evaluation(model), seconds)
    return run


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return measured(config(tmp_path_factory.mktemp("runs"), "original")).path


@pytest.fixture
def first(original, tmp_path):
    """A run that others beside it are compared with."""
    return RunDir(Path(shutil.copytree(original, tmp_path / "first")))


def launched(run, seconds):
    """The run with the time of its launch."""
    os.utime(run.manifest, (seconds, seconds))
    return run


def estimate(made):
    run = RunDir(made.run.root / made.run.name)
    return {row.stage: row for row in estimates.estimate(run, made, units(run, made))}


def test_a_run_like_an_earlier_one_takes_as_long(tmp_path, first):
    found = estimate(config(tmp_path))
    assert found["simulate"].source == "2.0 calls/s, measured in run first"
    # two shards at a time, each with 20 s beside its calls
    assert found["simulate"].hours == pytest.approx(Range.exact(2 * (CALLS / 4 / 2 + 20) / 3600))
    assert found["simulate"].tokens == Range.exact(300 * CALLS)
    train = found["train stable"]
    assert train.source == "100.0 tokens/s, measured in run first"
    assert train.tokens == Range.exact(10 * 600)
    assert train.hours == pytest.approx(Range.exact((10 * 6 + 30) / 3600))
    assert found["evaluate base"].hours == Range.exact(40 / 3600)
    assert found["evaluate stable"].hours == Range.exact(50 / 3600)
    said = io.StringIO()
    estimates.print_estimate(list(found.values()), Console(file=said, width=140))
    assert "evaluate base: 40 s, measured in run first." in said.getvalue()


ALL = "simulate train evaluate"


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({"run__seed": 3, "society__max_rounds": 2, "stage__learning_rate": 1.0, "stage__max_steps": 3}, ALL),
        ({"society__num_worlds": 4, "society__num_shards": 2, "evaluate__models": ["stable"]}, ALL),
        ({"model": "another"}, ""),
        ({"engine__max_batch": 4}, "train"),
        ({"engine__dtype": "bfloat16"}, "train"),
        ({"society__observer": {"kind": "scripted"}}, "train evaluate"),
        ({"society__rating": "parse"}, "train"),
        ({"cluster__num_workers": 1}, "train evaluate"),
        ({"cluster__ranks_per_shard": 2}, "train evaluate"),
        ({"cluster__num_ranks": 1}, "simulate"),
        ({"cluster": {"kind": "slurm"}}, ""),
        ({"stage__dtype": "bfloat16"}, "simulate evaluate"),
        ({"stage__attention": "flex"}, "simulate evaluate"),
        ({"stage__row_tokens": 200}, "simulate evaluate"),
        ({"stage__lora": {}}, "simulate evaluate"),
        ({"stage__objective": {"kind": "dpo"}}, "simulate evaluate"),
        ({"evaluate__num_questions": 3}, "simulate train"),
    ],
)
def test_what_is_measured_holds_where_what_decides_the_speed_is_the_same(tmp_path, first, changes, known):
    rows = estimate(config(tmp_path, **changes)).values()
    assert {row.stage.split()[0] for row in rows if "measured in run first" in row.source} == set(known.split())


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, ALL),
        ({"cluster__simulate": {"timeout_min": 99}, "cluster__train": {"mem_gb": 8}}, ALL),
        ({"cluster__sbatch": {"partition": "other"}}, ""),
        ({"cluster__simulate": {"cpus_per_task": 16}}, "train evaluate"),
        ({"cluster__train": {"nodes": 2}}, "simulate evaluate"),
        ({"cluster__evaluate": {"gpus_per_node": 1}}, "simulate train"),
    ],
)
def test_the_same_of_jobs(tmp_path, changes, known):
    slurm = {"cluster__kind": "slurm"}
    measured(config(tmp_path, "first", **slurm))
    rows = estimate(config(tmp_path, **slurm, **changes)).values()
    assert {row.stage.split()[0] for row in rows if "measured in run first" in row.source} == set(known.split())


def test_the_machine_of_a_local_run_must_be_like_this_one(tmp_path, first, monkeypatch):
    here = {"host": "far", "cores": 1024, "gpus": []}
    monkeypatch.setattr("salign.cluster.measured.this_machine", lambda: here)
    rows = estimate(config(tmp_path)).values()
    assert {row.stage for row in rows} == {"simulate", "train stable"}
    assert all("rate unknown" in row.source for row in rows)


def test_longer_replies_take_longer(tmp_path, first):
    """Between what is usual, which is the same, and what they may have at most."""
    says = {"max_tokens": 512}
    same = estimate(config(tmp_path))["simulate"]
    long = estimate(config(tmp_path, society__draft=says, society__feedback=says, society__revision=says))["simulate"]
    assert long.source == "1.0 to 2.0 calls/s, measured in run first, allowing for other lengths of replies"
    assert long.hours.low == same.hours.low
    written, at_most = 8 * 1 + 6 * 256, 8 * 1 + 6 * 512  # ratings by a digit, and texts
    assert long.hours.high == pytest.approx(2 * (CALLS / 4 / 2 * at_most / written + 20) / 3600)
    assert long.tokens.low == same.tokens.low < long.tokens.high


def test_the_newest_run_counts_and_the_run_itself_before_it(tmp_path, first):
    launched(measured(config(tmp_path, "b"), calls_per_s=4.0), 3000.0)
    launched(RunDir(Path(shutil.copytree(first.path, tmp_path / "c"))), 2000.0)
    launched(first, 1000.0)
    assert estimate(config(tmp_path))["simulate"].source == "4.0 calls/s, measured in run b"
    own = measured(config(tmp_path), calls_per_s=8.0)
    shutil.rmtree(own.shard(3))
    assert estimate(config(tmp_path))["simulate"].source == "8.0 calls/s, measured in this run"


def test_what_the_user_states_goes_before_another_run_and_that_before_a_data_sheet(tmp_path, first):
    stated = {"calls_per_s": 50.0, "train_tokens_per_s": 7.0, "gpu": "A100"}
    found = estimate(config(tmp_path, cluster__throughput=stated))
    assert found["simulate"].source == "50.0 calls/s, cluster.throughput"
    assert found["train stable"].source == "7.0 tokens/s, cluster.throughput"
    assert found["train stable"].tokens == Range.exact(10 * 600)
    found = estimate(config(tmp_path, cluster__throughput={"gpu": "A100", "tokens_per_call": 1000.0}))
    assert found["simulate"].source == "2.0 calls/s, measured in run first"
    assert found["simulate"].tokens == Range.exact(1000 * CALLS)


def test_data_of_another_kind_says_nothing_of_the_tokens_of_a_step(tmp_path, first):
    train = estimate(config(tmp_path, stage__data={"kind": "run", "kinds": ["imitation"]}))["train stable"]
    assert train.tokens == Range.exact(10 * 4 * 3 * 100)
    assert "measured in run first" in train.source


def test_a_later_generation_takes_what_the_first_one_took(tmp_path):
    made = config(tmp_path, "looped", generations__num=2)
    run = measured(made)
    earlier = estimates.Earlier(run, made)
    later = made.of_generation(2, run.model("stable"))
    second = run.generation(2)
    rows = {row.stage: row for row in estimates.estimate(second, later, units(second, later), earlier)}
    assert rows["simulate"].source == "2.0 calls/s, measured in generation 1"
    assert rows["train stable"].hours == pytest.approx(Range.exact((10 * 6 + 30) / 3600))
    assert rows["evaluate stable"].hours == Range.exact(50 / 3600)


def spoil(path, how):
    if how == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "noise":
        path.write_bytes(b"\xff\x00{[" * 50)
    elif how == "nested":
        path.write_text("[" * 100_000)
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(dict.fromkeys(row, how) | {"time": 1.0}) + "\n" for row in rows))


FILES = ("config.yaml", "manifest.json", "metrics.jsonl", "done.json")
VALUES = (None, 0, -1, True, "text", float("nan"), float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "how"),
    [
        *((name, how) for name in FILES for how in ("half", "noise", "nested", "pipe", "folder")),
        *(("metrics.jsonl", value) for value in VALUES),
    ],
)
def test_a_run_that_is_damaged_is_passed_over(tmp_path, first, of, how):
    broken = launched(RunDir(Path(shutil.copytree(first.path, tmp_path / "broken"))), 2000.0)
    launched(first, 1000.0)
    for path in list(broken.path.rglob(of)):
        spoil(path, how)
    (tmp_path / "no run").mkdir()
    (tmp_path / "a file").write_text("")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = estimate(config(tmp_path))
    assert all(row.hours is not None and 0 < row.hours.low < 1e6 for row in found.values())
    if of in ("config.yaml", "metrics.jsonl") and how != "half":
        assert found["simulate"].source == "2.0 calls/s, measured in run first"


def test_a_single_value_that_cannot_be_makes_a_stage_unknown(tmp_path, first):
    path = first.stage("stable") / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for name in ("train/global_step", "train/num_tokens", "perf/step_time_s"):
        path.write_text("".join(json.dumps({**row, name: -1}) + "\n" for row in rows))
        assert estimate(config(tmp_path))["train stable"].hours is None, name


def test_only_the_newest_runs_are_looked_at(tmp_path, first, monkeypatch):
    launched(first, 1.0)
    for number in range(20):
        run = RunDir(tmp_path / f"other-{number}")
        run.path.mkdir()
        run.config_file.touch()
        run.manifest.touch()
        launched(run, number + 2.0)
    looked_at = []
    monkeypatch.setattr(
        RunDir, "config", lambda run: looked_at.append(run.path.name) or config(tmp_path, model="other")
    )
    assert estimate(config(tmp_path))["simulate"].hours is None
    assert looked_at == [f"other-{number}" for number in reversed(range(20))]


def test_a_unit_says_how_long_it_took(tmp_path):
    took(tmp_path / "unit", 12.34)
    assert json.loads((tmp_path / "unit" / "done.json").read_text())["took_s"] == 12.3
    (tmp_path / "other").mkdir()
    mark_done(tmp_path / "other", [], {}, {})  # such as a checkpoint
    assert json.loads((tmp_path / "other" / "done.json").read_text())["took_s"] is None
