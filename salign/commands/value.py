"""Estimates a model's value on logged answers: their scores, weighed by how much likelier the model makes them.

python jobs/value.py RUN --model stable                      # a stage of the run, on the answers of its society
python jobs/value.py FILE --model FOLDER --sampler FOLDER    # any model, on any file of rated groups

Nothing is generated and no judge is asked. The sampler is the model that gave the answers: of a run, the one that its
society speaks through. Both are asked how likely an answer is to its query as training shows it.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from salign.command_line import Parser
from salign.commands.export import add_reading, groups_file, reading_of
from salign.config import ImplicitReward
from salign.dataset.groups import read_groups
from salign.engines.scorers import check_scorer, open_scorer
from salign.errors import CallRejectedError, ConfigError, DataError
from salign.evaluation.logged import logged_value
from salign.records import AlignmentGroup
from salign.run import open_run
from salign.shown import say


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="RUN|FILE", help="a run's folder, or a file of rated groups")
    parser.add_argument("--model", required=True, help="a stage of the run; for a file, a model's folder or name")
    parser.add_argument("--sampler", help="the model that gave the answers; of a run, the one it spoke through")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--num-resamples", type=int, default=10_000, help="draws of the groups for the interval")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    add_reading(parser)
    return parser


def _models(source: Path, model: str, sampler: str | None) -> tuple[str, str]:
    """The model and the sampler that are meant."""
    if source.is_dir():
        run = open_run(source)
        config = run.config()
        config.stage(model)  # which names the stages if it is none
        return str(run.model(model)), sampler or getattr(config.engine, "model", None) or config.model
    if sampler is None:
        raise ConfigError(f"--sampler is missing: {source} does not say which model gave its answers")
    return model, sampler


async def _log_weights(section: ImplicitReward, groups: Sequence[AlignmentGroup]) -> list[list[float | None]]:
    """How much likelier each answer is under the model than under the sampler; None where it is too long for them."""
    async with open_scorer(section) as engine:

        async def weight(group: AlignmentGroup, answer: str) -> float | None:
            try:
                score, _ = await engine.score(group.query, answer)
            except CallRejectedError:
                return None
            return score if math.isfinite(score) else None

        return [[await weight(group, answer) for answer in group.responses] for group in groups]


def main() -> None:
    args = make_parser().parse_args()
    if args.num_resamples < 1:
        raise ConfigError(f"--num-resamples {args.num_resamples} must be at least 1")
    model, sampler = _models(args.source, args.model, args.sampler)
    section = ImplicitReward(kind="implicit", model=model, reference=sampler, dtype=args.dtype)
    check_scorer("--model and --sampler", section)
    path, left_out = groups_file(args.source), Counter[str]()
    groups = [group for group in read_groups(reading_of(args, path), left_out) if not group.context]
    weights = asyncio.run(_log_weights(section, groups))
    kept = [
        [(log, score) for log, score in zip(logs, group.scores, strict=True) if log is not None]
        for logs, group in zip(weights, groups, strict=True)
    ]
    there = [group for group in kept if group]
    if not there:
        raise DataError(f"{path} has no answer to a single question that both models can read")
    found = logged_value(
        [[log for log, _ in group] for group in there],
        [[score for _, score in group] for group in there],
        num_resamples=args.num_resamples,
        seed=args.seed,
    )
    say(f"{args.model}: {found}")
