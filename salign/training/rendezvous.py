"""The rank of a training process, and where all ranks meet, as torchrun, deepspeed, srun or mpiexec define it."""

import os
import socket
from dataclasses import dataclass

from salign.errors import ConfigError
from salign.launchers import MPI_SIZES, number_in, step_here
from salign.machine import free_port

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """This rank's place among all.

    Attributes:
        variables: As torchrun sets them: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
        num_nodes: On how many machines the ranks are; None: the launcher does not say.
    """

    variables: dict[str, str]
    num_nodes: int | None = None

    @property
    def num_ranks(self) -> int:
        return int(self.variables.get("WORLD_SIZE", "1"))


def _from_slurm() -> Place:
    """Of a step that srun started: all meet on its first node, at a port that follows from the job's number."""
    job = step_here()
    # Two jobs on one node do not meet, and one that is requeued finds the same.
    port = 20_000 + int(job.raw_job_id) % 10_000
    address, port_said = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    values = (job.global_rank, job.local_rank, job.num_tasks, address or job.hostnames[0], port_said or port)
    return Place(dict(zip(_NAMES, map(str, values), strict=True)), job.num_nodes)


def _from_mpi(num_ranks: int) -> Place:
    """Of a job that mpiexec started; rank 0 says where the others find it."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.size != num_ranks:
        raise ConfigError(
            f"mpiexec started {num_ranks} processes, and mpi4py's MPI sees {comm.size}: they are of different MPIs. "
            "Use the mpiexec of mpi4py's MPI, or start training with torchrun or srun."
        )
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    address = "127.0.0.1" if here.size == comm.size else socket.gethostname()
    address, port = comm.bcast((address, free_port("")) if comm.rank == 0 else None)
    values = (comm.rank, here.rank, comm.size, address, port)
    return Place(dict(zip(_NAMES, map(str, values), strict=True)))


def find_place() -> Place:
    """Finds this rank's place: by torchrun's variables (also deepspeed's), else Slurm's or MPI's, else alone."""
    if "RANK" in os.environ:
        return Place({name: os.environ[name] for name in _NAMES if name in os.environ})
    by_mpi, by_slurm = number_in(MPI_SIZES, 1), number_in(["SLURM_STEP_NUM_TASKS"], 1)
    # Where srun speaks MPI, both are set; mpiexec may have been started within a step.
    if by_slurm > 1 and by_mpi in (1, by_slurm):
        return _from_slurm()
    if by_mpi > 1:
        return _from_mpi(by_mpi)
    return Place(dict(zip(_NAMES, ("0", "0", "1", "127.0.0.1", str(free_port("127.0.0.1"))), strict=True)))


def is_launched() -> bool:
    """Returns whether a launcher started this process as one of several ranks."""
    return "RANK" in os.environ or find_place().num_ranks > 1


def check_rendezvous(place: Place) -> None:
    """Checks at once that the ranks are there and can meet; torch would wait for half an hour.

    Raises:
        ConfigError: The name does not resolve, the port is in use, or srun was forgotten.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if place.num_ranks == 1 < tasks and "RANK" not in os.environ:
        raise ConfigError(
            f"Slurm's job has {tasks} tasks (SLURM_NTASKS), and this process was started without srun, so each would "
            "train by itself. Start them by srun or torchrun, or unset SLURM_NTASKS for one process alone."
        )
    address, port = place.variables.get("MASTER_ADDR", ""), int(place.variables.get("MASTER_PORT", "0"))
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ConfigError(
            f"the ranks are to meet at {address!r}, which does not resolve on {socket.gethostname()} "
            f"({error.strerror}). Set MASTER_ADDR to an address of the first node that every node knows."
        ) from error
    # torchrun has opened it for its workers already.
    if place.variables["RANK"] != "0" or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {socket.gethostname()}, where the ranks are to meet, is in use. Under Slurm it "
                "follows from the job's number: launch again for another, or set MASTER_PORT."
            ) from error
