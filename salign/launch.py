"""The whole pipeline of a run: check, run what is left, close with a table."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from salign import compose, stages
from salign.cluster.check import check_cluster
from salign.cluster.estimate import estimate, print_estimate
from salign.cluster.follow import follow
from salign.cluster.jobs import Job, batch_file, chain, submit, suffix_of, was_submitted
from salign.cluster.local import run_locally
from salign.cluster.plan import Unit, complete, state, to_run, units
from salign.cluster.slurm import Slurm
from salign.cluster.status import describe_failure
from salign.config import (
    Config,
    DatasetSource,
    EdgesTopology,
    EverydaySource,
    SlurmCluster,
    Source,
)
from salign.dataset.collect import check_leaks
from salign.dataset.groups import demonstrations
from salign.digests import ModelDigest, identify
from salign.engines.check import check_engines, models_of
from salign.errors import StageError
from salign.evaluation.judged import check_benchmarks
from salign.manifest import take_snapshot, write_manifest
from salign.report.summary import print_summary, summarize
from salign.report.write import write_report
from salign.run import RunDir, check_run, claim_run, open_run, sha256
from salign.society.check import check_society
from salign.training.memory import print_memory
from salign.training.settings import deepspeed_config

_CANCEL_PATIENCE_S = 60.0
# Slurm's own, where the cluster's is not known.
_USUAL_ARRAY_SIZE = 1001
# Of failed units, so many are named.
_MAX_FAILURES = 3


def check_inputs(config: Config) -> dict[str, str]:
    """Reads every file that the run will need, so that a mistake is said now and not after hours.

    Returns:
        The sha256 of each.

    Raises:
        DataError: A file is missing or malformed, or has too little in it.
        ConfigError: A DeepSpeed file is, there are fewer held-out questions than asked for, a part of the mixture is
            nobody, or agents would hardly recall what they start with.
        StageError: Evaluation prompts are in what is trained on or remembered.
    """
    used: list[Source] = [config.society.questions, config.society.prior, config.evaluate.questions]
    files = list(config.dataset.leak_check)
    check_society(config.society, config.run.seed)
    if isinstance(config.society.topology, EdgesTopology):
        files.append(config.society.topology.path)
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


def _identify_models(config: Config) -> dict[str, ModelDigest]:
    """The digests of the models that are on this machine."""
    found = {name: identify(name) for name in models_of(config)}
    return {name: digest for name, digest in found.items() if digest is not None}


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


@dataclass(frozen=True)
class LaunchOptions:
    """What the user wants of a launch.

    Attributes:
        dry_run: Only check the config, its files and the cluster; show the plan, the batch files and an estimate.
        prepare: Only make the run's folder, for stages to be run one by one.
        wait: Stay, and show how far Slurm's jobs are, until they are done.
        replace: Cancel the run's live jobs first.
    """

    dry_run: bool = False
    prepare: bool = False
    wait: bool = False
    replace: bool = False


def launch(config: Config, console: Console, options: LaunchOptions = LaunchOptions()) -> None:
    """Runs or submits what is left of a run; once all is done, prints what came out.

    Raises:
        SalignError: Whatever stands in the way, with its remedy.
    """
    slurm = Slurm()
    by_slurm = isinstance(config.cluster, SlurmCluster)
    run = check_run(config)
    left = to_run(units(run, config))
    if options.dry_run:  # also where the files are not there yet
        print_estimate(estimate(run, config, left), console)
        print_memory(config, console)
    hashes = check_inputs(config)
    check_engines(config, fetch=False)
    if options.dry_run:
        print_plan(run, config, console)
        if by_slurm:
            _show_chain(run, config, left, slurm, console)
        return
    if options.prepare:
        prepare(config, hashes)
        console.print(f"{run.path} is ready", highlight=False, soft_wrap=True)
        return
    if left:
        check_engines(config, fetch=True)
    with claim_run(config):
        _refuse_live_jobs(run, slurm, replace=options.replace)
        write_manifest(run, config, hashes, _identify_models(config))
        if not by_slurm:
            run_locally(run, config, console)
        elif left:
            _submit_chain(run, config, left, slurm, console)
    if by_slurm and left:
        if not options.wait:
            console.print(f"python jobs/status.py {run.path} --watch", markup=False, highlight=False, soft_wrap=True)
            return
        _wait(run, config, slurm, console)
    if not left:
        console.print(f"Everything in {run.path} is done; there was nothing to run.", highlight=False)
    summary = summarize(run, config)
    write_report(run, config)
    print_summary(run, config, summary, console)


def prepare(config: Config, hashes: dict[str, str] | None = None) -> RunDir:
    """Makes a run's folder, or goes on with one of the same config, and starts nothing.

    Args:
        config: The resolved config.
        hashes: Of its input files, if they are checked already.

    Raises:
        SalignError: As `launch`.
    """
    found = check_inputs(config) if hashes is None else hashes
    with claim_run(config, wait=True) as run:
        write_manifest(run, config, found, _identify_models(config))
    return run


def open_or_prepare(path: Path) -> RunDir:
    """The run of a folder; or that of a config file, whose folder is made if it is not there yet.

    Raises:
        ConfigError: It is neither.
    """
    return prepare(compose.load(path)) if path.suffix in (".yaml", ".yml") else open_run(path)


# --- Slurm ---------------------------------------------------------------------------------------


def _refuse_live_jobs(run: RunDir, slurm: Slurm, *, replace: bool) -> None:
    """Raises a StageError while jobs of the run are in the queue; with `replace`, cancels them and waits."""
    if not slurm.is_here() or not was_submitted(run):
        return
    end = time.monotonic() + _CANCEL_PATIENCE_S
    told: set[str] = set()
    while live := {job.job_id for job in slurm.live_jobs(suffix_of(run))}:
        ids = " ".join(sorted(live))
        if not replace:
            raise StageError(
                f"the run {run.path} has live jobs: {ids}. Wait for them (python jobs/status.py {run.path}), or launch "
                "with --replace, which cancels them first."
            )
        if time.monotonic() > end:
            raise StageError(f"the jobs {ids} were cancelled, and Slurm has not ended them yet. Launch again later.")
        if live - told:
            slurm.cancel(sorted(live - told))
            told |= live
        time.sleep(1.0)


def _chain(run: RunDir, config: Config, left: Sequence[Unit], slurm: Slurm, console: Console) -> list[Job]:
    """The jobs that do what is left, once the cluster is known to have what they ask for."""
    assert isinstance(config.cluster, SlurmCluster)
    jobs = chain(config.cluster, left, slurm.max_array_size())
    for note in check_cluster(run, config, jobs, slurm):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    return jobs


def _submit_chain(run: RunDir, config: Config, left: Sequence[Unit], slurm: Slurm, console: Console) -> None:
    jobs = _chain(run, config, left, slurm, console)
    submitted = submit(run, config, jobs, code=take_snapshot(run), work=stages.work, slurm=slurm)
    names = {one.job_id: one.name for one in submitted}
    table = Table(title=f"Run {run.path}: submitted", title_justify="left")
    for column in ("job", "name", "tasks", "waits for"):
        table.add_column(column, overflow="fold")
    for one in submitted:
        waits = ", ".join(f"{job_id} ({names[job_id]})" for job_id in one.after)
        table.add_row(one.job_id, one.name, str(len(one.tasks)), waits)
    console.print(table)
    console.print(slurm.said(), highlight=False)


def _show_chain(run: RunDir, config: Config, left: Sequence[Unit], slurm: Slurm, console: Console) -> None:
    assert isinstance(config.cluster, SlurmCluster)
    try:
        if not slurm.is_here():
            raise StageError("there is no Slurm here")
        jobs = _chain(run, config, left, slurm, console)
    except StageError as error:  # of Slurm itself; what the cluster lacks is a ConfigError
        jobs = chain(config.cluster, left, _USUAL_ARRAY_SIZE)
        console.print(f"note: what the cluster has was not checked: {error}", markup=False, highlight=False)
    for job in jobs:
        after = [f"<{name}>" for name in job.after]
        text = batch_file(run, config, job, code=run.code / "<version>", after=after)
        console.rule(job.name)
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _wait(run: RunDir, config: Config, slurm: Slurm, console: Console) -> None:
    try:
        board = follow(run, config, console, slurm)
    except KeyboardInterrupt:
        console.print(f"the jobs go on: python jobs/status.py {run.path} --watch", highlight=False, soft_wrap=True)
        raise SystemExit(130) from None
    failed = [describe_failure(unit, standing) for unit, standing in board.failed()[:_MAX_FAILURES]]
    if board.is_finished:
        for line in failed:
            console.print(f"went on without: {line}", markup=False, highlight=False, soft_wrap=True)
        return
    counts = ", ".join(f"{count} {word}" for word, count in board.counts().items())
    listed = "".join(f"\n{line}" for line in failed)
    raise StageError(
        f"the run {run.path} stands still: {counts}.{listed}\nMend it and launch again; what is complete is kept."
    )
