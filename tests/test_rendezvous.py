"""Where ranks meet, by the variables of those who start them."""

import os
import socket

import pytest

from salign.errors import ConfigError
from salign.training.rendezvous import Place, check_rendezvous, find_place

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[05-08]",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in [*NAMES, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)


def test_a_process_by_itself_is_a_world_of_one():
    place = find_place()
    assert place.num_ranks == 1
    assert place.variables["MASTER_ADDR"] == "127.0.0.1"
    check_rendezvous(place)


def test_by_slurm_they_meet_on_the_first_node_of_the_step(monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    place = find_place()
    assert place.variables == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "23456",
    }
    assert place.num_nodes == 2
    monkeypatch.setenv("PMI_SIZE", "4")  # where srun speaks MPI by itself
    assert find_place() == place
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    assert find_place().variables["MASTER_ADDR"] == "10.0.0.7"


def test_torchrun_within_a_step_has_the_say(monkeypatch):
    for name, value in {**STEP, "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    place = find_place()
    assert (place.num_ranks, place.num_nodes, place.variables["MASTER_ADDR"]) == (2, None, "here")


def variables(**given: str) -> dict[str, str]:
    return {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **given}


def test_a_name_that_does_not_resolve():
    with pytest.raises(ConfigError, match=r"'no-such\.invalid', which does not resolve"):
        check_rendezvous(Place(variables(MASTER_ADDR="no-such.invalid")))


def test_a_port_in_use():
    with socket.create_server(("", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(ConfigError, match=f"port {port} of .* is in use"):
            check_rendezvous(Place(variables(MASTER_PORT=port)))
        check_rendezvous(Place(variables(MASTER_PORT=port, RANK="1")))  # who only goes there
