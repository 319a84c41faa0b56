"""Submits a chain through submitit, and records what was submitted."""

import contextlib
import dataclasses
import getpass
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from salign.cluster.slurm.batch import names_of_environment, parameters, shell_python
from salign.cluster.slurm.commands import Slurm, clean_environment
from salign.cluster.slurm.jobs import Job, name_in_queue, ranges_of
from salign.config import Config, SlurmCluster
from salign.errors import StageError
from salign.run import RunDir
from salign.work import do_all


@dataclass(frozen=True)
class Submission:
    """A job that was submitted.

    Attributes:
        job_id: Slurm's.
        name: Of the job in the chain.
        tasks: The keys of the units of each task.
        after: Ids of the jobs that it waits for.
        time: When (s since the epoch).
        at_once: How many processes of a task do their part of its units each.
        name_in_queue: As squeue shows it.
        user: Whose it is.
    """

    job_id: str
    name: str
    tasks: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]
    time: float
    at_once: int = 1
    name_in_queue: str = ""
    user: str = ""

    def task_id(self, task: int) -> str:
        """As Slurm and its accounting name it."""
        return f"{self.job_id}_{task}" if len(self.tasks) > 1 else self.job_id

    def log(self, run: RunDir, task: int, unit: int = 0) -> Path:
        """The log of one of a task's units, by the first of its processes."""
        return run.slurm / f"{self.task_id(task)}_{unit % self.at_once}_log.out"


def submit(
    run: RunDir, config: Config, jobs: Sequence[Job], *, code: Path, slurm: Slurm, after: Sequence[str] = ()
) -> list[Submission]:
    """Submits a chain; each submission is noted in the run's folder as soon as Slurm has taken it.

    Args:
        run: Whose chain it is.
        config: The run's; its cluster is Slurm.
        jobs: Each after those that it waits for.
        code: The snapshot of this package.
        slurm: Counts the commands.
        after: Ids of jobs of another run; those of the chain that wait for no other wait for them.

    Raises:
        StageError: Slurm does not take a job; those before it are cancelled, if Slurm still answers.
    """
    from submitit.core.utils import FailedJobError
    from submitit.slurm.slurm import SlurmExecutor

    cluster = config.cluster
    assert isinstance(cluster, SlurmCluster)
    num_arrays = max(1, sum(job.stage.is_array for job in jobs))
    submitted: dict[str, Submission] = {}
    run.slurm.mkdir(parents=True, exist_ok=True)
    with _environment_of_jobs(names_of_environment(config)):
        for job in jobs:
            needs = [*(submitted[name].job_id for name in job.after), *job.after_live] or list(after)
            at_once = cluster.shards_at_once if job.stage.is_array else 1
            shared = shared_shards(cluster, job)
            executor = SlurmExecutor(run.slurm, python=shell_python(config))
            begun = [submitted[name].task_id(0) for name in job.after_start]
            told = parameters(run, config, job, code=code, after=needs, begun=begun, num_arrays=num_arrays)
            executor.update_parameters(**told)
            slurm.num_commands["sbatch"] += 1
            try:
                with executor.batch():
                    accepted = [
                        executor.submit(do_all, run.path, [unit.words for unit in task], at_once, shared)
                        for task in job.tasks
                    ]
            except FailedJobError as error:
                raise StageError(_refusal(job, error, list(submitted.values()), slurm)) from None
            keys = tuple(tuple(unit.key for unit in task) for task in job.tasks)
            job_id = accepted[0].job_id.split("_")[0]
            names = name_in_queue(run, job), getpass.getuser()
            one = Submission(job_id, job.name, keys, tuple(needs), time.time(), at_once, *names)
            note(run, one)
            submitted[job.name] = one
    return list(submitted.values())


def shared_shards(cluster: SlurmCluster, job: Job) -> list[tuple[int, int]]:
    """The shards that the tasks of an array take from each other: where one has several, and each is of one rank."""
    is_shared = job.stage.is_array and cluster.shards_per_task > 1 and cluster.ranks_per_shard == 1
    return ranges_of([unit for task in job.tasks for unit in task]) if is_shared else []


def _refusal(job: Job, error: Exception, before: Sequence[Submission], slurm: Slurm) -> str:
    """Why a job was not taken, and what becomes of those before it in the chain: they are cancelled, if that can be."""
    said = " ".join(str(error).split())
    text = f"Slurm did not take the job {job.name}: {said.rstrip('.')}."
    if not before:
        return text
    try:
        slurm.cancel([one.job_id for one in before])
    except StageError:
        listed = ", ".join(f"{one.job_id} ({one.name})" for one in before)
        return f"{text} In the queue are {listed}. Launch again when Slurm answers: it goes on from there."
    return f"{text} The jobs before it are cancelled."


@contextlib.contextmanager
def _environment_of_jobs(names: Sequence[str]) -> Iterator[None]:
    """What sbatch is called with, and so what jobs get: some variables, and of a job around this process nothing."""
    before = dict(os.environ)
    kept = {*names, "PATH", "SLURM_CONF"} & clean_environment().keys()
    for name in before.keys() - kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def note(run: RunDir, one: Submission) -> None:
    """Adds a submission to the list in the run's folder."""
    row = dataclasses.asdict(one)
    with (run.slurm / "jobs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def submissions(run: RunDir) -> list[Submission]:
    """All that were noted, the oldest first; what is torn or lost is passed over, for Slurm itself is asked too."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run.slurm / "jobs.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                tasks = tuple(tuple(task) for task in row["tasks"])
                found.append(Submission(**{**row, "tasks": tasks, "after": tuple(row["after"])}))
    return found
