"""Runs that begin with the rounds of another run: what they must have in common, and who answers in those rounds."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from salign import compose
from salign.config import Config, Effect, Intervention, SocietySection, selected
from salign.engines.journal import Journal
from salign.engines.meter import MeteredEngine
from salign.engines.opening import OpenEngine
from salign.engines.reuse import ReusedRun, open_reused
from salign.errors import ConfigError, StageError
from salign.logfiles import read_header
from salign.markers import read_done
from salign.run import RunDir
from salign.society.headers import inputs_of
from salign.society.models import meter_all, open_replay
from salign.society.prompts import PROMPTS_VERSION

# What makes a world, what it carries from round to round, and by what all of its rounds are measured.
_IN_COMMON = (
    "run.seed",
    *(
        f"society.{name}"
        for name in (
            "topology",
            "protocol",
            "populations",
            "profiles",
            "criteria",
            "questions",
            "prior",
            "memory",
            "num_initial_memories",
            "embedder",
            "recall_share",
            "max_recall_distance",
        )
    ),
)


class Beginning(NamedTuple):
    """The rounds of another run with which one begins: under which config, and up to which."""

    config: Config
    path: Path
    last_round: int

    @property
    def run(self) -> RunDir:
        return RunDir(self.path)


def beginnings(config: Config) -> list[Beginning]:
    """The runs with whose rounds one begins, the latest first: each may begin with those of another itself.

    Raises:
        ConfigError: A folder is no run's.
    """
    found: list[Beginning] = []
    branch = config.society.branch
    while branch is not None and all(branch.run != one.path for one in found):
        theirs = RunDir(branch.run).config()
        found.append(Beginning(theirs, branch.run, branch.after_round))
        branch = theirs.society.branch
    return found


def check_branch(config: Config) -> None:
    """Makes sure, before anything is paid for, that there are rounds to begin with, and that they may be this run's.

    Raises:
        ConfigError: The other run has not got so far, or differs in what all rounds of a run have in common.
    """
    if config.society.branch is None:
        return
    if config.society.branch.run == config.run.root / config.run.name:
        raise ConfigError(f"society.branch names the run itself ({config.society.branch.run}); name another run.")
    theirs, path, last = beginnings(config)[0]
    _check_rounds(config, theirs, RunDir(path), last)
    header = _header_of(path)
    differing = [*_differences(theirs, config), *_other_inputs(header, config.society)]
    if differing:
        raise ConfigError(
            f"society.branch: the rounds up to {last} are those of {path}, and this config differs there in "
            f"{'; '.join(differing)}. Set it as it is there, or leave out society.branch."
        )
    early = [one for one in config.society.interventions if one.from_round <= last]
    _check_interventions(early, theirs.society.interventions, path, last)
    if header.get("prompts") != PROMPTS_VERSION:
        raise ConfigError(
            f"society.branch: {path} was simulated with prompts of version {header.get('prompts')}, and this code has "
            f"version {PROMPTS_VERSION}: its rounds cannot be held again. Simulate it with this version first."
        )


def _check_rounds(config: Config, theirs: Config, run: RunDir, last: int) -> None:
    num_worlds = config.society.num_worlds
    if num_worlds > theirs.society.num_worlds:
        raise ConfigError(
            f"society.branch: {run.path} has {theirs.society.num_worlds} worlds, and society.num_worlds is "
            f"{num_worlds}. Lower it, or leave out society.branch."
        )
    rounds: dict[str, int] = {}
    for shard in range(theirs.society.num_shards):
        done = read_done(run.shard(shard))
        if done is not None:
            rounds |= done.facts["rounds"]
    for world in range(num_worlds):
        there = rounds.get(str(world))
        if there is None:
            raise ConfigError(
                f"society.branch: world {world} of {run.path} is not simulated to its end. Launch that run first."
            )
        if there < last:
            raise ConfigError(
                f"society.branch: world {world} of {run.path} ended with round {there}, before society.branch."
                f"after_round = {last}. Branch earlier, or from a run that went on (society.stopping=null)."
            )


def _differences(theirs: Config, config: Config) -> list[str]:
    """What differs of that which all rounds of a run have in common, with both values."""
    left, right = (_plain(one) for one in (theirs, config))
    return [
        f"{name} ({right.get(name)!r} here, {left.get(name)!r} there)"
        for name in {**left, **right}
        if left.get(name) != right.get(name)
    ]


def _plain(config: Config) -> dict[str, Any]:
    """The values by their names; those of files are compared by their content."""
    found = compose.leaves(selected(config, Effect.DECIDES))
    society = config.society
    return {
        **{name: value for name, value in found.items() if name.startswith(_IN_COMMON)},
        "society.mixture": [(part.name, part.share) for part in society.mixture],
        "society.without memory": "memory" in society.without,
    }


def _other_inputs(header: Mapping[str, Any], society: SocietySection) -> Iterator[str]:
    """Files and models that another run read with another content."""
    for name, digest in inputs_of(society).items():
        if name.startswith(_IN_COMMON) and header.get(name) != digest:
            yield f"{name} (another content)"


def _check_interventions(early: Sequence[Intervention], theirs: Sequence[Intervention], path: Path, last: int) -> None:
    for one in early:
        if one not in theirs:
            raise ConfigError(
                f"society.branch: the intervention {one.name} begins in round {one.from_round}, and the rounds up to "
                f"{last} are those of {path}, which has no such intervention. Let it begin in round {last + 1} or "
                "later, or branch earlier."
            )


def _header_of(path: Path) -> dict[str, Any]:
    """The header of a run's journals.

    Raises:
        ConfigError: They are gone, or of another version.
    """
    try:
        header = read_header(RunDir(path).shard(0))
    except StageError as error:
        raise ConfigError(f"society.branch: {error}") from None
    if header is None:
        raise ConfigError(
            f"society.branch: the journal of {path} is gone, so its rounds cannot be held again without paying for "
            "them. Name a run whose simulate folder is whole."
        )
    return header


# --- who answers in these rounds -------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_beginnings(config: Config) -> AsyncIterator[list[tuple[Beginning, list[OpenEngine]]]]:
    """Nothing that answers, under the names of the models of each run with whose rounds one begins."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for one in beginnings(config):
            lacking = (
                f"the journal of {one.path} lacks a call of its rounds up to {one.last_round} (society.branch): it is "
                "damaged, or was written by another version of salign. Simulate that run again."
            )
            opened = open_replay(one.config, one.run.shard(0), one.run.shard(0).parent, lacking)
            found.append((one, await stack.enter_async_context(opened)))
        yield found


def journals_of_beginnings(config: Config, kept: Path) -> list[ReusedRun]:
    """The journal of the run with whose rounds one begins; it has the calls of those before it as well.

    Args:
        config: The run's.
        kept: Where indexes of other runs' journals are kept.
    """
    found = [one.path for one in beginnings(config)[:1]]
    return [one._replace(with_refusals=True) for path in found for one in open_reused([path], _header_of(path), kept)]


def settings_before(
    opened: Sequence[tuple[Beginning, list[OpenEngine]]], journal: Journal
) -> list[tuple[SocietySection, list[MeteredEngine], int]]:
    """Under which society, and with which models, a run begins, up to which round; the latest run's first."""
    return [(one.config.society, meter_all(models, journal), one.last_round) for one, models in opened]
