"""The pipeline's stages as plain functions of a run's folder, each also `python -m salign.stages STAGE RUN ...`.

Heavy imports are inside them, so that planning needs none.
"""

import argparse
import logging
import os
import threading
from pathlib import Path

from salign.cluster.plan import complete, units
from salign.config import Config
from salign.errors import ConfigError, run_main
from salign.run import RunDir, open_run
from salign.society.ranks import is_first

logger = logging.getLogger(__name__)


def _is_done(run: RunDir, config: Config, *command: str) -> bool:
    """Whether a unit is complete; then it is said, and nothing is to be done."""
    everything = units(run, config)
    done = complete(everything)
    for unit in everything:
        if unit.command == command and unit.key in done:
            logger.info("%s of %s is done; remove %s to do it again", " ".join(command), run.path, unit.folder)
            return True
    return False


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
    if replay or not _is_done(run, config, "simulate", str(shard)):
        run_shard(run, config, shard, replay=replay)


def collect(run_path: Path) -> None:
    """Interactions of all shards -> alignment data."""
    from salign.dataset import collect as collecting

    run = open_run(run_path)
    config = run.config()
    if not _is_done(run, config, "collect"):
        collecting.collect(run, config)


def train(run_path: Path, stage: str) -> None:
    """One rank of one training stage."""
    run = open_run(run_path)
    config = run.config()
    config.stage(stage)  # a wrong name is said before anything heavy is loaded
    if not _is_done(run, config, "train", stage):
        from salign.training import loop

        loop.train(run, config, stage)


def evaluate(run_path: Path, model: str, *, allow_missing: bool = False) -> None:
    """The evaluation of one model, by one of its ranks."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm_eval's bars; ours reads metrics.jsonl
    from salign.evaluation import evaluate as evaluating

    run = open_run(run_path)
    config = run.config()
    if model != "base":
        config.stage(model)  # a wrong name is said before a folder is made for it
    if not _is_done(run, config, "evaluate", model):
        evaluating.evaluate(run, config, model, allow_missing=allow_missing)


def set_up_logging() -> None:
    """Log lines of this package with their time."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("salign").setLevel(logging.INFO)


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
    stages.choices["simulate"].add_argument("shard", type=int)
    stages.choices["train"].add_argument("name")
    stages.choices["evaluate"].add_argument("model")
    parser.add_argument("--attended", action="store_true", help="end when standard input does")
    args = parser.parse_args()
    # A launcher of ranks hands its standard input to the first.
    if args.attended and (args.stage != "simulate" or is_first()):
        _end_with_launcher()
    set_up_logging()
    if args.stage == "simulate":
        simulate(args.run, args.shard)
    elif args.stage == "collect":
        collect(args.run)
    elif args.stage == "train":
        train(args.run, args.name)
    else:
        evaluate(args.run, args.model)


if __name__ == "__main__":
    run_main(_main)
