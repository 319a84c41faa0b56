"""The kinds of work in a run: which function does a unit of each, with how many processes, and what is shown of it.

What does the work is imported when it is called: planning loads neither torch nor transformers. Looking for garbage
among what they define would take a sixth of the seconds in which they are imported.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from salign.config import Config
from salign.garbage import rare_collections
from salign.plan import Unit
from salign.run import RunDir
from salign.tracking.progress import Watched, watch_evaluation, watch_simulation, watch_training


@dataclass(frozen=True)
class Stage:
    """One kind of work, of which a run has one unit or several.

    Attributes:
        name: As in the run's folder, on the command line and in `cluster`.
        run: Does a unit, told by its argument; every rank calls it.
        watch: What of its units is shown while they run; None where they are over in a moment.
        ranks: Which launcher starts the processes that do a unit together: torch's, MPI's, or none.
        has_results: Whether a unit is done once and for all; a server has nothing to show for its work.
        is_array: Whether there are many units that need nothing of each other: a cluster runs them as an array.
    """

    name: str
    run: Callable[[RunDir, Config, str], None]
    watch: Callable[[Sequence[Unit]], Watched] | None = None
    ranks: Literal["torch", "mpi"] | None = None
    is_array: bool = False
    has_results: bool = True


def _serve(run: RunDir, config: Config, server: str) -> None:
    from salign.engines.serving import serve

    serve(run, config, server)


def _simulate(run: RunDir, config: Config, shard: str) -> None:
    from salign.society.shard import run_shard

    run_shard(run, config, int(shard))


def _collect(run: RunDir, config: Config, _: str) -> None:
    from salign.dataset.collect import collect

    collect(run, config)


def _train(run: RunDir, config: Config, stage: str) -> None:
    with rare_collections():
        from salign.training.loop import train

    train(run, config, stage)


def _evaluate(run: RunDir, config: Config, model: str) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm_eval's bars; ours reads metrics.jsonl
    with rare_collections():
        from salign.evaluation.evaluate import evaluate

    evaluate(run, config, model)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("serve", _serve, has_results=False),
        Stage("simulate", _simulate, watch_simulation, ranks="mpi", is_array=True),
        Stage("collect", _collect),
        Stage("train", _train, watch_training, ranks="torch"),
        Stage("evaluate", _evaluate, watch_evaluation, ranks="torch"),
    )
}
"""In the order of a run."""


def stage_of(unit: Unit) -> Stage:
    """Returns the stage of a unit."""
    return STAGES[unit.stage]


def groups_of(units: Sequence[Unit]) -> list[list[Unit]]:
    """Groups units as they run and are shown: those of an array together, others alone, in the plan's order."""
    array = [unit for unit in units if stage_of(unit).is_array]
    others = [[unit] for unit in units if not stage_of(unit).is_array]
    return [array, *others] if array else others
