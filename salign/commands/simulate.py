"""Simulates one shard of a run's society in this process.

python jobs/simulate.py RUN --shard 0 [--replay]
mpiexec -n 4 python jobs/simulate.py RUN --shard 0      # with cluster.ranks_per_shard=4
"""

from pathlib import Path

from salign import work
from salign.command_line import Parser
from salign.launch import open_or_prepare
from salign.plan import find_unit, units


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN|CONFIG.yaml", help="the run's folder, or its config")
    parser.add_argument("--shard", type=int, required=True, help="the shard's number, counted from 0")
    parser.add_argument(
        "--replay", action="store_true", help="redo the shard from its journal alone, without an engine"
    )
    return parser


def main() -> None:
    args = make_parser().parse_args()
    work.begin()
    run = open_or_prepare(args.run)
    config, shard = run.config(), str(args.shard)
    if not args.replay:
        work.do_named(run, config, "simulate", shard)
        return
    from salign.society.shard import run_shard

    with work.showing(find_unit(units(run, config), "simulate", shard)):
        run_shard(run, config, args.shard, replay=True)
