"""What sites do to jobs, on a real cluster: nodes that see nothing, controllers that go, jobs that are held."""

import collections
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import OPEN_GATES, Devcluster, environment, launch
from journals import records_of
from vllm_stand_in import path_with_vllm

from salign.cluster.slurm.submission import submissions
from salign.markers import read_done
from salign.run import RunDir

pytestmark = pytest.mark.integration

# The society and its data alone.
SHORT = ["train.stages=[]", "evaluate.models=[base]"]


@pytest.fixture(autouse=True)
def _empty_queue(slurm: Devcluster) -> Iterator[None]:
    yield
    slurm.clear()


def run_of(config: Path) -> RunDir:
    return RunDir(config.parent / "runs" / "small")


def status(run: RunDir) -> str:
    command = [sys.executable, "-m", "salign", "status", str(run.path)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=True).stdout


def on_node(node: str, *command: str) -> None:
    """In a node's own mounts."""
    subprocess.run(["srun", "-w", node, "-n1", *command], check=True, capture_output=True)


def test_a_node_that_does_not_see_the_runs_folder_is_left_out(slurm, slurm_config):
    """It would eat every shard: it is always free."""
    run = run_of(slurm_config)
    assert launch(str(slurm_config), "--prepare").returncode == 0
    busy = slurm.submit("-p", "high", "-w", "n1", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 20")
    slurm.wait_for("a job on n1", lambda: slurm.ask("squeue", "-h", "-t", "R", "-j", busy))
    on_node("n2", "mount", "-t", "tmpfs", "none", str(run.path))
    try:
        done = launch(str(slurm_config), *SHORT, "--wait", "cluster.sbatch.exclude=n[3-4]")
    finally:
        on_node("n2", "umount", str(run.path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_done(run.dataset)
    array = slurm.ask("scontrol", "-o", "show", "job", submissions(run)[0].job_id)
    assert re.findall(r"Restarts=(\d+)", array) == ["1", "1"]
    assert ["n2" in nodes.split(",") for nodes in re.findall(r"ExcNodeList=(\S+)", array)] == [True, True], array


def test_a_controller_that_goes_between_two_jobs(slurm, slurm_config, tmp_path):
    """What is in the queue is told, and the next launch goes on from there."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    failing = "echo 'error: Unable to contact slurm controller' >&2; exit 1"
    count = tmp_path / "count"
    text = f'case "$*" in *test-only*) exec {real} "$@" ;; esac\necho x >>{count}\n'
    text += f'[ $(wc -l <{count}) -lt 2 ] && exec {real} "$@"\n{failing}'
    for name, code in {"sbatch": text, "scancel": failing}.items():
        (stubs / name).write_text(f"#!/bin/bash\n{code}\n")
        (stubs / name).chmod(0o755)
    env = {**environment(), "PATH": f"{stubs}:{os.environ['PATH']}"}
    broken = launch(str(slurm_config), *SHORT, "cluster.sbatch.begin=now+5", env=env)
    assert broken.returncode == 1
    assert "Unable to contact slurm controller" in broken.stderr
    run = run_of(slurm_config)
    (array,) = submissions(run)
    assert f"In the queue are {array.job_id} (simulate)" in broken.stderr

    done = launch(str(slurm_config), *SHORT, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(one.name, one.after) for one in submissions(run)[1:]] == [
        ("collect", (array.job_id,)),
        ("evaluate-base", ()),
    ]
    assert read_done(run.dataset)


def test_jobs_that_are_held_are_not_waited_for(slurm, slurm_config):
    done = launch(str(slurm_config), *SHORT, "--wait", "cluster.simulate.sbatch.hold=true")
    assert done.returncode == 1
    assert "nothing of the run" in done.stderr
    array = submissions(run_of(slurm_config))[0].job_id
    assert f"{array}_0 (JobHeldUser: `scontrol release {array}_0`)" in done.stderr
    assert "do not start by themselves" in status(run_of(slurm_config))


def test_several_shards_at_once_in_a_task_and_no_login_for_any(slurm, slurm_config, tmp_path):
    """The log of each process is its own; nothing of it counts as a rank; the login profile is not read."""
    words = [*SHORT, "society.num_worlds=4", "society.num_shards=4", "cluster.shards_per_task=4"]
    words += ["cluster.shards_at_once=2", 'cluster.setup=["echo get_user_env=$SLURM_GET_USER_ENV."]']
    done = launch(str(slurm_config), *words, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    run = run_of(slurm_config)
    task = submissions(run)[0].job_id
    logs = [(run.slurm / f"{task}_{process}_log.out").read_text() for process in (0, 1)]
    assert "get_user_env=." in logs[0]
    assert all(read_done(run.shard(shard)) for shard in range(4))


def test_shards_go_on_with_the_servers_of_a_fleet_that_are_there(slurm, slurm_config, tmp_path):
    """Each has two nodes. One is put back into the queue, and started again; both end with the last shard."""
    env = {**environment(), "PATH": path_with_vllm(tmp_path / "bin"), "VLLM_STAND_IN_S": "0.2"}
    env["VLLM_STAND_IN_TOLD"] = str(tmp_path)
    words = [*SHORT, "engine={kind: fleet, program: vllm, num_servers: 2, max_in_flight: 4}", "society.rating=parse"]
    words += [
        OPEN_GATES,
        "society.observer_check=null",
        "cluster.more_environment=[VLLM_STAND_IN_S, VLLM_STAND_IN_TOLD]",
    ]
    words += ["cluster.serve={nodes: 2, cpus_per_task: 1, timeout_min: 20}", "--only", "simulate"]
    done = launch(str(slurm_config), *words, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    run = run_of(slurm_config)
    servers, shards = submissions(run)
    slurm.wait_for("calls", lambda: any(records_of(run.shard(shard)) for shard in (0, 1)), run.path)
    slurm.ask("scontrol", "requeue", servers.task_id(0))
    slurm.wait_until_ended(servers.job_id, shards.job_id, written=run.path)
    for shard in (0, 1):
        facts = read_done(run.shard(shard)).facts
        assert facts["num_calls"] == len(records_of(run.shard(shard)))
    log = servers.log(run, 0).read_text()
    assert log.count("Starting with JobEnvironment") == 2, log
    assert "is served at http://n" in log
    assert "Job completed successfully" in log
    told = [json.loads(line) for rank in (0, 1) for line in (tmp_path / f"told-by-{rank}").read_text().splitlines()]
    starts = collections.Counter((part["--master-addr"], part["--master-port"]) for part in told)
    assert list(starts.values()) == [2, 2, 2]  # each has a part on both nodes
    assert {part["address"] == part["--master-addr"] for part in told if part["--node-rank"] == "1"} == {False}


STATUS_AS_NOBODY = """
import os, pwd, sys
from salign.cluster.status import print_status
from salign.commands import status
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)  # the packages may be where only root reads: they are loaded
status.main()
"""


def test_the_status_as_another_user(slurm, slurm_config):
    """Who may read the run's folder, and has no jobs there."""
    assert launch(str(slurm_config), *SHORT, "cluster.sbatch.hold=true").returncode == 0
    run = run_of(slurm_config)
    for folder in run.path.parents:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    command = [sys.executable, "-c", STATUS_AS_NOBODY, str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert f"{submissions(run)[0].job_id}_0 (JobHeldUser" in done.stdout
