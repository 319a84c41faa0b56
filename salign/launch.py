"""The whole pipeline of a run: check, run what is left, close with a table."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from salign import compose
from salign.cluster.estimate import estimate, print_estimate
from salign.cluster.follow import follow
from salign.cluster.live import cancel_live_jobs, not_at_work, refuse_another_config, refuse_live_jobs
from salign.cluster.measured import Earlier
from salign.cluster.room import check_room
from salign.cluster.scheduler import Scheduler
from salign.cluster.schedulers import scheduler_of
from salign.cluster.status import describe_failure
from salign.config import Config
from salign.dataset.check import check_dataset
from salign.digests import ModelDigest, identify
from salign.engines.check import check_engines, models_of
from salign.engines.journal import drop_answers, served_names
from salign.engines.reuse import check_reuse
from salign.errors import ConfigError, StageError
from salign.evaluation.check import check_evaluation, print_visible
from salign.locks import lock
from salign.manifest import write_manifest
from salign.plan import Unit, complete, damaged_files, require_needs, state, to_run, units
from salign.report.generations import print_generations
from salign.report.summary import print_summary, summarize
from salign.report.write import write_report
from salign.run import RunDir, check_run, claim_run, generations, last_generation, open_run
from salign.shown import as_called
from salign.society.branch import check_branch
from salign.society.check import check_society
from salign.storage import sha256
from salign.training.check import check_training
from salign.training.memory import print_memory

# Of failed units, so many are named.
_MAX_FAILURES = 3
# Of shards that stand alike, so many have a line each.
_MAX_ALIKE = 8


def check_inputs(config: Config) -> dict[str, str]:
    """Reads every file that the run will need, so that a mistake is said now and not after hours.

    Returns:
        The sha256 of each.

    Raises:
        SalignError: As the checks of what is reused, society, evaluation, training and data.
    """
    check_reuse(config)
    check_branch(config)
    files = [
        *check_society(config.society, config.run.seed),
        *check_evaluation(config),
        *check_training(config),
        *check_dataset(config),
    ]
    return {str(file): sha256(file) for file in files}


def _identify_models(config: Config) -> dict[str, ModelDigest]:
    """The digests of the models that are on this machine."""
    found = {name: identify(name) for name in models_of(config)}
    return {name: digest for name, digest in found.items() if digest is not None}


def print_plan(run: RunDir, config: Config, console: Console) -> None:
    """Every unit of the run and where it stands; of many shards that stand alike, the first and the last."""
    everything = units(run, config)
    done = complete(everything)
    table = Table(title=f"Run {run.path}", title_justify="left")
    for column in ("unit", "state", "needs"):
        table.add_column(column)
    alike = itertools.groupby(everything, lambda unit: (unit.stage, unit.needs, state(unit, done)[0]))
    for (_, needs, word), together in alike:
        names = [unit.name for unit in together]
        shown = names if len(names) <= _MAX_ALIKE else [f"{names[0]} .. {names[-1]} ({len(names):,})"]
        for name in shown:
            table.add_row(name, word, ", ".join(needs) if len(needs) <= 3 else f"{needs[0]} .. {needs[-1]}")
    console.print(table)


def _print_plans(everything: Sequence[tuple[RunDir, Config]], options: "LaunchOptions", console: Console) -> None:
    """The plan of each generation and its jobs; of those that have not begun, the first alone."""
    num_alike = 0
    for number, (run, config) in enumerate(everything, start=1):
        if number > 2 and not run.path.exists():
            num_alike += 1
            continue
        print_plan(run, config, console)
        _show_jobs(scheduler_of(run, config), config, options.selected(to_run(units(run, config))), console)
    if num_alike:
        console.print(f"and {num_alike:,} more generations like the last of these", highlight=False)


@dataclass(frozen=True)
class LaunchOptions:
    """What the user wants of a launch.

    Attributes:
        dry_run: Only check the config, its files and the cluster; show the plan, the batch files and an estimate.
        prepare: Only make the run's folder, for stages to be run one by one.
        wait: Stay, and show how far Slurm's jobs are, until they are done.
        replace: Cancel the run's live jobs first.
        drop_answers_of: Make the calls again that a server answered under this model's name.
        verify: Read what is done first, and compare it with its hashes.
        stages: Of what is left, only units of these stages; None for all.
    """

    dry_run: bool = False
    prepare: bool = False
    wait: bool = False
    replace: bool = False
    drop_answers_of: str | None = None
    verify: bool = False
    stages: tuple[str, ...] | None = None

    def selected(self, left: Sequence[Unit]) -> list[Unit]:
        """Those of some units that are wanted."""
        return [unit for unit in left if self.stages is None or unit.stage in self.stages]


def launch(config: Config, console: Console, options: LaunchOptions = LaunchOptions()) -> None:
    """Runs or submits what is left of a run; once all is done, prints what came out.

    Raises:
        SalignError: Whatever stands in the way, with its remedy.
    """
    run = check_run(config)
    everything = generations(run, config)
    left = [unit for one in everything for unit in to_run(units(*one))]
    _verify(everything, options, console)
    scheduler = scheduler_of(run, config)
    if options.dry_run:  # also where the files are not there yet
        earlier = Earlier(run, config)
        rows = [row for one in everything for row in estimate(*one, options.selected(to_run(units(*one))), earlier)]
        print_estimate(rows, console)
        print_memory(config, console)
    hashes = check_inputs(config)
    check_room(config)
    check_engines(config, fetch=False)
    if options.dry_run:
        print_visible(config, console)
        _print_plans(everything, options, console)
        return
    _drop_answers(everything, left, options, console)
    if options.prepare:
        prepare(config, hashes)
        console.print(f"{run.path} is ready", highlight=False, soft_wrap=True)
        return
    if left:
        check_engines(config, fetch=True, here=scheduler.is_here)
    refuse_another_config(run, config, replace=options.replace)
    with claim_run(config):
        for its, _ in everything if options.replace else ():
            cancel_live_jobs(its)
        _submit_all(everything, hashes, options, console)
    if left and not scheduler.is_here:
        if not options.wait:
            console.print(
                as_called(f"python jobs/status.py {run.path} --watch"), markup=False, highlight=False, soft_wrap=True
            )
            return
        for one in everything:
            _wait(*one, options, console)
    everything = generations(run, config)
    if not left:
        console.print(f"Everything in {run.path} is done; there is nothing to run.", highlight=False)
    _close(everything, options, console)


def _close(everything: Sequence[tuple[RunDir, Config]], options: LaunchOptions, console: Console) -> None:
    """Writes what came out of each generation, and prints it; of a launch of a part, what is left."""
    rest = [unit for one in everything for unit in to_run(units(*one))]
    if options.stages is not None and rest:
        stages = ", ".join(dict.fromkeys(unit.stage for unit in rest))
        console.print(
            f"Done as far as asked for; left in {everything[0][0].path}: {stages}. Launch without --only and --until "
            "for the rest.",
            highlight=False,
            soft_wrap=True,
        )
        return
    summaries = [summarize(run, config) for run, config in everything]
    for (run, config), summary in zip(everything, summaries, strict=True):
        write_report(run, config)
        print_summary(run, config, summary, console)
    first, config = everything[0]
    if len(everything) > 1:
        print_generations(first, config, console)
    if (stop := config.generations.stop) is not None and len(everything) < config.generations.num:
        console.print(
            f"Generation {len(everything)} was the last: {stop.figure} did not get better in {stop.patience} "
            "(generations.stop).",
            highlight=False,
            soft_wrap=True,
        )


def _submit_all(
    everything: Sequence[tuple[RunDir, Config]], hashes: dict[str, str], options: LaunchOptions, console: Console
) -> None:
    """Does or submits what is left of each generation, as far as one may follow the other."""
    after: tuple[str, ...] = ()
    for one in everything:
        if one[0].number > last_generation(*everything[0]):
            break  # the evaluation that ended the loop is done by now
        after = _submit(*one, hashes, after, options=options, console=console)
        if len(options.selected(rest := to_run(units(*one)))) < len(rest):
            break  # a later generation speaks through what is not to be trained yet


def _submit(
    run: RunDir,
    config: Config,
    hashes: dict[str, str],
    after: tuple[str, ...],
    *,
    options: LaunchOptions,
    console: Console,
) -> tuple[str, ...]:
    """Does or submits what is left of one generation.

    Args:
        run: The generation's.
        config: Its config.
        hashes: Of the input files.
        after: Ids of jobs that what is submitted waits for.
        options: Which of it is wanted.
        console: For what is said meanwhile.

    Returns:
        The ids of the jobs that the next generation waits for: they make the model which it speaks through, and where
        the loop may end early, the evaluation that says so.
    """
    run.logs.mkdir(parents=True, exist_ok=True)
    write_manifest(run, config, hashes, _identify_models(config))
    everything = units(run, config)
    left = options.selected(to_run(everything))
    if not left:
        return ()
    scheduler = scheduler_of(run, config)
    left = not_at_work(run, scheduler, left)
    require_needs(left, everything, scheduler.at_work())
    if left:
        _say_notes(scheduler.check(config, left), console)
        scheduler.submit(config, left, console, after)
    if scheduler.is_here or not config.train.stages:
        return ()
    awaited = [f"train/{config.stage_of_generation}"]
    if config.generations.stop is not None:
        awaited.append(f"evaluate/{config.compared_models[-1]}")
    done, placed = complete(everything), scheduler.placements()
    tasks = [placed[key].task for key in awaited if key not in done and key in placed]
    return tuple(task for task in tasks if task is not None)


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
    """The run of a folder; or that of a config file, whose folder is created if missing yet.

    Raises:
        ConfigError: It is neither.
    """
    return prepare(compose.load(path)) if path.suffix in (".yaml", ".yml") else open_run(path, to_work=True)


def _verify(everything: Sequence[tuple[RunDir, Config]], options: LaunchOptions, console: Console) -> None:
    """Raises a StageError where a file of what is done is not what it was."""
    if not options.verify:
        return
    all_units = [unit for one in everything for unit in units(*one)]
    changed = list(damaged_files(all_units))
    if changed:
        files = ", ".join(str(unit.folder / name) for unit, name in changed[:_MAX_FAILURES])
        more = f" and {len(changed) - _MAX_FAILURES} more" if len(changed) > _MAX_FAILURES else ""
        folders = " ".join(str(folder) for folder in dict.fromkeys(unit.folder for unit, _ in changed))
        raise StageError(
            f"files have changed since they were made: {files}{more}. Restore them, or remove what is to be made again "
            f"and launch: rm -r {folders}"
        )
    console.print("every file of what is done is what it was", markup=False, highlight=False)


def _drop_answers(
    everything: Sequence[tuple[RunDir, Config]], left: Sequence[Unit], options: LaunchOptions, console: Console
) -> None:
    """Removes a served model's answers from the journals of units that are not done."""
    served = options.drop_answers_of
    if served is None:
        return
    num, names = 0, set[str]()
    with claim_run(everything[0][1]):
        for run, _ in everything:
            cancel_live_jobs(run) if options.replace else refuse_live_jobs(run)
        for unit in left:
            for folder in {path.parent for path in unit.folder.rglob("journal-*")}:
                with lock(unit.folder / ".lock", unit.name):
                    names |= served_names(folder)
                    num += drop_answers(folder, served)
    if not num:
        there = f"they came as {', '.join(map(repr, sorted(names)))}" if names else "none came with a name"
        raise ConfigError(f"--drop-answers-of: no answer of what is not done came as {served!r}; {there}.")
    console.print(f"{num} answers of {served} are dropped; their calls are made again", markup=False, highlight=False)


# --- jobs of a scheduler -------------------------------------------------------------------------


def _say_notes(notes: Sequence[str], console: Console) -> None:
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _show_jobs(scheduler: Scheduler, config: Config, left: Sequence[Unit], console: Console) -> None:
    """What a launch would submit, also from a machine that cannot ask the scheduler."""
    try:
        if not scheduler.is_reachable():
            raise StageError(f"there is no {scheduler.name} here")
        _say_notes(scheduler.check(config, left), console)
    except StageError as error:  # of the scheduler itself; what the cluster lacks is a ConfigError
        _say_notes([f"the cluster was not checked: {error}"], console)
    for name, batch_file in scheduler.describe(config, left):
        console.rule(name)
        console.print(batch_file, markup=False, highlight=False, soft_wrap=True)


def _wait(run: RunDir, config: Config, options: LaunchOptions, console: Console) -> None:
    try:
        board = follow(run, config, console, options.stages)
    except KeyboardInterrupt:
        console.print(
            as_called(f"the jobs continue: python jobs/status.py {run.path} --watch"), highlight=False, soft_wrap=True
        )
        raise SystemExit(130) from None
    failed = [describe_failure(unit, standing) for unit, standing in board.failed()[:_MAX_FAILURES]]
    if board.is_finished:
        for line in failed:
            console.print(f"continued without: {line}", markup=False, highlight=False, soft_wrap=True)
        return
    counts = ", ".join(f"{count} {word}" for word, count in board.counts().items())
    if stuck := board.stuck():
        jobs = "".join(f"\n{one}" for one in stuck[:_MAX_FAILURES])
        raise StageError(f"nothing of the run {run.path} gets further by itself ({counts}): {jobs}")
    listed = "".join(f"\n{line}" for line in failed)
    raise StageError(
        f"the run {run.path} has stopped: {counts}.{listed}\nFix that and launch again; what is complete is kept."
    )
