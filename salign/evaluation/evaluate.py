"""The evaluation of one model of a run: what lm_eval's tasks measure, and answers that a judge rates."""

import asyncio
import contextlib
import gc
import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salign.config import JUDGED, Config, Criterion, GroupsData
from salign.dataset.collect import check_leaks
from salign.dataset.groups import read_groups
from salign.dataset.leaks import prompts_in
from salign.engines.check import models_of
from salign.evaluation import calls, choices
from salign.evaluation.calls import Means, by_all_ranks
from salign.evaluation.compare import compare
from salign.evaluation.figures import about_answers, about_judging, check_answered, check_rated, estimates, sample_row
from salign.evaluation.judged import RATED, Item, Sample, items
from salign.evaluation.resume import open_measured
from salign.evaluation.sides import METRICS_OF_SHARES
from salign.evaluation.tasks import MissingDataError, load_task
from salign.evaluation.trial import Trial, trial_figures
from salign.evaluation.under_attack import is_attack
from salign.evaluation.versions import code_digest, settings_of_answers, settings_of_judges, versions_of
from salign.locks import lock
from salign.manifest import code_version, require_model
from salign.markers import mark_done, read_done, recording_failure, require_done
from salign.plan import ASKED, asked_of
from salign.records import AlignmentGroup
from salign.run import RunDir
from salign.storage import write_atomic
from salign.tracking.metrics import MetricsLog
from salign.tracking.mirror import open_mirror
from salign.training.distributed import Ranks, alone, gather, init_ranks, leave_ranks
from salign.training.rendezvous import is_launched

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from salign.evaluation.lm import RowLM

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def model_path(run: RunDir, config: Config, name: str) -> tuple[str, dict[str, str]]:
    """Returns the path that `name` (the base or a stage's model) is loaded from, with its digest.

    Raises:
        ConfigError: No such model, or the base is not the one that the run was begun with.
        StageError: The stage is not complete.
    """
    if name == "base":
        return config.model, {"model": require_model(run, config.model).digest}
    stage = config.stage(name)
    remedy = f"Run `python jobs/train.py {run.path} --stage {name}`, or launch again."
    done = require_done(run.stage(stage.name), f"train stage {name}", remedy)
    return str(run.model(name)), {f"train/{name}": done.digest}


@dataclass(frozen=True)
class Work:
    """What is evaluated: tasks of lm_eval, prompts to be answered, and the benchmarks without data."""

    tasks: "dict[str, Task]"
    items: list[Item]
    skipped: list[str]

    @property
    def prompts(self) -> list[str]:
        """Every prompt, for the leak check."""
        documents = (document for task in self.tasks.values() for document in task.eval_docs)
        return [item.question for item in self.items] + [text for row in documents for text in prompts_in(row)]


def load_work(config: Config, *, allow_missing: bool) -> Work:
    """Loads the run's benchmarks with their data.

    Raises:
        MissingDataError: Some have none, all of them named, and that is not allowed.
        ConfigError: A benchmark that is not known, or fewer questions than asked for.
        DataError: A file is empty or malformed, with file and line.
    """
    work = Work({}, [], [])
    said = []
    for benchmark in config.evaluate.benchmarks:
        try:
            if benchmark in JUDGED:
                work.items.extend(items(config, benchmark))
            else:
                work.tasks[benchmark] = load_task(benchmark, config.evaluate)
        except MissingDataError as error:
            work.skipped.append(benchmark)
            said.append(str(error))
    if said and not (allow_missing or config.evaluate.allow_missing):
        raise MissingDataError(" ".join(said) + " Or skip benchmarks without data: --allow-missing.")
    if said and not (work.tasks or work.items):
        raise MissingDataError(" ".join(said) + " There is no other benchmark.")
    for line in said:
        logger.warning("left out: %s", line)
    return work


# --- measuring -----------------------------------------------------------------------------------


def _measure_tasks(means: Means, model: str, tasks: "dict[str, Task]") -> list[Row]:
    """Rows of `samples.jsonl`, of all ranks together on rank 0, by lm_eval's evaluator.

    Raises:
        ConfigError: The model does not load.
    """
    if not tasks:
        return []
    import torch
    from lm_eval.evaluator import evaluate as lm_evaluate

    from salign import models
    from salign.evaluation.lm import RowLM

    config = means.config
    loaded = models.load_model(model, getattr(torch, config.evaluate.dtype)).eval()
    loaded.to(means.ranks.device)
    tokenizer = models.load_tokenizer(model, config.train.template)
    lm = RowLM(loaded, tokenizer, means.ranks, told=means.counter.told, scores=means.measured.scores)
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(config.evaluation_seed)
    found = lm_evaluate(
        lm,
        {"tasks": tasks},
        limit=config.evaluate.num_documents,
        bootstrap_iters=0,
        apply_chat_template=config.evaluate.chat_template,
    )
    if found is None:
        return []
    return [
        _row(task, name, sample, lm)
        for name, task in tasks.items()
        for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    ]


def _row(task: "Task", name: str, sample: Row, lm: "RowLM") -> Row:
    """A line of `samples.jsonl` of one of lm_eval's samples."""
    given = {metric: sample[metric] for metric in sample["metrics"]}
    metrics = {key: float(value) for key, value in given.items() if isinstance(value, int | float)}
    digest = hashlib.sha256((sample["doc_hash"] + sample["prompt_hash"]).encode()).hexdigest()[:16]
    row = {"benchmark": name, "id": sample["doc_id"], "metrics": metrics, "digest": digest}
    if task.OUTPUT_TYPE != "multiple_choice":
        return row
    texts, right = task.doc_to_choice(sample["doc"]), sample["target"]
    # Some tasks ask for the likelihoods without the question as well, after these.
    loglikelihoods = [float(value) for value, _ in sample["filtered_resps"][: len(texts)]]
    if name == "pairs" or is_attack(name):
        first, second = zip(loglikelihoods, map(lm.num_tokens, texts), strict=True)
        unsafe = {"unsafe_nll": -second[0] / second[1]} if is_attack(name) else {}
        return {**row, "metrics": choices.preference(first, second) | unsafe}
    if name in METRICS_OF_SHARES:
        return {**row, "metrics": METRICS_OF_SHARES[name](sample["doc"], choices.probabilities(loglikelihoods))}
    if isinstance(right, str) and right in texts:
        right = texts.index(right)
    if isinstance(right, int) and 0 <= right < len(texts):
        shares = choices.probabilities(loglikelihoods)
        metrics["brier"] = choices.brier(shares, right)
        row["choices"] = {"shares": shares, "right": right}
    return row


# --- one model -----------------------------------------------------------------------------------


def evaluate(
    run: RunDir, config: Config, name: str, *, allow_missing: bool = False, folder: Path | None = None
) -> None:
    """Evaluates `base` or a training stage's model: writes samples and results; `done.json` last. Every rank calls it.

    Args:
        run: The run's folder.
        config: Its config.
        name: The model's.
        allow_missing: Leaves benchmarks without data out, as `evaluate.allow_missing`.
        folder: Where the results go, for an evaluation that is not one of the run's plan.

    Raises:
        ConfigError: No such model or benchmark.
        StageError: The model is not trained yet, evaluation prompts are in the training data, no prompt of a benchmark
            was answered, or a judge left more than 5 % of the answers unrated.
        DataError: A file of the evaluation is missing or malformed.
        EngineError: A judge's engine is at fault.
    """
    is_planned, folder = folder is None, folder or run.evaluation(name)
    ranks = init_ranks() if is_launched() else alone()
    with contextlib.ExitStack() as stack:
        if ranks.is_main:
            stack.enter_context(lock(folder / ".lock", f"the evaluation of {name} in {run.path}"))
            stack.enter_context(recording_failure(folder))
        model, inputs = model_path(run, config, name)
        work = load_work(config, allow_missing=allow_missing)
        leaks = check_leaks(config, _groups(run), work.prompts) if ranks.is_main else {}
        log = None
        if ranks.is_main:
            (folder / "metrics.jsonl").unlink(missing_ok=True)
            log = stack.enter_context(MetricsLog(folder / "metrics.jsonl"))
        counter = calls.Counter(log, _num_calls(config, work, ranks))
        of: Row = {"inputs": inputs, "dtype": config.evaluate.dtype, "code": code_digest()}
        of["answers"], of["judges"] = settings_of_answers(config), settings_of_judges(config)
        measured = stack.enter_context(open_measured(folder, of, ranks.rank))
        means = Means(config, ranks, counter, measured, folder / f"servers-{ranks.rank}", run.first.trials)
        rows = _measure_tasks(means, model, work.tasks)
        judged = _judge_answers(means, model, work.items)
        if ranks.is_main:
            rows += [sample_row(sample, _rules(config)) for sample in judged.samples]
            results = _results(config, name, work, rows, judged)
            results["leak_check"] = leaks
            _write(folder, rows, results)
            _mirror(run, config, judged.samples, results)
            made_from = {**inputs, ASKED: asked_of(config)}
            mark_done(folder, ["results.json", "samples.jsonl"], made_from, results["figures"])
    if ranks.is_main and is_planned:
        _mirror_seeds(run, config, name)


@dataclass(frozen=True)
class _Judged:
    """What was answered and rated, on rank 0 of all ranks; who answered, the judges, and what their trials found."""

    samples: list[Sample]
    answered_by: str | None
    judges: dict[str, str]
    trials: Row


def _judge_answers(means: Means, model: str, asked: list[Item]) -> _Judged:
    """Every rank answers its share and rates it, as far as engines allow; rank 0 does what is left, and has it all."""
    config, ranks = means.config, means.ranks
    each_answers, each_rates = by_all_ranks(config, ranks)
    own, answered_by, judges, trials = list[Sample](), None, dict[str, str](), dict[str, Trial]()
    found = Row()
    _free_memory(ranks)
    if asked and each_answers:
        own, answered_by = asyncio.run(calls.answered(means, asked[ranks.rank :: ranks.size], model))
        judges, trials = asyncio.run(calls.rated(means, each_rates, own))
    samples = sorted(itertools.chain.from_iterable(gather(own, ranks)), key=_place(config))
    _free_memory(ranks)
    if is_launched():
        leave_ranks()
    if ranks.is_main:
        if asked and not each_answers:
            samples, answered_by = asyncio.run(calls.answered(means, asked, model))
            samples.sort(key=_place(config))
        left = [judge for judge in config.judges if judge not in each_rates]
        others, tried = asyncio.run(calls.rated(means, left, samples))
        judges, trials = judges | others, trials | tried
        found |= asyncio.run(calls.results_of_trials(means, trials, judges))
    return _Judged(samples, answered_by, judges, found)


def _free_memory(ranks: Ranks) -> None:
    """Gives back the GPU memory of models that are done: a server that is started next needs it."""
    if ranks.device.type == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()


def _place(config: Config) -> Any:
    order = config.evaluate.benchmarks
    return lambda sample: (order.index(sample.item.benchmark), sample.item.id)


def _num_calls(config: Config, work: Work, ranks: Ranks) -> int:
    """Of this rank, of whom the first writes it: documents, answers and ratings."""
    most = config.evaluate.num_documents
    counts = [len(task.eval_docs) if most is None else min(most, len(task.eval_docs)) for task in work.tasks.values()]
    each_answers, each_rates = by_all_ranks(config, ranks)
    own = work.items[ranks.rank :: ranks.size]

    def num_rated(asked: list[Item]) -> int:
        return sum(bool(RATED[item.benchmark]) for item in asked)

    num_ratings = len(each_rates) * num_rated(own) + (len(config.judges) - len(each_rates)) * num_rated(work.items)
    num_answers = len(own if each_answers else work.items)
    return sum(len(range(ranks.rank, count, ranks.size)) for count in counts) + num_answers + num_ratings


def _groups(run: RunDir) -> Iterable[AlignmentGroup]:
    """The society's alignment data, where there is some."""
    if read_done(run.dataset) is None:
        return ()
    require_done(run.dataset, "the dataset", f"Run `python jobs/collect.py {run.path}`, or launch again.")
    return read_groups(GroupsData(kind="groups", path=run.dataset / "groups.jsonl"), Counter())


def _results(config: Config, name: str, work: Work, rows: list[Row], judged: _Judged) -> Row:
    samples, judges = judged.samples, judged.judges
    check_answered(samples, name)
    unrated = check_rated(samples, judges, name)
    about = about_judging(samples, list(judges))
    return {
        "model": name,
        "figures": {figure: estimate.to_json() for figure, estimate in estimates(rows, config).items()},
        "versions": versions_of(config, work.tasks, rows, judges),
        "code": code_version(),
        "calibration": choices.calibration(rows),
        "judging": about,
        "judges": judged.trials,
        "num_unrated": unrated,
        "answered_by": judged.answered_by,
        **about_answers(samples),
        "skipped": work.skipped,
    }


def _write(folder: Path, rows: list[Row], results: Row) -> None:
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_atomic(folder / "results.json", json.dumps(results, indent=2) + "\n")


def _mirror(run: RunDir, config: Config, samples: list[Sample], results: Row) -> None:
    with open_mirror(run, config, "evaluate", results["model"]) as mirror:
        figures = results["figures"]
        logged = {f"eval/{name}/{part}": value for name, row in figures.items() for part, value in row.items()}
        mirror.log(logged | {f"eval/judge/{name}": value for name, value in trial_figures(results["judges"])})
        shown = [sample_row(sample, _rules(config)) for sample in samples[: config.tracking.num_table_rows]]
        columns = ["benchmark", "prompt", "answer", "ratings"]
        mirror.table("eval/samples", columns, [[*(row[name] for name in columns[:3]), _said(row)] for row in shown])


def _mirror_seeds(run: RunDir, config: Config, name: str) -> None:
    """Once a stage is evaluated for all seeds: its figures over them, in the W&B run of the last evaluation."""
    stage = name if name == "base" else config.train.origin(name)
    names = (name,) if name == "base" else config.train.copies(stage)
    if len(names) == 1 or any(read_done(run.evaluation(one)) is None for one in names):
        return
    rows = compare(run, config, [stage]).figures.items()
    with open_mirror(run, config, "evaluate", name) as mirror:
        columns = ["stage", "figure", "mean", "low", "high", "items", "seeds"]
        found = [(figure, row[stage]) for figure, row in rows]
        mirror.table(
            "eval/over_seeds",
            columns,
            [[stage, figure, one.mean, one.low, one.high, one.n, one.num_seeds] for figure, one in found],
        )


def _rules(config: Config) -> list[Criterion]:
    """The criteria of the society that need no judge."""
    return [criterion for criterion in config.society.observed_criteria if criterion.rule is not None]


def _said(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row["metrics"].items())


def prefetch(config: Config) -> Iterator[str]:
    """Loads what an evaluation needs from the network into the caches.

    Yields:
        A line for each thing that is there now.

    Raises:
        MissingDataError: A benchmark has no data anywhere, all of them named.
        ConfigError: A model cannot be had.
    """
    from salign import models

    for model in models_of(config):
        if not Path(model).is_file():  # as a GGUF is
            models.resolve(model)
        yield f"model {model}"
    work = load_work(config, allow_missing=False)
    for name, task in work.tasks.items():
        yield f"benchmark {name}: {len(task.eval_docs)} documents"
    counts = Counter(item.benchmark for item in work.items)
    yield from (f"benchmark {name}: {count} prompts" for name, count in counts.items())
