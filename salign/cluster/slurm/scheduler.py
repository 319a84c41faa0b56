"""Slurm: a chain of jobs that do the units of a run."""

import shutil
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from salign.cluster.scheduler import Ended, LiveTask, Placement, Scheduler
from salign.cluster.slurm.batch import batch_file
from salign.cluster.slurm.check import check_cluster
from salign.cluster.slurm.commands import Slurm
from salign.cluster.slurm.jobs import Job, chain, suffix_of, was_submitted
from salign.cluster.slurm.submission import submissions, submit
from salign.config import Config, SlurmCluster
from salign.errors import StageError
from salign.manifest import take_snapshot
from salign.plan import Unit
from salign.run import RunDir

# Slurm's own, where the cluster's is not known.
_USUAL_ARRAY_SIZE = 1001
# Words of the accounting for a job that has not failed; `ended` leaves them out.
_NOT_FAILED = ("COMPLETED", "PENDING", "RUNNING", "REQUEUED", "COMPLETING")


class SlurmScheduler(Scheduler):
    """Submits through submitit; asks Slurm's own commands, only where the run has been submitted."""

    name = "Slurm"
    is_here = False

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        self._slurm = Slurm()

    def is_reachable(self) -> bool:
        return shutil.which("sbatch") is not None

    def check(self, config: Config, left: Sequence[Unit]) -> list[str]:
        return check_cluster(self.run, config, self._jobs(config, left), self._slurm)

    def _jobs(self, config: Config, left: Sequence[Unit]) -> list[Job]:
        assert isinstance(config.cluster, SlurmCluster)
        return chain(config.cluster, left, self._slurm.max_array_size())

    def submit(self, config: Config, left: Sequence[Unit], console: Console, after: Sequence[str] = ()) -> None:
        code = take_snapshot(self.run)
        submitted = submit(self.run, config, self._jobs(config, left), code=code, slurm=self._slurm, after=after)
        names = {one.job_id: one.name for one in submitted}
        table = Table(title=f"Run {self.run.path}: submitted", title_justify="left")
        for column in ("job", "name", "tasks", "waits for"):
            table.add_column(column, overflow="fold")
        for one in submitted:
            waits = ", ".join(f"{job_id} ({names[job_id]})" if job_id in names else job_id for job_id in one.after)
            table.add_row(one.job_id, one.name, str(len(one.tasks)), waits)
        console.print(table)
        console.print(self.usage(), highlight=False)

    def describe(self, config: Config, left: Sequence[Unit]) -> list[tuple[str, str]]:
        assert isinstance(config.cluster, SlurmCluster)
        try:
            size = self._slurm.max_array_size() if self.is_reachable() else _USUAL_ARRAY_SIZE
        except StageError:  # `check` says what is wrong
            size = _USUAL_ARRAY_SIZE
        files = []
        for job in chain(config.cluster, left, size):
            after = [f"<{name}>" for name in job.after]
            files.append((job.name, batch_file(self.run, config, job, code=self.run.code / "<version>", after=after)))
        return files

    def live(self) -> list[LiveTask]:
        if not self._is_known():
            return []
        return [
            LiveTask(job.id, job.job_id, job.is_running, job.node_list if job.is_running else job.reason)
            for job in self._slurm.live_jobs(suffix_of(self.run))
        ]

    def _is_known(self) -> bool:
        """Whether there is anything of the run to ask about."""
        return self.is_reachable() and was_submitted(self.run)

    def ended(self, tasks: Iterable[str]) -> Mapping[str, Ended] | None:
        if not self._is_known():
            return {}
        states = self._slurm.ended_states(task.split("_")[0] for task in tasks)
        if states is None:
            return None
        return {
            # Slurm cancels what waits for a job that failed.
            task: Ended("cancelled", state) if state == "CANCELLED" else Ended("failed", state)
            for task, state in states.items()
            if state not in _NOT_FAILED
        }

    def cancel(self, job_ids: Sequence[str]) -> None:
        self._slurm.cancel(job_ids)

    def placements(self) -> Mapping[str, Placement]:
        return {
            key: Placement(one.task_id(number), one.log(self.run, number, place))
            for one in submissions(self.run)
            for number, keys in enumerate(one.tasks)
            for place, key in enumerate(keys)
        }

    def usage(self) -> str:
        return self._slurm.usage()
