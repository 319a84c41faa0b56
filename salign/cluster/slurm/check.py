"""Whether the cluster has what a chain asks for: said at the launch, since Slurm would let such a job pend."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from salign.cluster.slurm.batch import batch_file
from salign.cluster.slurm.commands import Node, Slurm
from salign.cluster.slurm.jobs import Job
from salign.config import Config, SlurmCluster, SlurmResources
from salign.errors import ConfigError
from salign.run import RunDir


def check_cluster(run: RunDir, config: Config, jobs: Sequence[Job], slurm: Slurm) -> list[str]:
    """Compares what jobs ask for with what the cluster has, then asks Slurm itself about each kind of job.

    Returns:
        What the user should know although it is no mistake.

    Raises:
        ConfigError: With every mistake, and what there is instead.
        StageError: Slurm does not answer.
    """
    cluster = config.cluster
    assert isinstance(cluster, SlurmCluster)
    nodes, notes, mistakes = slurm.nodes(), [], []
    kinds: dict[str, Job] = {}
    for job in jobs:
        kinds.setdefault(job.stage.name, job)
    for stage in kinds:
        found, said = _compare(stage, cluster.by_stage[stage], cluster, nodes)
        mistakes += found
        notes += said
    if not mistakes:  # Slurm knows accounts, QOS and features
        for stage, job in kinds.items():
            script = batch_file(run, config, job, code=Path("/"))
            refused = slurm.would_accept(script)
            if refused is not None:
                mistakes.append(f"cluster.{stage}: Slurm would refuse it: {refused}")
    if mistakes:
        listed = "".join(f"\n  - {mistake}" for mistake in dict.fromkeys(mistakes))
        raise ConfigError(f"the cluster cannot run this:{listed}")
    return notes


def _compare(
    stage: str, asked: SlurmResources, cluster: SlurmCluster, nodes: Sequence[Node]
) -> tuple[list[str], list[str]]:
    """Mistakes, and notes."""
    name = asked.partition or cluster.partition
    partitions = sorted({node.partition for node in nodes})
    if name is not None and name not in partitions:
        near = difflib.get_close_matches(name, partitions, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return [f"cluster: there is no partition {name!r}{hint}; there are: {', '.join(partitions)}"], []
    there = [node for node in nodes if (node.partition == name if name is not None else node.is_default)]
    if not there:
        return [f"cluster.partition: this cluster has no default partition; name one of {', '.join(partitions)}"], []
    place = f"the partition {there[0].partition}"
    mistakes = []
    limit = max((node.minutes for node in there if node.minutes is not None), default=None)
    if limit is not None and asked.timeout_min > limit:
        mistakes.append(f"cluster.{stage}.timeout_min {asked.timeout_min} exceeds the {limit} minutes of {place}")
    fitting = [node for node in there if _fits(node, asked)]
    if not fitting:
        most = (max(getattr(node, what) for node in there) for what in ("cpus", "gpus", "mem_mb"))
        cpus, gpus, mem_mb = most
        mistakes.append(
            f"cluster.{stage} asks a node for {asked.tasks_per_node * asked.cpus_per_task} CPUs, {asked.gpus_per_node} "
            f"GPUs{_memory(asked)}, and no node of {place} has all of it (at most {cpus} CPUs, {gpus} GPUs, "
            f"{mem_mb / 1024:g} GB)"
        )
    elif asked.nodes > len(fitting):
        mistakes.append(f"cluster.{stage}.nodes {asked.nodes} exceeds the {len(fitting)} fitting nodes of {place}")
    usable = sum(node.usable for node in fitting)
    notes = []
    if not mistakes and asked.nodes > usable:
        notes.append(f"cluster.{stage} will wait: {asked.nodes} nodes are asked for, and {usable} of {place} are up")
    return mistakes, notes


def _fits(node: Node, asked: SlurmResources) -> bool:
    return (
        node.cpus >= asked.tasks_per_node * asked.cpus_per_task
        and node.gpus >= asked.gpus_per_node
        and (asked.mem_gb is None or node.mem_mb >= asked.mem_gb * 1024)
    )


def _memory(asked: SlurmResources) -> str:
    return "" if asked.mem_gb is None else f" and {asked.mem_gb:g} GB"
