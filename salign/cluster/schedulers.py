"""Every scheduler, by the kind of `cluster` that it runs."""

from salign.cluster.local import LocalScheduler
from salign.cluster.scheduler import Scheduler
from salign.cluster.slurm.scheduler import SlurmScheduler
from salign.config import Config
from salign.run import RunDir

SCHEDULERS: dict[str, type[Scheduler]] = {"local": LocalScheduler, "slurm": SlurmScheduler}


def scheduler_of(run: RunDir, config: Config) -> Scheduler:
    """The scheduler that does what is left of a run."""
    return SCHEDULERS[config.cluster.kind](run)


def all_schedulers(run: RunDir) -> list[Scheduler]:
    """Each of them: a run may have been submitted to another one than its config names now."""
    return [scheduler(run) for scheduler in SCHEDULERS.values()]
