"""The jobs of a run's chain: which units each does, and what it waits for."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from salign.config import SlurmCluster, SlurmResources
from salign.plan import Unit
from salign.run import RunDir
from salign.stages import Stage, stage_of


@dataclass(frozen=True)
class Job:
    """One submission: an array of tasks, or a single one.

    Attributes:
        name: Such as `simulate`, `train-stable`.
        tasks: The units of each task, which does them one after the other.
        after: Names of the jobs that it waits for.
        resources: Of each task.
        needs_all: Whether what it waits for must have gone well; else it must only have ended.
        after_live: Ids of jobs, or tasks of arrays, of an earlier launch that it waits for besides.
        after_start: Names of the jobs that must have begun: the servers that it asks.
    """

    name: str
    tasks: tuple[tuple[Unit, ...], ...]
    after: tuple[str, ...]
    resources: SlurmResources
    needs_all: bool = True
    after_live: tuple[str, ...] = ()
    after_start: tuple[str, ...] = ()

    @property
    def stage(self) -> Stage:
        """What kind of work all its units are."""
        return stage_of(self.tasks[0][0])


def ranges_of(shards: Sequence[Unit]) -> list[tuple[int, int]]:
    """The numbers of shards, as few ranges: (first, behind the last)."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(int(shard.argument) for shard in shards):
        if ranges and ranges[-1][1] == number:
            ranges[-1] = ranges[-1][0], number + 1
        else:
            ranges.append((number, number + 1))
    return ranges


def suffix_of(run: RunDir) -> str:
    """How the names of a run's jobs end: another run of the same name elsewhere has another."""
    return "-" + hashlib.sha256(str(run.path).encode()).hexdigest()[:8]


def name_in_queue(run: RunDir, job: Job) -> str:
    """As squeue shows the job."""
    return f"{run.path.name}-{job.name}{suffix_of(run)}"


def chain(
    cluster: SlurmCluster,
    left: Sequence[Unit],
    max_array_size: int,
    at_work: Mapping[str, str] = MappingProxyType({}),
    servers: Sequence[Unit] = (),
) -> list[Job]:
    """The jobs that do what is left, each after those that it waits for.

    Args:
        cluster: How shards are packed, and what each stage is given.
        left: Units in the plan's order.
        max_array_size: Tasks that an array may have at most; with more shards there are several arrays.
        at_work: Keys of units that live jobs of an earlier launch do, to the id of the job or task.
        servers: Of the run's fleets: those of one are an array, which shards that are left begin with.
    """
    shards = [unit for unit in left if stage_of(unit).is_array]
    packed = [tuple(shards[at : at + cluster.shards_per_task]) for at in range(0, len(shards), cluster.shards_per_task)]
    arrays = [packed[at : at + max_array_size] for at in range(0, len(packed), max_array_size)]
    fleets: dict[str, list[tuple[Unit, ...]]] = {}
    for server in servers if shards else ():
        fleets.setdefault(server.folder.parent.name, []).append((server,))
    jobs = [Job(f"serve-{name}", tuple(tasks), (), cluster.serve) for name, tasks in fleets.items()]
    begun = tuple(job.name for job in jobs)
    jobs += [
        Job(
            "simulate" if len(arrays) == 1 else f"simulate-{number}",
            tuple(tasks),
            (),
            cluster.simulate,
            after_start=begun,
        )
        for number, tasks in enumerate(arrays)
    ]
    made_by = {unit.key: job.name for job in jobs for task in job.tasks for unit in task}
    for unit in left:
        if stage_of(unit).is_array:
            continue
        after = tuple(dict.fromkeys(made_by[need] for need in unit.needs if need in made_by))
        made_by[unit.key] = name = "-".join(unit.words)
        needs_all = unit.stage != "collect" or cluster.min_shards is None
        live = tuple(dict.fromkeys(at_work[need] for need in unit.needs if need in at_work))
        jobs.append(Job(name, ((unit,),), after, cluster.by_stage[unit.stage], needs_all, live))
    return jobs
