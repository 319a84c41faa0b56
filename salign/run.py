"""A run's folder: its paths, and how a launch makes or claims it."""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salign import compose
from salign.config import NOT_FREE, Config
from salign.documents import read_json
from salign.errors import NO_ROOM, ConfigError
from salign.locks import lock
from salign.markers import DONE, read_done
from salign.storage import write_atomic

_GENERATION = "generation-"


@dataclass(frozen=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def dataset(self) -> Path:
        return self.path / "dataset"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def code(self) -> Path:
        """Snapshots of this package, which Slurm's jobs import."""
        return self.path / "code"

    @property
    def slurm(self) -> Path:
        """What was submitted, by job, and the jobs' logs."""
        return self.path / "slurm"

    @property
    def slurm_marker(self) -> Path:
        """Says that jobs of the run may be in Slurm's queue, also when `slurm` has been removed."""
        return self.path / ".slurm"

    @property
    def launch_lock(self) -> Path:
        """Of a launch, which works on all generations."""
        return self.first.path / ".launch.lock"

    def is_of_a_beginning(self, path: Path) -> bool:
        """Whether something in the folder is what another launch has made of the run before its config stands there.

        So it is where the tasks of an array begin at the same time.
        """
        beginnings = (self.launch_lock.name, f".{self.config_file.name}.")
        return path in (self.logs, self.config_file) or path.name.startswith(beginnings)

    @property
    def simulate(self) -> Path:
        return self.path / "simulate"

    def shard(self, index: int) -> Path:
        return self.simulate / f"shard-{index:05d}"

    def fleet(self, name: str) -> Path:
        """Where the servers of a fleet register, and have a folder each."""
        return self.path / "engines" / name

    def stage(self, name: str) -> Path:
        return self.path / "train" / name

    def model(self, name: str) -> Path:
        return self.stage(name) / "model"

    def evaluation(self, model: str) -> Path:
        return self.path / "evaluate" / model

    @property
    def trials(self) -> Path:
        """What the trials of judges found, once for all evaluations."""
        return self.path / "evaluate" / "trials"

    def generation(self, number: int) -> "RunDir":
        """The run of a generation, from 1; each after the first is a folder in that of the first."""
        return self if number == 1 else RunDir(self.path / f"{_GENERATION}{number}")

    @property
    def number(self) -> int:
        """Which generation the run is: 1, unless it lies in the folder of another run."""
        name = self.path.name.removeprefix(_GENERATION)
        inner = name.isdecimal() and name != self.path.name and (self.path.parent / "config.yaml").is_file()
        return int(name) if inner else 1

    @property
    def first(self) -> "RunDir":
        """The run of the first generation."""
        return RunDir(self.path.parent) if self.number > 1 else self

    def replayed(self, shares: Sequence[float]) -> Iterator[tuple[int, float, "RunDir"]]:
        """The earlier generations of which a share is trained on, each with its age in generations and that share.

        Args:
            shares: Of the generation before, of the one before that, and so on, as far as there are some.
        """
        for age, share in enumerate(shares[: self.number - 1], start=1):
            if share > 0:
                yield age, share, self.first.generation(self.number - age)

    @property
    def dataset_key(self) -> str:
        """By which the markers of a later generation know the dataset of this one."""
        return f"{_GENERATION}{self.number}/dataset"

    def config(self) -> Config:
        """The run's resolved config; that of a later generation follows from the first's.

        Raises:
            ConfigError: The folder is no run.
        """
        if self.number > 1:
            config = self.first.config()
            if self.number > config.generations.num:
                raise ConfigError(f"{self.first.path} has {config.generations.num} generations, not {self.number}")
            return config_of(self.first, config, self.number)
        if not self.config_file.is_file():
            raise ConfigError(
                f"{self.path} is no run's folder: it has no config.yaml. Give the folder that `python jobs/launch.py` "
                "made (runs/NAME)."
            )
        config = compose.load(self.config_file)
        # The folder may have been moved or copied since.
        here = config.run.model_copy(update={"root": self.path.parent, "name": self.path.name})
        return config.model_copy(update={"run": here})


def config_of(run: RunDir, config: Config, number: int) -> Config:
    """The config of a generation of a run.

    Args:
        run: The run of the first generation.
        config: Its config.
        number: The generation's.
    """
    if number == 1:
        return config
    later = config.of_generation(number, run.generation(number - 1).model(config.stage_of_generation))
    # Of a name by which it is told from the generations of other runs.
    here = later.run.model_copy(
        update={"root": run.path, "name": f"{run.path.name}-{run.generation(number).path.name}"}
    )
    return later.model_copy(update={"run": here})


def last_generation(run: RunDir, config: Config) -> int:
    """The number of the last generation: `generations.num`, or the one after which `generations.stop` ends the loop.

    Args:
        run: The run of the first generation.
        config: Its config.

    Raises:
        ConfigError: An evaluation does not have the figure.
    """
    stop, num = config.generations.stop, config.generations.num
    if stop is None:
        return num
    best, since = None, 0
    # The first value is that of the model which the first society speaks through, if it is evaluated.
    evaluated = [(0, run.evaluation("base"))] if "base" in config.compared_models else []
    model = config.compared_models[-1]
    evaluated += [(number, run.generation(number).evaluation(model)) for number in range(1, num + 1)]
    for number, folder in evaluated:
        if read_done(folder) is None:
            return num  # what comes after is not known yet
        value = _figure(folder / "results.json", stop.figure)
        better = value is not None and (best is None or (value < best if stop.lower_is_better else value > best))
        best, since = (value, 0) if better else (best, since + 1)
        if since >= stop.patience and number:
            return number
    return num


def _figure(path: Path, name: str) -> float | None:
    figures = read_json(path, str(path), dict[str, Any]).get("figures", {})
    if name not in figures:
        raise ConfigError(f"generations.stop.figure {name!r} is not in {path}, which has: {', '.join(sorted(figures))}")
    mean = figures[name]["mean"]
    return None if mean is None else float(mean)


def generations(run: RunDir, config: Config) -> list[tuple[RunDir, Config]]:
    """The run of each generation with its config; the first is the run itself."""
    numbers = range(1, last_generation(run, config) + 1)
    return [(run.generation(number), config_of(run, config, number)) for number in numbers]


def run_around(path: Path) -> RunDir | None:
    """The run, or the generation of one, in whose folder something lies; None where that is no run's."""
    for folder in path.parents:
        run = RunDir(folder)
        if run.number > 1 or run.config_file.is_file():
            return run
    return None


def open_run(path: Path, *, to_work: bool = False) -> RunDir:
    """The run at a path that the user named.

    Args:
        path: Its folder.
        to_work: Code and checkpoints in it will be used: it must be trusted.

    Raises:
        ConfigError: There is none, as where a config waits for its launch, or it is not trusted.
    """
    run = RunDir(Path(os.path.abspath(path)))
    config = run.config()
    if not (first := run.first).manifest.is_file():
        raise ConfigError(
            f"{first.path} is no run's folder: it has a config.yaml and no manifest.json, which a launch writes. "
            f"`python jobs/launch.py {first.config_file}` launches the config; give the folder that this makes "
            "(runs/NAME)."
        )
    if to_work:
        check_trusted(run)
    _keep_private(run, config)
    return run


def check_trusted(run: RunDir) -> None:
    """Makes sure that only this user, or a group that shares the folder with them, has put anything into a run.

    Its code is imported, and its checkpoints are unpickled. Projects on clusters share folders that their group can
    write, so a group may; a folder of somebody else's, or one that everybody can write, is taken only if SALIGN_TRUST
    names it.

    Raises:
        ConfigError: It is not trusted.
    """
    named = filter(None, os.environ.get("SALIGN_TRUST", "").split(os.pathsep))
    trusted = {os.path.realpath(path) for path in named}
    here = Path(os.path.realpath(run.path))
    if not trusted.isdisjoint(map(str, (here, *here.parents))):
        return
    for folder in (run.path, run.code, run.slurm, run.path / "train"):
        try:
            found = folder.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        fault = None
        if found.st_uid not in (os.geteuid(), 0):
            fault = f"belongs to another user (number {found.st_uid})"
        elif found.st_mode & stat.S_IWOTH:
            fault = "can be written by everybody"
        if fault is not None:
            raise ConfigError(
                f"{folder} {fault}, and code and checkpoints in it would be run. Copy what you need into a folder of "
                f"yours, or take the right to write from others (chmod -R o-w); if you trust it: "
                f"export SALIGN_TRUST={run.path}"
            )


def _keep_private(run: RunDir, config: Config) -> None:
    """Whatever this process and those that it starts write is for the user alone, where the config says so."""
    if config.run.private:
        os.umask(0o077)
        if run.path.is_dir() and run.path.stat().st_uid == os.geteuid():
            run.path.chmod(0o700)


def check_run(config: Config) -> RunDir:
    """The run that a config names, not created yet, or one of the same config to go on with.

    A run in which nothing is complete yet may still change its config; any may be extended by more rounds, and measure
    something else of its models.

    Raises:
        ConfigError: The place holds a run of another config, or something that is no run.
    """
    run = RunDir(config.run.root / config.run.name)
    if run.config_file.exists():
        before = run.config()
        differing = compose.differences(before, config, *NOT_FREE)
        changed = [name for name in differing if not name.startswith("evaluate.")]
        if changed and not _extends(before, config, changed) and next(run.path.rglob(DONE), None) is not None:
            raise ConfigError(
                f"{run.path} holds a run of another config; it differs in {', '.join(changed)}. Choose another "
                f"run.name, or remove that folder to begin again."
            )
    elif run.path.exists() and not (run.path.is_dir() and all(map(run.is_of_a_beginning, run.path.iterdir()))):
        raise ConfigError(f"{run.path} exists and is no run's folder; choose another run.name or run.root.")
    return run


def _extends(before: Config, config: Config, changed: Sequence[str]) -> bool:
    """Whether a config differs in more rounds alone. What a later generation says depends on the one before it."""
    more = config.society.max_rounds > before.society.max_rounds
    return more and list(changed) == ["society.max_rounds"] and config.generations.num == 1


@contextlib.contextmanager
def claim_run(config: Config, *, wait: bool = False) -> Iterator[RunDir]:
    """Makes the run's folder, or goes on with one of the same config (see `check_run`), and holds its lock.

    Args:
        config: The run's.
        wait: For another launch that holds it, as tasks of an array do that all begin with this.

    Raises:
        ConfigError: As `check_run`, or the folder cannot be written.
        StageError: Another launch of the run is at work.
    """
    run = check_run(config)
    check_trusted(run)
    _keep_private(run, config)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(run.launch_lock, f"the run {run.path}", wait=wait))
            check_run(config)  # another launch may have changed it until now
            run.logs.mkdir(parents=True, exist_ok=True)
            _keep_private(run, config)
            write_atomic(run.config_file, compose.dump(config))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            raise ConfigError(
                f"the run's folder {run.path} cannot be written ({error.strerror}). Check its permissions, or set "
                "run.root elsewhere."
            ) from error
        yield run
