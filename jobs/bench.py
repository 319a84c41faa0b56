"""Measures what README quotes; each figure with what it is to reach and what others reach.

python jobs/bench.py society [--json FILE] [--only PART ...] [--agents N ...]
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from salign.bench import society
from salign.errors import run_main
from salign.run import write_atomic

MOCK_ENGINE = Path(__file__).parents[2] / "shared" / "yardstick" / "mock_engine.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["society"])
    parser.add_argument("--json", type=Path, help="also write the figures and the machine to a file")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="some parts of it")
    parser.add_argument(
        "--agents", nargs="+", type=int, default=[10_000, 100_000], help="sizes for the memory's figure"
    )
    parser.add_argument("--mock-engine", type=Path, default=MOCK_ENGINE, help="the neutral engine's script")
    args = parser.parse_args()
    console = Console()
    figures = society.measure(
        args.mock_engine, args.agents, args.only, lambda part: console.print(f"measuring: {part}", highlight=False)
    )
    table = Table(title=" ".join(f"{name}: {value}" for name, value in society.machine().items()), title_justify="left")
    for column in ("what", "figure", "to reach", "beside it", "note"):
        table.add_column(column, overflow="fold")
    for figure in figures:
        value = "-" if figure.value is None else f"{figure.value:,.2f} {figure.unit}".strip()
        table.add_row(figure.name, value, figure.to_reach, figure.beside, figure.note)
    console.print(table)
    if args.json:
        write_atomic(args.json, society.as_json(figures))


if __name__ == "__main__":
    run_main(main)
