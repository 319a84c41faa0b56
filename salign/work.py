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
from salign.errors import HeldError, SalignError, end_on_signals, exit_code_of, run_main
from salign.launchers import is_first, stand_alone
from salign.locks import claim, holder_of, is_locked
from salign.machine import share_out, visible_devices
from salign.markers import begin_unit, read_failure, record_failure
from salign.plan import Unit, find_unit, is_complete, servers_of, units
from salign.restarts import check_restart
from salign.run import RunDir, last_generation, open_run
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
    if not stage_of(unit).has_results:
        stage_of(unit).run(run, config, unit.argument)
        return
    # Of thousands of shards, which need nothing, each would list all of them.
    if is_complete(unit, units(run, config) if unit.needs else [unit]):
        logger.info("%s of %s is complete; remove %s to redo it", unit.name, run.path, unit.folder)
        return
    if is_first():
        check_restart(unit)
    begin_unit(unit.folder)
    stage_of(unit).run(run, config, unit.argument)


def everything_of(run: RunDir, config: Config) -> list[Unit]:
    """All that a process or a job may be told to do: the run's units, and the servers of its fleets."""
    return [*servers_of(run, config), *units(run, config)]


def _do(run: RunDir, config: Config, unit: Unit) -> None:
    """Does a unit; if that fails, in whichever rank, its folder says of what."""
    try:
        do_unit(run, config, unit)
    except HeldError:  # whose lock it is, its folder says
        raise
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


def do_all(
    run_path: Path, named: Sequence[tuple[str, ...]], at_once: int = 1, shared: Sequence[tuple[int, int]] = ()
) -> None:
    """What a task of a job does: its units, one after the other; one that fails does not keep the next back.

    Tasks that share their shards begin with their own; then they take what nobody works on. A unit's lock is the claim
    to it, so what a process that died had begun is free, and goes on from its journal.

    Args:
        run_path: The run's folder.
        named: The words of each unit, as the plan was when the job was submitted.
        at_once: How many processes share them out; each calls this, and does its part.
        shared: The shards of all tasks that take each other's, as ranges (first, behind the last); none: they do not.

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
    if run.number > (last := last_generation(run.first, run.first.config())):
        logger.info("generation %d was the last (generations.stop): nothing is done for %s", last, run.path)
        return

    everything = everything_of(run, config)
    own = [find_unit(everything, *words) for words in named]
    do, to_do = _do, iter(own)
    if shared:
        by_number = {unit.argument: unit for unit in everything if stage_of(unit).is_array}
        all_shards = [by_number[str(number)] for first, behind in shared for number in range(first, behind)]
        do, to_do = _do_if_free, _beginning_with(own, all_shards)
    codes = [exit_code_of(functools.partial(do, run, config, unit)) for unit in to_do]
    if any(codes):
        sys.exit(max(codes))


def _beginning_with(own: Sequence[Unit], all_shards: Sequence[Unit]) -> Iterator[Unit]:
    """A task's own shards, then those of the others, from where its own end; none that failed elsewhere."""
    yield from own
    end = all_shards.index(own[-1]) + 1 if own else 0
    known = {unit.key for unit in own}
    for unit in (*all_shards[end:], *all_shards[:end]):
        if unit.key not in known and not is_complete(unit, all_shards) and read_failure(unit.folder) is None:
            yield unit


def _do_if_free(run: RunDir, config: Config, unit: Unit) -> None:
    """Does a unit unless another process has claimed it, or has done it by now."""
    lock = unit.folder / ".lock"
    if is_locked(lock):
        logger.info("%s is being worked on by %s", unit.name, holder_of(lock))
        return
    with contextlib.suppress(HeldError), claim(lock, unit.name):  # else it was faster
        if not is_complete(unit, [unit]):
            _do(run, config, unit)


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
    _do(run, config, find_unit(everything_of(run, config), args.stage, args.argument))


if __name__ == "__main__":
    run_main(main)
