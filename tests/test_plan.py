"""What is left to do follows from the markers alone."""

import dataclasses
import io
import json
import sys

import pytest
from rich.console import Console
from waits import wait_until

from salign import compose, work
from salign.cluster.status import print_status
from salign.dataset.collect import collect
from salign.errors import ConfigError, StageError
from salign.launch import print_plan
from salign.locks import lock
from salign.manifest import create_run
from salign.markers import forget, mark_done, read_done, read_failure, recording_failure
from salign.plan import ASKED, Unit, complete, find_unit, require_needs, state, to_run, units
from salign.run import RunDir
from salign.stages import STAGES
from salign.tracking.metrics import MetricsLog
from salign.tracking.progress import watch_simulation, watching


@pytest.fixture
def config(tmp_path):
    stages = [
        {"name": "sft", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "ds.json"},
        {"name": "stable", "objective": {"kind": "stable"}, "data": {"kind": "run"}, "deepspeed": "ds.json"},
    ]
    tree = {"society": {"num_worlds": 2, "num_shards": 2}, "train": {"stages": stages}, "run": {"root": str(tmp_path)}}
    return compose.parse(tree, "test")


@pytest.fixture
def run(config):
    return create_run(config)


def finish(run, config, key: str, text: str = "result") -> None:
    """Marks a unit as done, made from what its inputs are now."""
    everything = {unit.key: unit for unit in units(run, config)}
    unit = everything[key]
    unit.folder.mkdir(parents=True, exist_ok=True)
    (unit.folder / "file").write_text(text)
    inputs = {need: read_done(everything[need].folder).digest for need in unit.needs}
    if unit.asked:
        inputs[ASKED] = unit.asked
    mark_done(unit.folder, ["file"], inputs, {})


def finish_all(run, config) -> list[str]:
    keys = [unit.key for unit in units(run, config)]
    for key in keys:
        finish(run, config, key)
    return keys


def test_a_run_consists_of_shards_dataset_stages_and_evaluations(run, config):
    needs = {unit.key: unit.needs for unit in units(run, config)}
    assert needs == {
        "simulate/0": (),
        "simulate/1": (),
        "dataset": ("simulate/0", "simulate/1"),
        "train/sft": (),
        "train/stable": ("train/sft", "dataset"),
        "evaluate/base": (),
        "evaluate/stable": ("train/stable",),
    }


def test_stages_that_start_from_the_base_need_no_other(run, config):
    stages = [stage.model_dump(mode="json") for stage in config.train.stages]
    stages[1] |= {"start": "base", "data": {"kind": "answers"}}
    turned = compose.parse({"train": {"stages": [*stages, {**stages[1], "name": "more", "start": "sft"}]}}, "test")
    needs = {unit.key: unit.needs for unit in units(run, turned)}
    assert needs == {  # nothing is simulated where no stage is trained on it
        "train/sft": (),
        "train/stable": (),
        "train/more": ("train/sft",),
        "evaluate/base": (),
        "evaluate/more": ("train/more",),
    }


def test_a_unit_is_named_by_stage_and_argument(run, config):
    everything = units(run, config)
    assert find_unit(everything, "simulate", "1").folder == run.shard(1)
    assert find_unit(everything, "collect").key == "dataset"
    for words, message in {
        ("simulate", "2"): "no unit `simulate 2`; there are: 0, 1",
        ("train", "sfd"): "no unit `train sfd`; there are: sft, stable",
        ("evaluate", "sft"): "no unit `evaluate sft`; there are: base, stable",
    }.items():
        with pytest.raises(ConfigError, match=message):
            find_unit(everything, *words)


def test_what_was_measured_otherwise_is_to_be_measured_anew(run, config):
    finish_all(run, config)

    def left(**given):
        changed = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=given)})
        return [unit.key for unit in to_run(units(run, changed))]

    assert left() == left(models=("stable",), allow_missing=True) == []
    assert left(models=("sft", "stable")) == ["evaluate/sft"]
    assert left(benchmarks=("questions", "pairs")) == left(num_documents=3) == ["evaluate/base", "evaluate/stable"]


def test_no_model_need_be_evaluated(config):
    def models(**settings):
        return compose.parse({"evaluate": settings, "run": {"root": "r"}}, "test").evaluated_models

    assert models() == ("base",)
    assert models(models=None) == ("base",)
    assert models(models=[]) == ()
    assert config.evaluated_models == ("base", "stable")


def test_units_at_work_elsewhere_need_not_be_done(run, config):
    everything = units(run, config)
    collect = find_unit(everything, "collect")
    require_needs(everything, everything)
    require_needs([collect], everything, at_work=("simulate/0", "simulate/1"))
    with pytest.raises(ConfigError, match="collect needs simulate/1, and that is not done"):
        require_needs([collect], everything, at_work=("simulate/0",))


def test_everything_done_is_complete(run, config):
    keys = finish_all(run, config)
    assert complete(units(run, config)) == set(keys)


def test_what_was_made_from_something_else_is_left_to_do(run, config):
    finish_all(run, config)
    finish(run, config, "simulate/1", "another result")
    assert complete(units(run, config)) == {"simulate/0", "simulate/1", "train/sft", "evaluate/base"}


def test_the_same_result_again_keeps_what_was_made_from_it(run, config):
    keys = finish_all(run, config)
    finish(run, config, "simulate/1")
    assert complete(units(run, config)) == set(keys)


def test_a_missing_file_is_not_done(run, config):
    finish_all(run, config)
    (run.dataset / "file").unlink()
    assert "dataset" not in complete(units(run, config))
    assert "train/stable" not in complete(units(run, config))


def test_the_state_of_a_unit_in_one_word(run, config):
    unit = units(run, config)[0]
    assert state(unit, set()) == ("to do", None)
    unit.folder.mkdir(parents=True)
    (unit.folder / "metrics.jsonl").write_text("")
    assert state(unit, set()) == ("interrupted", None)
    with pytest.raises(OSError, match="boom"), recording_failure(unit.folder):
        raise OSError("boom")
    assert state(unit, set()) == ("failed", "boom")
    with lock(unit.folder / ".lock", "it"):
        assert state(unit, set()) == ("running", None)
    assert state(unit, {unit.key}) == ("done", None)


def test_status_shows_the_error_the_log_and_how_to_go_on(run, config):
    unit = units(run, config)[1]
    unit.folder.mkdir(parents=True)
    with pytest.raises(OSError, match="boom"), recording_failure(unit.folder):
        raise OSError("boom")
    (run.logs / unit.log_name).write_text("first\n" * 9 + "the last line\n")
    said = io.StringIO()
    print_status(run, config, Console(file=said, width=200))
    for words in (
        "simulate 1 failed: boom",
        "the last line",
        str(run.logs / "simulate-1.log"),
        "6 to do",
        "to continue: python",
    ):
        assert words in said.getvalue()


def test_where_there_is_no_terminal_progress_is_plain_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("salign.tracking.progress.LINE_EVERY_S", 0.05)
    shards = [Unit("simulate", name, tmp_path / name) for name in ("0", "1")]
    files = [shard.folder / "metrics.jsonl" for shard in shards]
    said = io.StringIO()
    with watching(watch_simulation(shards), Console(file=said, width=20)):
        for number, file in enumerate(files):
            with MetricsLog(file) as log:
                log.log({"sim/calls": 3 + number, "sim/calls_most": 10, "sim/tokens": 50, "sim/round": 1 + number})
        wait_until(lambda: "7/20 calls" in said.getvalue())
    line = next(line for line in said.getvalue().splitlines() if "7/20 calls" in line)
    assert "round 1 done, 100 tokens" in line
    assert "\x1b" not in said.getvalue()


def test_the_plan_of_a_config_is_json_free_of_secrets(config, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test-123456")
    assert "sk-of-the-test" not in json.dumps(config.model_dump(mode="json"))


def test_a_unit_that_fails_before_its_stage_begins_says_so_in_its_folder(run, monkeypatch):
    """By whichever command a job does it: such as one that was started again and again."""
    monkeypatch.setattr(work, "begin", lambda: None)  # whose handlers of signals would stay
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    run.dataset.mkdir()

    def by_command() -> None:
        monkeypatch.setattr(sys, "argv", ["work", "collect", str(run.path)])
        with pytest.raises(StageError):
            work.main()

    def within_a_job() -> None:
        with pytest.raises(SystemExit):
            work.do_all(run.path, [("collect",)])

    for do in (by_command, within_a_job):
        forget(run.dataset)
        (run.dataset / ".restarts.json").write_text('{"progress": [0, ""], "num_idle": 2}')
        do()
        assert "without getting further" in read_failure(run.dataset)[0]


# --- a run that is extended ------------------------------------------------------------------------


def extended(config, **society):
    return config.model_copy(update={"society": config.society.model_copy(update=society)})


def simulated(run, config):
    for shard in range(config.society.num_shards):
        folder = run.shard(shard)
        folder.mkdir(parents=True)
        mark_done(folder, [], {}, {"max_rounds": config.society.max_rounds})


def test_a_finished_run_may_have_more_rounds_and_all_that_follows_is_to_be_done_again(run, config):
    simulated(run, config)
    finish(run, config, "dataset")
    more = extended(config, max_rounds=config.society.max_rounds + 1)
    assert create_run(more).path == run.path
    assert run.config() == more
    left = [unit.key for unit in to_run(units(run, more))]
    assert {"simulate/0", "simulate/1", "dataset", "train/stable"} <= set(left)
    assert "train/sft" in left  # it was never done; nothing else is needed by it
    assert "simulate/0" not in [unit.key for unit in to_run(units(run, config))]


def test_a_shard_of_fewer_rounds_is_not_collected(run, config):
    simulated(run, config)
    more = extended(config, max_rounds=config.society.max_rounds + 1)
    with pytest.raises(StageError, match=r"shard 0 was simulated for 50 rounds, and the run has .*= 51 by now"):
        collect(run, more)


@pytest.mark.parametrize("society", [{"max_rounds": 3}, {"max_rounds": 60, "audience_size": 2}])
def test_a_finished_run_may_have_neither_fewer_rounds_nor_more_of_another_kind(run, config, society):
    simulated(run, config)
    with pytest.raises(ConfigError, match="holds a run of another config"):
        create_run(extended(config, **society))


def test_a_run_of_several_generations_may_not(run, config):
    config = config.model_copy(update={"generations": config.generations.model_copy(update={"num": 2})})
    run.config_file.write_text(compose.dump(config))
    simulated(run, config)
    with pytest.raises(ConfigError, match=r"differs in society.max_rounds"):
        create_run(extended(config, max_rounds=60))


# --- shards that tasks take from each other --------------------------------------------------------


@pytest.fixture
def done_by(monkeypatch):
    """Which shards a task has done, each of which takes what it should of a run of six."""
    shards: list[int] = []

    def simulate(run, config, shard):
        with lock(run.shard(int(shard)) / ".lock", shard):
            shards.append(int(shard))
            finish(run, config, f"simulate/{shard}")

    monkeypatch.setattr(work, "begin", lambda: None)
    monkeypatch.setitem(STAGES, "simulate", dataclasses.replace(STAGES["simulate"], run=simulate))
    return shards


@pytest.fixture
def six(tmp_path, config):
    config = config.model_copy(update={"society": config.society.model_copy(update={"num_worlds": 6, "num_shards": 6})})
    return create_run(config)


def words(*shards):
    return [("simulate", str(shard)) for shard in shards]


def test_a_task_begins_with_its_own_shards_and_takes_what_is_left(six, done_by):
    work.do_all(six.path, words(2, 3), shared=[(0, 6)])
    assert done_by == [2, 3, 4, 5, 0, 1]
    work.do_all(six.path, words(0, 1), shared=[(0, 6)])
    assert len(done_by) == 6


def test_without_sharing_it_does_its_own_alone(six, done_by):
    work.do_all(six.path, words(2, 3))
    assert done_by == [2, 3]


def test_what_another_process_has_claimed_or_failed_at_is_left_to_it(six, done_by):
    with pytest.raises(StageError), recording_failure(six.shard(4)):
        raise StageError("of the shard")
    with lock(six.shard(3) / ".lock", "shard 3"), lock(six.shard(0) / ".lock", "shard 0"):
        work.do_all(six.path, words(2, 3), shared=[(0, 2), (3, 6)])
    assert done_by == [2, 5, 1]
    assert not (six.shard(3) / "failed.json").exists()
    work.do_all(six.path, words(2, 3), shared=[(0, 6)])  # as after a node was lost
    assert done_by == [2, 5, 1, 3, 0]


def test_what_another_task_did_while_it_was_looked_at_is_not_done_again(six, done_by, monkeypatch):
    looked = work.is_locked

    def done_meanwhile(path):
        found = looked(path)
        finish(six, six.config(), "simulate/4")
        return found

    monkeypatch.setattr(work, "is_locked", done_meanwhile)
    work.do_all(six.path, words(4), shared=[(4, 5)])
    assert done_by == []


def test_a_shard_that_fails_ends_its_task_with_an_error_when_all_is_done(six, done_by, monkeypatch):
    simulate = STAGES["simulate"].run

    def failing(run, config, shard):
        if shard == "2":
            raise StageError("of the shard")
        simulate(run, config, shard)

    monkeypatch.setitem(STAGES, "simulate", dataclasses.replace(STAGES["simulate"], run=failing))
    with pytest.raises(SystemExit) as ended:
        work.do_all(six.path, words(2, 3), shared=[(0, 6)])
    assert ended.value.code == 1
    assert done_by == [3, 4, 5, 0, 1]


def test_processes_of_one_task_take_what_is_left_too(six, done_by, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    work.do_all(six.path, words(0, 1, 2), 2, [(0, 6)])
    assert done_by == [1, 2, 3, 4, 5, 0]


def test_many_shards_that_stand_alike_have_one_line(tmp_path):
    def printed(num):
        society = {"num_worlds": num, "num_shards": num, "topology": {"size": 5}}
        config = compose.parse({"run": {"root": str(tmp_path), "name": str(num)}, "society": society}, "test")
        run, said = RunDir(tmp_path / str(num)), io.StringIO()
        run.shard(2).mkdir(parents=True)
        (run.shard(2) / "metrics.jsonl").touch()
        print_plan(run, config, Console(file=said, width=120))
        return [line.split() for line in said.getvalue().splitlines() if "simulate" in line and "collect" not in line]

    assert [line[2] for line in printed(4)] == ["0", "1", "2", "3"]
    rows = printed(400)
    assert [line[2] for line in rows] == ["0", "1", "2", "3"]
    assert rows[-1][3:6] == ["..", "simulate", "399"]
    assert "(397)" in rows[-1]
