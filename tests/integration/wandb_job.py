"""A training stage's W&B run without the training: logs rows one by one, as a job does, and goes on after a requeue.

python wandb_job.py RUN FIRST LAST SECONDS: rows FIRST to LAST, so many seconds apart, then an artifact. Each row is
written to metrics.jsonl first; a file `enough` in RUN makes it the last. `SPOIL=core` in the environment kills wandb's
own process in the middle.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from salign.locks import lock
from salign.run import open_run
from salign.tracking.metrics import MetricsLog
from salign.tracking.mirror import open_mirror

STAGE = "stable"


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    run, first, last, seconds = open_run(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    folder = run.stage(STAGE)
    with (
        lock(folder / ".lock", "the stage"),
        MetricsLog(folder / "metrics.jsonl") as log,
        open_mirror(run, run.config(), "train", STAGE) as mirror,
    ):
        for step in range(first, last + 1):
            row = {"train/global_step": step, "train/loss": 1 / step, "train/grad_norm": None, "eval/loss": 2 / step}
            log.log(row)
            mirror.log(row)
            time.sleep(seconds)
            if (run.path / "enough").exists():
                break
            if os.environ.get("SPOIL") == "core" and step == (first + last) // 2:
                for child in psutil.Process().children(recursive=True):
                    child.send_signal(signal.SIGKILL)
        mirror.summarize({"train/num_tokens": 7 * last})
        (folder / "weights.txt").write_text("weights")
        mirror.artifact(f"{run.config().run.name}-{STAGE}", "model", [folder / "weights.txt"])
    print("done", flush=True)


if __name__ == "__main__":
    main()
