"""The pipeline's stages as plain functions of a run's folder, each also `python -m salign.stages STAGE RUN ...`.

Heavy imports are inside them, so that planning needs none.
"""

import argparse
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from salign.cluster.plan import is_complete, units
from salign.cluster.restarts import check_restart
from salign.config import Config
from salign.errors import ConfigError, SalignError, end_on_signals, exit_code_of, run_main
from salign.launchers import is_first
from salign.markers import record_failure
from salign.run import RunDir, open_run

logger = logging.getLogger(__name__)


def _do(run_path: Path, command: tuple[str, ...], stage: Callable[[RunDir, Config], None]) -> None:
    """Does one unit of a run's plan, unless it is done."""
    run = open_run(run_path)
    config = run.config()
    everything = units(run, config)
    unit = next(unit for unit in everything if unit.command == command)
    if is_complete(unit, everything):
        logger.info("%s of %s is done; remove %s to do it again", " ".join(command), run.path, unit.folder)
        return
    if is_first():
        check_restart(unit)
    stage(run, config)


def simulate(run_path: Path, shard: int, *, replay: bool = False) -> None:
    """One shard of the society; with `replay`, made anew from its journal alone.

    Raises:
        ConfigError: There is no such shard.
    """
    from salign.society.shard import run_shard

    run = open_run(run_path)
    config = run.config()
    if not 0 <= shard < config.society.num_shards:
        raise ConfigError(f"no shard {shard}: society.num_shards is {config.society.num_shards}, counted from 0")
    if replay:
        run_shard(run, config, shard, replay=True)
    else:
        _do(run_path, ("simulate", str(shard)), lambda run, config: run_shard(run, config, shard))


def collect(run_path: Path) -> None:
    """Interactions of all shards -> alignment data."""
    from salign.dataset import collect as collecting

    _do(run_path, ("collect",), collecting.collect)


def train(run_path: Path, name: str) -> None:
    """One rank of one training stage."""

    def stage(run: RunDir, config: Config) -> None:
        from salign.training import loop

        loop.train(run, config, name)

    open_run(run_path).config().stage(name)  # a wrong name is said before anything heavy is loaded
    _do(run_path, ("train", name), stage)


def evaluate(run_path: Path, model: str, *, allow_missing: bool = False) -> None:
    """The evaluation of one model, by one of its ranks.

    Raises:
        ConfigError: The run evaluates no such model.
    """

    def stage(run: RunDir, config: Config) -> None:
        os.environ.setdefault("TQDM_DISABLE", "1")  # lm_eval's bars; ours reads metrics.jsonl
        from salign.evaluation import evaluate as evaluating

        evaluating.evaluate(run, config, model, allow_missing=allow_missing)

    known = open_run(run_path).config().evaluated_models
    if model not in known:
        raise ConfigError(f"the run evaluates no model {model!r}; evaluate.models has: {', '.join(known)}")
    _do(run_path, ("evaluate", model), stage)


def run_unit(run_path: Path, command: Sequence[str]) -> None:
    """One unit by its command in the plan, such as ("simulate", "3")."""
    stage, *words = command
    if stage == "simulate":
        simulate(run_path, int(words[0]))
    elif stage == "collect":
        collect(run_path)
    elif stage == "train":
        train(run_path, words[0])
    else:
        evaluate(run_path, words[0])


def work(run_path: Path, commands: Sequence[tuple[str, ...]]) -> None:
    """What a task of a Slurm job does: its units, one after the other; a unit that fails does not keep the next back.

    Args:
        run_path: The run's folder.
        commands: As the plan was when they were submitted.

    Raises:
        SystemExit: Unless all went well.
    """
    begin()

    def one(command: tuple[str, ...]) -> None:
        try:
            run_unit(run_path, command)
        except (SalignError, OSError) as error:  # of whichever rank
            run = open_run(run_path)
            folder = next(unit.folder for unit in units(run, run.config()) if unit.command == command)
            record_failure(folder, error)
            raise

    codes = [exit_code_of(functools.partial(one, command)) for command in commands]
    if any(codes):
        sys.exit(max(codes))


def begin() -> None:
    """What every process of a stage begins with: log lines with their time, and an orderly end when it is asked to.

    SIGUSR2, by which Slurm warns of a time limit or a preemption, ends it with the exit code that asks for another
    start. A stage that has something to save puts a handler of its own in the place of this one.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("salign").setLevel(logging.INFO)
    end_on_signals()


def _end_with_launcher() -> None:
    """Ends this process when the launcher, which holds the other end of its standard input, is gone."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held when the interpreter ends
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m salign.stages", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    for name in ("simulate", "collect", "train", "evaluate"):
        stages.add_parser(name).add_argument("run", type=Path)
    stages.choices["simulate"].add_argument("shard")
    stages.choices["train"].add_argument("name")
    stages.choices["evaluate"].add_argument("model")
    parser.add_argument("--attended", action="store_true", help="end when standard input does")
    args = parser.parse_args()
    # A launcher of ranks hands its standard input to the first.
    if args.attended and (args.stage != "simulate" or is_first()):
        _end_with_launcher()
    begin()
    words = {"simulate": ("shard",), "train": ("name",), "evaluate": ("model",)}.get(args.stage, ())
    run_unit(args.run, (args.stage, *(getattr(args, word) for word in words)))


if __name__ == "__main__":
    run_main(_main)
