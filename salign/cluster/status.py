"""Where every unit of a run stands, what went wrong, and how to go on."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from salign.cluster.jobs import submissions, suffix_of, was_submitted
from salign.cluster.plan import Unit, complete, state, units
from salign.cluster.slurm import LiveJob, Slurm
from salign.config import Config
from salign.locks import is_locked
from salign.markers import require_done
from salign.run import RunDir

_LAST_LINES = 5
# Of failed units, so many are shown in full.
_MAX_FAILURES = 5
_WELL = ("COMPLETED", "PENDING", "RUNNING", "REQUEUED", "COMPLETING")


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
        detail: The node where it runs, why it pends, or what the accounting says of how it ended.
        error: As the unit recorded it.
        job: Slurm's id of its last job's task, where it had one.
        log: Its last log, where there is one.
    """

    word: str
    detail: str = ""
    error: str | None = None
    job: str | None = None
    log: Path | None = None


class Board:
    """All units of a run and where they stand; asks Slurm only if the run has been there."""

    def __init__(self, run: RunDir, config: Config, slurm: Slurm) -> None:
        self.run = run
        self.units: Sequence[Unit] = units(run, config)
        self._min_shards = config.cluster.min_shards
        self.live: list[LiveJob] = []
        self.has_accounting = True
        self._slurm = slurm
        self.standings: dict[str, Standing] = {}
        self._places: dict[str, tuple[str, Path]] = {}
        self._ended: Mapping[str, str] = {}

    def look(self, *, ask: bool = True) -> None:
        """Looks again at the markers; with `ask` also at Slurm's queue, and at its accounting for what has ended."""
        self._places = {}
        for one in submissions(self.run):
            for number, keys in enumerate(one.tasks):
                self._places |= dict.fromkeys(keys, (one.task_id(number), one.log(self.run, number)))
        asked = ask and self._slurm.is_here() and was_submitted(self.run)
        if asked:
            self.live = self._slurm.live_jobs(suffix_of(self.run))
        live = {job.id: job for job in self.live}
        done = complete(self.units)
        states = {unit.key: state(unit, done) for unit in self.units}
        over = {
            self._places[key][0]
            for key, (word, _) in states.items()
            if word != "done" and key in self._places and self._places[key][0] not in live
        }
        if asked and over:
            found = self._slurm.ended_states(job.split("_")[0] for job in over)
            self.has_accounting, self._ended = found is not None, found or {}
        self.standings = {unit.key: self._standing(unit, *states[unit.key], live) for unit in self.units}

    @property
    def is_at_work(self) -> bool:
        """Whether anything of the run may still get further by itself."""
        return bool(self.live) or self.counts()["running"] > 0 or is_locked(self.run.launch_lock)

    def _standing(self, unit: Unit, word: str, error: str | None, live: Mapping[str, LiveJob]) -> Standing:
        job, place = self._places.get(unit.key, (None, self.run.logs / unit.log_name))
        log = place if place.exists() else None
        if word == "done":
            return Standing("done", job=job, log=log)
        if job is not None and job in live:
            known = live[job]
            word = "running" if known.is_running else "pending"
            return Standing(word, known.node_list if known.is_running else known.reason, None, job, log)
        said = self._ended.get(job, "") if job is not None else ""
        if word != "running" and said and said not in _WELL:
            # What waits for something that failed is cancelled by Slurm.
            word = "cancelled" if said == "CANCELLED" and error is None else "failed"
        return Standing(word, said if word == "failed" else "", error, job, log)

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
    by_slurm = f" (Slurm says {standing.detail})" if standing.detail else ""
    log = f"\nIts log: {standing.log}" if standing.log is not None else ""
    return f"{' '.join(unit.command)} failed{by_slurm}: {error or 'it left no word'}{log}"


def _rows(board: Board) -> list[tuple[str, Standing]]:
    """Units with where they stand; a run of shards that stand alike is one row."""
    rows: list[tuple[str, Standing]] = []
    many = sum(unit.stage == "simulate" for unit in board.units) > 20
    first = ""
    for unit in board.units:
        name, standing = " ".join(unit.command), board.standings[unit.key]
        last = rows[-1][1] if rows else None
        alike = last is not None and (last.word, last.detail) == (standing.word, standing.detail)
        if many and unit.stage == "simulate" and alike and standing.word != "failed":
            rows[-1] = f"{first} .. {unit.command[1]}", Standing(standing.word, standing.detail)
        else:
            first = name
            rows.append((name, standing))
    return rows


def print_status(run: RunDir, config: Config, console: Console, slurm: Slurm) -> None:
    """Prints a table of units, then the errors and last log lines of what failed, then how to go on."""
    board = Board(run, config, slurm)
    board.look()
    table = Table(title=f"Run {run.path}", title_justify="left")
    for column in ("unit", "state", "job", "log"):
        table.add_column(column, overflow="fold")
    for name, standing in _rows(board):
        word = f"{standing.word} ({standing.detail})" if standing.detail else standing.word
        log = "" if standing.log is None else str(standing.log.relative_to(run.path))
        table.add_row(name, word, standing.job or "", log)
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
    if not board.has_accounting:
        console.print(
            "This cluster keeps no accounting (sacct): how a job ended is known from the run's folder alone, and "
            "OUT_OF_MEMORY or NODE_FAIL cannot be told from other failures.",
            highlight=False,
        )
    if counts["done"] < len(board.units):
        console.print(f"to go on: {_how_to_go_on(run, board)}", markup=False, highlight=False, soft_wrap=True)
    if slurm.num_commands:
        console.print(slurm.said(), highlight=False)


def _how_to_go_on(run: RunDir, board: Board) -> str:
    if board.live:
        return f"wait for the jobs {', '.join(sorted({job.job_id for job in board.live}))}"
    if is_locked(run.launch_lock):
        return "a launch is at work"
    # The folder may have been moved.
    return f"python jobs/launch.py {run.config_file} run.root={run.path.parent} run.name={run.path.name}"
