"""What Slurm says, read; what it is told. The real one is in integration/test_slurm.py."""

import io
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from salign import compose
from salign.cluster.slurm.batch import batch_file
from salign.cluster.slurm.check import _compare
from salign.cluster.slurm.commands import (
    LiveJob,
    Node,
    Slurm,
    _minutes,
    _node,
    _num_gpus,
    _telling_states,
    clean_environment,
)
from salign.cluster.slurm.jobs import chain, suffix_of
from salign.cluster.slurm.scheduler import SlurmScheduler
from salign.cluster.slurm.submission import Submission, _note, submissions
from salign.cluster.status import Board, print_status
from salign.commands import status
from salign.config import SlurmCluster
from salign.errors import ConfigError, StageError, exit_code_of
from salign.markers import mark_done
from salign.plan import to_run, units
from salign.restarts import check_restart
from salign.run import RunDir, create_run
from salign.work import begin


def config(root: Path, **given):
    stages = [
        {"name": "sft", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "ds.json"},
        {"name": "stable", "objective": {"kind": "stable"}, "data": {"kind": "run"}, "deepspeed": "ds.json"},
    ]
    tree = {
        "run": {"root": str(root), "name": "r"},
        "society": {"num_worlds": 5, "num_shards": 5},
        "train": {"stages": stages},
        "cluster": {"kind": "slurm", "python": "python", **given.pop("cluster", {})},
        **given,
    }
    return compose.parse(tree, "test")


def jobs_of(root: Path, max_array_size: int = 1001, **cluster):
    made = config(root, cluster=cluster)
    return chain(made.cluster, to_run(units(RunDir(root / "r"), made)), max_array_size)


# --- what Slurm says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("30:00", 30), ("0:30", 0), ("1:00:00", 60), ("2-01:30:00", 2970), ("infinite", None), ("n/a", None)],
)
def test_time_limits(limit, minutes):
    assert _minutes(limit) == minutes


@pytest.mark.parametrize(
    ("gres", "gpus"), [("(null)", 0), ("gpu:2", 2), ("gpu:a100:4(S:0-1)", 4), ("shard:8,gpu:1", 1), ("gpu", 1)]
)
def test_gpus(gres, gpus):
    assert _num_gpus(gres) == gpus


def test_a_node():
    assert _node("n1|debug*|4|16000|gpu:2|1-00:00:00|idle".split("|")) == NODE
    assert not _node("n1|debug*|4|16000|gpu:2|1-00:00:00|drained*".split("|")).usable


def test_a_step_says_what_its_job_does_not():
    lines = [
        "7_0|COMPLETED",
        "7_0.batch|COMPLETED",
        "7_1|FAILED",
        "7_1.batch|FAILED",
        "7_1.0|OUT_OF_MEMORY",
        "8|CANCELLED by 1000",
        "8.0|FAILED",
        "9_[2-5%2]|PENDING",
        "10.0|NODE_FAIL",
        "10|REQUEUED",
    ]
    assert _telling_states(line.split("|") for line in lines) == {
        "7_0": "COMPLETED",
        "7_1": "OUT_OF_MEMORY",
        "8": "CANCELLED",
        "10": "NODE_FAIL",
    }


def test_a_job_hands_nothing_of_itself_on():
    inside = {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "x", "PMI_RANK": "0", "SLURM_CONF": "/c", "HOME": "/h"}
    inside |= {"SQUEUE_STATES": "RUNNING", "SACCT_FORMAT": "x", "SINFO_ALL": "1", "SCANCEL_STATE": "PENDING"}
    assert clean_environment(inside) == {"SLURM_CONF": "/c", "HOME": "/h"}


def test_a_command_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs sinfo, which is not on the PATH"):
        Slurm().nodes()


# --- the chain -----------------------------------------------------------------------------------


def test_the_chain_of_a_new_run(tmp_path):
    jobs = jobs_of(tmp_path)
    assert {job.name: job.after for job in jobs} == {
        "simulate": (),
        "collect": ("simulate",),
        "train-sft": (),
        "train-stable": ("train-sft", "collect"),
        "evaluate-base": (),
        "evaluate-stable": ("train-stable",),
    }
    assert [len(job.tasks) for job in jobs] == [5, 1, 1, 1, 1, 1]


def test_shards_are_packed_and_arrays_cut(tmp_path):
    jobs = jobs_of(tmp_path, max_array_size=2, shards_per_task=2)
    assert [[unit.key for unit in task] for job in jobs[:2] for task in job.tasks] == [
        ["simulate/0", "simulate/1"],
        ["simulate/2", "simulate/3"],
        ["simulate/4"],
    ]
    assert [job.name for job in jobs[:3]] == ["simulate-0", "simulate-1", "collect"]
    assert jobs[2].after == ("simulate-0", "simulate-1")


def test_only_what_is_missing_and_what_rests_on_it(tmp_path):
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    for shard in (0, 1, 3, 4):
        folder = run.shard(shard)
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
        mark_done(folder, ["file"], {}, {})
    jobs = chain(made.cluster, to_run(units(run, made)), 1001)
    assert [[unit.key for unit in task] for task in jobs[0].tasks] == [["simulate/2"]]
    assert jobs[1].after == ("simulate",)


def test_with_too_few_shards_the_collector_only_waits_for_their_end(tmp_path):
    made = config(tmp_path, cluster={"min_shards": 3})
    run = RunDir(tmp_path / "r")
    collect = chain(made.cluster, to_run(units(run, made)), 1001)[1]
    assert "--dependency=afterany:7\n" in batch_file(run, made, collect, code=Path("/code"), after=["7"])


# --- batch files ---------------------------------------------------------------------------------

GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=project
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:41:42
#SBATCH --exclude='n[3-4]'
#SBATCH --export=PATH,MY_KEY
#SBATCH --gpus-per-node=4
#SBATCH --job-name=r-train-stable{suffix}
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=65536M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output={run}/slurm/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240

# setup
module load cuda
export SLURM_EXPORT_ENV=ALL
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" OMP_NUM_THREADS="${{OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}}"
export PYTHONPATH=/code"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1
export SALIGN_FAILED={run}/slurm/"$SLURM_JOB_ID".failed
rm -f "$SALIGN_FAILED"
export SALIGN_STARTS={run}/slurm/"$SLURM_JOB_ID".starts
echo start >> "$SALIGN_STARTS"
if [ "$(wc -l < "$SALIGN_STARTS")" -gt 4 ]; then
  touch "$SALIGN_FAILED"; echo "error: the job was started 4 times, and Python did not begin to work. Look at the \
lines above, at cluster.setup, cluster.python and the stage's mem_gb; then launch again."; exit 1
fi

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {run}/slurm/%j_%t_log.out --kill-on-bad-exit=1 python -u -m submitit.core._submit {run}/slurm


# teardown
code=$?
case $code in 75|137|140|143) [ -e "$SALIGN_FAILED" ] || for pause in 2 5 10 20 40 80; do \
scontrol requeue "$SLURM_JOB_ID" && break; sleep $pause; done ;; esac
exit $code"""


def test_the_batch_file_of_a_training_stage(tmp_path):
    train = {"nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "cpus_per_task": 8, "mem_gb": 64, "timeout_min": 240}
    made = config(
        tmp_path,
        engine={"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key_env": "MY_KEY"},
        cluster={
            "partition": "gpu",
            "account": "project",
            "train": train,
            "setup": ["module load cuda"],
            "environment": ["PATH"],
            "sbatch": {"exclude": "n[3-4]"},
        },
    )
    run = RunDir(tmp_path / "r")
    job = next(job for job in chain(made.cluster, units(run, made), 1001) if job.name == "train-stable")
    text = batch_file(run, made, job, code=Path("/code"), after=["41", "42"])
    assert text == GOLDEN.format(run=shlex.quote(str(run.path)), suffix=suffix_of(run))


def test_a_job_whose_python_never_begins_is_given_up(tmp_path):
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    run.slurm.mkdir(parents=True)
    file = tmp_path / "job.sbatch"
    file.write_text(batch_file(run, made, chain(made.cluster, units(run, made), 1001)[1], code=Path("/code")))
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": "kill -9 $$", "scontrol": 'echo "$@" >> "$ASKED"'}.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    environ = {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "ASKED": str(tmp_path / "asked")}
    ends = [
        subprocess.run(["bash", str(file)], env=environ, capture_output=True, text=True, check=False) for _ in "12345"
    ]
    assert [end.returncode for end in ends] == [137] * 4 + [1]
    assert "error: the job was started 4 times, and Python did not begin" in ends[4].stdout
    assert (tmp_path / "asked").read_text() == "requeue 7\n" * 4
    assert (run.slurm / "7.failed").exists()


def test_python_that_begins_forgets_the_starts(tmp_path, monkeypatch):
    (tmp_path / "7.starts").write_text("start\n")
    monkeypatch.setenv("SALIGN_STARTS", str(tmp_path / "7.starts"))
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR2)]
    begin()
    for number, handler in handlers:
        signal.signal(number, handler)
    assert not (tmp_path / "7.starts").exists()


def test_the_batch_file_of_an_array_over_ranks(tmp_path):
    made = config(tmp_path, cluster={"max_parallel": 3, "simulate": {"nodes": 2}, "mpi": "pmix"})
    run = RunDir(tmp_path / "r")
    text = batch_file(run, made, chain(made.cluster, units(run, made), 1001)[0], code=Path("/code"))
    assert "#SBATCH --array=0-4%3\n" in text
    assert "--mpi=pmix" in text
    assert "%A_%a_%t_log.out" in text


def test_no_secret_is_in_a_batch_file(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-the-test")
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    texts = [batch_file(run, made, job, code=Path("/c")) for job in chain(made.cluster, units(run, made), 1001)]
    assert not any("secret-of-the-test" in text for text in texts)


def test_runs_of_one_name_have_jobs_of_different_names(tmp_path):
    assert suffix_of(RunDir(tmp_path / "a" / "r")) != suffix_of(RunDir(tmp_path / "b" / "r"))


def test_a_torn_list_of_jobs_is_read_as_far_as_it_goes(tmp_path):
    run = RunDir(tmp_path / "r")
    run.slurm.mkdir(parents=True)
    assert submissions(run) == []
    array = Submission("12", "simulate", (("simulate/0",), ("simulate/1",)), (), 1.0)
    alone = Submission("13", "collect", (("dataset",),), ("12",), 2.0)
    _note(run, array)
    _note(run, alone)
    with (run.slurm / "jobs.jsonl").open("a") as file:
        file.write('{"job_id": "14", "na')
    assert submissions(run) == [array, alone]
    assert array.log(run, 1) == run.slurm / "12_1_0_log.out"
    assert alone.log(run, 0) == run.slurm / "13_0_log.out"


# --- what the cluster has ------------------------------------------------------------------------

NODE = Node("n1", "debug", True, 4, 16000, 2, 1440, True)
NODES = [
    NODE,
    Node("n2", "debug", True, 4, 16000, 2, 1440, False),
    Node("g1", "gpu", False, 64, 512000, 8, None, True),
]


@pytest.mark.parametrize(
    ("asked", "mistake"),
    [
        ({}, None),
        ({"partition": "gpu", "gpus_per_node": 8, "timeout_min": 99999}, None),
        ({"partition": "gup"}, "there is no partition 'gup' (did you mean 'gpu'?); there are: debug, gpu"),
        ({"timeout_min": 1441}, "timeout_min 1441 exceeds the 1440 minutes of the partition debug"),
        ({"nodes": 3}, "nodes 3 exceeds the 2 fitting nodes of the partition debug"),
        ({"gpus_per_node": 3}, "3 GPUs, and no node of the partition debug has all of it (at most 4 CPUs, 2 GPUs"),
        ({"tasks_per_node": 3}, "6 CPUs"),
        ({"mem_gb": 16}, "16 GB"),
    ],
)
def test_what_is_asked_for_is_compared_with_what_there_is(asked, mistake):
    cluster = SlurmCluster(kind="slurm", train=asked)
    mistakes, _ = _compare("train", cluster.train, cluster, NODES)
    assert (mistake is None and not mistakes) or (len(mistakes) == 1 and mistake in mistakes[0]), mistakes


def test_nodes_that_are_down_are_waited_for():
    cluster = SlurmCluster(kind="slurm", train={"nodes": 2})
    mistakes, notes = _compare("train", cluster.train, cluster, NODES)
    assert not mistakes
    assert "1 of the partition debug are up" in notes[0]


def test_without_a_default_partition_one_must_be_named():
    cluster = SlurmCluster(kind="slurm")
    mistakes, _ = _compare("train", cluster.train, cluster, NODES[2:])
    assert "has no default partition; name one of gpu" in mistakes[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"collect": {"nodes": 2}}, "collect: runs in one process, not 2"),
        ({"train": {"timeout_min": 1}}, "train.timeout_min 1 is no longer than signal_delay_s 120"),
        ({"sbatch": {"dependency": "x", "nice": 5}}, "sbatch.dependency is set by salign"),
        ({"sbatch": {"job_name": "x"}}, "sbatch.job_name is set by salign"),
        ({"sbatch": {"mem_per_cpu": "2G"}, "train": {"mem_gb": 4}}, "sbatch.mem_per_cpu contradicts train.mem_gb"),
        ({"environment": ["A=B"]}, "environment"),
        ({"min_shards": 6}, "min_shards 6 exceeds society.num_shards 5"),
    ],
)
def test_a_cluster_section_that_cannot_be(tmp_path, given, said):
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, cluster=given)


# --- starting again ------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path):
    made = units(RunDir(tmp_path / "r"), config(tmp_path))[0]
    made.folder.mkdir(parents=True)
    return made


def start(monkeypatch, unit, count: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
    check_restart(unit)


def test_a_unit_that_gets_no_further_is_given_up(monkeypatch, unit):
    for count in range(3):
        start(monkeypatch, unit, count)
    with pytest.raises(StageError, match="simulate 0 was started 4 times by the scheduler without getting further"):
        start(monkeypatch, unit, 3)


@pytest.mark.parametrize("what", ["journal-00000.new-1", "checkpoints/step-{:07d}/done.json"])
def test_a_unit_that_gets_further_each_time_is_not(monkeypatch, unit, what):
    for count in range(20):
        path = unit.folder / what.format(count)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * count)
        start(monkeypatch, unit, count)
        start(monkeypatch, unit, count + 1)


def test_a_new_job_counts_anew(monkeypatch, unit):
    for _ in range(3):
        for count in range(3):
            start(monkeypatch, unit, count)


def test_outside_of_slurm_nothing_is_counted(monkeypatch, unit):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    check_restart(unit)
    assert not list(unit.folder.iterdir())


def test_a_job_that_fails_of_an_error_leaves_its_flag(monkeypatch, tmp_path, capsys):
    flag = tmp_path / "failed"
    monkeypatch.setenv("SALIGN_FAILED", str(flag))
    assert exit_code_of(lambda: None) == 0
    assert not flag.exists()

    def fail() -> None:
        raise StageError("the value, the place, the remedy")

    assert exit_code_of(fail) == 1
    assert flag.exists()
    assert "error: the value, the place, the remedy" in capsys.readouterr().err


# --- a scheduler that does not answer ------------------------------------------------------------


def test_status_goes_on_where_slurm_does_not_answer(tmp_path, monkeypatch):
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    run.slurm.mkdir(parents=True)
    _note(run, Submission("7", "collect", (("dataset",),), (), 1.0))
    monkeypatch.setattr(SlurmScheduler, "is_reachable", lambda self: True)
    monkeypatch.setattr(Slurm, "ended_states", lambda self, jobs: {})
    waiting = LiveJob("7", "r-collect" + suffix_of(run), "PENDING", "Priority", "")
    monkeypatch.setattr(Slurm, "live_jobs", lambda self, suffix: [waiting])
    board = Board(run, made)
    board.look()
    assert board.standings["dataset"].word == "pending"
    assert board.silent_since is None

    def no_answer(self, suffix):
        raise StageError("`squeue` gave no answer in 60 s")

    monkeypatch.setattr(Slurm, "live_jobs", no_answer)
    board.look()
    assert board.standings["dataset"].word == "pending"  # as it was known last
    assert board.is_at_work
    since = board.silent_since
    assert since is not None
    board.look()
    assert board.silent_since == since
    text = io.StringIO()
    print_status(run, made, Console(file=text, width=200))
    assert "known only from the run's folder: `squeue` gave no answer in 60 s" in text.getvalue()


def test_a_folder_with_brackets_in_its_name_is_shown(tmp_path, monkeypatch, capsys):
    root = tmp_path / "[" / "x]r"
    monkeypatch.chdir(tmp_path)
    made = config(root)
    run = create_run(made)
    monkeypatch.setattr("sys.argv", ["status", str(run.path)])
    status.main()
    assert "[/x]r" in capsys.readouterr().out.replace("\n", "")
