"""The rank of a process among those that a launcher (torchrun, deepspeed, mpiexec, srun) started, and its job.

Known from the environment, before any library is loaded that makes them know each other.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from submitit.core.job_environment import JobEnvironment

MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE")
# Set in a job of a scheduler that starts it again: its id, and how often it was started again.
_JOB_IDS = ("SLURM_JOB_ID",)
_RESTART_COUNTS = ("SLURM_RESTART_COUNT",)
MPI_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


def number_in(variables: Sequence[str], default: int) -> int:
    """Returns the number in the first environment variable that has one."""
    return next((int(os.environ[name]) for name in variables if os.environ.get(name, "").isdigit()), default)


def rank_here() -> int:
    """Returns this process's rank; 0 if it is alone.

    torchrun and deepspeed come first, for they may run inside a step of Slurm's; then MPI, whose mpiexec may do so too:
    all of its processes are one task there.
    """
    if "RANK" in os.environ:
        return number_in(["RANK"], 0)
    if number_in(MPI_SIZES, 1) > 1:
        return number_in(MPI_RANKS, 0)
    return number_in(["SLURM_PROCID"], 0) if number_in(["SLURM_STEP_NUM_TASKS"], 1) > 1 else 0


def is_first() -> bool:
    """Returns whether this process is rank 0, or alone."""
    return rank_here() == 0


def is_in_job() -> bool:
    """Returns whether this process is part of a scheduler's job."""
    return any(name in os.environ for name in _JOB_IDS)


def job_here() -> str:
    """Returns the id of the scheduler's job that this process is part of; "" outside of jobs."""
    return next((os.environ[name] for name in _JOB_IDS if name in os.environ), "")


def step_here() -> "JobEnvironment":
    """The processes that a scheduler's job started together, of which this is one: its rank, and their nodes."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    class Step(SlurmJobEnvironment):  # which may be on some of the job's nodes alone
        _env: ClassVar = {
            **SlurmJobEnvironment._env,
            "nodes": "SLURM_STEP_NODELIST",
            "num_nodes": "SLURM_STEP_NUM_NODES",
        }

    return Step()


def stand_alone() -> int:
    """Makes this process, one of several that a job started to work apart, a process of its own.

    Returns:
        Which of them it is.
    """
    index = number_in(["SLURM_PROCID"], 0)
    for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", *MPI_SIZES, *MPI_RANKS):
        os.environ.pop(name, None)
    return index


def num_restarts() -> int:
    """Returns how often the scheduler has started this process's job again."""
    return number_in(_RESTART_COUNTS, 0)
