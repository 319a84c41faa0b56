"""The processes that simulate one shard together, and how they communicate: MPI, or one process alone."""

import asyncio
import os
from collections.abc import Callable
from typing import Any, Protocol

from salign.errors import ConfigError
from salign.launchers import MPI_SIZES, number_in
from salign.society.messages import Goodbye, Message

# What launchers tell a process of the number of its kind.
_LOCAL_RANK_VARIABLES = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
_LOCAL_SIZE_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
_IDLE_S = (0.0, 0.0002, 0.001, 0.002)


class Ranks(Protocol):
    """Messages among the ranks; they arrive in the order in which one rank sent them to another."""

    rank: int
    size: int

    def send(self, to: int, message: Message) -> None:
        """Sends without waiting."""

    async def receive(self, handle: Callable[[int, Message], None]) -> None:
        """Hands each message and its sender on as it comes, until it is cancelled."""

    async def part(self, handle: Callable[[int, Message], None]) -> None:
        """Says goodbye to everybody, and hands on what comes until all have."""

    def gather(self, value: Any) -> list[Any] | None:
        """Everybody's value, on rank 0; None elsewhere. All ranks must call it."""

    def barrier(self) -> None:
        """Waits until all ranks are here."""

    def abort(self, code: int) -> None:
        """Ends all ranks, from one that failed; does nothing where there is one alone."""


class Alone:
    """One process, no messages."""

    rank, size = 0, 1

    def send(self, to: int, message: Message) -> None:
        raise AssertionError(f"nobody else is here to be told {message!r}")

    async def receive(self, handle: Callable[[int, Message], None]) -> None:
        await asyncio.get_running_loop().create_future()

    async def part(self, handle: Callable[[int, Message], None]) -> None:
        pass

    def gather(self, value: Any) -> list[Any] | None:
        return [value]

    def barrier(self) -> None:
        pass

    def abort(self, code: int) -> None:
        pass


class MPIRanks:
    """Ranks by mpi4py. What goes to one rank in one turn of the event loop is one message of MPI."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        self._outgoing: dict[int, list[Message]] = {}
        self._sent: list[Any] = []
        self._gone: set[int] = set()

    def send(self, to: int, message: Message) -> None:
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._post)
        self._outgoing.setdefault(to, []).append(message)

    def _post(self) -> None:
        for to, messages in self._outgoing.items():
            self._sent.append(self._comm.isend(messages, dest=to))
        self._outgoing.clear()
        self._sent = [request for request in self._sent if not request.test()[0]]

    def _take(self, handle: Callable[[int, Message], None]) -> bool:
        """Hands on what has come; whether there was anything."""
        status, came = self._mpi.Status(), False
        while self._comm.iprobe(source=self._mpi.ANY_SOURCE, status=status):
            came, sender = True, status.Get_source()
            for message in self._comm.recv(source=sender):
                if isinstance(message, Goodbye):
                    self._gone.add(sender)
                else:
                    handle(sender, message)
        return came

    async def receive(self, handle: Callable[[int, Message], None]) -> None:
        idle = 0
        while True:
            idle = 0 if self._take(handle) else min(idle + 1, len(_IDLE_S) - 1)
            # MPI cannot wake an event loop: look often while there is traffic, less often while there is none.
            await asyncio.sleep(_IDLE_S[idle])

    async def part(self, handle: Callable[[int, Message], None]) -> None:
        for rank in range(self.size):
            if rank != self.rank:
                self.send(rank, Goodbye())
        while len(self._gone) < self.size - 1 or self._outgoing or self._sent:
            self._take(handle)
            self._sent = [request for request in self._sent if not request.test()[0]]
            await asyncio.sleep(_IDLE_S[-1])

    def gather(self, value: Any) -> list[Any] | None:
        return self._comm.gather(value, root=0)

    def barrier(self) -> None:
        self._comm.barrier()

    def abort(self, code: int) -> None:
        self._comm.Abort(code)


def place_here() -> tuple[int, int]:
    """This process's number among those of its shard on this machine, and how many they are, as the launcher says."""
    return number_in(_LOCAL_RANK_VARIABLES, 0), number_in(_LOCAL_SIZE_VARIABLES, 1)


def join(num_ranks: int, *, alone: bool = False) -> Ranks:
    """The ranks of this process's shard.

    Args:
        num_ranks: How many there must be (`cluster.ranks_per_shard`).
        alone: One process is enough for what is to be done.

    Raises:
        ConfigError: There are others; or there is no MPI.
    """
    launched = number_in(MPI_SIZES, 1)
    if alone and launched > 1:
        raise ConfigError(f"a replay runs in one process, and MPI started {launched}: run it without mpiexec.")
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if launched == 1 < tasks:
        raise ConfigError(
            f"srun started {tasks} tasks that do not know of each other: each would simulate the whole shard. "
            "Start them with `srun --mpi=pmi2` (`srun --mpi=list` shows what there is), or one task with -n 1."
        )
    if alone or num_ranks == launched == 1:
        return Alone()
    if launched != num_ranks:
        raise ConfigError(
            f"cluster.ranks_per_shard is {num_ranks} and MPI started {launched} process(es) of this shard. Start it as "
            f"`mpiexec -n {num_ranks} python jobs/simulate.py RUN --shard N`, or under srun with as many tasks."
        )
    try:
        ranks = MPIRanks()
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"cluster.ranks_per_shard={num_ranks} needs MPI, which does not load ({error}). Install one (`pip install "
            "mpich`, or load the site's module), or set cluster.ranks_per_shard=1."
        ) from error
    if ranks.size != num_ranks:
        raise ConfigError(
            f"{launched} processes of this shard were started, and MPI sees {ranks.size}: the launcher and mpi4py's "
            "library are of different MPIs. Under Slurm try `srun --mpi=pmi2`; else use the mpiexec of that library."
        )
    return ranks
