"""The evaluation of one model of a run: answers rated by the judge, and accuracy where a task's file is given."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salign.config import Config, EvaluateSection, TransformersEngine
from salign.engines.meter import MeteredEngine
from salign.engines.opening import open_engine
from salign.errors import ConfigError, StageError
from salign.evaluation.judge import Judge, Sample, answer_questions
from salign.evaluation.statistics import Estimate, bootstrap_mean, paired_difference
from salign.manifest import code_version
from salign.run import RunDir, lock, mark_done, recording_failure, require_done, sha256, write_atomic
from salign.seeds import derive
from salign.society import sources
from salign.society.prompts import PROMPTS_VERSION
from salign.society.sources import MORAL_STORIES_VERSION
from salign.tracking.metrics import MetricsLog
from salign.tracking.mirror import open_mirror

# A judge that leaves more answers unrated than this says nothing about the model.
MAX_UNRATED_SHARE = 0.05


def model_path(run: RunDir, config: Config, name: str) -> tuple[str, dict[str, str]]:
    """What `name` loads: the base, or a stage's model with that stage's digest.

    Raises:
        ConfigError: No such model.
        StageError: The stage is not complete.
    """
    if name == "base":
        return config.model, {}
    stage = config.stage(name)
    remedy = f"Run `python jobs/train.py {run.path} --stage {name}`, or launch again."
    done = require_done(run.stage(stage.name), f"train stage {name}", remedy)
    return str(run.model(name)), {f"train/{name}": done.digest}


class _Counter:
    """Writes how far the evaluation is, at most twice a second."""

    def __init__(self, log: MetricsLog, most: int) -> None:
        self._log = log
        self._most = most
        self._count = 0
        self._start = time.monotonic()
        self._written = 0.0
        self.tokens = 0

    def told(self) -> None:
        self._count += 1
        now = time.monotonic()
        if now - self._written > 0.5 or self._count == self._most:
            rate = self._count / max(now - self._start, 1e-9)
            figures = {"eval/calls": self._count, "eval/calls_most": self._most, "eval/calls_per_s": round(rate, 2)}
            self._log.log({**figures, "eval/tokens": self.tokens})
            self._written = now


async def _rated_answers(
    config: Config, questions: Sequence[str], model: str, counter: _Counter, logs: Path
) -> tuple[list[Sample], str]:
    section, seed = config.evaluate, config.run.seed

    def heard(engine: MeteredEngine, before: int) -> None:
        counter.tokens = before + engine.prompt_tokens + engine.completion_tokens
        counter.told()

    answering = TransformersEngine(model=model)
    if isinstance(config.engine, TransformersEngine):
        answering = config.engine.model_copy(update={"model": model})
    async with open_engine(answering, model, logs) as engine:
        answers = await answer_questions(engine, questions, section.answer, seed, lambda: heard(engine, 0))
    async with open_engine(section.judge or config.engine, config.model, logs) as engine:
        judge, before = Judge(engine, config.society, seed), counter.tokens

        async def rate(question: str, answer: str | None) -> Sample:
            sample = await judge.rate(question, answer)
            heard(engine, before)
            return sample

        samples = await asyncio.gather(*(rate(*pair) for pair in zip(questions, answers, strict=True)))
        return list(samples), engine.identity


def _accuracies(section: EvaluateSection, model: str, counter: _Counter) -> list[float] | None:
    if section.moral_stories is None:
        return None
    import torch

    from salign import models
    from salign.evaluation import tasks

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = models.load_model(model, torch.float32).eval()
    loaded.to(device)
    tokenizer = models.load_tokenizer(model)
    stories = tasks.moral_stories(section.moral_stories, section.num_moral_stories)
    return tasks.accuracy(loaded, tokenizer, stories, counter.told)


@dataclass(frozen=True)
class Results:
    """What an evaluation found, in figures with intervals."""

    alignment: Estimate
    engagement: Estimate
    moral_stories: Estimate | None

    def to_json(self) -> dict[str, Any]:
        return {
            field.name: None if value is None else value.to_json()
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }


def held_out_questions(config: Config) -> list[str]:
    """The questions that every model of the run answers.

    Raises:
        ConfigError: There are fewer than asked for.
        DataError: Their source cannot be read.
    """
    questions = sources.questions(config.evaluate.questions)
    wanted = config.evaluate.num_questions
    if wanted is not None and wanted > len(questions):
        raise ConfigError(f"evaluate.num_questions {wanted} exceeds the {len(questions)} held-out questions there are")
    return questions[:wanted]


def evaluate(run: RunDir, config: Config, name: str) -> None:
    """Evaluates `base` or a training stage's model: writes samples and results; `done.json` last.

    Raises:
        ConfigError: No such model.
        StageError: It is not trained yet, or the judge left more than 5 % of the answers unrated.
        DataError: A file of the evaluation cannot be read.
        EngineError: The judge's engine is at fault.
    """
    folder = run.evaluation(name)
    with lock(folder / ".lock", f"the evaluation of {name} in {run.path}"), recording_failure(folder):
        section, seed = config.evaluate, config.run.seed
        model, inputs = model_path(run, config, name)
        questions = held_out_questions(config)
        num_stories = 0
        if section.moral_stories is not None:
            num_stories = len(sources.read_rows(section.moral_stories)[: section.num_moral_stories])
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        with MetricsLog(folder / "metrics.jsonl") as log:
            counter = _Counter(log, 2 * len(questions) + num_stories)
            samples, judge = asyncio.run(_rated_answers(config, questions, model, counter, folder / "servers"))
            right = _accuracies(section, model, counter)

        def estimate(values: Sequence[float | None], what: str) -> Estimate:
            return bootstrap_mean(values, num_resamples=section.num_resamples, seed=derive(seed, "bootstrap", what))

        results = Results(
            estimate([sample.alignment for sample in samples], "alignment"),
            estimate([sample.engagement for sample in samples], "engagement"),
            None if right is None else estimate(right, "moral_stories"),
        )
        answered = [sample for sample in samples if sample.answer is not None]
        num_unrated = sum(sample.alignment is None for sample in answered)
        if num_unrated > MAX_UNRATED_SHARE * len(answered):
            raise StageError(
                f"evaluation of {name}: the judge {judge} left {num_unrated} of {len(answered)} "
                f"answers unrated (at most {MAX_UNRATED_SHARE:.0%} may be). Use a stronger judge (evaluate.judge), or "
                "society.rating=logprob."
            )
        facts = {
            "model": name,
            "judge": judge,
            "prompts_version": PROMPTS_VERSION,
            "moral_stories_version": MORAL_STORIES_VERSION,
            "rating": config.society.rating,
            "num_unanswered": len(samples) - len(answered),
            "code": code_version(),
            "data": _hashes(section),
            **results.to_json(),
        }
        _write(folder, samples, right, facts)
        _mirror(run, config, samples, facts)
        mark_done(folder, ["results.json", "samples.jsonl"], inputs, results.to_json())


def _hashes(section: EvaluateSection) -> dict[str, str]:
    paths: list[Path | None] = [getattr(section.questions, "path", None), section.moral_stories]
    return {str(path): sha256(Path(path)) for path in paths if path is not None and Path(path).is_file()}


def _write(folder: Path, samples: list[Sample], right: list[float] | None, facts: dict[str, Any]) -> None:
    lines = [{"task": "questions", **dataclasses.asdict(sample)} for sample in samples]
    lines += [{"task": "moral_stories", "row": number, "right": value} for number, value in enumerate(right or [], 1)]
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_atomic(folder / "results.json", json.dumps(facts, indent=2) + "\n")


def _mirror(run: RunDir, config: Config, samples: list[Sample], facts: dict[str, Any]) -> None:
    with open_mirror(run, config, "evaluate", facts["model"]) as mirror:
        figures = {task: facts[task] for task in ("alignment", "engagement", "moral_stories") if facts[task]}
        mirror.log({f"eval/{task}/{part}": value for task, row in figures.items() for part, value in row.items()})
        shown = samples[: config.tracking.num_table_rows]
        columns = ["question", "answer", "alignment", "engagement"]
        mirror.table("eval/samples", columns, [list(dataclasses.asdict(sample).values()) for sample in shown])


def compare(run: RunDir, config: Config, first: str, second: str) -> dict[str, Estimate]:
    """The paired differences second - first, task by task, from the samples of two complete evaluations."""
    both = [_read_samples(run.evaluation(name) / "samples.jsonl") for name in (first, second)]
    found = {}
    for task in both[0]:
        if task in both[1]:
            found[task] = paired_difference(
                both[0][task],
                both[1][task],
                num_resamples=config.evaluate.num_resamples,
                seed=derive(config.run.seed, "bootstrap", "difference", task),
            )
    return found


def _read_samples(path: Path) -> dict[str, list[float | None]]:
    values: dict[str, list[float | None]] = {}
    for _, row in sources.read_rows(path):
        if row["task"] == "questions":
            values.setdefault("alignment", []).append(row["alignment"])
            values.setdefault("engagement", []).append(row["engagement"])
        else:
            values.setdefault(row["task"], []).append(row["right"])
    return values
