"""Runs the benchmarks that the documentation quotes; each figure with its target and a comparison.

python jobs/bench.py journal [--json FILE] [--only PART ...] [--num N] [--data FOLDER]
python jobs/bench.py society [--json FILE] [--only PART ...] [--agents N ...]
python jobs/bench.py protocols [--json FILE] [--only KIND ...]
python jobs/bench.py engines [--json FILE] [--only PART ...]
python jobs/bench.py scale [--json FILE] [--only PART ...] [--num N]
python jobs/bench.py streams [--json FILE] [--only PART ...] [--num N]
python jobs/bench.py training [--json FILE] [--only PART ...] [--shapes QUERYxRESPONSExK ...]
python jobs/bench.py validity [--json FILE] [--only PART ...]
"""

import tempfile
from pathlib import Path

from rich.table import Table

from salign.bench.figures import as_json, machine
from salign.command_line import Parser
from salign.shown import plain_console
from salign.storage import write_atomic

SHARED = Path(__file__).parents[3] / "shared"


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "what", choices=["journal", "society", "protocols", "engines", "scale", "streams", "training", "validity"]
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the figures and the machine's description to a file"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="only some parts")
    parser.add_argument(
        "--agents",
        nargs="+",
        type=int,
        default=[10_000, 100_000],
        help="society: numbers of agents for the memory measurement",
    )
    parser.add_argument(
        "--num",
        type=int,
        help="streams: interactions that are read (default 100000); journal: calls (5000000); scale: calls a server "
        "(300)",
    )
    parser.add_argument(
        "--mock-engine",
        type=Path,
        default=SHARED / "yardstick" / "mock_engine.py",
        help="society, engines: the script of the mock engine",
    )
    parser.add_argument(
        "--groups", type=Path, default=SHARED / "data" / "rated" / "cai_rated_groups.json", help="training: real groups"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=[],
        metavar="QUERYxRESPONSExK",
        help="training: shapes of the curve, such as 256x64x4 (default: 36, from 64x32x2 to 2048x512x8)",
    )
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="validity, journal: third-party data")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    console = plain_console()

    def say(part: str) -> None:
        console.print(f"measuring: {part}", highlight=False)

    if args.what == "journal":
        from salign.bench import journal

        figures = journal.measure(args.num or 5_000_000, args.data, args.only, say)
    elif args.what == "society":
        from salign.bench import society

        figures = society.measure(args.mock_engine, args.agents, args.only, say)
    elif args.what == "protocols":
        from salign.bench import protocols

        figures = protocols.measure(args.only, say)
    elif args.what == "engines":
        from salign.bench import engines

        figures = engines.measure(args.mock_engine, args.only, say)
    elif args.what == "scale":
        from salign.bench import scale

        figures = scale.measure(args.num or 300, args.only, say)
    elif args.what == "streams":
        from salign.bench import streams

        figures = streams.measure(args.num or 100_000, args.only, say)
    elif args.what == "validity":
        from salign.bench.validity import parts
        from salign.bench.validity.context import Context

        with tempfile.TemporaryDirectory(prefix="salign-validity-") as scratch:
            figures = parts.measure(Context(Path(scratch), args.data), args.only, say)
    else:
        from salign.bench import training, workload

        shapes = [workload.read_shape(text) for text in args.shapes] or workload.CURVE
        figures = training.measure(args.groups, shapes, args.only, say)
    table = Table(title=" ".join(f"{name}: {value}" for name, value in machine().items()), title_justify="left")
    for column in ("what", "figure", "to reach", "beside it", "note"):
        table.add_column(column, overflow="fold")
    for figure in figures:
        value = "-" if figure.value is None else f"{figure.value:,.2f} {figure.unit}".strip()
        table.add_row(figure.name, value, figure.to_reach, figure.beside, figure.note)
    console.print(table)
    if args.json:
        write_atomic(args.json, as_json(figures))
