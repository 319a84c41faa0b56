"""The shipped examples, one after the other in one process, in small: run_examples.py MODEL FOLDER EXAMPLE.yaml ...

Each goes the whole way that its config names, with a scripted engine and a tiny model. Prints the run of each.
"""

import contextlib
import functools
import logging
import os
import sys
from pathlib import Path
from unittest import mock

from salign import compose, work
from salign.config import Config
from salign.launch import prepare
from salign.plan import units
from salign.run import generations
from salign.training import loop

SCRIPTED = "{kind: scripted}"
GATES = "{min_rated_share: 0, max_failed_share: 1, max_repeated_share: 1, max_flagged_share: 1, max_cut_share: 1}"


def in_small(path: Path, model: str, folder: Path) -> Config:
    """An example with less of everything, and nothing that needs a model or a server."""
    whole = compose.load(path)
    less = [
        f"run.root={folder}",
        f"model={model}",
        f"engine={SCRIPTED}",
        "tracking.wandb=false",
        "cluster={kind: local}",
        "evaluate.num_questions=2",
        "evaluate.num_documents=2",
        "evaluate.answer.max_tokens=4",
        "evaluate.num_resamples=100",
    ]
    if whole.has_society:
        less += ["society.num_worlds=1", "society.num_shards=1", "society.max_rounds=2", f"society.gates={GATES}"]
        less += ["society.num_initial_memories=4"]
    if whole.society.observer is not None:
        less += [f"society.observer={SCRIPTED}", "society.observer_check.min_agreement=0"]
    if whole.evaluate.judges:
        less += [f"evaluate.judges=[{{name: small, engine: {SCRIPTED}}}]", "evaluate.judge_check.min_agreement=0"]
    less += [f"train.stages.{stage.name}.max_steps=2" for stage in whole.train.stages]
    return compose.load(path, less)


def main() -> None:
    model, folder, *examples = sys.argv[1:]
    work.begin()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    loop.init_ranks = functools.cache(loop.init_ranks)  # one process is the only rank of all
    leave_ranks, loop.leave_ranks = loop.leave_ranks, lambda: None
    before = dict(os.environ)
    for example in examples:
        run = prepare(in_small(Path(example), model, Path(folder)))
        for its, config in generations(run, run.config())[:2]:
            for unit in units(its, config):
                # What trains here leaves a rank's place in the environment, for which others would look for more ranks.
                trains = unit.stage == "train"
                with contextlib.nullcontext() if trains else mock.patch.dict(os.environ, before, clear=True):
                    work.do_unit(its, config, unit)
        print(run.path, flush=True)
    leave_ranks()


if __name__ == "__main__":
    main()
