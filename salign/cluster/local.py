"""This machine as a scheduler: a pool of processes, stage after stage."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from salign.cluster.scheduler import Scheduler
from salign.config import Config, LocalCluster
from salign.engines.kinds import kind_of
from salign.errors import ConfigError, StageError, explain_os_error
from salign.machine import multiplies_in_bfloat16, share_out, visible_devices
from salign.markers import forget, read_failure
from salign.plan import Unit, complete, servers_of, units
from salign.run import RunDir
from salign.stages import groups_of, stage_of
from salign.storage import full_disk
from salign.tracking.mirror import prepare_environment
from salign.tracking.progress import watching

T = TypeVar("T")

_POLL_S = 0.1
# A training stage saves first.
_STOP_S = 60.0


def _command(unit: Unit, run: RunDir, config: Config, num_ranks: int) -> list[str]:
    work = ["-m", "salign.work", "--attended", unit.stage, str(run.path), *filter(None, [unit.argument])]
    if num_ranks > 1:
        ranks = ["--standalone", "--nproc-per-node", str(num_ranks)]
        return [sys.executable, "-m", "torch.distributed.run", *ranks, *work]
    if _is_by_mpi(unit, config):
        return [_mpiexec(), "-n", str(config.cluster.ranks_per_shard), sys.executable, *work]
    return [sys.executable, *work]


def _is_by_mpi(unit: Unit, config: Config) -> bool:
    return stage_of(unit).ranks == "mpi" and config.cluster.ranks_per_shard > 1


def _num_ranks(unit: Unit, config: Config, num_at_once: int) -> int:
    """Ranks of torch for each of the units that run at a time.

    Evaluations, which come out the same for any number of ranks, share them out, and have no more than there are GPUs.
    """
    if stage_of(unit).ranks != "torch":
        return 1
    devices = visible_devices() if unit.stage == "evaluate" else []
    most = min(config.cluster.num_ranks, len(devices)) if devices else config.cluster.num_ranks
    return most // num_at_once


def batches_of_models(config: Config, models: Sequence[T]) -> list[list[T]]:
    """Divides what is evaluated into what is evaluated side by side, which starts fewer processes than one by one does.

    With GPUs it is one model at a time, as where an engine starts a server: that may need all of the machine.

    Args:
        config: The run's.
        models: Their names, or what there is one of for each.
    """
    engines = [config.answering, *(judge.engine for judge in config.judges)]
    is_one_by_one = visible_devices() or any(one is not None and kind_of(one).starts_servers for one in engines)
    num_ranks = 1 if is_one_by_one else config.cluster.num_ranks
    batches, left = list[list[T]](), list(models)
    while left:
        # Ranks that are shared out evenly are all at work.
        size = max(size for size in range(1, min(num_ranks, len(left)) + 1) if num_ranks % size == 0)
        batches.append(left[:size])
        left = left[size:]
    return batches


def _mpiexec() -> str:
    """The launcher of MPI: of this environment, where it has one, else of the system."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("mpiexec", path=places)
    if found is None:
        raise ConfigError(
            "cluster.ranks_per_shard above 1 needs mpiexec, which is not on the PATH. Install an MPI (`pip install "
            "mpich`, or load the site's module), or set cluster.ranks_per_shard=1."
        )
    return found


def _environment(num_processes: int, devices: Sequence[str]) -> dict[str, str]:
    """The cores shared out among processes that run at a time; and the GPUs of one of them, if it has not all."""
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    own = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
    # Within a Slurm job, MPICH's mpiexec would ask srun for what this machine does by itself.
    return {"OMP_NUM_THREADS": str(threads), "HYDRA_BOOTSTRAP": "fork", **os.environ, **own}


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(unit: Unit, run: RunDir, code: int) -> StageError | ConfigError:
    """What a unit failed of: as it recorded it; if it could not, a full disk, or what its log says."""
    log = run.logs / unit.log_name
    recorded, full = read_failure(unit.folder), full_disk(run.path)
    said = explain_os_error(full) if full is not None else None
    if recorded is not None:
        said, code = recorded  # a launcher of ranks has an exit code of its own
    if said is None:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        errors = [line for line in lines if line.startswith("error: ")]
        last = (errors or lines or ["nothing"])[-1]
        said = f"it ended with exit code {code}; its log says: {last.removeprefix('error: ')}"
    kind = ConfigError if code == ConfigError.exit_code else StageError
    return kind(f"{unit.name} failed: {said}\nIts log: {log}. Launch again to continue; what is complete is kept.")


class _Servers:
    """The servers of the run's fleets, ended with the block; each has its share of the GPUs."""

    def __init__(self, run: RunDir, config: Config) -> None:
        self._run = run
        self._config = config
        self._left: dict[subprocess.Popen[bytes], Unit] = {}

    def __enter__(self) -> "_Servers":
        servers, devices = servers_of(self._run, self._config), visible_devices()
        for unit, own in zip(servers, share_out(devices, len(servers)), strict=True):
            forget(unit.folder)
            self._left[_start(unit, self._run, self._config, _environment(len(servers), own))] = unit
        return self

    def __exit__(self, *_: object) -> None:
        _stop(list(self._left))

    def check(self) -> None:
        """Goes on without a server that failed, as long as its fleet has another.

        Raises:
            StageError: It was the last one.
        """
        for process in [process for process in self._left if process.poll() is not None]:
            unit = self._left.pop(process)
            is_last = all(other.folder.parent != unit.folder.parent for other in self._left.values())
            if process.returncode and is_last:
                raise _failure(unit, self._run, process.returncode)


def _dtype(unit: Unit, config: Config) -> str | None:
    """In what a unit trains or evaluates; None of another."""
    if unit.stage == "train":
        return config.stage(unit.argument).dtype
    return config.evaluate.dtype if unit.stage == "evaluate" else None


def _start(
    unit: Unit, run: RunDir, config: Config, environment: Mapping[str, str], num_ranks: int = 1
) -> subprocess.Popen[bytes]:
    command = _command(unit, run, config, num_ranks)
    with (run.logs / unit.log_name).open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _run_all(
    pending: Sequence[Unit], run: RunDir, config: Config, num_workers: int, servers: _Servers | None = None
) -> None:
    """Runs units that need nothing of each other, so many at a time.

    Raises:
        StageError: One failed, or all servers that they ask; those that were running are ended.
    """
    waiting = list(pending)
    running: dict[subprocess.Popen[bytes], tuple[Unit, int]] = {}
    places = list(range(min(num_workers, len(pending))))
    num_ranks = _num_ranks(pending[0], config, len(places))
    num_processes = len(places) * (config.cluster.ranks_per_shard if _is_by_mpi(pending[0], config) else num_ranks)
    devices = visible_devices() if len(places) > 1 else []
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                unit, place = waiting.pop(0), places.pop(0)
                forget(unit.folder)
                environment = _environment(num_processes, share_out(devices, num_workers)[place])
                running[_start(unit, run, config, environment, num_ranks)] = unit, place
            if servers is not None:
                servers.check()
            for process in [process for process in running if process.poll() is not None]:
                unit, place = running.pop(process)
                places.append(place)
                if process.returncode:
                    raise _failure(unit, run, process.returncode)
            time.sleep(_POLL_S)
    finally:
        _stop(list(running))


def _groups(everything: Sequence[Unit], config: Config, wanted: Collection[str]) -> list[list[Unit]]:
    """The units that run at a time, group after group; of the evaluations, which come last, those that are wanted."""
    before = [group for group in groups_of(everything) if group[0].stage != "evaluate"]
    evaluations = [unit for unit in everything if unit.stage == "evaluate" and unit.key in wanted]
    return [*before, *batches_of_models(config, evaluations)]


class LocalScheduler(Scheduler):
    """This machine: a pool of processes, stage after stage, while the launcher waits."""

    name = "this machine"
    is_here = True

    def check(self, config: Config, left: Sequence[Unit]) -> list[str]:
        if any(_is_by_mpi(unit, config) for unit in left):
            _mpiexec()
        slow = [unit.name for unit in left if _dtype(unit, config) == "bfloat16"]
        if not slow or multiplies_in_bfloat16() or visible_devices():
            return []
        others = f" and {len(slow) - 1} more" if slow[1:] else ""
        return [
            f"{slow[0]}{others}: dtype is bfloat16, and this processor has no instructions for it, which makes it some "
            "forty times as slow as float32. Set dtype to float32 (train.stages, evaluate), which gives other figures "
            "by rounding alone."
        ]

    def submit(self, config: Config, left: Sequence[Unit], console: Console, after: Sequence[str] = ()) -> None:
        assert isinstance(config.cluster, LocalCluster)
        run, everything, wanted = self.run, units(self.run, config), {unit.key for unit in left}
        prepare_environment(run, config)
        for group in _groups(everything, config, wanted):
            # Some of what was left may be complete after all: what it needs came out as before.
            done = complete(everything)
            pending = [unit for unit in group if unit.key in wanted and unit.key not in done]
            if not pending:
                continue
            stage = stage_of(group[0])
            if stage.is_array:
                console.print(f"{stage.name}: {len(pending)} of {len(group)} shards to do", highlight=False)
            if stage.watch is None:
                console.print(group[0].name, highlight=False)
                _run_all(pending, run, config, 1)
                continue
            servers = _Servers(run, config) if stage.is_array else contextlib.nullcontext()
            num_workers = config.cluster.num_workers if stage.is_array else len(pending)
            with servers as serving, watching(stage.watch(group), console):
                _run_all(pending, run, config, num_workers, serving)
