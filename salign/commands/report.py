"""Writes a run's report: one HTML file (report/index.html), and figures for a paper.

python jobs/report.py RUN
"""

from pathlib import Path

from salign.command_line import Parser
from salign.config import Config
from salign.report.write import write_report
from salign.run import RunDir, generations, open_run
from salign.shown import say


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder; the run may still be in progress")
    args = parser.parse_args()
    run = open_run(args.run)
    for one in generations(run, run.config()):
        _write(*one)


def _write(run: RunDir, config: Config) -> None:
    page, record = write_report(run, config)
    for section, gaps in record.gaps.items():
        say(f"not available yet ({section}): {gaps[0]}" + (f", and {len(gaps) - 1} more" if gaps[1:] else ""))
    say(f"{page} ({page.stat().st_size / 1e6:.1f} MB); PNG and SVG in {run.report / 'figures'}")
