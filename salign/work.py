"""Does units of a run, each unless it is done: `python -m salign.work STAGE RUN [ARGUMENT]`, and what a job calls."""

import contextlib
import functools
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from salign.command_line import Parser
from salign.config import Config
from salign.errors import SalignError, end_on_signals, exit_code_of, run_main
from salign.launchers import is_first, stand_alone
from salign.machine import share_out, visible_devices
from salign.markers import record_failure
from salign.plan import Unit, find_unit, is_complete, units
from salign.restarts import check_restart
from salign.run import RunDir, open_run
from salign.shown import NeutralFormatter, plain_console
from salign.stages import STAGES, stage_of
from salign.tracking.progress import watching

logger = logging.getLogger(__name__)


def do_unit(run: RunDir, config: Config, unit: Unit) -> None:
    """Does one unit of a run's plan, unless it is done.

    Raises:
        StageError: The scheduler has started it again and again, and it got no further.
        SalignError: Whatever the stage raises.
    """
    if is_complete(unit, units(run, config)):
        logger.info("%s of %s is complete; remove %s to redo it", unit.name, run.path, unit.folder)
        return
    if is_first():
        check_restart(unit)
    stage_of(unit).run(run, config, unit.argument)


def _do(run: RunDir, config: Config, words: Sequence[str]) -> None:
    """Does the unit of those words; if that fails, in whichever rank, its folder says of what."""
    unit = find_unit(units(run, config), *words)
    try:
        do_unit(run, config, unit)
    except (SalignError, OSError) as error:
        record_failure(unit.folder, error)
        raise


def do_named(run: RunDir, config: Config, stage: str, argument: str = "") -> None:
    """Does the unit that a user names, and shows how far it is.

    Raises:
        ConfigError: There is no such unit.
        SalignError: As `do_unit`.
    """
    unit = find_unit(units(run, config), stage, argument)
    with showing(unit):
        do_unit(run, config, unit)


@contextlib.contextmanager
def showing(unit: Unit) -> Iterator[None]:
    """Shows how far a unit is while the block runs; of several ranks, the first does."""
    watch = stage_of(unit).watch
    if watch is None or not is_first():
        yield
        return
    with watching(watch([unit]), plain_console()):
        yield


def do_all(run_path: Path, named: Sequence[tuple[str, ...]], at_once: int = 1) -> None:
    """What a task of a job does: its units, one after the other; one that fails does not keep the next back.

    Args:
        run_path: The run's folder.
        named: The words of each unit, as the plan was when the job was submitted.
        at_once: How many processes share them out; each calls this, and does its part.

    Raises:
        SystemExit: Unless all went well.
    """
    begin()
    if at_once > 1:
        index = stand_alone()
        named = named[index::at_once]
        if devices := share_out(visible_devices(), at_once)[index]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    run = open_run(run_path, to_work=True)
    config = run.config()

    codes = [exit_code_of(functools.partial(_do, run, config, words)) for words in named]
    if any(codes):
        sys.exit(max(codes))


def begin() -> None:
    """What every process of a stage begins with: log lines with their time, and an orderly end when it is asked to.

    SIGUSR2, by which a scheduler warns of a time limit or a preemption, ends it with the exit code that asks for
    another start. A stage that has something to save installs a handler of its own.
    """
    if starts := os.environ.get("SALIGN_STARTS"):  # of a job: from here on, `check_restart` counts
        Path(starts).unlink(missing_ok=True)
    handler = logging.StreamHandler()
    handler.setFormatter(NeutralFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("salign").setLevel(logging.INFO)
    end_on_signals()


def _end_with_launcher() -> None:
    """Ends this process when the launcher, which holds the other end of its standard input, is gone."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held when the interpreter ends
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    parser = Parser(prog="python -m salign.work", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("run", type=Path)
    parser.add_argument("argument", nargs="?", default="", help="shard, training stage or model")
    parser.add_argument("--attended", action="store_true", help="end when standard input does")
    args = parser.parse_args()
    # A launcher of ranks hands its standard input to the first; torch's to each.
    if args.attended and (STAGES[args.stage].ranks != "mpi" or is_first()):
        _end_with_launcher()
    begin()
    run = open_run(args.run, to_work=True)
    config = run.config()
    _do(run, config, (args.stage, args.argument))


if __name__ == "__main__":
    run_main(main)
