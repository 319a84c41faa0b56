"""Submits a chain through submitit, and records what was submitted."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salign.cluster.slurm.batch import names_of_environment, parameters, shell_python
from salign.cluster.slurm.commands import Slurm, clean_environment
from salign.cluster.slurm.jobs import Job
from salign.config import Config, SlurmCluster
from salign.errors import StageError
from salign.run import RunDir
from salign.work import do_all


@dataclass(frozen=True)
class Submission:
    """A job that was submitted: Slurm's id, the keys of the units of each task, what it waits for.

    Of a task's units, `at_once` processes do their part each.
    """

    job_id: str
    name: str
    tasks: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]
    time: float
    at_once: int = 1

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
        StageError: Slurm refuses a job; those before it are cancelled.
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
            needs = [submitted[name].job_id for name in job.after] or list(after)
            at_once = cluster.shards_at_once if job.stage.is_array else 1
            executor = SlurmExecutor(run.slurm, python=shell_python(config))
            executor.update_parameters(**parameters(run, config, job, code=code, after=needs, num_arrays=num_arrays))
            slurm.num_commands["sbatch"] += 1
            try:
                with executor.batch():
                    accepted = [
                        executor.submit(do_all, run.path, [unit.words for unit in task], at_once) for task in job.tasks
                    ]
            except FailedJobError as error:
                if submitted:
                    slurm.cancel([one.job_id for one in submitted.values()])
                said = " ".join(str(error).split())
                raise StageError(
                    f"Slurm refused the job {job.name}: {said}. The jobs before it are cancelled."
                ) from None
            keys = tuple(tuple(unit.key for unit in task) for task in job.tasks)
            one = Submission(accepted[0].job_id.split("_")[0], job.name, keys, tuple(needs), time.time(), at_once)
            note(run, one)
            submitted[job.name] = one
    return list(submitted.values())


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
    row: dict[str, Any] = {
        "job_id": one.job_id,
        "name": one.name,
        "time": one.time,
        "after": one.after,
        "tasks": one.tasks,
    }
    row["at_once"] = one.at_once
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
                found.append(
                    Submission(row["job_id"], row["name"], tasks, tuple(row["after"]), row["time"], row["at_once"])
                )
    return found
