"""Shows what is done, running or failed in a run, and where its logs are.

python jobs/status.py RUN [--watch | --digest]
"""

from pathlib import Path

from salign.cluster.follow import follow
from salign.cluster.status import digest, print_status
from salign.command_line import Parser
from salign.run import generations, open_run
from salign.shown import plain_console


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--watch", action="store_true", help="update live until nothing is running any more")
    parser.add_argument("--digest", action="store_true", help="print only the sha256 of all interactions, in order")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    run = open_run(args.run)
    if args.digest:
        print(digest(run, run.config()))
        return
    console = plain_console()
    everything = generations(run, run.config())
    if args.watch:
        for one in everything:
            follow(*one, console)
    for one in everything:
        print_status(*one, console)
