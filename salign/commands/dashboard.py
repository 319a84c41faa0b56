"""W&B: manages the workspace and sends what was logged offline.

python jobs/dashboard.py check [--update]     compares the workspace with its reviewed copy and with the logs; offline
python jobs/dashboard.py apply [RUN]          creates or updates the workspace of RUN's project, for its protocol
python jobs/dashboard.py sync RUN [--live]    sends RUN's offline W&B runs and verifies that everything arrived
"""

import argparse
from pathlib import Path

from salign.command_line import Parser
from salign.config import SocietySection, TrackingSection
from salign.errors import ConfigError, StageError
from salign.run import generations, open_run
from salign.shown import say
from salign.society.protocols import protocol_of
from salign.society.rounds import curves
from salign.tracking import workspace
from salign.tracking.sync import sync


def _check(args: argparse.Namespace) -> None:
    problems = workspace.check(curves(protocol_of(SocietySection())), update=args.update)
    if problems:
        raise StageError("\n".join(problems))
    print("the workspace matches its reviewed copy, and everything it shows is logged")


def _apply(args: argparse.Namespace) -> None:
    config = None if args.run is None else open_run(args.run).config()
    tracking = TrackingSection() if config is None else config.tracking
    society = SocietySection() if config is None else config.society
    url, is_new = workspace.apply(tracking, curves(protocol_of(society)))
    say(f"{'created' if is_new else 'updated'}: {url}")


def _sync(args: argparse.Namespace) -> None:
    run = open_run(args.run)
    for one in generations(run, run.config()):
        sync(*one, say, live=args.live)


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="offline; exit code 1 if something is wrong")
    check.add_argument("--update", action="store_true", help="accept the workspace as it is now")
    apply = commands.add_parser("apply", help="needs an API key")
    apply.add_argument(
        "run", type=Path, nargs="?", help="the run's folder; without it, the default project and protocol"
    )
    send = commands.add_parser("sync", help="needs an API key; safe to repeat")
    send.add_argument("run", type=Path, help="the run's folder")
    send.add_argument("--live", action="store_true", help="follow a running job until it ends")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    try:
        {"check": _check, "apply": _apply, "sync": _sync}[args.command](args)
    except ModuleNotFoundError as error:
        if error.name != "wandb_workspaces":
            raise
        raise ConfigError("the workspace needs wandb-workspaces: pip install 'salign[dashboard]'") from None
