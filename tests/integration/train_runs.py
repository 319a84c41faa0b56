"""One rank that trains several runs, one after the other: a process takes longer to start than a small model to train.

[torchrun ...] train_runs.py TASKS.json: each task is {"run": FOLDER}; with "stop_after": STEP, the last rank's SIGTERM
ends it after that step; with "spoil": STEP, the gradient becomes infinite there; with "chunk": 1, logits are made 64
tokens at a time; with "copy_of": FOLDER, the run is first made as a copy of that one, in whose config "replaced":
[OLD, NEW] is another. Leaves results.json beside TASKS.json: of each task its exit code, the error, and in how many
calls references were computed.
"""

import functools
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from salign import work
from salign.errors import SalignError
from salign.plan import find_unit, units
from salign.run import RunDir, open_run
from salign.training import loop, settings
from salign.training.trainer import Trainer

STAGE = "stable"


def train(task: dict[str, Any]) -> dict[str, Any]:
    """One task; its result."""
    calls = 0
    step, nll_of = Trainer.step, Trainer.nll_of

    def stopping_step(self: Trainer, number: int, groups: Any) -> dict[str, Any]:
        if number + 1 == task.get("spoil") and dist.get_rank() == 0:
            next(self.engine.module.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        row = step(self, number, groups)
        if number + 1 == task.get("stop_after") and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    def counting_nll_of(self: Trainer, groups: Any) -> Any:
        nonlocal calls
        calls += 1
        return nll_of(self, groups)

    Trainer.step, Trainer.nll_of = stopping_step, counting_nll_of  # type: ignore[method-assign]
    max_logits = settings.MAX_LOGITS
    settings.MAX_LOGITS = 0 if task.get("chunk") else max_logits
    code, error = 0, ""
    if "copy_of" in task and dist.get_rank() == 0:
        run = RunDir(Path(shutil.copytree(task["copy_of"], task["run"])))
        run.config_file.write_text(run.config_file.read_text().replace(*task["replaced"]))
    try:
        run = open_run(Path(task["run"]))
        config = run.config()
        work.do_unit(run, config, find_unit(units(run, config), "train", STAGE))
    except SystemExit as stopped:
        code = int(str(stopped.code))
    except SalignError as failed:  # of all ranks
        code, error = failed.exit_code, str(failed)
    except OSError as failed:
        code, error = 1, str(failed)
    finally:
        Trainer.step, Trainer.nll_of = step, nll_of  # type: ignore[method-assign]
        settings.MAX_LOGITS = max_logits
    return {"exit_code": code, "error": error, "reference_calls": calls}


def main() -> None:
    work.begin()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    tasks = Path(sys.argv[1])
    # The ranks stay together between the runs.
    loop.init_ranks = functools.cache(loop.init_ranks)
    leave_ranks, loop.leave_ranks = loop.leave_ranks, lambda: dist.barrier()
    results = [train(task) for task in json.loads(tasks.read_text())]
    if dist.get_rank() == 0:
        tasks.with_name("results.json").write_text(json.dumps(results))
    leave_ranks()


if __name__ == "__main__":
    main()
