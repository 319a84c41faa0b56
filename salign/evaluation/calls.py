"""The calls of an evaluation: the model under evaluation answers through one engine, and judges through theirs."""

import asyncio
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salign.config import Config
from salign.config import Judge as JudgeSection
from salign.engines.capabilities import Ratings
from salign.engines.kinds import kind_of
from salign.engines.meter import MeteredEngine
from salign.engines.opening import open_engine
from salign.errors import StageError
from salign.evaluation.figures import MAX_UNRATED_SHARE
from salign.evaluation.judge import Judge
from salign.evaluation.judged import RATED, Item, Sample, answer_all
from salign.evaluation.resume import Measured
from salign.evaluation.trial import check_trial, criteria_to_try, try_judge
from salign.tracking.metrics import MetricsLog
from salign.training.distributed import Ranks


class Counter:
    """Writes how far this rank's evaluation is, at most twice a second.

    Attributes:
        tokens: Of all calls so far.
    """

    def __init__(self, log: MetricsLog | None, most: int) -> None:
        self._log = log
        self._most = most
        self._count = 0
        self._start = time.monotonic()
        self._written = 0.0
        self.tokens = 0

    def heard(self, engine: MeteredEngine, before: int) -> None:
        """Counts a call of an engine; `before` are the tokens of the calls before it."""
        self.tokens = before + engine.prompt_tokens + engine.completion_tokens
        self.told()

    def told(self) -> None:
        """Counts a document, an answer or a rating."""
        self._count += 1
        now = time.monotonic()
        if self._log is not None and (now - self._written > 0.5 or self._count == self._most):
            rate = self._count / max(now - self._start, 1e-9)
            figures = {"eval/calls": self._count, "eval/calls_most": self._most, "eval/calls_per_s": round(rate, 2)}
            self._log.log({**figures, "eval/tokens": self.tokens})
            self._written = now


@dataclass(frozen=True)
class Means:
    """What a rank measures with: config, progress, earlier measurements, and where servers' logs go."""

    config: Config
    ranks: Ranks
    counter: Counter
    measured: Measured
    logs: Path


def by_all_ranks(config: Config, ranks: Ranks) -> tuple[bool, list[JudgeSection]]:
    """Returns whether each rank answers its share of the prompts, and which judges rate on the same rank.

    An engine that starts servers on the machine's GPUs is opened by the first rank alone, when the others are done; and
    what one rank has answered, it rates.
    """
    alone = ranks.size == 1
    answers = alone or not kind_of(config.answering).starts_servers
    judges = [judge for judge in config.judges if alone or not kind_of(judge.engine).starts_servers]
    return answers, judges if answers else []


async def answered(means: Means, asked: Sequence[Item], model: str) -> tuple[list[Sample], str]:
    """Returns the answers of a model under evaluation, and the identity of the engine that gave them."""
    config, counter = means.config, means.counter
    section = kind_of(config.answering).answering_for(config.answering, model)
    async with open_engine(section, model, means.logs, journal=means.measured.journal) as engine:
        told = functools.partial(counter.heard, engine, counter.tokens)
        samples = await answer_all(engine, asked, config.evaluate.answer, config.evaluation_seed, told)
        await means.measured.journal.sync()
        return samples, engine.identity


async def rated(
    means: Means, judges: Iterable[JudgeSection], samples: Sequence[Sample]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Puts each judge's ratings into the samples; on the first rank each judge is tried before.

    Returns:
        By judge its identity, and what its trial found.

    Raises:
        StageError: A judge refuses too many calls, or is below `evaluate.judge_check.min_agreement`.
    """
    config, counter, journal = means.config, means.counter, means.measured.journal
    identities, trials = dict[str, str](), dict[str, Any]()
    criteria = criteria_to_try(config)
    to_rate = [sample for sample in samples if RATED[sample.item.benchmark]]
    for named in judges if to_rate else ():
        ratings = _how_rated(config)
        async with open_engine(named.engine, config.model, means.logs, ratings=ratings, journal=journal) as engine:
            judge = Judge(engine, config.society, config.evaluation_seed)
            told = functools.partial(counter.heard, engine, counter.tokens)
            if criteria and means.ranks.is_main:
                trial = await try_judge(judge, engine, criteria, config.evaluate, config.evaluation_seed)
                await journal.sync()
                check_trial(trial, config.evaluate, named.name, engine.identity)
                trials[named.name] = trial
            await asyncio.gather(*(_rate(sample, named.name, judge, told) for sample in to_rate))
            await journal.sync()
            identities[named.name] = engine.identity
            if engine.num_refused > MAX_UNRATED_SHARE * engine.num_calls:
                raise StageError(
                    f"evaluation: the judge {named.name} ({engine.identity}) refused {engine.num_refused} of "
                    f"{engine.num_calls} calls (at most {MAX_UNRATED_SHARE:.0%} may be), most often with: "
                    f"{engine.said_of_refusals()}. Name another judge (evaluate.judges), or mend what it refuses."
                )
    return identities, trials


def _how_rated(config: Config) -> Ratings:
    """Held-out questions are rated as in the society, all others in words."""
    rated_benchmarks = {benchmark for benchmark in config.evaluate.benchmarks if RATED.get(benchmark)}
    if rated_benchmarks == {"questions"} or config.society.rating == "parse":
        return config.society.rating
    return "both" if "questions" in rated_benchmarks else "parse"


async def _rate(sample: Sample, name: str, judge: Judge, told: Callable[[], None]) -> None:
    sample.ratings[name] = await judge.rate(sample)
    told()
