"""What Slurm says, read; what it is told. The real one is in integration/test_slurm.py."""

import dataclasses
import getpass
import io
import os
import platform
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from salign import compose
from salign.cluster import live
from salign.cluster.live import not_at_work
from salign.cluster.slurm.batch import batch_file, names_of_environment, notes_on_environment, parameters
from salign.cluster.slurm.check import compare, mistakes_of_fleets, mistakes_of_setup
from salign.cluster.slurm.commands import (
    Ending,
    LiveJob,
    Node,
    Slurm,
    clean_environment,
    endings_of_accounting,
    endings_of_controller,
    minutes_of,
    node_of,
    num_gpus_of,
)
from salign.cluster.slurm.jobs import chain, suffix_of
from salign.cluster.slurm.scheduler import SlurmScheduler
from salign.cluster.slurm.submission import Submission, note, shared_shards, submissions, submit
from salign.cluster.status import Board, print_status
from salign.commands import status
from salign.config import SlurmCluster, SlurmResources
from salign.errors import ConfigError, HeldError, StageError, exit_code_of
from salign.locks import lock
from salign.manifest import create_run
from salign.markers import mark_done
from salign.plan import servers_of, to_run, units
from salign.restarts import check_restart
from salign.run import RunDir
from salign.work import begin

ROOT = Path(__file__).parents[1]


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
    assert minutes_of(limit) == minutes


@pytest.mark.parametrize(
    ("gres", "gpus"), [("(null)", 0), ("gpu:2", 2), ("gpu:a100:4(S:0-1)", 4), ("shard:8,gpu:1", 1), ("gpu", 1)]
)
def test_gpus(gres, gpus):
    assert num_gpus_of(gres) == gpus


def test_a_node():
    assert node_of("n1|debug*|4|16000|gpu:2|1-00:00:00|idle".split("|")) == NODE
    assert not node_of("n1|debug*|4|16000|gpu:2|1-00:00:00|drained*".split("|")).usable


def test_a_step_says_what_its_job_does_not():
    lines = [
        "7_0|COMPLETED|0:0|n1|None",
        "7_0.batch|COMPLETED|0:0|n1|",
        "7_1|FAILED|1:0|n2|None",
        "7_1.batch|FAILED|1:0|n2|",
        "7_1.0|OUT_OF_MEMORY|0:125|n2|",
        "8|CANCELLED by 1000|0:0|None assigned|Dependency",
        "8.0|FAILED|1:0|n1|",
        "9_[2-5%2]|PENDING|0:0|None assigned|Priority",
        "10.0|NODE_FAIL|1:0|n3|",
        "10|REQUEUED|0:0|n3|None",
        "11|FAILED|68:0|n4|None",
    ]
    found = endings_of_accounting(line.split("|") for line in lines)
    assert {job: str(ending) for job, ending in found.items()} == {
        "7_0": "COMPLETED on n1",
        "7_1": "OUT_OF_MEMORY on n2, signal 125",
        "8": "CANCELLED (Dependency)",
        "10": "NODE_FAIL on n3, exit code 1",
        "11": "FAILED on n4: the run's folder is not to be seen there",
    }


def test_without_accounting_the_controller_says_how_jobs_ended():
    text = "JobId=9 ArrayJobId=7 ArrayTaskId=1 JobState=FAILED Reason=NonZeroExitCode ExitCode=2:0 NodeList=n[1-2] X=\n"
    text += "JobId=8 JobName=a=b c JobState=COMPLETED Reason=None ExitCode=0:0 NodeList=n1\nJobId=77 JobState=RUNNING\n"
    found = endings_of_controller(text, ["7", "8"])
    assert found["7_1"] == Ending("FAILED", "2:0", "n[1-2]", "NonZeroExitCode")
    assert str(found["7_1"]) == "FAILED on n[1-2], exit code 2 (NonZeroExitCode)"
    assert set(found) == {"7_1", "8"}


@pytest.mark.parametrize(
    ("reason", "is_stuck"),
    [
        ("Priority", False),
        ("Resources", False),
        ("Dependency", False),
        ("BeginTime", False),
        ("ReqNodeNotAvail", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("AssocGrpCpuLimit", False),
        ("AssocGrpCPURunMinutesLimit", False),
        ("QOSGrpGRESRunMinutes", False),
        ("AssocGrpCPUMinutesLimit", True),
        ("QOSGrpBillingMinutes", True),
        ("JobHeldUser", True),
        ("launch_failed_requeued_held", True),
        ("DependencyNeverSatisfied", True),
        ("BadConstraints", True),
        ("QOSMaxCpuPerJobLimit", True),
        ("AssocMaxWallDurationPerJobLimit", True),
        ("QOSMinGRES", True),
        ("PartitionTimeLimit", True),
        ("InvalidAccount", True),
    ],
)
def test_a_job_that_waiting_does_not_help_is_told_from_others(reason, is_stuck):
    assert LiveJob("7", "r", "PENDING", reason, "").is_stuck is is_stuck
    assert not LiveJob("7", "r", "RUNNING", reason, "n1").is_stuck


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


class QueueOf:
    """Slurm's answers, as far as a launch beside live jobs asks."""

    def __init__(self, monkeypatch, run: RunDir) -> None:
        self.run, self.ids, self.cancelled = run, list[str](), list[str]()
        monkeypatch.setattr(SlurmScheduler, "is_reachable", lambda self: True)
        monkeypatch.setattr(Slurm, "live_jobs", lambda _, suffix, others: self.jobs())
        run.slurm.mkdir(parents=True)

    def jobs(self) -> list[LiveJob]:
        return [LiveJob(id_, "r-x" + suffix_of(self.run), "RUNNING", "None", "n1") for id_ in self.ids]

    def submitted(self, job_id: str, *tasks: str) -> None:
        made = Submission(job_id, "x", tuple((task,) for task in tasks), (), 1.0)
        note(self.run, dataclasses.replace(made, name_in_queue="r-x" + suffix_of(self.run), user=getpass.getuser()))


def test_what_is_missing_is_submitted_beside_what_is_at_work(tmp_path, monkeypatch):
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    queue = QueueOf(monkeypatch, run)
    queue.submitted("7", *(f"simulate/{shard}" for shard in range(5)))
    queue.submitted("8", "train/sft")
    queue.ids = ["7_0", "7_1", "7_2", "7_4", "8"]  # shard 3 has failed, and what waited for it is gone
    scheduler = SlurmScheduler(run)
    left = not_at_work(run, scheduler, to_run(units(run, made)))
    jobs = chain(made.cluster, left, 1001, scheduler.at_work())
    assert {job.name: (job.after, job.after_live) for job in jobs} == {
        "simulate": ((), ()),
        "collect": (("simulate",), ("7_0", "7_1", "7_2", "7_4")),
        "train-stable": (("collect",), ("8",)),
        "evaluate-base": ((), ()),
        "evaluate-stable": (("train-stable",), ()),
    }
    queue.ids = [f"7_{task}" for task in range(5)]
    assert chain(made.cluster, left, 1001, scheduler.at_work())[1].after_live == ("7",)


@pytest.mark.parametrize(
    ("live", "said"),
    [
        (["7_0", "7_1", "7_2", "7_3", "7_4", "9"], "has live jobs: 7 9, and it is not known what all of them do"),
        (["7_0", "8"], "the job 8 (collect) would not wait for simulate/1"),
    ],
)
def test_a_launch_beside_jobs_that_it_cannot_join_is_refused(tmp_path, monkeypatch, live, said):
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    queue = QueueOf(monkeypatch, run)
    queue.submitted("7", *(f"simulate/{shard}" for shard in range(5)))
    queue.submitted("8", "dataset")
    queue.ids = live
    with pytest.raises(StageError, match=re.escape(said) + ".* --replace"):
        not_at_work(run, SlurmScheduler(run), to_run(units(run, made)))


def test_a_unit_that_a_process_of_no_job_works_on_is_not_submitted(tmp_path, monkeypatch):
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    QueueOf(monkeypatch, run)
    monkeypatch.setattr(live, "UNLOCK_PATIENCE_S", 0.0)
    with lock(run.shard(2) / ".lock", "shard 2"), pytest.raises(StageError, match="works on simulate 2"):
        not_at_work(run, SlurmScheduler(run), to_run(units(run, made)))


def test_jobs_of_another_user_or_place_are_asked_for_by_their_ids(tmp_path, monkeypatch):
    text = r"""#!/bin/bash
case "$*" in
  --me*) ;;
  *99*) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1 ;;
  "--jobs 12,13 "*) printf '12_0|RUNNING|None|n1|other-x\n13|PENDING|Priority||of a stranger\n' ;;
esac
"""
    (tmp_path / "squeue").write_text(text)
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [job.id for job in Slurm().live_jobs("-x", {"12": "other-x", "13": "mine-x"})] == ["12_0"]
    assert Slurm().live_jobs("-x", {"99": "x"}) == []


def test_a_chain_that_stops_half_way_says_what_is_in_the_queue(tmp_path, monkeypatch):
    """The controller goes after the second job: sbatch and scancel fail."""
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    sbatch = 'echo x >>"$COUNT"; n=$(wc -l <"$COUNT"); [ $n -lt 3 ] && echo "Submitted batch job $n" || '
    sbatch += '{ echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1; }'
    for name, text in {"sbatch": sbatch, "scancel": "exit 1", "srun": "true"}.items():
        (bin_ / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    monkeypatch.setenv("NOT_NAMED", "1")
    made = config(tmp_path, cluster={"more_environment": ["COUNT"]})
    jobs = chain(made.cluster, units(run, made), 1001)
    with pytest.raises(StageError) as caught:
        submit(run, made, jobs, code=tmp_path, slurm=Slurm())
    assert "did not take the job train-sft: sbatch: error: Unable to contact slurm controller" in str(caught.value)
    assert "In the queue are 1 (simulate), 2 (collect). Launch again" in str(caught.value)
    assert os.environ["NOT_NAMED"] == "1"
    assert [one.job_id for one in submissions(run)] == ["1", "2"]


def test_shards_that_tasks_share_stand_as_they_are_claimed(tmp_path, monkeypatch):
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    queue = QueueOf(monkeypatch, run)
    note(run, Submission("7", "simulate", (("simulate/0", "simulate/1"),), (), 1.0))
    monkeypatch.setattr(queue, "jobs", lambda: [LiveJob("7", "r-x", "RUNNING", "", "n1")])
    monkeypatch.setattr(Slurm, "endings", lambda self, jobs: {})
    board = Board(run, made)
    with lock(run.shard(1) / ".lock", "shard 1"):
        board.look()
    standings = [(board.standings[key].word, board.standings[key].detail) for key in ("simulate/0", "simulate/1")]
    assert standings[0] == ("pending", "no task has taken it yet")
    assert standings[1] == ("running", f"process {os.getpid()} on {platform.node()}")


def test_tasks_take_each_others_shards_where_they_have_several_of_one_rank(tmp_path):
    ranges = {}
    for packed, ranks in ((1, 1), (2, 1), (2, 2)):
        cluster = {"shards_per_task": packed, "simulate": {"tasks_per_node": ranks}}
        made = config(tmp_path, cluster=cluster)
        job = chain(made.cluster, [*units(RunDir(tmp_path / "r"), made)][1:], 1001)[0]
        ranges[packed, ranks] = shared_shards(made.cluster, job)
    assert ranges == {(1, 1): [], (2, 1): [(1, 5)], (2, 2): []}


def test_nothing_waits_for_jobs_that_do_not_start_by_themselves(tmp_path, monkeypatch):
    made = config(tmp_path)
    run = RunDir(tmp_path / "r")
    queue = QueueOf(monkeypatch, run)
    queue.submitted("7", "simulate/0")
    queue.submitted("8", "dataset")
    monkeypatch.setattr(Slurm, "endings", lambda self, jobs: {})
    held = LiveJob("7", "r-x", "PENDING", "JobHeldUser", "")
    waiting = LiveJob("8", "r-x", "PENDING", "Dependency", "")
    board = Board(run, made)
    for jobs, is_at_work in (([held, waiting], False), ([waiting], True), ([held], False)):
        monkeypatch.setattr(queue, "jobs", lambda jobs=jobs: jobs)
        board.look()
        assert board.is_at_work is is_at_work
    assert board.stuck() == ["7 (JobHeldUser: `scontrol release 7`)"]
    text = io.StringIO()
    print_status(run, made, Console(file=text, width=200))
    assert "do not start by themselves: 7 (JobHeldUser: `scontrol release 7`)" in text.getvalue()


def test_a_fleet_comes_first_and_shards_begin_when_its_first_server_has(tmp_path, monkeypatch):
    made = config(tmp_path, engine={"kind": "fleet", "program": "vllm", "num_servers": 3})
    run, scheduler = RunDir(tmp_path / "r"), SlurmScheduler(RunDir(tmp_path / "r"))
    left = to_run(units(run, made))
    jobs = chain(made.cluster, left, 1001, servers=servers_of(run, made))
    name = f"serve-{made.fleets[0].name}"
    assert (jobs[0].name, len(jobs[0].tasks), jobs[0].after) == (name, 3, ())
    assert (jobs[1].name, jobs[1].after_start) == ("simulate", (name,))
    told = parameters(run, made, jobs[1], code=tmp_path, begun=["41_0"])
    assert told["additional_parameters"]["dependency"] == "after:41_0"
    shards = [unit for unit in left if unit.stage != "simulate"]
    assert "serve" not in {job.stage.name for job in chain(made.cluster, shards, 1001, servers=servers_of(run, made))}
    # Servers of an earlier launch that live are not submitted again.
    monkeypatch.setattr(Slurm, "max_array_size", lambda self: 1001)
    queue = QueueOf(monkeypatch, run)
    queue.submitted("7", *(unit.key for unit in servers_of(run, made)[:2]))
    queue.ids = ["7_0", "7_1"]
    assert set(scheduler.at_work()) == {unit.key for unit in servers_of(run, made)[:2]}
    (job,) = [job for job in scheduler.jobs(made, left) if job.stage.name == "serve"]
    assert [unit.key for task in job.tasks for unit in task] == [servers_of(run, made)[2].key]


def test_a_fleet_that_is_larger_than_its_partition_is_refused():
    nodes = [NODE, dataclasses.replace(NODE, name="n2"), dataclasses.replace(NODE, name="g1", partition="gpu")]
    asked = SlurmResources(cpus_per_task=1, gpus_per_node=1)
    assert mistakes_of_fleets(4, asked, None, nodes) == []
    [mistake] = mistakes_of_fleets(5, asked, "debug", nodes)
    assert "5 servers are asked for in all, and the 2 nodes of the partition have room for 4 at a time" in mistake
    over_two = SlurmResources(nodes=2, cpus_per_task=1, gpus_per_node=1)
    assert mistakes_of_fleets(2, over_two, "debug", nodes) == []
    [mistake] = mistakes_of_fleets(3, over_two, "debug", nodes)
    assert "room for 2 at a time (cluster.serve asks for 1 CPUs and 1 GPUs on each of 2 nodes)" in mistake
    [mistake] = mistakes_of_fleets(1, SlurmResources(nodes=3, gpus_per_node=1), "debug", nodes)
    assert "room for 0 at a time" in mistake


# --- batch files ---------------------------------------------------------------------------------

GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=project
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:41:42
#SBATCH --exclude='n[3-4]'
#SBATCH --export=ALL
#SBATCH --gpus-per-node=4
#SBATCH --job-name=r-train-stable{suffix}
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=65536M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/dev/null
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240

# setup
SALIGN_JOBS={run}/slurm SALIGN_EXCLUDE='n[3-4]'
{functions}\
[ ! -d "$SALIGN_JOBS" ] || exec >>"$SALIGN_JOBS/${{salign_task}}_0_log.out" 2>&1
salign_begin
{{ module load cuda
}} || salign_cannot_begin $? "cluster.setup[0] (module) failed with exit code $?."
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" OMP_NUM_THREADS="${{OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}}"
export PYTHONPATH=/code"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {run}/slurm/%j_%t_log.out --kill-on-bad-exit=1 --gpu-bind=closest python -u -m \
submitit.core._submit {run}/slurm


# teardown
salign_finish $?"""


def test_the_batch_file_of_a_training_stage(tmp_path):
    train = {"nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "cpus_per_task": 8, "mem_gb": 64, "timeout_min": 240}
    made = config(
        tmp_path,
        engine={"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key_env": "MY_KEY"},
        cluster={
            "sbatch": {"partition": "cpu", "account": "project", "exclude": "n[3-4]", "exclusive": True},
            "srun": {"gpu-bind": "closest"},
            "train": {**train, "sbatch": {"partition": "gpu", "exclusive": False}},
            "setup": ["module load cuda"],
            "environment": ["PATH"],
        },
    )
    run = RunDir(tmp_path / "r")
    job = next(job for job in chain(made.cluster, units(run, made), 1001) if job.name == "train-stable")
    text = batch_file(run, made, job, code=Path("/code"), after=["41", "42"])
    functions = (ROOT / "salign/cluster/slurm/job.sh").read_text()
    assert text == GOLDEN.format(run=shlex.quote(str(run.path)), suffix=suffix_of(run), functions=functions)
    assert names_of_environment(made) == ["PATH", "MY_KEY"]


def job_file(root: Path, number: int = 0, **cluster) -> tuple[RunDir, str]:
    """The run, and the batch file of a job of its chain."""
    made = config(root, cluster=cluster)
    run = RunDir(root / "r")
    return run, batch_file(run, made, chain(made.cluster, units(run, made), 1001)[number], code=Path("/code"))


@pytest.mark.parametrize(
    ("cluster", "there", "not_there"),
    [
        ({"simulate": {"sbatch": {"gres": "gpu:a100:2"}, "gpus_per_node": 2}}, ["--gres=gpu:a100:2"], ["gpus-per"]),
        ({"simulate": {"sbatch": {"gpus_per_task": "a100:1"}, "gpus_per_node": 1}}, ["--gpus-per-task=a100:1"], []),
        ({"sbatch": {"gres": "nvme:1"}, "simulate": {"gpus_per_node": 1}}, ["--gpus-per-node=1", "--gres=nvme:1"], []),
        ({"simulate": {"mem_gb": 0}}, ["--mem=0M"], []),
        ({"after": 17}, ["--dependency=afterok:17", "--kill-on-invalid-dep=yes"], []),
        ({"after": "singleton"}, ["--dependency=singleton"], []),
        ({"sbatch": {"qos": "a"}, "simulate": {"sbatch": {"qos": None}}}, [], ["--qos"]),
        ({"simulate": {"srun": {"container-image": "a.sqsh"}}}, ["--container-image=a.sqsh"], []),
        ({"simulate": {"nodes": 2}}, ["--mpi=pmi2"], []),
        ({"simulate": {"nodes": 2, "srun": {"mpi": "pmix"}}}, ["--mpi=pmix"], ["pmi2"]),
        (
            {"shards_per_task": 4, "shards_at_once": 2},
            ["--ntasks-per-node=2", "bad-exit=0", "--mpi=none"],
            [],
        ),
    ],
)
def test_what_a_stage_asks_of_slurm(tmp_path, cluster, there, not_there):
    given = job_file(tmp_path, **cluster)[1]
    given = "\n".join(line for line in given.splitlines() if line.startswith(("#SBATCH", "srun")))
    assert [option for option in there if option not in given] == []
    assert [option for option in not_there if option in given] == []


def test_what_a_profile_tells_sbatch_stands_for_what_is_not_given(tmp_path, monkeypatch):
    monkeypatch.setenv("SBATCH_ACCOUNT", "project")
    monkeypatch.setenv("SBATCH_PARTITION", "cpu")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    _, text = job_file(tmp_path, sbatch={"partition": "gpu"})
    assert "--account=project\n" in text
    assert "--partition=gpu\n" in text
    notes = "; ".join(notes_on_environment(SlurmCluster(kind="slurm", sbatch={"partition": "gpu"})))
    assert "SBATCH_ACCOUNT=project" in notes
    assert "not told SBATCH_TIMELIMIT" in notes
    assert "SBATCH_PARTITION" not in notes


# --- a job that begins, or does not ---------------------------------------------------------------

COMMANDS = {
    "srun": '[ "$PYTHON_BEGINS" = 0 ] || rm -f "$SALIGN_STARTS"; [ "$KIND" != kill ] || kill -9 $$; exit "${CODE:-0}"',
    "scontrol": """
case $1 in
  show) for name in ${3//,/ }; do echo $name; done ;;
  update) echo "$@" >>"$ASKED"; echo "${3#*=}" >"$EXCLUDED" ;;
  *) echo "$@" >>"$ASKED" ;;
esac""",
    "squeue": 'cat "$EXCLUDED" 2>/dev/null',
    "sinfo": 'printf "n%s\\n" 1 2 3 4 5',
}


class Job:
    """A batch file, run with stand-ins for Slurm's commands."""

    def __init__(self, root: Path, **cluster) -> None:
        self.run, self.text = job_file(root, **cluster)
        self.root, self.asked = root, root / "asked"
        (root / "bin").mkdir()
        for name, text in COMMANDS.items():
            (root / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (root / "bin" / name).chmod(0o755)

    def start(self, node: str, **more: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": node}
        environ |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4", "SLURM_JOB_NODELIST": node}
        environ |= {"ASKED": str(self.asked), "EXCLUDED": str(self.root / "excluded"), **more}
        return subprocess.run(["bash"], input=self.text, env=environ, capture_output=True, text=True, check=False)

    @property
    def log(self) -> str:
        return (self.run.slurm / "7_4_0_log.out").read_text()

    def requests(self) -> list[str]:
        return self.asked.read_text().splitlines() if self.asked.exists() else []


@pytest.fixture
def job(tmp_path):
    made = Job(tmp_path, setup=["true", "[ ! -e broken ] || (echo no such module; exit 5)"])
    made.run.slurm.mkdir(parents=True)
    return made


def test_a_job_whose_python_never_begins_is_tried_on_three_nodes(job):
    ends = [job.start(node, PYTHON_BEGINS="0", KIND="kill") for node in ("n1", "n2", "n3")]
    assert [end.returncode for end in ends] == [137] * 3
    elsewhere = ["requeue 7_4", "update JobId=7_4 ExcNodeList=n1", "requeue 7_4", "update JobId=7_4 ExcNodeList=n1,n2"]
    assert job.requests() == elsewhere
    assert "error: Python did not begin to work (exit code 137). It could not begin on n1,n2,n3" in job.log
    assert (job.run.slurm / "7.failed").exists()


def test_a_line_of_setup_that_fails_is_named_and_tried_elsewhere(job, monkeypatch):
    monkeypatch.chdir(job.root)
    (job.root / "broken").touch()
    assert job.start("n1").returncode == 5
    assert "no such module\ncluster.setup[1] ([) failed with exit code 5. It is tried on another node." in job.log
    assert job.requests() == ["requeue 7_4", "update JobId=7_4 ExcNodeList=n1"]
    (job.root / "broken").unlink()
    assert job.start("n2").returncode == 0
    assert len(job.requests()) == 2


def test_a_node_without_the_shared_file_system_is_left_out(tmp_path):
    job = Job(tmp_path)
    ends = [job.start(node) for node in ("n1", "n2", "n3")]
    assert [end.returncode for end in ends] == [68] * 3
    assert job.requests()[-1] == "update JobId=7_4 ExcNodeList=n1,n2"
    assert f"error: {job.run.slurm} is not to be seen on n3. It could not begin on n1,n2,n3" in ends[2].stderr


def test_a_task_alone_is_put_back_into_the_queue_and_not_its_array(job):
    assert job.start("n1", CODE="75").returncode == 75
    assert job.requests() == ["requeue 7_4"]
    (job.run.slurm / "7.failed").touch()  # of another start
    assert job.start("n1", CODE="1").returncode == 1
    assert job.requests() == ["requeue 7_4"]


def test_a_setup_that_is_no_command_is_noticed_at_the_launch(tmp_path):
    assert "cluster.setup[1] is not a whole command" in mistakes_of_setup(["true", "if true; then"])[0]
    assert "here-document" in mistakes_of_setup(["cat <<END\n1"])[0]
    assert mistakes_of_setup(["if true; then\n  true\nfi # all"]) == []


def test_python_that_begins_forgets_the_starts(tmp_path, monkeypatch):
    (tmp_path / "7.starts").write_text("start\n")
    monkeypatch.setenv("SALIGN_STARTS", str(tmp_path / "7.starts"))
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR2)]
    begin()
    for number, handler in handlers:
        signal.signal(number, handler)
    assert not (tmp_path / "7.starts").exists()


def test_the_batch_file_of_an_array(tmp_path):
    _, text = job_file(tmp_path, max_parallel=3)
    assert "#SBATCH --array=0-4%3\n" in text
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
    note(run, array)
    note(run, alone)
    with (run.slurm / "jobs.jsonl").open("a") as file:
        file.write('{"job_id": "14", "na')
    assert submissions(run) == [array, alone]
    assert array.log(run, 1) == run.slurm / "12_1_0_log.out"
    assert alone.log(run, 0) == run.slurm / "13_0_log.out"
    assert dataclasses.replace(array, at_once=2).log(run, 1, 3) == run.slurm / "12_1_1_log.out"


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
        ({"sbatch": {"partition": "gpu"}, "gpus_per_node": 8, "timeout_min": 99999}, None),
        ({"sbatch": {"partition": "gpu,debug"}, "gpus_per_node": 8}, None),
        ({"mem_gb": 0}, None),
        ({"sbatch": {"partition": "gup"}}, "there is no partition 'gup' (did you mean 'gpu'?); there are: debug, gpu"),
        ({"timeout_min": 1441}, "timeout_min 1441 exceeds the 1440 minutes of the partition debug"),
        ({"nodes": 3}, "nodes 3 exceeds the 2 fitting nodes of the partition debug"),
        ({"gpus_per_node": 3}, "3 GPUs, and no node of the partition debug has all of it (at most 4 CPUs, 2 GPUs"),
        ({"tasks_per_node": 3}, "6 CPUs"),
        ({"mem_gb": 16}, "16 GB"),
    ],
)
def test_what_is_asked_for_is_compared_with_what_there_is(asked, mistake):
    cluster = SlurmCluster(kind="slurm", train=asked)
    mistakes, _ = compare("train", cluster.train, cluster.sbatch_options("train").get("partition"), NODES)
    assert (mistake is None and not mistakes) or (len(mistakes) == 1 and mistake in mistakes[0]), mistakes


def test_nodes_that_are_down_are_waited_for():
    cluster = SlurmCluster(kind="slurm", train={"nodes": 2})
    mistakes, notes = compare("train", cluster.train, None, NODES)
    assert not mistakes
    assert "1 of the partition debug are up" in notes[0]


def test_without_a_default_partition_one_must_be_named():
    cluster = SlurmCluster(kind="slurm")
    mistakes, _ = compare("train", cluster.train, None, NODES[2:])
    assert "has no default partition; name one of gpu" in mistakes[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"collect": {"nodes": 2}}, "collect: runs in one process, not 2"),
        ({"train": {"timeout_min": 1}}, "train.timeout_min 1 is no longer than signal_delay_s 120"),
        ({"sbatch": {"dependency": "x", "nice": 5}}, "sbatch.dependency is set by salign: set cluster.after"),
        ({"train": {"sbatch": {"job_name": "x"}}}, "train.sbatch.job-name is set by salign"),
        ({"sbatch": {"depend": "x"}}, "sbatch.depend is set by salign"),
        ({"sbatch": {"p": "gpu"}}, "'p' is not the long name of an option"),
        ({"sbatch": {"comment": "a\nrm -r /"}}, "has several lines, and is one"),
        ({"sbatch": {"mem-per-cpu": 1, "mem_per_cpu": 2}}, "an option is given twice"),
        ({"simulate": {"srun": {"output": "x"}}}, "simulate.srun.output is set by salign"),
        ({"sbatch": {"mem_per_cpu": "2G"}, "train": {"mem_gb": 4}}, "sbatch.mem-per-cpu contradicts train.mem_gb"),
        ({"sbatch": {"gres": "gpu:2"}, "train": {"gpus_per_node": 1}}, "set train.gpus_per_node=2"),
        ({"shards_per_task": 2, "shards_at_once": 3}, "shards_at_once 3 exceeds shards_per_task 2"),
        ({"shards_per_task": 2, "shards_at_once": 2, "simulate": {"nodes": 2}}, "needs shards of one rank"),
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


def test_a_start_is_not_counted_while_another_task_works_on_the_unit(monkeypatch, unit):
    """Tasks may take each other's shards, and who begins with one removes what dead processes had begun to write."""
    monkeypatch.setattr("salign.locks.PATIENCE_OF_JOB_S", 0.0)
    with lock(unit.folder / ".lock", unit.name), pytest.raises(HeldError, match="simulate 0"):
        start(monkeypatch, unit, 0)
    assert not (unit.folder / ".restarts.json").exists()
    start(monkeypatch, unit, 0)
    assert (unit.folder / ".restarts.json").exists()


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
    note(run, Submission("7", "collect", (("dataset",),), (), 1.0))
    monkeypatch.setattr(SlurmScheduler, "is_reachable", lambda self: True)
    monkeypatch.setattr(Slurm, "endings", lambda self, jobs: {})
    waiting = LiveJob("7", "r-collect" + suffix_of(run), "PENDING", "Priority", "")
    monkeypatch.setattr(Slurm, "live_jobs", lambda self, suffix, others: [waiting])
    board = Board(run, made)
    board.look()
    assert board.standings["dataset"].word == "pending"
    assert board.silent_since is None

    def no_answer(self, suffix, others):
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
