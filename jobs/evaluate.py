"""The evaluation of one model of a run: base, or the name of a training stage.

python jobs/evaluate.py RUN --model base
"""

import argparse
from pathlib import Path

from rich.console import Console

from salign import stages
from salign.errors import run_main
from salign.launch import open_or_prepare
from salign.tracking.progress import watch_evaluation, watching


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN|CONFIG.yaml", help="the run's folder, or its config")
    parser.add_argument("--model", required=True, help="`base`, or a name of train.stages")
    args = parser.parse_args()
    stages.begin()
    run = open_or_prepare(args.run)
    metrics = run.evaluation(args.model) / "metrics.jsonl"
    with watching(watch_evaluation(args.model, metrics), Console()):
        stages.evaluate(run.path, args.model)


if __name__ == "__main__":
    run_main(main)
