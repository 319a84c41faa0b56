"""Writes a run's report: one HTML file (report/index.html), and figures for a paper. Of several runs, compares them.

python jobs/report.py RUN           report/index.html
python jobs/report.py RUN RUN ...   the first one's report/comparison.html: curves with intervals, and differences
"""

from pathlib import Path

from salign.command_line import Parser
from salign.config import Config
from salign.report.comparison import write_comparison
from salign.report.write import write_report
from salign.run import RunDir, generations, open_run
from salign.shown import say


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="a run's folder; the run may still be in progress")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    run, *others = map(open_run, args.run)
    if others:
        page = run.report / "comparison.html"
        write_comparison([run, *others], page)
        say(f"{page} ({page.stat().st_size / 1e6:.1f} MB); its table in {page.with_suffix('.json')}")
        return
    for one in generations(run, run.config()):
        _write(*one)


def _write(run: RunDir, config: Config) -> None:
    page, record = write_report(run, config)
    for section, gaps in record.gaps.items():
        say(f"not available yet ({section}): {gaps[0]}" + (f", and {len(gaps) - 1} more" if gaps[1:] else ""))
    say(f"{page} ({page.stat().st_size / 1e6:.1f} MB); PNG and SVG in {run.report / 'figures'}")
