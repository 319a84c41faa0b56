"""Writes a run's report: the page, and its figures for a paper."""

from pathlib import Path

from salign.config import Config
from salign.report.html import render
from salign.report.paper import draw_figures
from salign.report.record import RunRecord, read_run
from salign.run import RunDir
from salign.storage import write_atomic


def write_report(run: RunDir, config: Config) -> tuple[Path, RunRecord]:
    """Writes `report/index.html` and `report/figures/` from what is there of a run; replaces older ones.

    Returns:
        The page, and what it was made of.

    Raises:
        DataError: A file of the run is malformed.
    """
    record = read_run(run, config)
    draw_figures(record, run.report / "figures")
    page = run.report / "index.html"
    write_atomic(page, render(record))
    return page, record
