"""Batch files, made by submitit: what each job gets, and how it ends."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salign.cluster.slurm.jobs import Job, suffix_of
from salign.config import Config, SlurmCluster
from salign.run import RunDir

# srun's exit codes of a task that asked for another start, or that a signal ended: KILL, USR2, TERM. A cancelled job's
# script is ended with it, and does not come here; one that failed of an error leaves the flag. A controller that is
# starting again does not answer for a while; once it has taken the request, it ends this script.
# A job whose Python never begins is started so often.
_MAX_STARTS = 4
_NEVER_BEGAN = (
    f"error: the job was started {_MAX_STARTS} times, and Python did not begin to work. Look at the lines above, at "
    "cluster.setup, cluster.python and the stage's mem_gb; then launch again."
)
_FINISH = (
    "code=$?",
    'case $code in 75|137|140|143) [ -e "$SALIGN_FAILED" ] || for pause in 2 5 10 20 40 80; do '
    'scontrol requeue "$SLURM_JOB_ID" && break; sleep $pause; done ;; esac',
    "exit $code",
)


def _environment(config: Config, cluster: SlurmCluster) -> str:
    """The names of the variables that a job gets; sbatch takes their values from the launcher's environment."""
    sections = [*config.engines().values(), config.society.embedder]
    keys = [key for section in sections if (key := getattr(section, "api_key_env", None)) is not None]
    return ",".join(dict.fromkeys([*cluster.environment, *cluster.more_environment, *keys]))


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
        # What goes wrong before Python counts its starts must not go wrong without end. Python removes the file.
        f'export SALIGN_STARTS={shlex.quote(str(run.slurm))}/"$SLURM_JOB_ID".starts',
        'echo start >> "$SALIGN_STARTS"',
        f'if [ "$(wc -l < "$SALIGN_STARTS")" -gt {_MAX_STARTS} ]; then',
        f'  touch "$SALIGN_FAILED"; echo "{_NEVER_BEGAN}"; exit 1',
        "fi",
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
    if job.stage.ranks == "mpi" and resources.num_tasks > 1:
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
