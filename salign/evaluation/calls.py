"""The calls of an evaluation: the model under evaluation answers through one engine, and judges through theirs."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salign.config import Config
from salign.config import Judge as JudgeSection
from salign.engines import kept
from salign.engines.capabilities import Ratings
from salign.engines.kinds import kind_of
from salign.engines.meter import MeteredEngine
from salign.engines.opening import metered, open_engine
from salign.errors import StageError
from salign.evaluation.figures import MAX_UNRATED_SHARE
from salign.evaluation.judge import JUDGE_VERSION, Judge, ScoringJudge, settings_of_asking
from salign.evaluation.judged import RATED, Item, Sample, answer_all
from salign.evaluation.resume import Measured
from salign.evaluation.trial import (
    RatingsOfAnother,
    Trial,
    check_trial,
    criteria_to_try,
    pairs_of,
    rate_another,
    self_preference,
    trial_results,
    try_judge,
    why_poor,
)
from salign.evaluation.versions import code_digest, settings_of_judges
from salign.seeds import derive
from salign.society.models import open_mapped
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
    """What a rank measures with: config, progress, earlier measurements, where servers' logs go, and judges' trials."""

    config: Config
    ranks: Ranks
    counter: Counter
    measured: Measured
    logs: Path
    trials: Path


def by_all_ranks(config: Config, ranks: Ranks) -> tuple[bool, list[JudgeSection]]:
    """Returns whether each rank answers its share of the prompts, and which judges rate on the same rank.

    An engine that starts servers on the machine's GPUs is opened by the first rank alone, when the others are done; and
    what one rank has answered, it rates.
    """
    alone = ranks.size == 1
    answers = alone or not kind_of(config.answering).starts_servers
    judges = [judge for judge in config.judges if alone or not _starts_servers(judge)]
    return answers, judges if answers else []


def _starts_servers(judge: JudgeSection) -> bool:
    return judge.engine is not None and kind_of(judge.engine).starts_servers


async def answered(means: Means, asked: Sequence[Item], model: str) -> tuple[list[Sample], str]:
    """Returns the answers of a model under evaluation, and the identity of the engine that gave them."""
    config, counter = means.config, means.counter
    section = kind_of(config.answering).answering_for(config.answering, model)
    async with open_engine(section, model, means.logs, journal=means.measured.journal) as engine:
        told = functools.partial(counter.heard, engine, counter.tokens)
        samples = await answer_all(engine, asked, config.evaluate.answer, config.evaluation_seed, told)
        await means.measured.journal.sync()
        return samples, engine.identity


@contextlib.asynccontextmanager
async def _open_judge(means: Means, named: JudgeSection) -> AsyncIterator[tuple[MeteredEngine, Judge]]:
    config, journal = means.config, means.measured.journal
    if named.scorer is not None:
        async with open_mapped(named.scorer, means.trials) as opened:
            scorer = metered(*opened, journal)
            yield scorer, ScoringJudge(scorer, config.society, config.evaluation_seed)
        return
    assert named.engine is not None
    ratings = _how_rated(config)
    async with open_engine(named.engine, config.model, means.logs, ratings=ratings, journal=journal) as engine:
        yield engine, Judge(engine, config.society, config.evaluation_seed)


async def rated(
    means: Means, judges: Iterable[JudgeSection], samples: Sequence[Sample]
) -> tuple[dict[str, str], dict[str, Trial]]:
    """Puts each judge's ratings into the samples; on the first rank each judge is tried before.

    Returns:
        By judge its identity, and its trial.

    Raises:
        StageError: A judge refuses too many calls, or is below `evaluate.judge_check.min_agreement`.
    """
    config, counter, journal = means.config, means.counter, means.measured.journal
    identities, trials = dict[str, str](), dict[str, Trial]()
    criteria = criteria_to_try(config)
    to_rate = [sample for sample in samples if RATED[sample.item.benchmark]]
    for named in judges if to_rate else ():
        async with _open_judge(means, named) as (engine, judge):
            told = functools.partial(counter.heard, engine, counter.tokens)
            if criteria and means.ranks.is_main:
                trial = await _tried(means, named, engine, judge, criteria)
                check_trial(_results_of(config, trial), config.evaluate, named.name, engine.identity)
                trials[named.name] = trial
            await asyncio.gather(*(_rate(sample, named.name, judge, told) for sample in to_rate))
            await journal.sync()
            identities[named.name] = engine.identity
            if _refuses_too_much(engine):
                raise StageError(
                    f"evaluation: the judge {named.name} ({engine.identity}) refused {engine.num_refused} of "
                    f"{engine.num_calls} calls (at most {MAX_UNRATED_SHARE:.0%} may be), most often with: "
                    f"{engine.said_of_refusals()}. Name another judge (evaluate.judges), or mend what it refuses."
                )
    return identities, trials


def _refuses_too_much(engine: MeteredEngine) -> bool:
    return engine.num_refused > MAX_UNRATED_SHARE * engine.num_calls


# --- trials --------------------------------------------------------------------------------------


def _results_of(config: Config, trial: Trial) -> dict[str, Any]:
    assert config.evaluate.judge_check is not None
    return trial_results(trial, pairs_of(config.evaluate.judge_check))


def _kept_at(means: Means, prefix: str, judge: str, identity: str, criteria: Sequence[str], **asked: Any) -> Path:
    """Where the run keeps what a judge said, under the hash of all that decides it."""
    config = means.config
    check = config.evaluate.judge_check
    assert check is not None
    asked |= {
        "settings": settings_of_judges(config)[judge],
        "asked": settings_of_asking(config.society),
        "versions": [JUDGE_VERSION, code_digest()],
        "criteria": list(criteria),
        "pairs": [[pair.question, pair.good, pair.bad] for pair in pairs_of(check)],
        "answer": config.evaluate.answer.model_dump(mode="json"),
        "seed": config.evaluation_seed,
    }
    return means.trials / kept.file_name(prefix, identity, asked, _how_rated(config))


async def _tried(
    means: Means, named: JudgeSection, engine: MeteredEngine, judge: Judge, criteria: Sequence[str]
) -> Trial:
    """The trial of a judge: what the run keeps of it, or a new one."""
    config = means.config
    path = _kept_at(means, "trial", named.name, engine.identity, criteria)
    new = functools.partial(try_judge, judge, engine, criteria, config.evaluate, config.evaluation_seed)
    return await _once(means, engine, path, Trial, new)


async def _once(
    means: Means, engine: MeteredEngine, path: Path, kind: type[kept.M], measure: Callable[[], Awaitable[kept.M]]
) -> kept.M:
    """What a judge says once in a run.

    Where calls were refused as they may not be, it is not kept: a later launch may have mended what was refused.
    """

    async def measure_and_sync() -> kept.M:
        found = await measure()
        await means.measured.journal.sync()
        return found

    return await kept.once(path, kind, measure_and_sync, lambda: not _refuses_too_much(engine))


async def results_of_trials(
    means: Means, trials: Mapping[str, Trial], identities: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """What the trials of all judges found; of several, also how much each prefers its own answers.

    For that each judge rates the answers of the others, by the criteria by which it is shown to be a judge.

    Args:
        means: Of the first rank.
        trials: By judge.
        identities: By judge.
    """
    config = means.config
    found = {name: _results_of(config, trial) for name, trial in trials.items()}
    others: dict[str, dict[str, dict[str, list[float | None]]]] = {name: {} for name in trials}
    for named in config.judges if len(trials) > 1 else ():
        criteria = [criterion for criterion, one in found[named.name].items() if why_poor(one) is None]
        speaking = [name for name, trial in trials.items() if any(trial.answers)]
        authors = [name for name in speaking if identities[name] != identities[named.name]]
        if criteria and authors:
            answers = {author: trials[author].answers for author in authors}
            for author, ratings in (await _rated_of(means, named, identities[named.name], criteria, answers)).items():
                others[author][named.name] = ratings
    for name, by_criterion in found.items():
        for criterion, one in by_criterion.items():
            rated_by = {other: by[criterion] for other, by in others[name].items() if criterion in by}
            if rated_by:
                seed = derive(config.evaluation_seed, "self_preference", name, criterion)
                num = config.evaluate.num_resamples
                preference = self_preference(name, criterion, trials, rated_by, num=num, seed=seed)
                one["self_preference"] = {**preference.to_json(), "others": list(rated_by)}
    return found


async def _rated_of(
    means: Means, named: JudgeSection, identity: str, criteria: Sequence[str], answers: Mapping[str, list[str | None]]
) -> dict[str, dict[str, list[float | None]]]:
    """A judge's ratings of other judges' answers to the pairs' questions, by judge and criterion."""
    paths = {
        author: _kept_at(means, "answers", named.name, identity, criteria, answers=said)
        for author, said in answers.items()
    }
    found = {author: there for author, path in paths.items() if (there := kept.read(path, RatingsOfAnother))}
    check = means.config.evaluate.judge_check
    if len(found) < len(paths):
        assert check is not None
        async with _open_judge(means, named) as (engine, judge):
            for author in paths.keys() - found.keys():
                new = functools.partial(rate_another, judge, pairs_of(check), answers[author], criteria)
                found[author] = await _once(means, engine, paths[author], RatingsOfAnother, new)
    return {author: one.ratings for author, one in found.items()}


# --- ratings of answers --------------------------------------------------------------------------


def _how_rated(config: Config) -> Ratings:
    """Held-out questions are rated as in the society, all others in words."""
    rated_benchmarks = {benchmark for benchmark in config.evaluate.benchmarks if RATED.get(benchmark)}
    if rated_benchmarks == {"questions"} or config.society.rating == "parse":
        return config.society.rating
    return "both" if "questions" in rated_benchmarks else "parse"


async def _rate(sample: Sample, name: str, judge: Judge, told: Callable[[], None]) -> None:
    sample.ratings[name] = await judge.rate(sample)
    told()
