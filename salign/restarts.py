"""A unit whose job is restarted must get further each time, or its job would never end."""

import contextlib
import json

from salign.errors import StageError
from salign.launchers import is_in_job, num_restarts
from salign.locks import lock
from salign.plan import Unit
from salign.storage import write_atomic

_MAX_IDLE_RESTARTS = 3


def _progress(unit: Unit) -> list[int | str]:
    """What grows as the unit gets further: its journals' bytes, its newest checkpoint."""
    journals = sum(path.stat().st_size for path in unit.folder.rglob("journal-*"))
    checkpoints = [path.parent.name for path in unit.folder.glob("checkpoints/step-*/done.json")]
    return [journals, max(checkpoints, default="")]


def check_restart(unit: Unit) -> None:
    """Counts the starts of a unit that found it no further than the one before; of several processes, one calls it.

    Raises:
        StageError: There were too many.
        HeldError: Another process works on the unit.
    """
    if not is_in_job():
        return
    with lock(unit.folder / ".lock", unit.name):  # of several tasks that may take it, one counts
        _count(unit)


def _count(unit: Unit) -> None:
    file = unit.folder / ".restarts.json"
    before, num_idle = None, 0
    if num_restarts() > 0:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            row = json.loads(file.read_text())
            before, num_idle = row["progress"], row["num_idle"]
    now = _progress(unit)
    num_idle = num_idle + 1 if now == before else 0
    if num_idle >= _MAX_IDLE_RESTARTS:
        raise StageError(
            f"{unit.name} was started {num_idle + 1} times by the scheduler without getting further. Give it more "
            f"time or memory (cluster.{unit.stage}.timeout_min, cluster.{unit.stage}.mem_gb; for training also a "
            "smaller checkpoint_every_steps), or look at its log; then launch again."
        )
    write_atomic(file, json.dumps({"progress": now, "num_idle": num_idle}) + "\n")
