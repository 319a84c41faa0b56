"""Slurm's own commands, as few as possible, because sites limit how often one may ask."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from salign.errors import ConfigError, StageError

_TIMEOUT_S = 60.0
# What only a step's line says; the job's own says FAILED, or nothing yet.
_SAID_BY_STEPS = ("OUT_OF_MEMORY", "NODE_FAIL")
_UNUSABLE = ("down", "drain", "fail", "maint", "unk", "power_down", "poweroff", "inval")


@dataclass(frozen=True)
class Node:
    """One node of one partition. `minutes` is the longest that a job may take there; None: no limit."""

    name: str
    partition: str
    is_default: bool
    cpus: int
    mem_mb: int
    gpus: int
    minutes: int | None
    usable: bool


@dataclass(frozen=True)
class LiveJob:
    """A job, or a task of an array, that has not ended. `id` is `JOB`, or `JOB_TASK` of an array."""

    id: str
    name: str
    state: str
    reason: str
    node_list: str

    @property
    def job_id(self) -> str:
        """Without the task."""
        return self.id.split("_")[0]

    @property
    def is_running(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED")


class Slurm:
    """Asks and tells Slurm; counts how often (`num_commands`, by the command's name)."""

    def __init__(self) -> None:
        self.num_commands: Counter[str] = Counter()
        self._max_array_size: int | None = None

    def usage(self) -> str:
        """How often Slurm was asked; "" where it was not."""
        if not self.num_commands:
            return ""
        return "Slurm was asked: " + ", ".join(f"{count}x {name}" for name, count in self.num_commands.items())

    def _run(self, *command: str) -> str:
        self.num_commands[command[0]] += 1
        if shutil.which(command[0]) is None:
            raise ConfigError(
                f"cluster.kind=slurm needs {command[0]}, which is not on the PATH. Launch on a login node of the "
                "cluster (perhaps `module load slurm` first), or set cluster.kind=local."
            )
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=clean_environment(), check=False
            )
        except subprocess.TimeoutExpired:
            raise StageError(
                f"`{command[0]}` gave no answer in {_TIMEOUT_S:.0f} s; is Slurm's controller up?"
            ) from None
        if done.returncode:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise StageError(
                f"`{' '.join(command[:4])}` failed: {said}. Is this a login node of the cluster, and is Slurm's "
                "controller up? `scontrol ping` tells."
            )
        return done.stdout

    def nodes(self) -> list[Node]:
        """Every node of every partition that can be seen from here."""
        form = "%N|%P|%c|%m|%G|%l|%T"
        return [node_of(line.split("|")) for line in self._run("sinfo", "-h", "-N", "-o", form).splitlines()]

    def max_array_size(self) -> int:
        """How many tasks an array may have; asked once."""
        if self._max_array_size is None:
            self._max_array_size = self._ask_max_array_size()
        return self._max_array_size

    def _ask_max_array_size(self) -> int:
        for line in self._run("scontrol", "show", "config").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "MaxArraySize":
                return int(value)
        raise StageError("`scontrol show config` names no MaxArraySize; is this Slurm?")

    def live_jobs(self, suffix: str) -> list[LiveJob]:
        """This user's jobs that have not ended and whose name ends so; each task of an array by itself."""
        form = "%i|%T|%r|%N|%j"
        rows = (line.split("|", 4) for line in self._run("squeue", "--me", "-h", "-r", "-o", form).splitlines())
        found = [LiveJob(id_, name, state, reason, nodes) for id_, state, reason, nodes, name in rows]
        return [job for job in found if job.name.endswith(suffix)]

    def ended_states(self, job_ids: Iterable[str]) -> dict[str, str] | None:
        """How jobs, and tasks of arrays, stand in the accounting; a job that it has forgotten is absent.

        The job's own line says FAILED where a step's says OUT_OF_MEMORY: then it is the step's.

        Returns:
            `JOB` or `JOB_TASK` to state; None where the cluster keeps no accounting.
        """
        ids = ",".join(sorted(set(job_ids)))
        if not ids:
            return {}
        try:
            text = self._run("sacct", "-n", "-P", "-o", "JobID,State", "-j", ids)
        except StageError as error:
            if "accounting storage is disabled" in str(error):
                return None
            raise
        return telling_states(line.split("|") for line in text.splitlines())

    def cancel(self, job_ids: Sequence[str]) -> None:
        self._run("scancel", *job_ids)

    def would_accept(self, script: str) -> str | None:
        """Why Slurm would refuse a batch script; None if it would take it."""
        self.num_commands["sbatch --test-only"] += 1
        done = subprocess.run(
            ["sbatch", "--test-only"],
            input=script,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env=clean_environment(),
            check=False,
        )
        return " ".join(done.stderr.split()) if done.returncode else None


def clean_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without what a job around this process, or a user's profile, would make Slurm's commands do."""
    ours = ("SLURM_", "SBATCH_", "SRUN_", "PMI_", "PMIX_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
    return {name: value for name, value in environ.items() if name == "SLURM_CONF" or not name.startswith(ours)}


def node_of(row: Sequence[str]) -> Node:
    name, partition, cpus, memory, gres, time, state = row[:7]
    return Node(
        name,
        partition.rstrip("*"),
        partition.endswith("*"),
        int(cpus),
        int(memory),
        num_gpus_of(gres),
        minutes_of(time),
        not any(word in state.lower() for word in _UNUSABLE),
    )


def num_gpus_of(gres: str) -> int:
    """Of `gpu:2`, `gpu:a100:4(S:0-1)`, `(null)`."""
    total = 0
    for part in gres.replace("(null)", "").split(","):
        words = part.split("(")[0].split(":")
        if words[0] == "gpu":
            total += int(words[-1]) if words[-1].isdigit() else 1
    return total


def minutes_of(limit: str) -> int | None:
    """Of `30:00` (minutes, seconds), `1:00:00`, `2-00:00:00`; None of `infinite`."""
    if not limit[:1].isdigit():
        return None
    days, _, clock = limit.rpartition("-")
    hours, minutes, _ = [0, 0, *map(int, clock.split(":"))][-3:]
    return 1440 * int(days or 0) + 60 * hours + minutes


def telling_states(rows: Iterable[Sequence[str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line, said in rows:
        job, _, step = line.partition(".")
        state = said.split(" ")[0]
        if "[" in job or not state:  # of an array's tasks that wait still
            continue
        if (not step and found.get(job) not in _SAID_BY_STEPS) or state in _SAID_BY_STEPS:
            found[job] = state
    return found
