"""The jobs of a run's chain: which units each does, what it waits for, its batch file; submitted through submitit."""

import contextlib
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salign.cluster.plan import Unit
from salign.cluster.slurm import Slurm, clean_environment
from salign.config import Config, SlurmCluster, SlurmResources
from salign.errors import StageError
from salign.run import RunDir

Work = Callable[[Path, Sequence[tuple[str, ...]]], None]

# srun's exit codes of a task that asked for another start, or that a signal ended: KILL, USR2, TERM. A cancelled job's
# script is ended with it, and does not come here; one that failed of an error leaves the flag.
_FINISH = (
    "code=$?",
    'case $code in 75|137|140|143) [ -e "$SALIGN_FAILED" ] || scontrol requeue "$SLURM_JOB_ID" ;; esac',
    "exit $code",
)


@dataclass(frozen=True)
class Job:
    """One submission: an array of tasks, or a single one.

    Attributes:
        name: Such as `simulate`, `train-stable`.
        tasks: The units of each task, which does them one after the other.
        after: Names of the jobs that it waits for.
        resources: Of each task.
        needs_all: Whether what it waits for must have gone well; else it must only have ended.
    """

    name: str
    tasks: tuple[tuple[Unit, ...], ...]
    after: tuple[str, ...]
    resources: SlurmResources
    needs_all: bool = True


def suffix_of(run: RunDir) -> str:
    """How the names of a run's jobs end: another run of the same name elsewhere has another."""
    return "-" + hashlib.sha256(str(run.path).encode()).hexdigest()[:8]


def was_submitted(run: RunDir) -> bool:
    """Whether jobs of the run may be in the queue; one of its two folders may have been removed since."""
    return run.slurm.is_dir() or run.code.is_dir()


def chain(cluster: SlurmCluster, left: Sequence[Unit], max_array_size: int) -> list[Job]:
    """The jobs that do what is left, each after those that it waits for.

    Args:
        cluster: How shards are packed, and what each stage is given.
        left: Units in the plan's order.
        max_array_size: Tasks that an array may have at most; with more shards there are several arrays.
    """
    shards = [unit for unit in left if unit.stage == "simulate"]
    packed = [tuple(shards[at : at + cluster.shards_per_task]) for at in range(0, len(shards), cluster.shards_per_task)]
    arrays = [packed[at : at + max_array_size] for at in range(0, len(packed), max_array_size)]
    jobs = [
        Job("simulate" if len(arrays) == 1 else f"simulate-{number}", tuple(tasks), (), cluster.simulate)
        for number, tasks in enumerate(arrays)
    ]
    made_by = {unit.key: job.name for job in jobs for task in job.tasks for unit in task}
    for unit in left:
        if unit.stage == "simulate":
            continue
        after = tuple(dict.fromkeys(made_by[need] for need in unit.needs if need in made_by))
        made_by[unit.key] = name = "-".join(unit.command)
        needs_all = unit.stage != "collect" or cluster.min_shards is None
        jobs.append(Job(name, ((unit,),), after, cluster.by_stage[unit.stage], needs_all))
    return jobs


# --- batch files ---------------------------------------------------------------------------------


def _environment(config: Config, cluster: SlurmCluster) -> str:
    """The names of the variables that a job gets; sbatch takes their values from the launcher's environment."""
    sections = [*config.engines().values(), config.society.embedder]
    keys = [key for section in sections if (key := getattr(section, "api_key_env", None)) is not None]
    return ",".join(dict.fromkeys([*cluster.environment, *keys]))


def _setup(run: RunDir, code: Path, cluster: SlurmCluster) -> list[str]:
    return [
        *cluster.setup,
        # What this script exports reaches the tasks too, and srun takes over sbatch's cores.
        "export SLURM_EXPORT_ENV=ALL",
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"',
        # The code as it was at the launch, also where the working folder is a checkout.
        f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1',
        f'export SALIGN_FAILED={shlex.quote(str(run.slurm))}/"$SLURM_JOB_ID".failed',
        'rm -f "$SALIGN_FAILED"',
    ]


def parameters(
    run: RunDir, config: Config, job: Job, *, code: Path, after: Sequence[str] = (), num_arrays: int = 1
) -> dict[str, Any]:
    """What submitit is told of a job, by sbatch's names.

    Args:
        run: Whose job it is.
        config: The run's.
        job: The job.
        code: The folder that it imports this package from.
        after: Ids of the jobs that it waits for.
        num_arrays: Arrays that share `max_parallel`.
    """
    cluster = config.cluster
    assert isinstance(cluster, SlurmCluster)
    resources = job.resources
    further: dict[str, Any] = {
        "export": _environment(config, cluster),
        "requeue": True,
        **{name.replace("_", "-"): value for name, value in cluster.sbatch.items()},
    }
    if after:
        further["dependency"] = ("afterok:" if job.needs_all else "afterany:") + ":".join(after)
        further["kill-on-invalid-dep"] = "yes"
    srun = ["--kill-on-bad-exit=1"]
    if job.name.startswith("simulate") and resources.num_tasks > 1:
        srun.append(f"--mpi={cluster.mpi}")
    chosen = {
        "job_name": f"{run.path.name}-{job.name}{suffix_of(run)}",
        "partition": resources.partition or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": resources.timeout_min,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "mem": None if resources.mem_gb is None else f"{round(resources.mem_gb * 1024)}M",
        "gpus_per_node": resources.gpus_per_node or None,
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": max(1, cluster.max_parallel // num_arrays),
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": _setup(run, code, cluster),
        "teardown": list(_FINISH),
        "srun_args": srun,
        "additional_parameters": further,
    }
    return {name: value for name, value in chosen.items() if value is not None or name == "wckey"}


def batch_file(run: RunDir, config: Config, job: Job, *, code: Path, after: Sequence[str] = ()) -> str:
    """A job's batch file, without submitting it; works where there is no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    python = _python(config)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(run.slurm))}"
    size: dict[str, Any] = {"map_count": len(job.tasks)} if len(job.tasks) > 1 else {}
    told = parameters(run, config, job, code=code, after=after)
    return str(_make_sbatch_string(command=command, folder=run.slurm, **told, **size))


def _python(config: Config) -> str:
    cluster = config.cluster
    assert isinstance(cluster, SlurmCluster)
    return cluster.python or shlex.quote(sys.executable)


# --- submission ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submission:
    """A job that was submitted: Slurm's id, the keys of the units of each task, what it waits for."""

    job_id: str
    name: str
    tasks: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]
    time: float

    def task_id(self, task: int) -> str:
        """As Slurm and its accounting name it."""
        return f"{self.job_id}_{task}" if len(self.tasks) > 1 else self.job_id

    def log(self, run: RunDir, task: int) -> Path:
        """The log of a task's first rank."""
        return run.slurm / f"{self.task_id(task)}_0_log.out"


def submit(
    run: RunDir, config: Config, jobs: Sequence[Job], *, code: Path, work: Work, slurm: Slurm
) -> list[Submission]:
    """Submits a chain; each submission is noted in the run's folder as soon as Slurm has taken it.

    Args:
        run: Whose chain it is.
        config: The run's; its cluster is Slurm.
        jobs: Each after those that it waits for.
        code: The snapshot of this package.
        work: What a task does, given the run's folder and its units' commands.
        slurm: Counts the commands.

    Raises:
        StageError: Slurm refuses a job; those before it are cancelled.
    """
    from submitit.core.utils import FailedJobError
    from submitit.slurm.slurm import SlurmExecutor

    num_arrays = max(1, sum(job.name.startswith("simulate") for job in jobs))
    submitted: dict[str, Submission] = {}
    run.slurm.mkdir(parents=True, exist_ok=True)
    with _as_outside_of_jobs():
        for job in jobs:
            after = [submitted[name].job_id for name in job.after]
            executor = SlurmExecutor(run.slurm, python=_python(config))
            executor.update_parameters(**parameters(run, config, job, code=code, after=after, num_arrays=num_arrays))
            slurm.num_commands["sbatch"] += 1
            try:
                with executor.batch():
                    accepted = [executor.submit(work, run.path, [unit.command for unit in task]) for task in job.tasks]
            except FailedJobError as error:
                if submitted:
                    slurm.cancel([one.job_id for one in submitted.values()])
                said = " ".join(str(error).split())
                raise StageError(
                    f"Slurm refused the job {job.name}: {said}. What was submitted is cancelled."
                ) from None
            keys = tuple(tuple(unit.key for unit in task) for task in job.tasks)
            one = Submission(accepted[0].job_id.split("_")[0], job.name, keys, tuple(after), time.time())
            _note(run, one)
            submitted[job.name] = one
    return list(submitted.values())


@contextlib.contextmanager
def _as_outside_of_jobs() -> Iterator[None]:
    """A chain that is submitted from within a job inherits nothing of it."""
    before = dict(os.environ)
    kept = clean_environment()
    for name in before.keys() - kept.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def _note(run: RunDir, one: Submission) -> None:
    row = {"job_id": one.job_id, "name": one.name, "time": one.time, "after": one.after, "tasks": one.tasks}
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
                found.append(Submission(row["job_id"], row["name"], tasks, tuple(row["after"]), row["time"]))
    return found
