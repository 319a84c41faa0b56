"""Exports groups for another trainer: TRL's preferences or unpaired preferences, or groups.

python jobs/export.py RUN --to preference pairs.jsonl --pairs best
python jobs/export.py FILE --to unpaired rows.jsonl --threshold 4

FILE is anything that `data: {kind: groups, path: FILE}` reads.
"""

import argparse
import functools
import os
from collections import Counter
from pathlib import Path

from pydantic import ValidationError

from salign.command_line import Parser
from salign.config import GroupsData
from salign.dataset.export import export, preference_rows, unpaired_rows
from salign.dataset.groups import read_groups
from salign.errors import ConfigError
from salign.markers import require_done
from salign.run import open_run
from salign.shown import say


def groups_file(source: Path) -> Path:
    """The file itself, or the run's `groups.jsonl`."""
    if not source.is_dir():
        return source
    run = open_run(source)
    require_done(run.dataset, "the dataset", f"Run `python jobs/collect.py {run.path}`, or launch again.")
    return run.dataset / "groups.jsonl"


def _column(given: str) -> tuple[str, str]:
    name, equals, column = given.partition("=")
    if not equals or not name or not column:
        raise ConfigError(f"--column {given!r} must have the form NAME=COLUMN, such as prompt=text")
    return name, column


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="RUN|FILE", help="a run's folder, or a file of groups")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl", help="the file to write; an existing one is replaced")
    parser.add_argument("--to", required=True, choices=("preference", "unpaired", "groups"), help="format of the rows")
    parser.add_argument(
        "--pairs",
        choices=("all", "best"),
        default="all",
        help="pairs of a group: all with different scores, or only those with the best response",
    )
    parser.add_argument("--threshold", type=float, default=4.0, help="unpaired: scores above it count as good")
    parser.add_argument(
        "--conversational", action="store_true", help="write lists of {role, content} instead of plain text"
    )
    add_reading(parser)
    return parser


def add_reading(parser: Parser) -> None:
    """Adds what says how FILE is read."""
    parser.add_argument(
        "--score-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="the scale of FILE, if it is not 1 to 7"
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="read COLUMN of FILE as NAME; repeatable",
    )
    parser.add_argument("--ignore-columns", nargs="+", default=[], metavar="COLUMN", help="columns of FILE to ignore")
    parser.add_argument("--skip-bad", action="store_true", help="skip and count malformed rows")


def reading_of(args: argparse.Namespace, path: Path) -> GroupsData:
    """How a file is read, by the arguments of `add_reading`.

    Raises:
        ConfigError: One of them is wrong.
    """
    try:
        return GroupsData(
            kind="groups",
            path=path,
            score_range=args.score_range,
            columns=dict(_column(given) for given in args.column),
            ignore_columns=args.ignore_columns,
            skip_bad=args.skip_bad,
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(f"--{str(wrong['loc'][0]).replace('_', '-')}: {wrong['msg']}") from None


def main() -> None:
    args = make_parser().parse_args()
    path = groups_file(args.source)
    if os.path.realpath(args.out) == os.path.realpath(path):
        raise ConfigError(f"{args.out} is the file that is read; name another to write")
    rows_of = {
        "preference": functools.partial(preference_rows, pairs=args.pairs, conversational=args.conversational),
        "unpaired": functools.partial(unpaired_rows, threshold=args.threshold, conversational=args.conversational),
        "groups": None,
    }[args.to]
    data = reading_of(args, path)
    left_out: Counter[str] = Counter()
    done = export(read_groups(data, left_out), args.out, rows_of)
    counts = [f"{left_out[f'{what}_responses']} {what} responses" for what in ("unrated", "repeated")]
    counts += [f"{left_out['bad_rows']} malformed rows", f"{done.num_without} groups without a pair"]
    say(f"{args.out}: {done.num_rows} rows of {done.num_groups} groups; left out: {', '.join(counts)}")
