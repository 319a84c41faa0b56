"""Where the units of a run are done: what a scheduler must provide."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rich.console import Console

from salign.config import Config
from salign.plan import Unit
from salign.run import RunDir


@dataclass(frozen=True)
class LiveTask:
    """A job, or a task of an array of jobs, that has not ended.

    Attributes:
        id: As `Scheduler.placements` names it.
        job_id: Of the whole job, as `Scheduler.cancel` takes it.
        is_running: Whether it runs; else it waits.
        detail: Where it runs, or why it waits.
        remedy: What somebody must do before it can start; "" if it will by itself.
        waits_for_jobs: Whether it waits for other jobs.
    """

    id: str
    job_id: str
    is_running: bool
    detail: str
    remedy: str = ""
    waits_for_jobs: bool = False


@dataclass(frozen=True)
class Placement:
    """Where a unit was last put: its task's id, if it had one, and the log of its first rank."""

    task: str | None
    log: Path


@dataclass(frozen=True)
class Ended:
    """How a task ended that did not go well, and what the scheduler says of it."""

    word: Literal["failed", "cancelled"]
    detail: str = ""


class Scheduler(ABC):
    """Does the units of a run, one class for each kind of `cluster`; see `salign.cluster.schedulers`.

    A unit is done by `python -m salign.work`, or by `salign.work.do_all` within a job. What came of it is told by its
    markers; a scheduler adds what only it knows.

    Args:
        run: Whose units they are.
    """

    name: ClassVar[str]
    """As messages name it."""
    is_here: ClassVar[bool]
    """Whether units run on this machine while the launcher waits, and not in jobs that outlive it."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    def is_reachable(self) -> bool:
        """Whether the scheduler can be asked from this machine."""
        return True

    @abstractmethod
    def check(self, config: Config, left: Sequence[Unit]) -> list[str]:
        """Compares what the units ask for with what there is, before anything is submitted.

        Returns:
            What the user should know although it is no mistake.

        Raises:
            ConfigError: With every mistake, and what there is instead.
            StageError: The scheduler cannot be asked.
        """

    @abstractmethod
    def submit(self, config: Config, left: Sequence[Unit], console: Console, after: Sequence[str] = ()) -> None:
        """Does the units, or submits jobs that do; each after those that it needs.

        Args:
            config: The run's.
            left: Units in the plan's order; what they need and is not among them is complete, or `at_work`.
            console: Is shown what was submitted, or how far the work is.
            after: Tasks of another run, as `placements` names them, that all of it waits for.

        Raises:
            StageError: A unit failed, or a job was refused.
        """

    def describe(self, config: Config, left: Sequence[Unit]) -> list[tuple[str, str]]:
        """The jobs that `submit` would submit: name and batch file of each."""
        return []

    def live(self) -> list[LiveTask]:
        """The run's tasks that have not ended; none where the run has never been here."""
        return []

    def at_work(self) -> Mapping[str, str]:
        """The keys of units that live jobs do, or will do, each to an id that another job can wait for.

        `submit` goes by what this said last.
        """
        return {}

    def ended(self, tasks: Iterable[str]) -> Mapping[str, Ended]:
        """Those of some tasks that did not end well, as far as the scheduler remembers them."""
        return {}

    @property
    def forgets(self) -> bool:
        """Whether it was found to forget ended jobs within minutes."""
        return False

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ends jobs; a scheduler that `is_here` has none."""
        raise NotImplementedError

    def placements(self) -> Mapping[str, Placement]:
        """The key of each unit that was submitted, to where it was put last."""
        return {}

    def usage(self) -> str:
        """How often the scheduler was asked, as sites limit it; "" where it was not."""
        return ""
