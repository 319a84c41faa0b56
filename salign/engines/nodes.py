"""A server over several nodes, in vLLM's own way: the first node serves, and the others compute for it.

The scheduler starts one process on each node. In a file of the run's folder the first says where they meet, anew at
each start; the others start and end their parts with it. Where one's part ends by itself, all are started again.

Source: vLLM's docs/serving/parallelism_scaling.md, "Running vLLM with MultiProcessing", and its pull request 23691.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from salign.config import Config, LocalCluster, ServedEngine
from salign.engines.keeping import KeptProcess, explain, start
from salign.engines.programs import Program, server_environment
from salign.engines.server import KeptServer
from salign.errors import ConfigError, EngineError
from salign.launchers import job_here, num_restarts, number_in, step_here
from salign.machine import free_port
from salign.storage import write_atomic

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""How often each node looks what the others say."""


class _Meeting(BaseModel):
    """What the nodes of a server agree on.

    Attributes:
        address: Of the first node, where all meet; "" where they do not.
        port: There.
        lost: Which part ended by itself, and why; the first then calls the next meeting.
        is_over: The server has ended, and no part of it is needed any more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = ""
    port: int = 0
    lost: str = ""
    is_over: bool = False


class Nodes:
    """The nodes of a server as one of them sees them.

    Args:
        file: What they agree on; of this start of the job, so that nothing in it is of an earlier one.
        hosts: Their names, the first one's first.
        rank: Which of them this is.
    """

    def __init__(self, file: Path, hosts: Sequence[str], rank: int) -> None:
        self._file = file
        self._hosts = hosts
        self.rank = rank
        other = hosts[1 if rank == 0 else 0]
        self._address = os.environ.get("VLLM_HOST_IP") or _address_towards(other)

    @property
    def num(self) -> int:
        return len(self._hosts)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def _agreed(self) -> _Meeting | None:
        with contextlib.suppress(FileNotFoundError):
            return _Meeting.model_validate_json(self._file.read_text(encoding="utf-8"))
        return None

    def _agree(self, meeting: _Meeting) -> None:
        write_atomic(self._file, meeting.model_dump_json() + "\n")

    def _part(self, program: Program, meeting: _Meeting, port: int) -> list[str]:
        """The command of this node's part of the server."""
        options = {
            "nnodes": self.num,
            "node-rank": self.rank,
            "master-addr": meeting.address,
            "master-port": meeting.port,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [*program.command(port), *words, *([] if self.is_first else ["--headless"])]

    def _environment(self, program: Program, port: int, key: str) -> dict[str, str]:
        return {**program.environment(port, key), "VLLM_HOST_IP": self._address}

    # --- of the first ---

    def leading(self, program: Program) -> Program:
        """The program as the first node starts it: each time it calls a meeting for the others to come to."""

        def command(port: int) -> list[str]:
            meeting = _Meeting(address=self._address, port=free_port(self._address))
            self._agree(meeting)
            return self._part(program, meeting, port)

        return dataclasses.replace(
            program, command=command, environment=lambda port, key: self._environment(program, port, key)
        )

    def lost(self) -> str:
        """Which other node's part ended by itself since the last meeting, and why; "" if none did."""
        agreed = self._agreed()
        return "" if agreed is None else agreed.lost

    async def start(self, server: KeptServer) -> None:
        """Starts the server; where another node's part ends meanwhile, for which vLLM would wait, its error is raised.

        Raises:
            EngineError: A part of it ended, or it was not ready in time.
        """
        self._agree(_Meeting())  # what was lost before this start is known
        starting = asyncio.create_task(server.start())
        try:
            while not starting.done():
                await asyncio.wait([starting], timeout=POLL_S)
                if not starting.done() and (lost := self.lost()):
                    raise EngineError(lost)
            await starting
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    def close(self) -> None:
        """Lets the other nodes end."""
        self._agree(_Meeting(is_over=True))

    # --- of the others ---

    async def called(self) -> bool:
        """Waits for the first meeting; False if the server has ended before there was one."""
        while (agreed := self._agreed()) is None:
            await asyncio.sleep(POLL_S)
        return not agreed.is_over

    async def follow(self, program: Program, section: ServedEngine, log: Path) -> None:
        """Computes for the first node until the server has ended."""
        agreed, part = None, None
        try:
            while agreed is None or not agreed.is_over:
                if (now := self._agreed()) != agreed:
                    agreed = now
                    if part is not None:
                        await part.end()
                    part = self._start(program, section, log, agreed) if agreed is not None and agreed.port else None
                elif part is not None and (code := part.process.poll()) is not None:
                    lost = f"The part of the server on {self._hosts[self.rank]} ended ({explain(code)}). {part.quote()}"
                    logger.warning("%s", lost)
                    self._agree(_Meeting(lost=lost))
                await asyncio.sleep(POLL_S)
        finally:
            if part is not None:
                await part.end()

    def _start(self, program: Program, section: ServedEngine, log: Path, meeting: _Meeting) -> KeptProcess:
        environment = server_environment(section) | self._environment(program, 0, "")
        process, log_start = start(self._part(program, meeting, 0), environment, log)
        logger.info("node %d of %d joins %s:%d", self.rank, self.num, meeting.address, meeting.port)
        return KeptProcess(process, "", log, log_start)


def nodes_of(config: Config, folder: Path) -> Nodes | None:
    """The nodes of a server that this process is on one of; None where it has one alone.

    Args:
        config: The run's.
        folder: The server's.

    Raises:
        ConfigError: This process was not started on as many nodes as the config says.
    """
    if isinstance(config.cluster, LocalCluster) or (num_nodes := config.cluster.serve.nodes) == 1:
        return None
    num_tasks = number_in(["SLURM_STEP_NUM_TASKS"], 1)
    if num_tasks != num_nodes:
        raise ConfigError(
            f"cluster.serve.nodes is {num_nodes}, and this server has {num_tasks} processes: a launch submits jobs in "
            "which srun starts one on each node."
        )
    step = step_here()
    folder.mkdir(parents=True, exist_ok=True)
    return Nodes(folder / f"nodes-{job_here()}-{num_restarts()}.json", step.hostnames, step.global_rank)


def _address_towards(host: str) -> str:
    """The address of this node on the network by which it reaches another; nothing is sent there.

    Raises:
        ConfigError: The other's name does not resolve.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as towards:
            towards.connect(address)
            return str(towards.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"{host!r}, a node of this server, cannot be reached from {socket.gethostname()} ({error.strerror}). Set "
            "VLLM_HOST_IP in cluster.setup to this node's address on the network that all of them share."
        ) from error
