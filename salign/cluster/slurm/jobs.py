"""The jobs of a run's chain: which units each does, and what it waits for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    name: str
    tasks: tuple[tuple[Unit, ...], ...]
    after: tuple[str, ...]
    resources: SlurmResources
    needs_all: bool = True

    @property
    def stage(self) -> Stage:
        """What kind of work all its units are."""
        return stage_of(self.tasks[0][0])


def suffix_of(run: RunDir) -> str:
    """How the names of a run's jobs end: another run of the same name elsewhere has another."""
    return "-" + hashlib.sha256(str(run.path).encode()).hexdigest()[:8]


def was_submitted(run: RunDir) -> bool:
    """Whether jobs of the run may be in the queue; one of its two folders may have been removed since."""
    return run.slurm.is_dir() or run.code.is_dir()


def chain(cluster: SlurmCluster, left: Sequence[Unit], max_array_size: int) -> list[Job]:
    """The jobs that do what is left, each after those that it waits for.

    Args:
        cluster: How shards are packed, and what each stage is given.
        left: Units in the plan's order.
        max_array_size: Tasks that an array may have at most; with more shards there are several arrays.
    """
    shards = [unit for unit in left if stage_of(unit).is_array]
    packed = [tuple(shards[at : at + cluster.shards_per_task]) for at in range(0, len(shards), cluster.shards_per_task)]
    arrays = [packed[at : at + max_array_size] for at in range(0, len(packed), max_array_size)]
    jobs = [
        Job("simulate" if len(arrays) == 1 else f"simulate-{number}", tuple(tasks), (), cluster.simulate)
        for number, tasks in enumerate(arrays)
    ]
    made_by = {unit.key: job.name for job in jobs for task in job.tasks for unit in task}
    for unit in left:
        if stage_of(unit).is_array:
            continue
        after = tuple(dict.fromkeys(made_by[need] for need in unit.needs if need in made_by))
        made_by[unit.key] = name = "-".join(unit.words)
        needs_all = unit.stage != "collect" or cluster.min_shards is None
        jobs.append(Job(name, ((unit,),), after, cluster.by_stage[unit.stage], needs_all))
    return jobs
