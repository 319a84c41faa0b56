"""Where a run is executed: on this machine or by Slurm."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from salign.config.base import (
    Count,
    CountOrZero,
    NotBool,
    NotNegative,
    Positive,
    Section,
    at_most,
    kind_unless_said,
    unless,
)

Processes = Annotated[Count, at_most(4096, "each is a process of this machine")]
OptionValue = str | int | float | bool | None
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

# From the submitter's environment; values travel with the submission and are written to no file of the run.
_ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV"),
    *("SALIGN_CACHE", "SALIGN_TRUST", "SALIGN_RULES", "NETRC"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy", "ALL_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_API_KEY"),
)


class Throughput(Section):
    """Rates for the estimate of `--dry-run`: after those that the run itself measures, before those of earlier runs."""

    calls_per_s: Positive | None = None
    """Model calls of one shard."""
    tokens_per_call: Positive | None = None
    """Tokens read and written."""
    train_tokens_per_s: Positive | None = None
    """All ranks together."""
    gpu: (
        Literal[
            "B200",
            "H200",
            "H100 PCIe",
            "H100 NVL",
            "H100",
            "A100",
            "A40",
            "A30",
            "L40S",
            "L4",
            "RTX 4090",
            "RTX 3090",
        ]
        | None
    ) = None
    """Which GPUs the cluster has: what is not measured or stated is estimated by their data sheet, as a range."""


class _Cluster(Section):
    """What every kind has; and, as a field or a property, `num_ranks`, `ranks_per_shard` and `min_shards`."""

    throughput: Throughput = Throughput()
    """Assumed rates for the estimate, until the run has figures of its own."""

    def num_shards_at_once(self, num_shards: int) -> int:
        """How many of the shards are simulated at the same time."""
        raise NotImplementedError

    def num_gpus(self, stage: str) -> float:
        """GPUs that a unit of a stage gets; 0 if it uses what the machine has."""
        return 0


class LocalCluster(_Cluster):
    kind: Literal["local"] = "local"
    num_workers: Processes = 2
    """Shards that run at the same time."""
    ranks_per_shard: Processes = 1
    """MPI processes that simulate one shard together; each world is divided among them."""
    num_ranks: Processes = 2
    """Ranks that train a stage together; models that are evaluated side by side share them out."""

    @property
    def min_shards(self) -> None:
        """All of them: a local run stops at a shard that failed."""

    def num_shards_at_once(self, num_shards: int) -> int:
        return min(num_shards, self.num_workers)


class Resources(Section):
    """What one job, or each task of an array, gets."""

    timeout_min: Annotated[Count, at_most(5_000_000, "no job runs for ten years")] = 60
    """A job that needs longer is stopped in time, requeued, and continues from its journal or checkpoint."""
    nodes: Count = 1
    """Nodes of one job."""
    tasks_per_node: Count = 1
    """Processes per node: ranks of training or of an evaluation, or the MPI ranks of a shard."""
    cpus_per_task: Count = 2
    """Threads of one task."""
    mem_gb: NotNegative | None = None
    """Memory per node; 0: all that a node has; None: the default of the place where the job runs."""
    gpus_per_node: CountOrZero = 0
    """GPUs that the job takes of each node."""

    @property
    def num_tasks(self) -> int:
        return self.nodes * self.tasks_per_node


class _BatchCluster(_Cluster):
    """A scheduler of jobs: the array of shards, the collector, the training stages, the evaluations."""

    simulate: Resources = Resources()
    """For each task of the array."""
    serve: Resources = Resources()
    """For each server of a fleet (`engine.kind: fleet`), which is one task on each of its nodes: with several, vLLM
    divides tensors among the GPUs of a node, and layers among nodes."""
    collect: Resources = Resources()
    """One task."""
    train: Resources = Resources()
    """A task is a rank."""
    evaluate: Resources = Resources()
    """A task is a rank."""
    shards_per_task: Count = 1
    """Shards that one task of the array begins with, one after the other; for small shards. Above 1, a task that has
    done its own takes those that no other works on, so that a slow node holds up one shard alone."""
    shards_at_once: Count = 1
    """Of these, so many at the same time: each by a process of its own, with `simulate.cpus_per_task` cores and its
    share of the task's GPUs."""
    max_parallel: Count = 256
    """Tasks of the array that run at the same time."""
    min_shards: Count | None = None
    """The chain continues once this many shards are complete, even if others failed; None: it needs all."""
    signal_delay_s: Annotated[int, NotBool, Field(ge=10)] = 120
    """How long before its time limit a job is warned. Slurm may warn up to a minute earlier."""
    setup: tuple[str, ...] = ()
    """Shell lines at the start of every job, such as `module load cuda`."""
    python: str | None = None
    """The shell command of the interpreter, such as `apptainer exec --nv image.sif python`; None: the launcher's."""
    environment: tuple[EnvironmentName, ...] = _ENVIRONMENT
    """The only variables of the launcher's environment that jobs get; each engine's `api_key_env` is added."""
    more_environment: tuple[EnvironmentName, ...] = ()
    """Further ones, for what a site or a library needs beside the usual."""

    @property
    def num_ranks(self) -> int:
        """Training ranks."""
        return self.train.num_tasks

    @property
    def ranks_per_shard(self) -> int:
        """MPI processes that simulate one shard together."""
        return self.simulate.num_tasks

    @property
    def by_stage(self) -> Mapping[str, Resources]:
        """What the jobs of each stage get."""
        return {name: getattr(self, name) for name in ("serve", "simulate", "collect", "train", "evaluate")}

    def num_shards_at_once(self, num_shards: int) -> int:
        return min(math.ceil(num_shards / self.shards_per_task), self.max_parallel) * self.shards_at_once

    def num_gpus(self, stage: str) -> float:
        shares = self.shards_at_once if stage == "simulate" else 1
        return self.by_stage[stage].nodes * self.by_stage[stage].gpus_per_node / shares

    @model_validator(mode="after")
    def _jobs_are_possible(self) -> "_BatchCluster":
        mistakes = []
        if self.collect.num_tasks > 1:
            tasks = self.collect.num_tasks
            mistakes.append(f"collect: runs in one process, not {tasks}; leave out nodes and tasks_per_node")
        if self.serve.tasks_per_node > 1:
            mistakes.append(
                f"serve: a server is one task on each of its nodes, not {self.serve.tasks_per_node}; leave out "
                "tasks_per_node, and set engine.num_servers"
            )
        if self.shards_at_once > self.shards_per_task:
            mistakes.append(f"shards_at_once {self.shards_at_once} exceeds shards_per_task {self.shards_per_task}")
        if self.shards_at_once > 1 and self.ranks_per_shard > 1:
            mistakes.append(
                "shards_at_once above 1 needs shards of one rank: simulate.nodes=1, simulate.tasks_per_node=1"
            )
        mistakes += [
            f"{name}.timeout_min {resources.timeout_min} is no longer than signal_delay_s {self.signal_delay_s}: the "
            "job would be told to stop as soon as it starts"
            for name, resources in self.by_stage.items()
            if 60 * resources.timeout_min <= self.signal_delay_s
        ]
        return unless(self, mistakes)


def _text_of_number(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _long_names(options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """Options by their names as Slurm writes them: `mem_per_cpu` is `mem-per-cpu`."""
    named = {name.strip().lstrip("-").replace("_", "-").lower(): value for name, value in options.items()}
    if len(named) < len(options):
        raise ValueError(f"an option is given twice: {', '.join(sorted(options))}")
    for name in named:
        if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
            raise ValueError(f"{name!r} is not the long name of an option, such as `partition`")
    return named


# By long name; null and false leave out what the whole cluster is given, true is an option without a value.
Options = Annotated[dict[str, OptionValue], AfterValidator(_long_names)]


class SlurmResources(Resources):
    """What one job, or each task of an array, gets."""

    sbatch: Options = Field(default={})
    """Options of sbatch for this stage, over those of `cluster.sbatch`."""
    srun: Options = Field(default={})
    """Options of srun for this stage, over those of `cluster.srun`."""


class SlurmCluster(_BatchCluster):
    """A chain of Slurm's jobs."""

    kind: Literal["slurm"]
    sbatch: Options = Field(default={})
    """Options of sbatch for every job, by their long names: {partition: gpu, account: project, exclude: "n[3-4]"}.
    null or false takes one away from a stage; true is an option without a value."""
    srun: Options = Field(default={})
    """Options of srun for the processes of every job, such as {container-image: image.sqsh, gpu-bind: closest}. Where a
    shard spans ranks, `mpi` is pmi2 unless it is given here."""
    after: Annotated[str, BeforeValidator(_text_of_number), Field(pattern=r"^[\w:,?+-]+$")] | None = None
    """What the first jobs of the chain wait for: the id of a job that must end well, or whatever sbatch's
    `--dependency` takes."""
    simulate: SlurmResources = SlurmResources()
    """For each task of the array."""
    serve: SlurmResources = SlurmResources()
    """For each server of a fleet (`engine.kind: fleet`), which is one task on each of its nodes: with several, vLLM
    divides tensors among the GPUs of a node, and layers among nodes."""
    collect: SlurmResources = SlurmResources()
    """One task."""
    train: SlurmResources = SlurmResources()
    """A task is a rank."""
    evaluate: SlurmResources = SlurmResources()
    """A task is a rank."""

    @property
    def by_stage(self) -> Mapping[str, SlurmResources]:
        return {name: getattr(self, name) for name in super().by_stage}

    def sbatch_options(self, stage: str) -> dict[str, str | int | float | bool]:
        """The options of sbatch that a stage's jobs are given beside what salign sets."""
        return _given({**self.sbatch, **self.by_stage[stage].sbatch})

    def srun_options(self, stage: str) -> dict[str, str | int | float | bool]:
        """The same of srun."""
        return _given({**self.srun, **self.by_stage[stage].srun})

    def names_gpus(self, stage: str) -> bool:
        """Whether a stage's options of sbatch ask for its GPUs, so that `gpus_per_node` is not passed on."""
        options = self.sbatch_options(stage)
        gres = str(options.pop("gres", "")).replace("gres:", "").split(",")
        return any(name in options for name in GPU_OPTIONS) or any(part.split(":")[0] == "gpu" for part in gres)

    @model_validator(mode="after")
    def _options_are_possible(self) -> "SlurmCluster":
        mistakes = []
        sections: list[tuple[str, SlurmCluster | SlurmResources]] = [
            ("", self),
            *((f"{name}.", part) for name, part in self.by_stage.items()),
        ]
        for place, section in sections:
            mistakes += _refused(f"{place}sbatch", section.sbatch, _OURS_OF_SBATCH)
            mistakes += _refused(f"{place}srun", section.srun, _OURS_OF_SRUN)
        for stage, resources in self.by_stage.items():
            options = self.sbatch_options(stage)
            mistakes += [
                f"sbatch.{name} contradicts {stage}.mem_gb; leave one of them out"
                for name in ("mem-per-cpu", "mem-per-gpu")
                if name in options and resources.mem_gb is not None
            ]
            num_gpus = _gpus_of_a_node(options, resources)
            if num_gpus is not None and num_gpus != resources.gpus_per_node:
                mistakes.append(
                    f"{stage}.gpus_per_node is {resources.gpus_per_node}, and the options of sbatch ask for "
                    f"{num_gpus:g} GPUs of each node; set {stage}.gpus_per_node={num_gpus:g}, "
                    "which checks and estimates read"
                )
        return unless(self, list(dict.fromkeys(mistakes)))


# How sbatch can be asked for GPUs in other words than `--gpus-per-node=NUMBER`.
GPU_OPTIONS = ("gpus-per-node", "gpus", "gpus-per-task", "gres")

_LOGS = "logs are in RUN/slurm"
_ALONE = "salign calls sbatch itself"
# By the name of the option: what says it instead.
_OURS_OF_SBATCH = {
    "job-name": "run.name is in the names of its jobs",
    "dependency": "set cluster.after",
    "kill-on-invalid-dep": "jobs that can never start are cancelled",
    "array": "set society.num_shards, cluster.shards_per_task and cluster.max_parallel",
    "export": "set cluster.environment or cluster.more_environment",
    "export-file": "set cluster.environment or cluster.more_environment",
    "get-user-env": "set cluster.environment or cluster.more_environment",
    "requeue": "jobs are requeued, and continue",
    "no-requeue": "jobs are requeued, and continue",
    "output": _LOGS,
    "error": _LOGS,
    "open-mode": _LOGS,
    "signal": "set cluster.signal_delay_s",
    "time": "set timeout_min of the stage",
    "nodes": "set nodes of the stage",
    "ntasks": "set nodes and tasks_per_node of the stage",
    "ntasks-per-node": "set tasks_per_node of the stage",
    "cpus-per-task": "set cpus_per_task of the stage",
    "cpus-per-gpu": "set cpus_per_task of the stage",
    "mem": "set mem_gb of the stage; 0 is all of a node's",
    "clusters": "launch on a login node of that cluster",
    **dict.fromkeys(("wrap", "parsable", "quiet", "wait", "test-only", "help", "usage", "version"), _ALONE),
}
_OURS_OF_SRUN = {
    **{name: _OURS_OF_SBATCH[name] for name in ("nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "dependency")},
    **{name: _OURS_OF_SBATCH[name] for name in ("output", "error", "open-mode", "time", "job-name", "export")},
    **dict.fromkeys(
        ("unbuffered", "kill-on-bad-exit", "jobid", "help", "usage", "version"), "salign calls srun itself"
    ),
}


def _given(options: Mapping[str, OptionValue]) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in options.items() if value is not None and value is not False}


def _refused(place: str, options: Mapping[str, OptionValue], ours: Mapping[str, str]) -> list[str]:
    """Options that salign sets, also where a name is cut short, as Slurm's commands would understand it."""
    return [
        f"{place}.{name} is set by salign: {instead}"
        for name in sorted(options)
        for own, instead in ours.items()
        if name == own or (own.startswith(name) and name not in (*ours, *GPU_OPTIONS))
    ]


def _gpus_of_a_node(options: Mapping[str, str | int | float | bool], resources: Resources) -> float | None:
    """How many GPUs of each node options ask for; None where they do not, or not in numbers."""
    shares = {"gpus-per-node": 1.0, "gpus": 1 / resources.nodes, "gpus-per-task": float(resources.tasks_per_node)}
    found = {name: str(options[name]) for name in GPU_OPTIONS if name in options}
    for name, text in found.items():
        parts = [part.removeprefix("gres:") for part in text.split(",")]
        asked = [part for part in parts if name != "gres" or part.split(":")[0] == "gpu"]
        numbers = [part.split(":")[-1].partition("(")[0] for part in asked]
        if asked:
            numbers = ["1" if number in ("gpu", "") else number for number in numbers]
            return sum(map(int, numbers)) * shares.get(name, 1.0) if all(map(str.isdigit, numbers)) else None
    return None


ClusterSection = Annotated[
    LocalCluster | SlurmCluster, Field(discriminator="kind"), BeforeValidator(kind_unless_said("local"))
]
