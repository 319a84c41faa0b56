"""Jobs of a run that have not ended: what another launch of it must not do again, or has to cancel first."""

import time
from collections.abc import Sequence

from salign import compose
from salign.cluster.scheduler import LiveTask, Scheduler
from salign.cluster.schedulers import all_schedulers
from salign.config import NOT_FREE, Config
from salign.errors import StageError
from salign.locks import is_locked
from salign.plan import Unit
from salign.run import RunDir

_CANCEL_PATIENCE_S = 60.0
UNLOCK_PATIENCE_S = 10.0
_MAX_NAMED = 3
_WAIT = "Wait for them, or launch with --replace, which cancels them first."


def refuse_another_config(run: RunDir, config: Config, *, replace: bool) -> None:
    """Raises a StageError where jobs wait for a run of another config: they read it when they start."""
    if replace or not run.config_file.exists() or not compose.differences(run.config(), config, *NOT_FREE):
        return
    for scheduler in all_schedulers(run):
        if live := scheduler.live():
            changed = ", ".join(compose.differences(run.config(), config, *NOT_FREE))
            raise StageError(
                f"{_has_live_jobs(run, live)}, which were submitted with another config ({changed}). {_WAIT}"
            )


def _has_live_jobs(run: RunDir, live: Sequence[LiveTask]) -> str:
    ids = sorted({task.job_id for task in live})
    return f"the run {run.path} has live jobs: {' '.join(ids)}"


def refuse_live_jobs(run: RunDir) -> None:
    """Raises a StageError while jobs of the run are in a queue."""
    for scheduler in all_schedulers(run):
        if live := scheduler.live():
            raise StageError(f"{_has_live_jobs(run, live)}. {_WAIT}")


def not_at_work(run: RunDir, scheduler: Scheduler, left: list[Unit]) -> list[Unit]:
    """Of the units that are left, those that no live job of an earlier launch does, or will do.

    Raises:
        StageError: What is at work is not known, or another process works on one of them; or a job that waits already
            would not wait for them.
    """
    for other in all_schedulers(run):
        live = other.live()
        is_own = other.name == scheduler.name
        known = {placement.task for placement in other.placements().values()}
        if live and not (is_own and known.issuperset(task.id for task in live)):
            raise StageError(f"{_has_live_jobs(run, live)}, and it is not known what all of them do. {_WAIT}")
    at_work = scheduler.at_work()
    found = [unit for unit in left if unit.key not in at_work]
    if at_work and not found:
        raise StageError(f"{_has_live_jobs(run, scheduler.live())}, which do all that is left. {_WAIT}")
    keys = {unit.key for unit in found}
    for unit in left:
        if unit.key in at_work and (needs := keys.intersection(unit.needs)):
            job = f"{at_work[unit.key]} ({unit.name})"
            raise StageError(f"the job {job} would not wait for {sorted(needs)[0]}, which is missing. {_WAIT}")
    if not scheduler.is_here:
        _require_unlocked(found)
    return found


def _require_unlocked(left: Sequence[Unit]) -> None:
    """Waits a little, for what was cancelled has yet to end."""
    end = time.monotonic() + UNLOCK_PATIENCE_S
    while locked := [unit.name for unit in left if is_locked(unit.folder / ".lock")]:
        if time.monotonic() > end:
            raise StageError(
                f"a process that no job of this run has works on {', '.join(locked[:_MAX_NAMED])}. Wait for it, or end "
                "it, then launch again."
            )
        time.sleep(0.5)


def cancel_live_jobs(run: RunDir) -> None:
    """Cancels the run's jobs, and waits until they have ended."""
    for scheduler in all_schedulers(run):
        end = time.monotonic() + _CANCEL_PATIENCE_S
        cancelled: set[str] = set()
        while live := {task.job_id for task in scheduler.live()}:
            if time.monotonic() > end:
                raise StageError(
                    f"the jobs {' '.join(sorted(live))} were cancelled, but {scheduler.name} has not ended them yet. "
                    "Launch again later."
                )
            if live - cancelled:
                scheduler.cancel(sorted(live - cancelled))
                cancelled |= live
            time.sleep(1.0)
