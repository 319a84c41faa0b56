"""Runs the whole pipeline: society, alignment data, training, evaluation. Launch again to continue where it stopped.

python jobs/launch.py [CONFIG.yaml] [key.sub=value ...] [--dry-run] [--prepare] [--wait] [--replace]
                      [--only=STAGE | --until=STAGE] [--skip-bad] [--drop-answers-of=NAME] [--verify]
"""

from pathlib import Path

from salign import compose
from salign.command_line import Parser
from salign.errors import ConfigError
from salign.launch import LaunchOptions, launch
from salign.shown import plain_console
from salign.stages import STAGES
from salign.work import begin


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG.yaml | key.sub=value",
        help="a config (default: the shipped quickstart.yaml), and settings that override it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check config, files and cluster; show the plan, the batch files and an estimate",
    )
    parser.add_argument(
        "--prepare", action="store_true", help="only create the run's folder, to run its stages one by one"
    )
    parser.add_argument("--wait", action="store_true", help="Slurm: stay and show progress until the run is done")
    parser.add_argument("--replace", action="store_true", help="Slurm: cancel the run's live jobs first")
    parser.add_argument(
        "--verify", action="store_true", help="read what is done first, and compare it with the hashes in done.json"
    )
    parser.add_argument(
        "--drop-answers-of",
        metavar="NAME",
        help="make the calls of what is not done again that a server answered under this model's name",
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--only", choices=tuple(STAGES), help="of what is left, only this stage")
    part.add_argument("--until", choices=tuple(STAGES), help="of what is left, the stages up to this one, with it")
    parser.add_argument("--skip-bad", action="store_true", help="skip and count malformed rows of training data")
    return parser


def _stages(only: str | None, until: str | None) -> tuple[str, ...] | None:
    """The stages of a part; None for all."""
    if only is not None:
        return (only,)
    names = tuple(STAGES)
    return None if until is None else names[: names.index(until) + 1]


def main() -> None:
    args = make_parser().parse_intermixed_args()
    files = [word for word in args.words if "=" not in word]
    if len(files) > 1:
        raise ConfigError(
            f"one config file at most, not {len(files)} ({', '.join(files)}); an override is key.sub=value"
        )
    overrides = [word for word in args.words if "=" in word]
    begin()
    config = compose.load(Path(files[0]) if files else compose.shipped("quickstart.yaml"), overrides)
    if args.skip_bad:
        config = compose.skipping_bad(config)
    options = LaunchOptions(
        dry_run=args.dry_run,
        prepare=args.prepare,
        wait=args.wait,
        replace=args.replace,
        drop_answers_of=args.drop_answers_of,
        verify=args.verify,
        stages=_stages(args.only, args.until),
    )
    launch(config, plain_console(), options)
