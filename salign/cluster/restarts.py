"""A unit whose job Slurm starts again and again must get further each time, or it would be started for ever."""

import contextlib
import json
import os

from salign.cluster.plan import Unit
from salign.errors import StageError
from salign.storage import write_atomic

_MAX_IDLE_RESTARTS = 3


def _progress(unit: Unit) -> list[int | str]:
    """What grows as the unit gets further: its journals' bytes, its newest checkpoint."""
    journals = sum(path.stat().st_size for path in unit.folder.rglob("journal-*.jsonl"))
    checkpoints = [path.parent.name for path in unit.folder.glob("checkpoints/step-*/done.json")]
    return [journals, max(checkpoints, default="")]


def check_restart(unit: Unit) -> None:
    """Counts the starts of a unit that found it no further than the one before; of several processes, one calls it.

    Raises:
        StageError: There were too many.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return
    file = unit.folder / ".restarts.json"
    before, num_idle = None, 0
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            row = json.loads(file.read_text())
            before, num_idle = row["progress"], row["num_idle"]
    now = _progress(unit)
    num_idle = num_idle + 1 if now == before else 0
    if num_idle >= _MAX_IDLE_RESTARTS:
        raise StageError(
            f"{' '.join(unit.command)} was started {num_idle + 1} times by Slurm without getting further. Give it more "
            f"time or memory (cluster.{unit.stage}.timeout_min, cluster.{unit.stage}.mem_gb; for training also a "
            "smaller checkpoint_every_steps), or look at its log; then launch again."
        )
    write_atomic(file, json.dumps({"progress": now, "num_idle": num_idle}) + "\n")
