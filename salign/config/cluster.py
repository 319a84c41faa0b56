"""Where a run is executed: on this machine or by Slurm."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from salign.config.base import Count, CountOrZero, NotBool, Positive, Section, at_most, kind_unless_said, unless

Processes = Annotated[Count, at_most(4096, "each is a process of this machine")]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

# From the submitter's environment; values travel with the submission and are written to no file of the run.
_ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SALIGN_CACHE", "NETRC"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy", "ALL_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_API_KEY"),
)


class Throughput(Section):
    """Rates for the estimate of `--dry-run`; rates measured in the run itself take precedence."""

    calls_per_s: Positive | None = None
    """Model calls of one shard."""
    tokens_per_call: Positive | None = None
    """Tokens read and written."""
    train_tokens_per_s: Positive | None = None
    """All ranks together."""


class _Cluster(Section):
    """What every kind has; and, as a field or a property, `num_ranks`, `ranks_per_shard` and `min_shards`."""

    throughput: Throughput = Throughput()
    """Assumed rates for the estimate, until the run has figures of its own."""

    def num_shards_at_once(self, num_shards: int) -> int:
        """How many of the shards are simulated at the same time."""
        raise NotImplementedError

    def num_gpus(self, stage: str) -> int:
        """GPUs that a unit of a stage gets; 0 if it uses what the machine has."""
        return 0


class LocalCluster(_Cluster):
    kind: Literal["local"] = "local"
    num_workers: Processes = 2
    """Shards that run at the same time."""
    ranks_per_shard: Processes = 1
    """MPI processes that simulate one shard together; each world is divided among them."""
    num_ranks: Processes = 2
    """Ranks that train a stage, or evaluate a model, together."""

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
    mem_gb: Annotated[float, NotBool, Field(gt=0)] | None = None
    """Memory per node; None: the default of the place where the job runs."""
    gpus_per_node: CountOrZero = 0
    """GPUs that the job takes of each node."""

    @property
    def num_tasks(self) -> int:
        return self.nodes * self.tasks_per_node


class _BatchCluster(_Cluster):
    """A scheduler of jobs: the array of shards, the collector, the training stages, the evaluations."""

    simulate: Resources = Resources()
    """For each task of the array."""
    collect: Resources = Resources()
    """One task."""
    train: Resources = Resources()
    """A task is a rank."""
    evaluate: Resources = Resources()
    """A task is a rank."""
    shards_per_task: Count = 1
    """Shards that one task of the array simulates, one after the other; for small shards."""
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
        return {name: getattr(self, name) for name in ("simulate", "collect", "train", "evaluate")}

    def num_shards_at_once(self, num_shards: int) -> int:
        return min(math.ceil(num_shards / self.shards_per_task), self.max_parallel) * self.shards_per_task

    def num_gpus(self, stage: str) -> int:
        return self.by_stage[stage].nodes * self.by_stage[stage].gpus_per_node

    @model_validator(mode="after")
    def _jobs_are_possible(self) -> "_BatchCluster":
        mistakes = []
        if self.collect.num_tasks > 1:
            tasks = self.collect.num_tasks
            mistakes.append(f"collect: runs in one process, not {tasks}; leave out nodes and tasks_per_node")
        mistakes += [
            f"{name}.timeout_min {resources.timeout_min} is no longer than signal_delay_s {self.signal_delay_s}: the "
            "job would be told to stop as soon as it starts"
            for name, resources in self.by_stage.items()
            if 60 * resources.timeout_min <= self.signal_delay_s
        ]
        return unless(self, mistakes)


class SlurmResources(Resources):
    """What one job, or each task of an array, gets."""

    partition: str | None = None
    """None: `cluster.partition`."""


class SlurmCluster(_BatchCluster):
    """A chain of Slurm's jobs."""

    kind: Literal["slurm"]
    partition: str | None = None
    """None: the cluster's default."""
    account: str | None = None
    """Passed to Slurm."""
    qos: str | None = None
    """Passed to Slurm."""
    constraint: str | None = None
    """Passed to Slurm."""
    simulate: SlurmResources = SlurmResources()
    """For each task of the array."""
    collect: SlurmResources = SlurmResources()
    """One task."""
    train: SlurmResources = SlurmResources()
    """A task is a rank."""
    evaluate: SlurmResources = SlurmResources()
    """A task is a rank."""
    mpi: str = "pmi2"
    """Value of srun's `--mpi` where a shard spans ranks; `srun --mpi=list` shows what is available."""
    sbatch: dict[str, str | int | bool] = Field(default={})
    """Further options of sbatch, such as {exclude: "n[3-4]", comment: "..."}."""

    @property
    def by_stage(self) -> Mapping[str, SlurmResources]:
        return {name: getattr(self, name) for name in super().by_stage}

    @model_validator(mode="after")
    def _sets_nothing_of_ours(self) -> "SlurmCluster":
        named = {name.lstrip("-").replace("_", "-").lower(): name for name in self.sbatch}
        mistakes = [f"sbatch.{named[name]} is set by salign" for name in sorted(named.keys() & _OURS)]
        sized = [stage for stage, resources in self.by_stage.items() if resources.mem_gb is not None]
        mistakes += [
            f"sbatch.{named[name]} contradicts {', '.join(f'{stage}.mem_gb' for stage in sized)}"
            for name in sorted(named.keys() & {"mem-per-cpu", "mem-per-gpu"})
            if sized
        ]
        return unless(self, mistakes)


_OURS = {"job-name", "dependency", "array", "export", "requeue", "kill-on-invalid-dep", "output", "error", "signal"}
_OURS |= {"open-mode", "time", "nodes", "ntasks-per-node", "mem", "cpus-per-task", "gpus-per-node"}
_OURS |= {"partition", "account", "qos", "constraint"}


ClusterSection = Annotated[
    LocalCluster | SlurmCluster, Field(discriminator="kind"), BeforeValidator(kind_unless_said("local"))
]
