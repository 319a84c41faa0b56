"""Shows a running run live: stages and shards, calls and tokens per second, steps and losses, from the run's files."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from salign.cluster.status import Board
from salign.config import Config
from salign.plan import Unit
from salign.run import RunDir
from salign.stages import groups_of, stage_of
from salign.tracking.progress import Watched, reached

_LOOK_EVERY_S = 1.0
_LINE_EVERY_S = 10.0
# Files are read again so many a second at most.
_FILES_PER_S = 100
# Schedulers are asked after a pause that grows: sites count.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 30.0
_WORDS = ("pending", "running", "done", "failed", "cancelled", "interrupted", "to do")


def _watched(board: Board) -> list[tuple[str, list[Unit], Watched | None]]:
    """The rows of a view, each with its units and what of them is shown: an array is one row."""
    watched: list[tuple[str, list[Unit], Watched | None]] = []
    for group in groups_of(board.units):
        stage = stage_of(group[0])
        name = stage.name if stage.is_array else group[0].name
        watched.append((name, group, None if stage.watch is None else stage.watch(group)))
    return watched


class _View:
    """One picture after the other of a board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._stages = _watched(board)
        self._begun: dict[str, tuple[float, float]] = {}

    def _left(self, name: str, done: float, most: float) -> str:
        """The time left, by what was done since this view saw the stage first."""
        now = time.monotonic()
        began, before = self._begun.setdefault(name, (now, done))
        if not before < done < most:
            return ""
        seconds = (now - began) * (most - done) / (done - before)
        return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"

    def rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        """Of each stage: its name, where its units stand, how far it is, the time left, its figures."""
        for name, stage, watched in self._stages:
            standings = [self._board.standings[unit.key] for unit in stage]
            counts = {word: sum(one.word == word for one in standings) for word in _WORDS}
            only = standings[0]
            words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
            if len(stage) == 1:
                words = f"{only.word} ({only.detail})" if only.detail else only.word
            done, most, shown = (0.0, 0.0, "") if watched is None else reached(watched)
            far = f"{done:,.0f}/{most:,.0f} {watched.unit}" if watched is not None and most else ""
            yield name, words, far, self._left(name, done, most) if counts["running"] else "", shown

    def table(self) -> Table:
        table = Table(title=f"Run {self._board.run.path}", title_justify="left")
        for column in ("stage", "state", "done", "left", "figures"):
            table.add_column(column, overflow="fold")
        for row in self.rows():
            table.add_row(*row)
        table.caption = self._silence()
        return table

    def _silence(self) -> str | None:
        """Since when less is known than usual, and why."""
        since = self._board.silent_since
        if since is None:
            return None
        return f"unanswered since {time.strftime('%H:%M:%S', time.localtime(since))}: {self._board.unanswered[0]}"

    def lines(self) -> list[str]:
        lines = [": ".join((name, ", ".join(filter(None, rest)))) for name, *rest in self.rows()]
        silence = self._silence()
        return lines if silence is None else [*lines, silence]


@contextmanager
def _drawing(view: _View, console: Console) -> Iterator[Callable[[], None]]:
    """What draws the view once: a table that stays in its place, or, where there is no terminal, lines that changed."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda: live.update(view.table(), refresh=True)
        return
    said: set[str] = set()
    last = -_LINE_EVERY_S

    def print_lines() -> None:
        nonlocal said, last
        if time.monotonic() - last < _LINE_EVERY_S:
            return
        last, lines = time.monotonic(), view.lines()
        for line in lines:
            if line not in said:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        said = set(lines)

    yield print_lines
    last = -_LINE_EVERY_S
    print_lines()


def follow(run: RunDir, config: Config, console: Console, stages: Collection[str] | None = None) -> Board:
    """Shows a run until everything is done, or nothing of it is at work any more.

    Args:
        run: Its folder.
        config: The run's.
        console: Where it is shown.
        stages: Only these, of which everything is waited for; None for all.

    Returns:
        The board as it stands then.
    """
    board = Board(run, config, stages)
    board.look()
    view = _View(board)
    pause, asked = _FIRST_PAUSE_S, time.monotonic()
    look_every = max(_LOOK_EVERY_S, len(board.units) / _FILES_PER_S)
    idle = 0
    with _drawing(view, console) as draw:
        while True:
            draw()
            if board.is_finished:
                return board
            # Twice in a row: between a job's end and the files that show it, a shared file system may take its time.
            idle = 0 if board.is_at_work else idle + 1
            if idle >= 2:
                return board
            time.sleep(look_every)
            ask = time.monotonic() - asked >= pause or idle > 0
            board.look(ask=ask)
            if ask:
                pause, asked = min(pause * 1.5, _LONGEST_PAUSE_S), time.monotonic()
