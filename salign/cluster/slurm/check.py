"""Whether the cluster has what a chain asks for: said at the launch, since Slurm would let such a job pend."""

import contextlib
import difflib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from salign.cluster.room import mistakes_of_room
from salign.cluster.slurm.batch import batch_file, notes_on_environment, sbatch_options
from salign.cluster.slurm.commands import Node, Slurm
from salign.cluster.slurm.jobs import Job
from salign.config import Config, SlurmCluster, SlurmResources
from salign.errors import ConfigError
from salign.gpus import GPUS, name_of_gpu
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
    nodes, notes, mistakes = slurm.nodes(), notes_on_environment(cluster), mistakes_of_setup(cluster.setup)
    kinds: dict[str, Job] = {}
    gpus: dict[str, str | None] = {}
    for job in jobs:
        kinds.setdefault(job.stage.name, job)
    for stage in kinds:
        partition = sbatch_options(cluster, stage).get("partition")
        found, said = compare(stage, cluster.by_stage[stage], partition, nodes, cluster.shards_at_once)
        mistakes += found
        notes += said
        gpus[stage] = gpu_there(partition, nodes)
        if stage == "serve" and not found:
            num_servers = sum(len(job.tasks) for job in jobs if job.stage.name == stage)
            mistakes += mistakes_of_fleets(num_servers, cluster.by_stage[stage], partition, nodes)
    if cluster.throughput.gpu is None:  # else it was compared already
        mistakes += mistakes_of_room(config, gpus, by_name=False)
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


def gpu_there(partition: str | None, nodes: Sequence[Node]) -> str | None:
    """The largest GPU of a partition, by its name in `GPUS`; None where one of its nodes' is not known.

    Args:
        partition: As `compare` has it.
        nodes: Of the cluster.
    """
    names = [] if partition is None else str(partition).split(",")
    there = [node for node in nodes if (node.partition in names if names else node.is_default) and node.gpus]
    found = {name_of_gpu(node.gpu) for node in there}
    known = [name for name in found if name is not None]
    largest = max(known, key=lambda name: (GPUS[name].memory, name), default=None)
    return None if None in found else largest


def mistakes_of_setup(setup: Sequence[str]) -> list[str]:
    """Entries of `cluster.setup` that are no commands; nothing where this machine has no shell to ask."""
    mistakes = []
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}  # no warning but of the entry
    for number, entry in enumerate(setup):
        with contextlib.suppress(FileNotFoundError):
            read = subprocess.run(
                ["bash", "-n"], input=entry, capture_output=True, text=True, env=environment, check=False
            )
            if read.returncode or read.stderr:  # of a here-document without its end there is a warning alone
                mistakes.append(
                    f"cluster.setup[{number}] is not a whole command: {' '.join(read.stderr.split())}. One that takes "
                    "several lines is one entry"
                )
    return mistakes


def compare(
    stage: str, asked: SlurmResources, partition: str | None, nodes: Sequence[Node], shards_at_once: int = 1
) -> tuple[list[str], list[str]]:
    """What a stage asks for, beside the nodes that there are.

    Args:
        stage: Its name.
        asked: For each of its jobs.
        partition: Its partition, or several with commas between; None: the cluster's default.
        nodes: Of the cluster.
        shards_at_once: Of the section.

    Returns:
        Mistakes, and notes.
    """
    names = [] if partition is None else str(partition).split(",")
    partitions = sorted({node.partition for node in nodes})
    for name in names:
        if name not in partitions:
            near = difflib.get_close_matches(name, partitions, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            return [
                f"cluster.sbatch.partition: there is no partition {name!r}{hint}; there are: {', '.join(partitions)}"
            ], []
    there = [node for node in nodes if (node.partition in names if names else node.is_default)]
    if not there:
        listed = ", ".join(partitions)
        return [f"cluster.sbatch.partition: this cluster has no default partition; name one of {listed}"], []
    place = f"the partition {', '.join(sorted({node.partition for node in there}))}"
    num_cpus = asked.tasks_per_node * asked.cpus_per_task * (shards_at_once if stage == "simulate" else 1)
    mistakes = []
    limit = max((node.minutes for node in there if node.minutes is not None), default=None)
    if limit is not None and asked.timeout_min > limit:
        mistakes.append(f"cluster.{stage}.timeout_min {asked.timeout_min} exceeds the {limit} minutes of {place}")
    fitting = [node for node in there if _fits(node, asked, num_cpus)]
    if not fitting:
        most = (max(getattr(node, what) for node in there) for what in ("cpus", "gpus", "mem_mb"))
        cpus, gpus, mem_mb = most
        mistakes.append(
            f"cluster.{stage} asks a node for {num_cpus} CPUs, {asked.gpus_per_node} "
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


def mistakes_of_fleets(
    num_servers: int, asked: SlurmResources, partition: str | None, nodes: Sequence[Node]
) -> list[str]:
    """Fleets that are larger than their partition, so that some of their servers could never run with the others.

    Args:
        num_servers: Of all fleets.
        asked: For each of them.
        partition: As `compare` has it.
        nodes: Of the cluster.
    """
    names = [] if partition is None else str(partition).split(",")
    there = {node.name: node for node in nodes if (node.partition in names if names else node.is_default)}
    places = [_num_places(node, asked) for node in there.values()]
    # So many servers have room together if each finds all of its nodes; of one node, each takes one place.
    most = next(
        num for num in range(sum(places), -1, -1) if sum(min(place, num) for place in places) >= num * asked.nodes
    )
    if num_servers <= most:
        return []
    over = f" on each of {asked.nodes} nodes" if asked.nodes > 1 else " each"
    return [
        f"engine.num_servers: {num_servers} servers are asked for in all, and the {len(there)} nodes of the partition "
        f"have room for {most} at a time (cluster.serve asks for {asked.cpus_per_task} CPUs and "
        f"{asked.gpus_per_node} GPUs{over}). Set fewer"
    ]


def _num_places(node: Node, asked: SlurmResources) -> int:
    """How many servers a node takes at a time, or parts of servers over several nodes."""
    places = [node.cpus // asked.cpus_per_task]
    if asked.gpus_per_node:
        places.append(node.gpus // asked.gpus_per_node)
    if asked.mem_gb:
        places.append(int(node.mem_mb / (asked.mem_gb * 1024)))
    return min(places)


def _fits(node: Node, asked: SlurmResources, num_cpus: int) -> bool:
    return (
        node.cpus >= num_cpus
        and node.gpus >= asked.gpus_per_node
        and (asked.mem_gb is None or node.mem_mb >= asked.mem_gb * 1024)
    )


def _memory(asked: SlurmResources) -> str:
    return "" if not asked.mem_gb else f" and {asked.mem_gb:g} GB"
