"""Runs what is left of a run on this machine: a pool of processes, stage after stage."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from salign.cluster.plan import Unit, complete, units
from salign.config import Config, LocalCluster
from salign.errors import ConfigError, StageError, explain_os_error
from salign.machine import share_out, visible_devices
from salign.markers import forget, read_failure
from salign.run import RunDir
from salign.storage import full_disk
from salign.tracking.mirror import prepare_environment
from salign.tracking.progress import Watched, watch_evaluation, watch_simulation, watch_training, watching

_POLL_S = 0.1
# A training stage saves first.
_STOP_S = 60.0


def _watched(stage: str, group: Sequence[Unit]) -> Watched:
    files = [unit.folder / "metrics.jsonl" for unit in group]
    if stage == "simulate":
        return watch_simulation(files)
    if stage == "train":
        return watch_training(group[0].command[1], files[0])
    return watch_evaluation(group[0].command[1], files[0])


def _command(unit: Unit, run: RunDir, config: Config) -> list[str]:
    stage = ["-m", "salign.stages", "--attended", unit.stage, str(run.path), *unit.command[1:]]
    if (num_ranks := _num_ranks(unit, config)) > 1:
        ranks = ["--standalone", "--nproc-per-node", str(num_ranks)]
        return [sys.executable, "-m", "torch.distributed.run", *ranks, *stage]
    if unit.stage == "simulate" and config.cluster.ranks_per_shard > 1:
        return [_mpiexec(), "-n", str(config.cluster.ranks_per_shard), sys.executable, *stage]
    return [sys.executable, *stage]


def _num_ranks(unit: Unit, config: Config) -> int:
    """Ranks of torch; an evaluation, which comes out the same for any number, takes no more than there are GPUs."""
    if unit.stage not in ("train", "evaluate"):
        return 1
    devices = visible_devices() if unit.stage == "evaluate" else []
    return min(config.cluster.num_ranks, len(devices)) if devices else config.cluster.num_ranks


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
    name = " ".join(unit.command)
    return kind(f"{name} failed: {said}\nIts log: {log}. Launch again to go on; what is complete is kept.")


def _run_all(pending: Sequence[Unit], run: RunDir, config: Config, num_workers: int) -> None:
    """Runs units that need nothing of each other, so many at a time.

    Raises:
        StageError: One failed; those that were running are ended.
    """
    waiting = list(pending)
    running: dict[subprocess.Popen[bytes], tuple[Unit, int]] = {}
    num_at_once = max(_num_ranks(pending[0], config), min(num_workers, len(pending)))
    places = list(range(min(num_workers, len(pending))))
    devices = visible_devices() if len(places) > 1 else []
    if pending[0].stage == "simulate":
        num_at_once *= config.cluster.ranks_per_shard
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                unit, place = waiting.pop(0), places.pop(0)
                forget(unit.folder)
                with (run.logs / unit.log_name).open("wb") as log:
                    command = _command(unit, run, config)
                    environment = _environment(num_at_once, share_out(devices, num_workers)[place])
                    process = subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
                    )
                running[process] = unit, place
            for process in [process for process in running if process.poll() is not None]:
                unit, place = running.pop(process)
                places.append(place)
                if process.returncode:
                    raise _failure(unit, run, process.returncode)
            time.sleep(_POLL_S)
    finally:
        _stop(list(running))


def run_locally(run: RunDir, config: Config, console: Console) -> None:
    """Runs every unit that is not complete, and shows how far each stage is.

    Raises:
        StageError: A unit failed.
    """
    cluster = config.cluster
    assert isinstance(cluster, LocalCluster)
    prepare_environment(run, config)
    everything = units(run, config)
    groups: list[list[Unit]] = []
    for unit in everything:
        if unit.stage == "simulate" and groups:
            groups[0].append(unit)  # shards need nothing of each other
        else:
            groups.append([unit])
    for group in groups:
        done = complete(everything)
        left = [unit for unit in group if unit.key not in done]
        if not left:
            continue
        if group[0].stage == "simulate":
            console.print(f"simulate: {len(left)} of {len(group)} shards are left", highlight=False)
        if group[0].stage == "collect":
            console.print("collect", highlight=False)
            _run_all(left, run, config, 1)
            continue
        with watching(_watched(group[0].stage, group), console):
            _run_all(left, run, config, cluster.num_workers)
