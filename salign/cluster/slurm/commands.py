"""Slurm's own commands, as few as possible, because sites limit how often one may ask."""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from salign.errors import ConfigError, StageError

_TIMEOUT_S = 60.0
# What only a step's line says; the job's own says FAILED, or nothing yet.
_SAID_BY_STEPS = ("OUT_OF_MEMORY", "NODE_FAIL")
# Reasons for which a job will not start by itself, however long one waits.
_STUCK = re.compile(
    r"held|DependencyNeverSatisfied|BadConstraints|Invalid(Account|QOS)|(Account|QOS)NotAllowed|JobLaunchFailure"
    r"|Partition(Node|Time)Limit|ReservationDeleted|Max\w*PerJob|QOSMin\w+",
    re.IGNORECASE,
)
# An account's or a QOS's hours are spent. With `Run` in the name running jobs have them, and give them back.
_SPENT = re.compile(r"(Assoc|QOS)Grp(?!\w*Run)\w*Minutes", re.IGNORECASE)
_SEEN_BY_NOBODY = "68:0"  # of `salign_begin` in job.sh
_UNUSABLE = ("down", "drain", "fail", "maint", "unk", "power_down", "poweroff", "inval")


@dataclass(frozen=True)
class Node:
    """One node of one partition. `minutes` is the longest that a job may take there; None: no limit. `gpu` is what its
    GPUs are called; "" where they have no name, or several.
    """

    name: str
    partition: str
    is_default: bool
    cpus: int
    mem_mb: int
    gpus: int
    minutes: int | None
    usable: bool
    gpu: str = ""


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
        """Whether it has begun on its nodes and has not left them."""
        return self.state in ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED")

    @property
    def is_stuck(self) -> bool:
        """Whether it will not start by itself."""
        held_back = self.is_out_of_hours or _STUCK.search(self.reason) is not None
        return self.state == "SPECIAL_EXIT" or (not self.is_running and held_back)

    @property
    def is_out_of_hours(self) -> bool:
        """Whether its account or QOS has used up what it was granted."""
        return not self.is_running and _SPENT.search(self.reason) is not None

    @property
    def is_held(self) -> bool:
        """Whether somebody, or Slurm after failed starts, holds it back."""
        return self.is_stuck and "held" in self.reason.lower()

    @property
    def waits_for_jobs(self) -> bool:
        """Whether it waits for other jobs to end."""
        return self.reason == "Dependency"


@dataclass(frozen=True)
class Ending:
    """How a job, or a task of an array, stands that is not in the queue: as Slurm writes it."""

    state: str
    exit_code: str = ""
    nodes: str = ""
    reason: str = ""

    def __str__(self) -> str:
        code, _, signal = self.exit_code.partition(":")
        how = f", signal {signal}" if signal.strip("0") else f", exit code {code}" if code.strip("0") else ""
        if self.exit_code == _SEEN_BY_NOBODY:
            how = ": the run's folder is not to be seen there"
        where = (
            f" on {self.nodes}" if self.nodes.strip("()").lower() not in ("", "none", "none assigned", "null") else ""
        )
        why = f" ({self.reason})" if self.reason.lower() not in ("", "none") else ""
        return f"{self.state}{where}{how}{why}"


class Slurm:
    """Asks and tells Slurm; counts how often (`num_commands`, by the command's name)."""

    def __init__(self) -> None:
        self.num_commands: Counter[str] = Counter()
        self.keeps_accounting = True
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

    def live_jobs(self, suffix: str, others: Mapping[str, str] = MappingProxyType({})) -> list[LiveJob]:
        """Jobs that have not ended; each task of an array by itself.

        Args:
            suffix: Of this user's jobs, those whose name ends so.
            others: Further jobs, whosever they are: id to name, for ids are used again.
        """
        found = [job for job in self._queue("--me") if job.name.endswith(suffix)]
        missing = others.keys() - {job.job_id for job in found}
        if missing:
            try:
                rest = self._queue("--jobs", ",".join(sorted(missing)))
            except StageError as error:
                if "Invalid job id" not in str(error):  # Slurm has forgotten them
                    raise
                rest = []
            found += [job for job in rest if others.get(job.job_id) == job.name]
        return found

    def _queue(self, *which: str) -> list[LiveJob]:
        form = "%i|%T|%r|%N|%j"
        rows = (line.split("|", 4) for line in self._run("squeue", *which, "-h", "-r", "-o", form).splitlines())
        return [LiveJob(id_, name, state, reason, nodes) for id_, state, reason, nodes, name in rows]

    def endings(self, job_ids: Iterable[str]) -> dict[str, Ending]:
        """How jobs, and tasks of arrays, stand in the accounting; a job that it has forgotten is absent.

        Where the cluster keeps no accounting (`keeps_accounting` is then false), the controller is asked, which forgets
        jobs some minutes after their end.

        Returns:
            `JOB` or `JOB_TASK` to how it stands.
        """
        ids = sorted(set(job_ids))
        if not ids:
            return {}
        form = "JobID,State,ExitCode,NodeList,Reason"
        try:
            text = self._run("sacct", "-n", "-P", "-o", form, "-j", ",".join(ids))
        except StageError as error:
            if "accounting storage is disabled" not in str(error):
                raise
            self.keeps_accounting = False
            return endings_of_controller(self._run("scontrol", "-o", "show", "jobs"), ids)
        return endings_of_accounting(line.split("|", 4) for line in text.splitlines())

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ends jobs, by scancel."""
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
    """A node as one row of sinfo describes it; memory is in MB."""
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
        gpu_of(gres),
    )


def num_gpus_of(gres: str) -> int:
    """Of `gpu:2`, `gpu:a100:4(S:0-1)`, `(null)`."""
    total = 0
    for part in gres.replace("(null)", "").split(","):
        words = part.split("(")[0].split(":")
        if words[0] == "gpu":
            total += int(words[-1]) if words[-1].isdigit() else 1
    return total


def gpu_of(gres: str) -> str:
    """The name of a node's GPUs: of `gpu:a100:4(S:0-1)` it is "a100"; "" where there is none, or several."""
    names = {words[1] for part in gres.split(",") if (words := part.split("(")[0].split(":"))[0] == "gpu" and words[2:]}
    return names.pop() if len(names) == 1 else ""


def minutes_of(limit: str) -> int | None:
    """Of `30:00` (minutes, seconds), `1:00:00`, `2-00:00:00`; None of `infinite`."""
    if not limit[:1].isdigit():
        return None
    days, _, clock = limit.rpartition("-")
    hours, minutes, _ = [0, 0, *map(int, clock.split(":"))][-3:]
    return 1440 * int(days or 0) + 60 * hours + minutes


def endings_of_accounting(rows: Iterable[Sequence[str]]) -> dict[str, Ending]:
    """Of sacct's lines (id, state, exit code, nodes, reason); a step may say more than its job."""
    found: dict[str, Ending] = {}
    for line, said, exit_code, nodes, reason in rows:
        job, _, step = line.partition(".")
        state = said.split(" ")[0]
        if "[" in job or not state:  # of an array's tasks that wait still
            continue
        before = found.get(job)
        if step and state in _SAID_BY_STEPS:
            found[job] = Ending(state, exit_code, nodes, before.reason if before else "")
        elif not step and (before is None or before.state not in _SAID_BY_STEPS):
            found[job] = Ending(state, exit_code, nodes, reason)
    return found


def endings_of_controller(text: str, job_ids: Sequence[str]) -> dict[str, Ending]:
    """Of the lines of `scontrol -o show jobs`: those of some jobs."""
    found: dict[str, Ending] = {}
    for line in text.splitlines():
        said: dict[str, str] = dict(re.findall(r"(\S+?)=(\S*)", line))
        job = said.get("ArrayJobId", said.get("JobId", ""))
        if job in job_ids:
            id_ = f"{job}_{said['ArrayTaskId']}" if "ArrayJobId" in said else job
            reason = said.get("Reason", "")
            found[id_] = Ending(said.get("JobState", ""), said.get("ExitCode", ""), said.get("NodeList", ""), reason)
    return found
