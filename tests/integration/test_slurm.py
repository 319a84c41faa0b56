"""A run as a chain of jobs on a real cluster: gone through, disturbed, broken and mended."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import OPEN_GATES, ROOT, Devcluster, environment, launch, launch_afresh, run_job
from forks import python
from waits import HANG_S, wait_until

from salign.cluster.slurm.submission import submissions
from salign.cluster.status import digest
from salign.markers import read_done
from salign.run import RunDir
from salign.tracking.metrics import read_metrics

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _empty_queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a job for the next, also where it fails."""
    yield
    if "slurm" in request.fixturenames:
        request.getfixturevalue("slurm").clear()


def status(run: RunDir, *words: str, env: dict[str, str] | None = None) -> str:
    command = [sys.executable, str(ROOT / "jobs" / "status.py"), str(run.path), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env or environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tasks(run: RunDir) -> dict[str, list[str]]:
    """The names of the run's submissions, each with the units of its tasks."""
    return {one.name: [key for task in one.tasks for key in task] for one in submissions(run)}


def simulated_here(config: Path, *overrides: str) -> str:
    """The digest of the same society simulated on this machine, shard after shard."""
    assert launch(str(config), *overrides, "run.name=here", "--prepare").returncode == 0
    run = RunDir(config.parent / "runs" / "here")
    for shard in range(run.config().society.num_shards):
        done = run_job("simulate", str(run.path), "--shard", str(shard))
        assert done.returncode == 0, done.stderr
    return digest(run, run.config())


# The quickstart with a tiny model, one call at a time: in batched arithmetic replies depend on their company.
QUICKSTART = [
    str(ROOT / "configs" / "quickstart.yaml"),
    "cluster.kind=slurm",
    "engine.max_batch=1",
    "society.num_worlds=4",
    "society.topology.size=3",
    "society.audience_size=4",  # so that tasks are at work for a while
    # A random model goes on to the last token.
    *(f"society.{what}.max_tokens=24" for what in ("draft", "feedback", "revision")),
    "evaluate.answer.max_tokens=16",
    "society.num_shards=4",
    OPEN_GATES,
    "train.stages.sft.learning_rate=1e-3",
    "evaluate.num_questions=2",
    "evaluate.benchmarks=[questions]",
    "cluster.signal_delay_s=30",
    *(f"cluster.{stage}.{what}" for stage in ("simulate", "collect", "evaluate") for what in ("cpus_per_task=1",)),
    *("cluster.train.nodes=2", "cluster.train.tasks_per_node=2", "cluster.train.cpus_per_task=1"),
]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[list[str], Path, str]:
    """The words of a launch, the folder of its runs, and the digest of the society as this machine alone makes it."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "config.yaml").write_text(f"bases: [{QUICKSTART[0]}]\n")
    words = [str(folder / "config.yaml"), *QUICKSTART[1:], f"model={tiny_model}", f"run.root={folder / 'runs'}"]
    return words, folder / "runs", simulated_here(Path(words[0]), *words[1:])


def processes_of(job: str, task: int) -> list[int]:
    """What a task of an array runs, on whichever node."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (place / "environ").read_bytes().split(b"\0")
            wanted = {f"SLURM_ARRAY_JOB_ID={job}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
            if wanted <= set(variables) and b"submitit.core._submit" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


def test_the_chain_survives_kills_a_crash_a_preemption_and_what_time_limits_send(slurm, quickstart):
    """And gives the bytes of the local run, to a launch that waits for its end."""
    words, root, expected = quickstart
    steps = 300
    words = [
        *words,
        "run.name=disturbed",
        "cluster.simulate.sbatch.partition=low",
        "cluster.max_parallel=3",
        "cluster.train.tasks_per_node=1",  # on two nodes
        "train.stages.sft.max_steps=4",
        # It waits for the society, so that it is at work when that has gone through all this.
        f"train.stages.stable.max_steps={steps}",
        "train.stages.stable.num_epochs=1000",
        "train.stages.stable.checkpoint_every_steps=100",
    ]
    launched = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "launch.py"), *words, "--wait"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = RunDir(root / "disturbed")
    # The society, its data, two stages of training, two evaluations.
    assert wait_until(lambda: len(submissions(run)) == 6, launched), launched.stdout.read()
    array = next(one for one in submissions(run) if one.name == "simulate").job_id

    def running() -> dict[int, str]:
        """Tasks of the array that have made calls, and their nodes."""
        lines = slurm.ask("squeue", "-h", "-r", "-t", "R", "-j", array, "-o", "%K|%N").splitlines()
        at = {int(line.split("|")[0]): line.split("|")[1] for line in lines}
        return {task: node for task, node in at.items() if any(run.shard(task).glob("journal-*"))}

    killed = next(iter(slurm.wait_for("a task that makes calls", running)))
    for process in processes_of(array, killed):
        os.kill(process, signal.SIGKILL)

    def others() -> list[str]:
        return [node for task, node in running().items() if task != killed]

    preempted = slurm.wait_for("another task at work", others)[0]
    high = slurm.submit("-p", "high", "-w", preempted, "--exclusive", "-t", "1", "--wrap", "sleep 2", "-o", "/dev/null")
    slurm.wait_until_ended(high)

    def at_work() -> list[str]:
        """A task of the run and its one node, whichever is at work now."""
        ids = ",".join(one.job_id for one in submissions(run))
        lines = slurm.ask("squeue", "-h", "-r", "-t", "R", "-j", ids, "-o", "%i|%N").splitlines()
        return next((line.split("|") for line in lines if "[" not in line), [])

    task, crashed = slurm.wait_for("a task at work", at_work)
    slurm("crash", crashed)
    slurm.wait_for("what a crash is noticed by", lambda: "down" in slurm.ask("sinfo", "-h", "-n", crashed, "-o", "%T"))
    states = ["sacct", "--duplicates", "-X", "-n", "-P", "-o", "State", "-j", task]
    slurm.wait_for("the unit that lost its node", lambda: "NODE_FAIL" in slurm.ask(*states))
    slurm("revive", crashed)

    # Slurm's signal before a time limit, as salign asks for it, at two moments of the training.
    train = next(one for one in submissions(run) if one.name == "train-stable").job_id
    metrics = run.stage("stable") / "metrics.jsonl"

    def told_to_stop(after: int, seen: list[int]) -> bool:
        """Whether the signal was sent to a training at work: the crash may have put it back into the queue."""
        steps_done = len(read_metrics(metrics))
        seen.append(steps_done)
        if steps_done < after or len(seen) < 2 or seen[-2] >= steps_done:
            return False
        try:
            slurm.ask("scancel", "--signal=USR2", train)
        except subprocess.CalledProcessError:  # it waits in the queue
            return False
        return True

    for after in (20, 150):
        seen: list[int] = []
        slurm.wait_for(f"step {after}", lambda after=after, seen=seen: told_to_stop(after, seen), run.path)

    slurm.wait_for(
        "the end of the chain",
        lambda: not slurm.ask("squeue", "-h", "-j", ",".join(s.job_id for s in submissions(run))),
        run.path,
    )
    said, _ = launched.communicate()
    assert launched.returncode == 0, said
    for words_of_it in ("waits for", "Slurm was asked", "stable - base: alignment"):  # the last: its closing table
        assert words_of_it in said
    assert "9 done" in status(run)  # 4 shards, the data, 2 stages, 2 evaluations
    assert status(run, "--digest").strip() == expected
    sft = next(one for one in submissions(run) if one.name == "train-sft")
    assert "2 ranks on 2 nodes" in sft.log(run, 0).read_text()
    rows = read_metrics(metrics)
    assert [row["train/global_step"] for row in rows] == list(range(1, steps + 1))
    logs = "".join(path.read_text() for path in run.slurm.glob("*_0_log.out"))
    assert logs.count("train stage stable was asked to stop: saved after step") >= 2
    assert "submitted" not in launch_afresh(*words).stdout  # there is nothing left to do


def test_a_shard_that_fails_for_good(slurm, slurm_config):
    run = RunDir(slurm_config.parent / "runs" / "small")
    broken = run.shard(1) / "journal-00000.jsonl"
    assert launch(str(slurm_config), "--prepare").returncode == 0
    broken.parent.mkdir(parents=True)
    broken.write_text('{"journal": 2, "of": {"model": "another"}}\n')
    secret = {**environment(), "WANDB_API_KEY": "secret-of-the-test-0123", "NOT_NAMED": "1"}
    secret["WANDB_MODE"] = "offline"
    done = launch(str(slurm_config), "--wait", env=secret)
    assert done.returncode == 1, done.stdout + done.stderr
    log = submissions(run)[0].log(run, 1)
    assert "simulate 1 failed" in done.stderr
    assert str(log) in done.stderr
    assert not slurm.ask("squeue", "-h")  # what waited for it is gone
    said = status(run)
    assert "1 failed" in said
    assert "cancelled" in said
    assert "python jobs/launch.py" in said
    assert not run.dataset.exists()
    assert not any(b"secret-of-the-test" in path.read_bytes() for path in run.path.rglob("*") if path.is_file())

    # With what is there.
    done = launch(str(slurm_config), "cluster.min_shards=1", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continued without: simulate 1 failed" in done.stdout
    assert json.loads((run.dataset / "card.json").read_text())["missing_shards"] == [1]
    assert tasks(run)["simulate"] == ["simulate/1"]
    before = read_done(run.dataset).digest

    # Mended; the log folder, the pickles and the list of jobs are lost besides.
    broken.unlink()
    shutil.rmtree(run.slurm)
    done = launch(str(slurm_config), "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert tasks(run) == {
        "simulate": ["simulate/1"],
        "collect": ["dataset"],
        "train-stable": ["train/stable"],
        "evaluate-stable": ["evaluate/stable"],
    }
    assert read_done(run.dataset).digest != before
    assert status(run, "--digest").strip() == simulated_here(slurm_config)
    assert "nothing to run" in launch(str(slurm_config)).stdout


LAUNCH_AND_MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(done.stdout, done.stderr, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, sep="\\n---\\n")
"""


def test_the_jobs_of_all_generations_are_submitted_at_once(slurm, slurm_config):
    """The second society waits for the training of the first, and everything ends without another launch."""
    done = launch(str(slurm_config), "generations.num=2", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(slurm_config.parent / "runs" / "small")
    first, second = ({one.name: one for one in submissions(run.generation(number))} for number in (1, 2))
    assert second["simulate"].after == (first["train-stable"].job_id,)
    assert "model: engagement" in done.stdout
    assert "5 done" in status(run.generation(2))  # 2 shards, the data, a stage, an evaluation


def test_an_array_of_1000_shards(slurm, slurm_config, tmp_path):
    words = [str(slurm_config), "society.num_worlds=1000", "society.num_shards=1000", "society.topology.size=2"]
    words += ["society.max_rounds=1", "society.audience_size=2", "society.num_initial_memories=2", "train.stages=[]"]
    words += ["evaluate.models=[base]", "tracking.wandb=false"]
    command = [sys.executable, "-c", LAUNCH_AND_MEASURE, sys.executable, str(ROOT / "jobs" / "launch.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    out, error, mebibytes = done.stdout.rsplit("\n---\n", 2)
    assert "1000" in out, error
    assert int(mebibytes) < 300
    run = RunDir(slurm_config.parent / "runs" / "small")
    first = submissions(run)
    assert [len(one.tasks) for one in first] == [1000, 1, 1]
    asked = next(line for line in out.splitlines() if "Slurm was asked" in line)
    assert "3x sbatch" in asked
    assert "1x squeue" not in asked  # the run was new

    run.slurm.rename(tmp_path / "lost")  # their logs, pickles and the list of them
    refused = launch(*words)
    assert refused.returncode == 1
    assert first[0].job_id in refused.stderr
    assert "--replace" in refused.stderr

    done = launch(*words, "--replace", "--wait", "cluster.shards_per_task=125", "cluster.max_parallel=4")
    assert done.returncode == 0, done.stdout + done.stderr
    states = ["sacct", "-X", "-n", "-P", "-o", "State", "-j", first[1].job_id]
    slurm.wait_for("what the accounting has of it", lambda: "CANCELLED" in slurm.ask(*states))
    assert len(submissions(run)[0].tasks) <= 8
    assert len(read_done(run.dataset).inputs) == 1000
    said = status(run)
    assert "1002 done" in said
    assert "simulate 0 .. 999" in said
    assert "1x squeue" in said


def test_a_shard_over_ranks_of_mpi_and_launches_of_parts(slurm, slurm_config):
    words = [str(slurm_config), "train.stages=[]", "evaluate.models=[base]", "run.name=mpi", "cluster.simulate.nodes=2"]
    done = launch(*words, "--wait", "cluster.simulate.tasks_per_node=2", "--until=simulate")
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(slurm_config.parent / "runs" / "mpi")
    assert f"left in {run.path}: collect, evaluate" in done.stdout
    assert list(tasks(run)) == ["simulate"]
    assert "2 to do" in status(run)
    done = launch(*words, "--wait", "--only=collect")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tasks(run)) == ["simulate", "collect"]
    assert f"left in {run.path}: evaluate" in done.stdout
    assert read_done(run.dataset) is not None
    assert len(list(run.shard(0).glob("journal-*.packed"))) == 4
    assert status(run, "--digest").strip() == simulated_here(slurm_config, *words[1:3])
    # Without MPI's help they would be worlds of one.
    env = {**environment(), "SALIGN_HOME": str(ROOT)}
    silent = ["srun", "-n2", sys.executable, str(ROOT / "jobs" / "simulate.py"), str(run.path), "--shard", "0"]
    shutil.rmtree(run.shard(0))
    done = subprocess.run(silent, capture_output=True, text=True, env=env, check=False)
    assert done.returncode != 0
    assert "--mpi=pmi2" in done.stderr


def test_the_batch_files_by_hand(slurm, slurm_config, tmp_path):
    """An array, then what follows it, each by sbatch alone with the config's path; on the nodes, without a launch."""
    config = str(slurm_config)
    out = ["-o", str(tmp_path / "%x.out"), "--cpus-per-task=1"]
    array = slurm.submit(*out, "slurm/simulate.sbatch", config)
    after = [*out, f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes"]
    collect = slurm.submit(*after, "slurm/collect.sbatch", config)
    after[-2] = f"--dependency=afterok:{collect}"
    train = slurm.submit(*after, "slurm/train.sbatch", config, "stable")
    after[-2] = f"--dependency=afterok:{train}"
    evaluate = slurm.submit(*after, "slurm/evaluate.sbatch", config, "stable")
    slurm.wait_until_ended(array, collect, train, evaluate)
    run = RunDir(tmp_path / "runs" / "small")
    said = {path.name: path.read_text() for path in tmp_path.glob("*.out")}
    assert read_done(run.evaluation("stable")), said
    assert "4 ranks on 2 nodes" in said["salign-train.out"]
    assert "nothing to run" in launch_afresh(config).stdout


def test_the_pipeline_in_one_job(slurm, config_file, tmp_path):
    """It is told to stop on its way, and goes on."""
    tree = json.loads(config_file.read_text())
    del tree["train"]["stages"][0]
    config_file.write_text(json.dumps(tree))
    log = tmp_path / "pipeline.out"
    words = ["slurm/pipeline.sbatch", str(config_file), "cluster.num_ranks=1"]
    job = slurm.submit("-o", str(log), *words, env={**environment(), "PYTHON": python()})
    run = RunDir(tmp_path / "runs" / "small")
    slurm.wait_for("the first stage of training", lambda: (run.stage("stable") / ".lock").exists())
    slurm.ask("scancel", "--signal=USR2", job)
    slurm.wait_until_ended(job)
    assert "stable - base: alignment" in log.read_text()
    states = ["sacct", "--duplicates", "-X", "-n", "-P", "-o", "State", "-j", job]
    slurm.wait_for("what the accounting has of it", lambda: slurm.ask(*states).split() == ["REQUEUED", "COMPLETED"])


def test_jobs_run_the_code_of_their_launch(slurm, slurm_config, tmp_path):
    """The checkout is broken while its job waits; a job that is submitted later notices."""
    checkout = tmp_path / "checkout"
    for name in ("jobs", "salign", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    env = {**environment(), "PYTHONPATH": str(checkout)}
    command = [sys.executable, str(checkout / "jobs" / "launch.py"), str(slurm_config), "train.stages=[]"]
    command += ["evaluate.models=[base]", "cluster.sbatch={begin: now+4}"]
    subprocess.run(command, env=env, cwd=checkout, capture_output=True, check=True)
    (checkout / "salign" / "society" / "shard.py").write_text("raise SystemExit('edited meanwhile')")
    run = RunDir(tmp_path / "runs" / "small")
    slurm.wait_until_ended(*(one.job_id for one in submissions(run)))
    assert read_done(run.dataset), status(run)
    manifest = json.loads(run.manifest.read_text())
    assert (run.code / manifest["code"]["sha256"][:12] / "salign" / "stages.py").is_file()


MISTAKES = {
    "no such partition": (["cluster.sbatch.partition=debgu"], ["no partition 'debgu'", "did you mean 'debug'?"]),
    "too many nodes": (["cluster.train.nodes=5", "train.stages.stable.groups_per_step=8"], ["nodes 5 exceeds the 4"]),
    "too many CPUs": (["cluster.simulate.cpus_per_task=64"], ["64 CPUs", "no node of the partition debug"]),
    "too long": (["cluster.train.timeout_min=9999"], ["timeout_min 9999 exceeds the 1440 minutes"]),
    "unknown to Slurm": (["cluster.sbatch.constraint=nosuchfeature"], ["Slurm would refuse it", "feature"]),
    "not ours to set": (["cluster.sbatch={time: 5}"], ["sbatch.time is set by salign"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_the_cluster_lacks_is_said_before_anything_is_submitted(slurm, slurm_config, mistake):
    words, said = MISTAKES[mistake]
    done = launch_afresh(str(slurm_config), *words)
    assert done.returncode == 2, done.stdout + done.stderr
    for part in said:
        assert part in done.stderr
    assert not (slurm_config.parent / "runs" / "small" / "slurm").exists()


def test_without_slurm(slurm_config, tmp_path):
    env = {**environment(), "PATH": str(tmp_path)}
    done = launch_afresh(str(slurm_config), env=env)
    assert done.returncode == 2
    assert "not on the PATH" in done.stderr
    dry = launch_afresh(str(slurm_config), "--dry-run", env=env)
    assert dry.returncode == 0, dry.stderr
    assert "#SBATCH --dependency=" in dry.stdout


def train_by_hand(slurm: Devcluster, run: RunDir, program: str, **variables: str) -> str:
    """The training stage on two nodes, by srun; what it said."""
    command = ["srun", "-w", "n1,n2", "-N2", "-n2", "--cpus-per-task=1", "--kill-on-bad-exit=1", "--job-name=by-hand"]
    command += [program, str(ROOT / "jobs" / "train.py"), str(run.path), "--stage", "stable"]
    env = {**environment(), **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=HANG_S, check=False)
    assert done.returncode != 0
    return done.stderr


def test_ranks_that_cannot_meet_or_are_not_alike(slurm, slurm_config, tmp_path):
    words = [str(slurm_config), "train.stages.stable.data={kind: answers}", "run.name=ranks"]
    assert launch(*words, "--prepare").returncode == 0
    run = RunDir(tmp_path / "runs" / "ranks")
    said = train_by_hand(slurm, run, python(), MASTER_ADDR="no-such-host.invalid")
    assert "'no-such-host.invalid', which does not resolve" in said
    # In the first node's network, as what uses the port there would be.
    code = "import socket, time\ns = socket.create_server(('', 23456))\nprint(1, flush=True)\ntime.sleep(99)"
    command = ["srun", "-w", "n1", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline().strip() == "1"
        said = train_by_hand(slurm, run, python(), MASTER_PORT="23456", MASTER_ADDR="n1")
        other.terminate()
    assert "port 23456" in said
    assert "is in use" in said
    # On one node another version stands in front.
    slurm.ask("srun", "-w", "n2", "mkdir", "-p", "/dev/shm/other/deepspeed-0.0.1.dist-info")
    slurm.ask(
        "srun", "-w", "n2", "sh", "-c", "echo 'Version: 0.0.1' > /dev/shm/other/deepspeed-0.0.1.dist-info/METADATA"
    )
    said = train_by_hand(slurm, run, sys.executable, PYTHONPATH="/dev/shm/other")
    slurm.ask("srun", "-w", "n2", "rm", "-r", "/dev/shm/other")
    assert "the ranks differ: deepspeed: " in said
    assert "0.0.1 on n2" in said


def test_a_cluster_without_accounting(slurm, slurm_config, tmp_path):
    run = RunDir(tmp_path / "runs" / "small")
    done = launch(str(slurm_config), "train.stages=[]", "evaluate.models=[base]")
    assert done.returncode == 0, done.stderr
    ids = [one.job_id for one in submissions(run)]
    slurm.ask("scancel", *ids)
    slurm.wait_until_ended(*ids)
    known = Path("/etc/slurm/slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(known.replace("accounting_storage/slurmdbd", "accounting_storage/none"))
    said = status(run, env={**environment(), "SLURM_CONF": str(tmp_path / "slurm.conf")})
    assert "keeps no accounting" in said


def test_nothing_of_this_machine_is_needed_beside_the_cluster(slurm):
    """The nodes are what they claim: names and addresses of their own."""
    names = slurm.ask("srun", "-N4", "hostname").split()
    assert sorted(names) == ["n1", "n2", "n3", "n4"]
    assert socket.gethostname() not in names
