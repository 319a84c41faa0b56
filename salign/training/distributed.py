"""The ranks of a training job: found, joined and checked."""

import os
import signal
import socket
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from salign.errors import ConfigError

T = TypeVar("T")

# Launchers that start several processes and are not joined here: N silent worlds of one would all write one model.
_FOREIGN_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0, which alone writes and logs."""
        return self.rank == 0


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def init_ranks() -> Ranks:
    """Joins the ranks that torchrun or deepspeed started; a plain process is a world of one.

    Raises:
        ConfigError: Another launcher started several processes.
    """
    if "RANK" not in os.environ:
        foreign = [name for name in _FOREIGN_SIZES if int(os.environ.get(name, "1")) > 1]
        if foreign:
            raise ConfigError(
                f"{foreign[0]} says that {os.environ[foreign[0]]} processes were started, but RANK is not set, so each "
                "would train by itself. Start training with torchrun or deepspeed."
            )
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(_free_port()))
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not on_gpu:
        # Compiled at the first start (69 s), and fatal where there is no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {local_rank} of this machine has no GPU of its own; there are {torch.cuda.device_count()}. Set "
                "cluster.num_ranks to at most that, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU."
            )
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def is_launched() -> bool:
    """Whether this process is one of ranks that a launcher started, or was started by one that is not joined here."""
    return "RANK" in os.environ or any(int(os.environ.get(name, "1")) > 1 for name in _FOREIGN_SIZES)


def alone() -> Ranks:
    """A world of one that needs no joining."""
    return Ranks(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def gather(value: T, ranks: Ranks) -> list[T]:
    """What every rank has, in their order, on rank 0; empty on the others."""
    if ranks.size == 1:
        return [value]
    found: list[T | None] | None = [None] * ranks.size if ranks.is_main else None
    dist.gather_object(value, found)
    return [item for item in found or () if item is not None]


def leave_ranks() -> None:
    """Ends the group of ranks when all are done: one that goes earlier may tear threads of the others."""
    dist.barrier()
    dist.destroy_process_group()


def sum_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Adds up scalars over all ranks; every rank must name the same."""
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist(), strict=True))


class StopSignal:
    """Whether this process was asked to stop (SIGTERM, or SIGUSR2, as Slurm warns of a time limit or a preemption)."""

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.came = True

    def any(self, device: torch.device) -> bool:
        """Whether any rank was asked; all ranks ask together, so that they stop together."""
        return bool(sum_over_ranks({"came": float(self.came)}, device)["came"])


def share_from_main(value: T | None) -> T:
    """What rank 0 has, on every rank; the others wait for it."""
    box = [value]
    dist.broadcast_object_list(box)
    assert box[0] is not None
    return box[0]
