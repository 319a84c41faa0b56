"""Turns the interactions of all shards into alignment data.

python jobs/collect.py RUN
"""

from pathlib import Path

from salign import work
from salign.command_line import Parser
from salign.launch import open_or_prepare
from salign.markers import read_done
from salign.shown import say


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN|CONFIG.yaml", help="the run's folder, or its config")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    work.begin()
    run = open_or_prepare(args.run)
    work.do_named(run, run.config(), "collect")
    done = read_done(run.dataset)
    assert done is not None
    say(f"{run.dataset / 'groups.jsonl'}: {done.facts['num_groups']} groups")
