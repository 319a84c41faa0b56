"""One rank of one training stage; plain, under torchrun or under deepspeed.

python jobs/train.py RUN --stage stable
torchrun --nproc-per-node 2 jobs/train.py RUN --stage stable
deepspeed --num_gpus 2 jobs/train.py RUN --stage stable
"""

import argparse
import contextlib
import os
from pathlib import Path

from rich.console import Console

from salign import stages
from salign.errors import run_main
from salign.run import open_run
from salign.tracking.progress import watch_training, watching


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--stage", required=True, help="a name of train.stages")
    parser.add_argument("--local_rank", type=int, help="given by the deepspeed launcher; LOCAL_RANK says the same")
    args = parser.parse_args()
    stages.begin()
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") == "0":
            metrics = open_run(args.run).stage(args.stage) / "metrics.jsonl"
            stack.enter_context(watching(watch_training(args.stage, metrics), Console()))
        stages.train(args.run, args.stage)


if __name__ == "__main__":
    run_main(main)
