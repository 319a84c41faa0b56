"""Slurm: a chain of jobs that do the units of a run."""

import getpass
import shutil
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from salign.cluster.scheduler import Ended, LiveTask, Placement, Scheduler
from salign.cluster.slurm.batch import batch_file
from salign.cluster.slurm.check import check_cluster
from salign.cluster.slurm.commands import LiveJob, Slurm
from salign.cluster.slurm.jobs import Job, chain, suffix_of
from salign.cluster.slurm.submission import submissions, submit
from salign.config import Config, SlurmCluster
from salign.errors import StageError
from salign.manifest import take_snapshot
from salign.plan import Unit, servers_of
from salign.run import RunDir

# Slurm's own, where the cluster's is not known.
_USUAL_ARRAY_SIZE = 1001
# Words of the accounting for a job that has not failed; `ended` leaves them out.
_NOT_FAILED = ("COMPLETED", "PENDING", "RUNNING", "REQUEUED", "COMPLETING")


def _remedy(job: LiveJob) -> str:
    """What makes a job start that will not by itself."""
    if job.is_held:
        return f"`scontrol release {job.id}`"
    if job.is_out_of_hours:
        return "its account's or QOS's hours are spent: launch with --replace under another, or get more"
    return "launch with --replace, asking for what there is"


def _task(job: LiveJob) -> LiveTask:
    remedy = _remedy(job) if job.is_stuck else ""
    detail = job.node_list if job.is_running else job.reason
    return LiveTask(job.id, job.job_id, job.is_running, detail, remedy, job.waits_for_jobs)


class SlurmScheduler(Scheduler):
    """Submits through submitit; asks Slurm's own commands, only where the run has been submitted."""

    name = "Slurm"
    is_here = False

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        self._slurm = Slurm()
        self._at_work: Mapping[str, str] = {}

    def is_reachable(self) -> bool:
        return shutil.which("sbatch") is not None

    def check(self, config: Config, left: Sequence[Unit]) -> list[str]:
        return check_cluster(self.run, config, self.jobs(config, left), self._slurm)

    def jobs(self, config: Config, left: Sequence[Unit]) -> list[Job]:
        """The jobs that `submit` would submit now."""
        assert isinstance(config.cluster, SlurmCluster)
        servers = [unit for unit in servers_of(self.run, config) if unit.key not in self._at_work]
        return chain(config.cluster, left, self._slurm.max_array_size(), self._at_work, servers)

    def submit(self, config: Config, left: Sequence[Unit], console: Console, after: Sequence[str] = ()) -> None:
        code = take_snapshot(self.run)
        self.run.slurm_marker.touch()
        submitted = submit(self.run, config, self.jobs(config, left), code=code, slurm=self._slurm, after=after)
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
        for job in chain(config.cluster, left, size, servers=servers_of(self.run, config)):
            after = [f"<{name}>" for name in job.after]
            files.append((job.name, batch_file(self.run, config, job, code=self.run.code / "<version>", after=after)))
        return files

    def live(self) -> list[LiveTask]:
        if not self._is_known():
            return []
        suffix, user = suffix_of(self.run), getpass.getuser()
        # Submitted by another user, or when the run's folder was elsewhere.
        others = {
            one.job_id: one.name_in_queue
            for one in submissions(self.run)
            if one.user != user or not one.name_in_queue.endswith(suffix)
        }
        return [_task(job) for job in self._slurm.live_jobs(suffix, others)]

    def _is_known(self) -> bool:
        """Whether there is anything of the run to ask about; the folder of its jobs may have been removed."""
        return self.is_reachable() and (self.run.slurm.is_dir() or self.run.slurm_marker.exists())

    def at_work(self) -> Mapping[str, str]:
        live = {task.id for task in self.live()}
        found: dict[str, str] = {}
        for one in submissions(self.run):
            ids = [one.task_id(number) for number in range(len(one.tasks))]
            is_whole = live.issuperset(ids)  # an array of which a task has failed already is waited for in vain
            for id_, keys in zip(ids, one.tasks, strict=True):
                if id_ in live:
                    found |= dict.fromkeys(keys, one.job_id if is_whole else id_)
        self._at_work = found
        return found

    def ended(self, tasks: Iterable[str]) -> Mapping[str, Ended]:
        if not self._is_known():
            return {}
        endings = self._slurm.endings(task.split("_")[0] for task in tasks)
        return {
            # Slurm cancels what waits for a job that failed.
            task: Ended("cancelled" if ending.state == "CANCELLED" else "failed", str(ending))
            for task, ending in endings.items()
            if ending.state not in _NOT_FAILED
        }

    @property
    def forgets(self) -> bool:
        return not self._slurm.keeps_accounting

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
