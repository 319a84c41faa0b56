"""Evaluates a model of a run, alone or with ranks that share the work, and compares evaluated models.

python jobs/evaluate.py RUN --model base                # `base`, or the name of a training stage
torchrun --nproc-per-node 2 jobs/evaluate.py RUN --model base
python jobs/evaluate.py RUN --compare base,sft,stable   # prints the table, writes evaluate/comparison.{md,tex,json}
python jobs/evaluate.py RUN --compare base,on_policy=A/generation-3/evaluate/grpo:B/generation-3/evaluate/grpo
                                                        # other runs' evaluations by a name; of several, its seeds
python jobs/evaluate.py RUN --prefetch                  # on a node with internet: downloads models and data
"""

import os
from collections.abc import Sequence
from pathlib import Path

from salign import work
from salign.command_line import Parser
from salign.errors import ConfigError
from salign.launch import open_or_prepare
from salign.run import RunDir
from salign.shown import say


def _compare(run: RunDir, names: str) -> None:
    from salign.evaluation.compare import compare, compare_folders, write_tables

    models = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    if len(models) < 2:
        raise ConfigError(f"--compare {names!r} names one model; give at least two, such as base,stable")
    if "=" in names:
        say(write_tables(run, compare_folders(_folders(run, models), run.config())))
    else:
        say(write_tables(run, compare(run, run.config(), models)))
    say(f"written to {run.path / 'evaluate'}/comparison.md, .tex and .json")


def _folders(run: RunDir, models: Sequence[str]) -> dict[str, list[Path]]:
    """Where the evaluations of `NAME=FOLDER:FOLDER` are; a name alone is a model of the run."""
    folders: dict[str, list[Path]] = {}
    for model in models:
        name, given, paths = model.partition("=")
        if name in folders or not name or (given and not paths):
            raise ConfigError(f"--compare {model!r}: give each name once, with its folders separated by {os.pathsep!r}")
        folders[name] = [Path(path) for path in paths.split(os.pathsep)] if given else [run.evaluation(name)]
    return folders


def _prefetch(run: RunDir) -> None:
    from salign.evaluation.evaluate import prefetch

    for line in prefetch(run.config()):
        say(line)


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN|CONFIG.yaml", help="the run's folder, or its config")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="`base`, or the name of a stage in train.stages")
    what.add_argument("--compare", metavar="MODELS", help="evaluated models, separated by commas")
    what.add_argument("--prefetch", action="store_true", help="download models and benchmarks into the caches")
    parser.add_argument("--allow-missing", action="store_true", help="skip benchmarks without data")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    work.begin()
    run = open_or_prepare(args.run)
    if args.compare:
        _compare(run, args.compare)
        return
    if args.prefetch:
        _prefetch(run)
        return
    config = run.config()
    if args.allow_missing:
        config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"allow_missing": True})})
    work.do_named(run, config, "evaluate", args.model)
