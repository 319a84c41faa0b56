"""Simulates one shard of a run's society in this process.

python jobs/simulate.py RUN --shard 0 [--replay]
mpiexec -n 4 python jobs/simulate.py RUN --shard 0      # with cluster.ranks_per_shard=4
"""

import argparse
import contextlib
from pathlib import Path

from rich.console import Console

from salign import stages
from salign.launch import open_or_prepare
from salign.launchers import is_first
from salign.tracking.progress import watch_simulation, watching


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN|CONFIG.yaml", help="the run's folder, or its config")
    parser.add_argument("--shard", type=int, required=True)
    parser.add_argument(
        "--replay", action="store_true", help="redo the shard from its journal alone, without an engine"
    )
    args = parser.parse_args()
    stages.begin()
    run = open_or_prepare(args.run)
    metrics = run.shard(args.shard) / "metrics.jsonl"
    shown = watching(watch_simulation([metrics]), Console()) if is_first() else contextlib.nullcontext()
    with shown:
        stages.simulate(run.path, args.shard, replay=args.replay)
