"""The ranks of a training job: found, joined and checked."""

import logging
import os
import platform
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from salign.errors import ConfigError
from salign.manifest import code_version, package_versions
from salign.training.rendezvous import Place, check_rendezvous, find_place

logger = logging.getLogger(__name__)

# Of what must be the same on every rank.
_ALIKE = ("torch", "transformers", "deepspeed", "numpy")

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process and its place among the ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0, which alone writes and logs."""
        return self.rank == 0


def init_ranks() -> Ranks:
    """Joins the ranks that torchrun, deepspeed, srun or mpiexec started; a plain process is a world of one.

    Raises:
        ConfigError: They cannot meet, or are not alike; see `check_ranks`.
    """
    place = find_place()
    check_rendezvous(place)
    os.environ.update(place.variables)
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
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device)
    check_ranks(ranks, place)
    return ranks


def check_ranks(ranks: Ranks, place: Place) -> None:
    """Checks, before the first step, that all ranks are there, run the same code and reach each other.

    Raises:
        ConfigError: What differs, and on which machines.
    """
    version = code_version()
    here = {name: found for name, found in package_versions().items() if name in _ALIKE}
    here |= {"backend": dist.get_backend(), "python": platform.python_version(), "salign": str(version["sha256"])}
    everybody: list[Any] = [None] * ranks.size
    dist.all_gather_object(everybody, (socket.gethostname(), here))
    machines = sorted({machine for machine, _ in everybody})
    differences = _differences(everybody)
    if differences:
        raise ConfigError(
            f"the ranks differ: {' | '.join(differences)}. Give every node the same environment "
            "(cluster.setup, cluster.python), and launch again."
        )
    if (ranks.size, len(machines)) != (place.num_ranks, place.num_nodes or len(machines)):
        raise ConfigError(
            f"{place.num_ranks} ranks on {place.num_nodes or len(machines)} nodes were started, and {ranks.size} on "
            f"{len(machines)} ({', '.join(machines)}) have met. Start one process a task, by srun or torchrun alone."
        )
    total = sum_over_ranks({"rank": ranks.rank + 1.0}, ranks.device)["rank"]
    if total != ranks.size * (ranks.size + 1) / 2:
        raise ConfigError(
            f"an all-reduce of 1..{ranks.size} over {dist.get_backend()} gave {total:g}: the network between "
            f"{', '.join(machines)} is at fault."
        )
    if ranks.is_main:
        names, backend = ", ".join(machines), dist.get_backend()
        logger.info("%d ranks on %d nodes (%s), %s", ranks.size, len(machines), names, backend)


def _differences(everybody: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """What is not the same on all machines, each with who has what."""
    found = []
    for name in sorted({name for _, facts in everybody for name in facts}):
        having: dict[str, set[str]] = {}
        for machine, facts in everybody:
            having.setdefault(facts.get(name, "missing"), set()).add(machine)
        if len(having) > 1:
            said = (f"{value} on {', '.join(sorted(where))}" for value, where in having.items())
            found.append(f"{name}: {'; '.join(said)}")
    return found


def alone() -> Ranks:
    """Returns a world of one rank, which needs no joining."""
    return Ranks(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def gather(value: T, ranks: Ranks) -> list[T]:
    """Gathers what every rank has, in their order, on rank 0; the others get an empty list."""
    if ranks.size == 1:
        return [value]
    found: list[T | None] | None = [None] * ranks.size if ranks.is_main else None
    dist.gather_object(value, found)
    return [item for item in found or () if item is not None]


def leave_ranks() -> None:
    """Ends the group of ranks when all are done: one that leaves earlier may break threads of the others."""
    dist.barrier()
    dist.destroy_process_group()


def sum_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Adds up scalars over all ranks; every rank must name the same."""
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist(), strict=True))


class StopSignal:
    """Notes whether this process was asked to stop: by SIGTERM, or by SIGUSR2 as Slurm's warning."""

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.came = True

    def any(self, device: torch.device) -> bool:
        """Returns whether any rank was asked to stop; all ranks ask together, so that they stop together."""
        return bool(sum_over_ranks({"came": float(self.came)}, device)["came"])


def share_from_main(value: T | None) -> T:
    """Returns rank 0's value on every rank; the others wait for it."""
    box = [value]
    dist.broadcast_object_list(box)
    assert box[0] is not None
    return box[0]
