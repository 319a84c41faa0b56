"""The whole pipeline of a run: check, run what is left, close with a table."""

import asyncio

from rich.console import Console
from rich.table import Table

from salign import models
from salign.cluster.local import run_locally
from salign.cluster.plan import complete, state, units
from salign.config import (
    Config,
    DatasetSource,
    EdgesTopology,
    EverydaySource,
    OpenAIEngine,
    ServerEngine,
    Source,
    TransformersEmbedder,
    TransformersEngine,
)
from salign.dataset.collect import check_leaks
from salign.dataset.groups import demonstrations
from salign.engines.programs import program_of
from salign.evaluation.judged import check_benchmarks
from salign.report.summary import print_summary, summarize
from salign.run import RunDir, check_run, claim_run, sha256, write_manifest
from salign.society import sources
from salign.society.population import answers_by_label
from salign.society.topology import make_topology
from salign.training.settings import deepspeed_config


def check_inputs(config: Config) -> dict[str, str]:
    """Reads every file that the run will need, so that a mistake is said now and not after hours.

    Returns:
        The sha256 of each.

    Raises:
        DataError: A file is missing or malformed, or has too little in it.
        ConfigError: A DeepSpeed file is, or there are fewer held-out questions than asked for.
        StageError: Evaluation prompts are in what is trained on or remembered.
    """
    used: list[Source] = [config.society.questions, config.society.prior, config.evaluate.questions]
    files = list(config.dataset.leak_check)
    sources.questions(config.society.questions)
    if config.society.num_initial_memories:
        answers_by_label(config.society, sources.load(config.society.prior), config.society.populations)
    topology = config.society.topology
    if isinstance(topology, EdgesTopology):
        make_topology(topology)
        files.append(topology.path)
    check_benchmarks(config)
    for stage in config.train.stages:
        deepspeed_config(stage, config.cluster.num_ranks)
        files.append(stage.deepspeed)
        for part in stage.parts:
            if part.kind == "groups":
                files.append(part.path)  # check_leaks reads it
            elif part.kind == "answers":
                demonstrations(part)
                used.append(part.source)
    files += config.evaluate.files
    check_leaks(config, groups=())
    files += [source.path for source in used if not isinstance(source, EverydaySource | DatasetSource)]
    return {str(file): sha256(file) for file in files}


def check_models(config: Config, *, fetch: bool) -> None:
    """Makes sure that the models and the programs that serve them are there.

    Args:
        config: The run's.
        fetch: Also that servers answer; and fetches the embedded model.

    Raises:
        ConfigError: A model, a program or a served name that does not exist.
        EngineError: A server is unreachable.
    """
    named = [config.model]
    if isinstance(config.society.embedder, TransformersEmbedder):
        named.append(config.society.embedder.model)
    parts = (part.engine for part in config.society.mixture)
    judges = (judge.engine for judge in config.evaluate.judges)
    for engine in (config.engine, *judges, config.society.observer, *parts):
        if isinstance(engine, TransformersEngine) and engine.model is not None:
            named.append(engine.model)
        if isinstance(engine, ServerEngine):
            served = engine.model or config.model
            if fetch or served not in models.EMBEDDED:
                program_of(engine, served)
        if isinstance(engine, OpenAIEngine) and fetch:
            asyncio.run(_connect_once(engine))
    for name in named:
        if fetch or name not in models.EMBEDDED:
            models.resolve(name)


async def _connect_once(section: OpenAIEngine) -> None:
    from salign.engines.openai import connect

    engine = await connect(section.model_copy(update={"num_retries": 1, "timeout_s": min(section.timeout_s, 15.0)}))
    await engine.close()


def print_plan(run: RunDir, config: Config, console: Console) -> None:
    """Every unit of the run and where it stands."""
    everything = units(run, config)
    done = complete(everything)
    table = Table(title=f"Run {run.path}", title_justify="left")
    for column in ("unit", "state", "needs"):
        table.add_column(column)
    for unit in everything:
        needs = ", ".join(unit.needs) if len(unit.needs) <= 3 else f"{unit.needs[0]} .. {unit.needs[-1]}"
        table.add_row(" ".join(unit.command), state(unit, done)[0], needs)
    console.print(table)


def launch(config: Config, console: Console, *, dry_run: bool = False, prepare: bool = False) -> None:
    """Runs what is left of a run, then prints what came out.

    Args:
        config: The resolved config.
        console: What is said to the user.
        dry_run: Only checks the config and its files, and shows the plan.
        prepare: Only makes the run's folder, for stages to be run one by one.

    Raises:
        SalignError: Whatever stands in the way, with its remedy.
    """
    hashes = check_inputs(config)
    run = check_run(config)
    check_models(config, fetch=False)
    if dry_run:
        print_plan(run, config, console)
        return
    everything = units(run, config)
    if not prepare and len(complete(everything)) < len(everything):
        check_models(config, fetch=True)
    with claim_run(config):
        write_manifest(run, config, hashes)
        if prepare:
            console.print(f"{run.path} is ready", highlight=False, soft_wrap=True)
            return
        if not run_locally(run, config, console):
            console.print(f"Everything in {run.path} is done; there was nothing to run.", highlight=False)
        print_summary(run, config, summarize(run, config), console)
