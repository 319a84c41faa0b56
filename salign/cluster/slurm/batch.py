"""Batch files, made by submitit: what each job gets, and how it ends."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salign.cluster.slurm.jobs import Job, name_in_queue
from salign.config import Config, SlurmCluster
from salign.run import RunDir

# How a job begins and ends; inside every batch file, for a node may not see the folder that has this one.
_JOB_SH = Path(__file__).with_name("job.sh")
# Variables of the user's profile by which sites want to be told who pays and where: they stand for what is not given.
_FROM_ENVIRON = {
    f"SBATCH_{name.upper()}": name for name in ("account", "partition", "qos", "constraint", "reservation")
}


def names_of_environment(config: Config) -> list[str]:
    """The names of the variables that jobs get from the launcher's environment."""
    cluster = config.cluster
    assert isinstance(cluster, SlurmCluster)
    sections = [*config.engines().values(), config.society.embedder]
    keys = [key for section in sections if (key := getattr(section, "api_key_env", None)) is not None]
    return list(dict.fromkeys([*cluster.environment, *cluster.more_environment, *keys]))


def sbatch_options(cluster: SlurmCluster, stage: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The options of sbatch for a stage that salign does not set: of the user's profile, then of the config."""
    of_profile = {name: environ[variable] for variable, name in _FROM_ENVIRON.items() if environ.get(variable)}
    return {**of_profile, **cluster.sbatch_options(stage)}


def notes_on_environment(cluster: SlurmCluster, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What becomes of the variables by which a user's profile tells sbatch something."""
    given = sorted(name for name in environ if name.startswith("SBATCH_") and environ[name])
    used = [
        f"{name}={environ[name]}"
        for name in given
        if name in _FROM_ENVIRON
        and any(_FROM_ENVIRON[name] not in {**cluster.sbatch, **part.sbatch} for part in cluster.by_stage.values())
    ]
    unused = [name for name in given if name not in _FROM_ENVIRON]
    notes = [f"of the environment, sbatch is told {', '.join(used)}; cluster.sbatch comes before it"] if used else []
    if unused:
        notes.append(f"of the environment, sbatch is not told {', '.join(unused)}; cluster.sbatch has what a job needs")
    return notes


def _setup(run: RunDir, code: Path, cluster: SlurmCluster, excluded: str) -> list[str]:
    return [
        f"SALIGN_JOBS={shlex.quote(str(run.slurm))} SALIGN_EXCLUDE={shlex.quote(excluded)}",
        *_JOB_SH.read_text(encoding="utf-8").splitlines(),
        '[ ! -d "$SALIGN_JOBS" ] || exec >>"$SALIGN_JOBS/${salign_task}_0_log.out" 2>&1',
        "salign_begin",
        *(
            f"{{ {entry}\n}} || salign_cannot_begin $? "
            f'"cluster.setup[{number}] ({entry.split()[0] if entry.split() else ""}) failed with exit code $?."'
            for number, entry in enumerate(cluster.setup)
        ),
        # srun takes over sbatch's cores.
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"',
        # The code as it was at the launch, also where the working folder is a checkout.
        f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1',
    ]


def _option(name: str, value: object) -> str:
    return f"--{name}" if value is True else f"--{name}={value}"


def _needs(cluster: SlurmCluster, job: Job, after: Sequence[str], begun: Sequence[str]) -> list[str]:
    """What a job waits for, as sbatch's dependency has it."""
    needs = [("afterok:" if job.needs_all else "afterany:") + ":".join(after)] if after else []
    if not after and cluster.after is not None:
        needs.append(f"afterok:{cluster.after}" if cluster.after.isdigit() else cluster.after)
    if begun:
        needs.append("after:" + ":".join(begun))
    return needs


def _srun(cluster: SlurmCluster, job: Job, num_parts: int) -> dict[str, Any]:
    """Options of srun, by which `num_parts` processes share out the shards of a task."""
    # Shards that share a task end on their own; ranks of one unit end together.
    srun: dict[str, Any] = {"kill-on-bad-exit": 1 if num_parts == 1 else 0}
    if job.stage.ranks == "mpi" and job.resources.num_tasks > 1:
        srun["mpi"] = "pmi2"
    if num_parts > 1:  # the site's default might make them ranks of each other
        srun["mpi"] = "none"
    return srun | cluster.srun_options(job.stage.name)


def parameters(
    run: RunDir,
    config: Config,
    job: Job,
    *,
    code: Path,
    after: Sequence[str] = (),
    begun: Sequence[str] = (),
    num_arrays: int = 1,
) -> dict[str, Any]:
    """What submitit is told of a job, by sbatch's names.

    Args:
        run: Whose job it is.
        config: The run's.
        job: The job.
        code: The folder that it imports this package from.
        after: Ids of the jobs that it waits for.
        begun: Ids of those that must have begun.
        num_arrays: Arrays that share `max_parallel`.
    """
    cluster = config.cluster
    assert isinstance(cluster, SlurmCluster)
    resources = job.resources
    options = sbatch_options(cluster, job.stage.name)
    further: dict[str, Any] = {
        # All of what `submit` calls sbatch with. A list here would make each start read the user's login profile.
        "export": "ALL",
        # A node that cannot open the log would fail the job before anything of it runs; the script opens it.
        "output": "/dev/null",
        "requeue": True,
        **options,
    }
    if needs := _needs(cluster, job, after, begun):
        further["dependency"] = ",".join(needs)
        further["kill-on-invalid-dep"] = "yes"
    num_parts = cluster.shards_at_once if job.stage.is_array else 1
    chosen = {
        "job_name": name_in_queue(run, job),
        "time": resources.timeout_min,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node * num_parts,
        "cpus_per_task": resources.cpus_per_task,
        "mem": None if resources.mem_gb is None else f"{round(resources.mem_gb * 1024)}M",
        "gpus_per_node": None if cluster.names_gpus(job.stage.name) else resources.gpus_per_node or None,
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": max(1, cluster.max_parallel // num_arrays),
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": _setup(run, code, cluster, str(options.get("exclude", ""))),
        "teardown": ["salign_finish $?"],
        "srun_args": [_option(name, value) for name, value in _srun(cluster, job, num_parts).items()],
        "additional_parameters": further,
    }
    return {name: value for name, value in chosen.items() if value is not None or name == "wckey"}


def batch_file(run: RunDir, config: Config, job: Job, *, code: Path, after: Sequence[str] = ()) -> str:
    """A job's batch file, without submitting it; works where there is no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    python = shell_python(config)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(run.slurm))}"
    size: dict[str, Any] = {"map_count": len(job.tasks)} if len(job.tasks) > 1 else {}
    told = parameters(run, config, job, code=code, after=after)
    return str(_make_sbatch_string(command=command, folder=run.slurm, **told, **size))


def shell_python(config: Config) -> str:
    """The shell command of the interpreter that jobs use."""
    cluster = config.cluster
    assert isinstance(cluster, SlurmCluster)
    return cluster.python or shlex.quote(sys.executable)
