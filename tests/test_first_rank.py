"""Which process is the first of those that a launcher started, by the variables that it sets."""

import os

import pytest

from salign.launchers import is_first, rank_here, stand_alone

LAUNCHERS = {
    "torchrun": {"RANK": "{}", "WORLD_SIZE": "2"},
    "mpich": {"PMI_RANK": "{}", "PMI_SIZE": "2"},
    "openmpi": {"OMPI_COMM_WORLD_RANK": "{}", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "{}"},
    "srun": {"SLURM_PROCID": "{}", "SLURM_STEP_NUM_TASKS": "2"},
    "srun --mpi=pmi2": {"SLURM_PROCID": "{}", "SLURM_STEP_NUM_TASKS": "2", "PMI_RANK": "{}", "PMI_SIZE": "2"},
    "srun --mpi=pmix": {"SLURM_PROCID": "{}", "SLURM_STEP_NUM_TASKS": "2", "PMIX_RANK": "{}"},
    "srun whose processes speak no MPI": {
        "SLURM_PROCID": "{}",
        "SLURM_STEP_NUM_TASKS": "2",
        "PMI_RANK": "0",
        "PMI_SIZE": "1",
    },
    "mpiexec inside a job": {"SLURM_PROCID": "0", "OMPI_COMM_WORLD_RANK": "{}", "OMPI_COMM_WORLD_SIZE": "2"},
    "mpiexec inside a step": {
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "1",
        "PMI_RANK": "{}",
        "PMI_SIZE": "2",
    },
    "torchrun inside a step": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "RANK": "{}", "WORLD_SIZE": "2"},
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM_", "PMI", "OMPI_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("variables", LAUNCHERS.values(), ids=LAUNCHERS)
def test_of_all_processes_one_is_the_first(monkeypatch, variables):
    found = []
    for rank in range(2):
        for name, value in variables.items():
            monkeypatch.setenv(name, value.format(rank))
        found.append((rank_here(), is_first()))
    assert found == [(0, True), (1, False)]


def test_a_process_by_itself_is_the_first(monkeypatch):
    assert is_first()
    monkeypatch.setenv("SLURM_PROCID", "0")  # as a batch script has it
    assert is_first()


def test_processes_that_share_a_task_are_no_ranks_of_each_other(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("PMI_SIZE", "3")
    monkeypatch.setenv("PMI_RANK", "2")
    assert rank_here() == 2
    assert stand_alone() == 2
    assert rank_here() == 0
    assert "SLURM_STEP_NUM_TASKS" not in os.environ
