"""The status of every unit of a run, what went wrong, and how to continue."""

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from salign.cluster.scheduler import Ended, LiveTask, Placement, Scheduler
from salign.cluster.schedulers import all_schedulers
from salign.config import Config
from salign.errors import ConfigError, StageError
from salign.locks import holder_of, is_locked
from salign.markers import read_done, require_done
from salign.plan import Unit, complete, servers_of, state, units
from salign.run import RunDir
from salign.shown import as_called
from salign.stages import stage_of
from salign.tracking.progress import waits

_LAST_LINES = 5
# Of failed units, so many are shown in full.
_MAX_FAILURES = 5


def digest(run: RunDir, config: Config) -> str:
    """The sha256 of all interactions in canonical order (world, round, agent), however they were cut into shards.

    Raises:
        StageError: A shard is not complete, or its file has changed.
    """
    total = hashlib.sha256()
    for shard in range(config.society.num_shards):  # contiguous worlds, each file in order
        folder = run.shard(shard)
        require_done(
            folder, f"shard {shard} of {run.path}", f"Run `python jobs/simulate.py {run.path} --shard {shard}`."
        )
        with (folder / "interactions.jsonl").open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


@dataclass(frozen=True)
class Standing:
    """Where a unit stands.

    Attributes:
        word: `done`, `running`, `pending`, `failed`, `cancelled`, `interrupted` or `to do`.
        detail: The node where it runs, why it pends, or what the scheduler says of how it ended.
        error: As the unit recorded it.
        task: The scheduler's id of its last task, where it had one.
        log: Its last log, where there is one.
        scheduler: The name of who says the detail.
    """

    word: str
    detail: str = ""
    error: str | None = None
    task: str | None = None
    log: Path | None = None
    scheduler: str = ""


class Board:
    """Units of a run and where they stand, by their markers and by what schedulers say of their tasks.

    Attributes:
        live: Tasks that have not ended, as they were known last.
        unanswered: What schedulers answered instead of what they were asked; the markers tell the rest.
        silent_since: Since when a scheduler does not say what is live (s since the epoch); None where all do.
        without_accounting: Schedulers that remember nothing of ended jobs.
    """

    def __init__(self, run: RunDir, config: Config, stages: Collection[str] | None = None) -> None:
        """Looks at nothing yet.

        Args:
            run: Its folder.
            config: The run's.
            stages: Only the units of these; None for all.
        """
        self.run = run
        self._everything = units(run, config)
        self.units: Sequence[Unit] = [unit for unit in self._everything if stages is None or unit.stage in stages]
        self._servers = servers_of(run, config)
        self._min_shards = config.cluster.min_shards
        self._schedulers = all_schedulers(run)
        self.live: list[LiveTask] = []
        self.without_accounting: list[str] = []
        self.unanswered: list[str] = []
        self.silent_since: float | None = None
        self.standings: dict[str, Standing] = {}
        self._ended: dict[str, Ended] = {}
        self._num_units = Counter[str | None]()  # of each task

    def look(self, *, ask: bool = True) -> None:
        """Looks again at the markers; with `ask` also asks schedulers what is live, and how the rest ended."""
        placements: dict[str, tuple[Scheduler, Placement]] = {}
        for scheduler in self._schedulers:
            placements |= {key: (scheduler, placement) for key, placement in scheduler.placements().items()}
        if ask:
            self._ask_what_is_live()
        self._num_units = Counter(placement.task for _, placement in placements.values())
        live = {task.id: task for task in self.live}
        done = complete(self._everything)
        states = {unit.key: state(unit, done) for unit in self.units}
        if ask:
            over = {
                placement.task: scheduler
                for key, (scheduler, placement) in placements.items()
                if placement.task is not None and placement.task not in live and states.get(key, ("done",))[0] != "done"
            }
            self._ask_how_they_ended(over)
        self.standings = {
            unit.key: self._standing(unit, *states[unit.key], live, placements.get(unit.key)) for unit in self.units
        }

    def _ask_what_is_live(self) -> None:
        known, silent_since = self.live, self.silent_since
        self.live, self.unanswered, self.silent_since = [], [], None
        for scheduler in self._schedulers:
            try:
                self.live += scheduler.live()
            except (StageError, ConfigError) as error:
                self.unanswered.append(str(error))
                self.silent_since = silent_since or time.time()
                placed = {placement.task for placement in scheduler.placements().values()}
                self.live += [task for task in known if task.id in placed]

    def _ask_how_they_ended(self, over: Mapping[str, Scheduler]) -> None:
        self._ended, self.without_accounting = {}, []
        for scheduler in self._schedulers:
            tasks = [task for task, its in over.items() if its is scheduler]
            try:
                ended = scheduler.ended(tasks) if tasks else {}
            except (StageError, ConfigError) as error:
                self.unanswered.append(str(error))
                ended = {}
            self._ended |= ended
            if scheduler.forgets:
                self.without_accounting.append(scheduler.name)

    @property
    def is_at_work(self) -> bool:
        """Whether anything of the run may still get further by itself."""
        moves = any(not task.remedy and not task.waits_for_jobs for task in self.live)
        return (
            moves
            or (bool(self.live) and not self.stuck())
            or self.silent_since is not None
            or self.counts()["running"] > 0
            or is_locked(self.run.launch_lock)
        )

    def stuck(self) -> list[str]:
        """Of each task that will not start by itself: its id, why, and what to do."""
        return [f"{task.id} ({task.detail}: {task.remedy})" for task in self.live if task.remedy]

    def _standing(
        self,
        unit: Unit,
        word: str,
        error: str | None,
        live: Mapping[str, LiveTask],
        placed: tuple[Scheduler, Placement] | None,
    ) -> Standing:
        if placed is None:
            log = self.run.logs / unit.log_name
            return Standing(word, "", error, None, log if log.exists() else None)
        name, task = placed[0].name, placed[1].task
        log = placed[1].log
        there = log if log.exists() else None
        if word == "done" or task is None:
            return Standing(word, "", None if word == "done" else error, task, there, name)
        if task in live or (word == "running" and stage_of(unit).is_array):
            return Standing(*self._standing_now(unit, word, live.get(task)), None, task, there, name)
        ended = self._ended.get(task)
        if word == "running" or ended is None:
            return Standing(word, "", error, task, there, name)
        if ended.word == "cancelled" and error is None:
            return Standing("cancelled", "", None, task, there, name)
        return Standing("failed", ended.detail, error, task, there, name)

    def _standing_now(self, unit: Unit, word: str, task: LiveTask | None) -> tuple[str, str]:
        """Word and detail of a unit whose task has not ended, or which another task has claimed."""
        if task is None or (word == "running" and stage_of(unit).is_array):
            return "running", holder_of(unit.folder / ".lock")
        if task.is_running and self._num_units[task.id] > 1:
            return "pending", "no task has taken it yet"
        return "running" if task.is_running else "pending", task.detail

    def servers(self) -> dict[str, tuple[int, Counter[str]]]:
        """Of each fleet of servers, while shards are left: how many it has, and how many stand where."""
        found: dict[str, list[str]] = {}
        if self.counts("simulate")["done"] < self.counts("simulate").total():
            for unit in self._servers:
                found.setdefault(unit.folder.parent.name, []).append(state(unit, set())[0])
        return {name: (len(words), Counter(words)) for name, words in found.items()}

    def usage(self) -> str:
        """How often schedulers were asked."""
        return "; ".join(filter(None, (scheduler.usage() for scheduler in self._schedulers)))

    def counts(self, stage: str | None = None) -> Counter[str]:
        """How many units stand where."""
        return Counter(self.standings[unit.key].word for unit in self.units if stage in (None, unit.stage))

    @property
    def is_finished(self) -> bool:
        """Whether everything is done, but for shards that the rest was allowed to go on without."""
        shards, all_ = self.counts("simulate"), self.counts()
        missing = shards.total() - shards["done"]
        allowed = self._min_shards is not None and shards["done"] >= self._min_shards
        return all_.total() - all_["done"] == missing and (missing == 0 or allowed)

    def failed(self) -> list[tuple[Unit, Standing]]:
        """What failed, in the plan's order."""
        both = ((unit, self.standings[unit.key]) for unit in self.units)
        return [(unit, standing) for unit, standing in both if standing.word == "failed"]


def describe_failure(unit: Unit, standing: Standing) -> str:
    """What failed, of what, and where its log is."""
    error = standing.error
    if error is None and standing.log is not None:
        lines = standing.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        error = next((line for line in reversed(lines) if line.startswith("error: ")), "").removeprefix("error: ")
    how = f" ({standing.scheduler} says {standing.detail})" if standing.detail else ""
    log = f"\nIts log: {standing.log}" if standing.log is not None else ""
    return as_called(f"{unit.name} failed{how}: {error or 'it left no error message'}{log}")


def _rows(board: Board) -> list[tuple[str, Standing]]:
    """Units with where they stand; a run of shards that stand alike is one row."""
    rows: list[tuple[str, Standing]] = []
    many = board.counts("simulate").total() > 20
    first = ""
    for unit in board.units:
        name, standing = unit.name, board.standings[unit.key]
        last = rows[-1][1] if rows else None
        alike = last is not None and (last.word, last.detail) == (standing.word, standing.detail)
        if many and unit.stage == "simulate" and alike and standing.word != "failed":
            rows[-1] = f"{first} .. {unit.argument}", Standing(standing.word, standing.detail)
        else:
            first = name
            rows.append((name, standing))
    return rows


def print_status(run: RunDir, config: Config, console: Console) -> None:
    """Prints a table of units, then the errors and last log lines of what failed, then how to go on."""
    board = Board(run, config)
    board.look()
    table = Table(title=f"Run {run.path}", title_justify="left")
    for column in ("unit", "state", "job", "log"):
        table.add_column(column, overflow="fold")
    for name, standing in _rows(board):
        word = f"{standing.word} ({standing.detail})" if standing.detail else standing.word
        log = "" if standing.log is None else str(standing.log).removeprefix(f"{run.path}/")
        table.add_row(name, word, standing.task or "", log)
    console.print(table)
    failed = board.failed()
    for unit, standing in failed[:_MAX_FAILURES]:
        console.print(describe_failure(unit, standing), markup=False, highlight=False, soft_wrap=True)
        if standing.log is not None:
            lines = standing.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_LINES:]
            console.print("its last lines:", *lines, sep="\n  ", markup=False, highlight=False, soft_wrap=True)
    if len(failed) > _MAX_FAILURES:
        console.print(f"{len(failed) - _MAX_FAILURES} more failed", highlight=False)
    counts = board.counts()
    console.print(", ".join(f"{count} {word}" for word, count in counts.items()), highlight=False)
    at_work = [unit for unit in board.units if unit.stage == "simulate" and board.standings[unit.key].word == "running"]
    if waiting := waits(at_work):
        console.print(waiting, highlight=False)
    for error in board.unanswered:
        console.print(f"known only from the run's folder: {error}", markup=False, highlight=False, soft_wrap=True)
    for name in board.without_accounting:
        console.print(
            f"{name} keeps no accounting here: how a job ended is known for some minutes, and then only from the run's "
            "folder.",
            highlight=False,
        )
    for fleet, (num, states) in board.servers().items():
        console.print(f"fleet {fleet}: {states['running']} of {num} servers run", markup=False, highlight=False)
    for path, num in _reused(board).items():
        console.print(f"{num} calls were answered by the journal of {path}", markup=False, highlight=False)
    if counts["done"] < len(board.units):
        console.print(
            as_called(f"to continue: {_how_to_go_on(run, board)}"), markup=False, highlight=False, soft_wrap=True
        )
    if usage := board.usage():
        console.print(usage, highlight=False)


def _reused(board: Board) -> Counter[str]:
    """How many calls of the complete shards other runs' journals have answered, by run."""
    total = Counter[str]()
    for unit in board.units:
        done = read_done(unit.folder) if unit.stage == "simulate" else None
        total.update({} if done is None else done.facts.get("reused_calls", {}))
    return total


def _how_to_go_on(run: RunDir, board: Board) -> str:
    if stuck := board.stuck():
        more = f" and {len(stuck) - _MAX_FAILURES} more" if stuck[_MAX_FAILURES:] else ""
        return f"these jobs do not start by themselves: {', '.join(stuck[:_MAX_FAILURES])}{more}"
    if board.live:
        return f"wait for the jobs {', '.join(sorted({job.job_id for job in board.live}))}"
    if is_locked(run.launch_lock):
        return "a launch is in progress"
    # The folder may have been moved.
    run = run.first
    return f"python jobs/launch.py {run.config_file} run.root={run.path.parent} run.name={run.path.name}"
