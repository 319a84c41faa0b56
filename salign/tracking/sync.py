"""Sends a run's offline W&B runs, and verifies that everything arrives.

wandb's own `sync` ends well also where an artifact's bytes are gone, sends what it has sent in part once more, and
cannot tell a dead job from one at work. So the bytes are looked at before, counts and states after; safe to repeat.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from salign.config import Config
from salign.errors import StageError
from salign.locks import is_locked
from salign.plan import Unit
from salign.run import RunDir
from salign.shown import redact
from salign.tracking.mirror import mirrored_units, run_id
from salign.tracking.server import Server, asking_wandb
from salign.tracking.wandb_log import Fragment, read_fragment

_PATIENCE_S = 10.0
"""How long the server may take to count what it was sent."""

Say = Callable[[str], None]


def sync(run: RunDir, config: Config, say: Say, *, live: bool = False) -> None:
    """Sends runs that are complete or whose job is dead, verifies them, and links what each unit was made from.

    Args:
        run: Its folder.
        config: Its config.
        say: Told a line for each W&B run.
        live: Follows a job that is at work until it ends; else it is left alone.

    Raises:
        ConfigError: There is no key.
        StageError: Something was not sent, or did not arrive; all of it is named.
    """
    fragments = find_fragments(run)
    units = mirrored_units(run, config)
    problems: list[str] = []
    with asking_wandb():
        server = Server(config.tracking)
        for id_ in [*(id_ for id_ in units if id_ in fragments), *(id_ for id_ in fragments if id_ not in units)]:
            try:
                say(f"{id_}: {_sync_one(server, id_, fragments[id_], units.get(id_), live=live)}")
            except StageError as error:
                problems.append(f"{id_}: {error}")
        for id_, link in _lineage(run, config):
            linked = link(server)
            if linked:
                say(f"{id_}: made from {linked}")
    if not fragments:
        say(f"{run.wandb} holds no W&B run")
    if problems:
        raise StageError("\n".join(problems))


def find_fragments(run: RunDir) -> dict[str, list[Fragment]]:
    """Finds the logs of a run by the id of their W&B run, each in the order in which they were begun.

    Raises:
        DataError: One is not a W&B log.
    """
    found: dict[str, list[Fragment]] = {}
    paths = (run.wandb / "wandb").glob("*run-*/run-*.wandb")
    for path in sorted(paths, key=lambda path: path.parent.name.removeprefix("offline-")):
        fragment = read_fragment(path)
        # A process that was killed in its first second has not even said which run it is.
        found.setdefault(fragment.id or path.stem.removeprefix("run-"), []).append(fragment)
    return found


def _sync_one(server: Server, id_: str, fragments: Sequence[Fragment], unit: Unit | None, *, live: bool) -> str:
    """Sends what of a W&B run is to be sent.

    Returns:
        What was done, in words.

    Raises:
        StageError: Why it was not sent, or what did not arrive.
    """
    # In this order: a job may end in between, and what is read of its log then must be all of it.
    locked = unit is not None and is_locked(unit.folder / ".lock")
    fragments = [read_fragment(fragment.path) for fragment in fragments]
    last = fragments[-1]
    at_work = locked and not last.ended
    if at_work and not (live and last.is_offline):
        return f"its job is running; {'left alone (--live follows it)' if last.is_offline else 'it is sending'}"
    if not any(fragment.id for fragment in fragments):
        return "empty: its process was killed before it logged anything"
    waiting = [fragment for fragment in fragments if fragment.is_offline and not fragment.is_synced and fragment.id]
    gone = [str(path) for fragment in waiting for artifact in fragment.artifacts for path in artifact.missing]
    if gone:
        made = unit.folder if unit else "it"
        raise StageError(
            f"not sent: files of its artifacts are gone ({', '.join(gone[:3])}{' ...' if gone[3:] else ''}). Put them "
            f"back (a run's folder that was moved: link its old path to it), or make {made} again."
        )
    if waiting:
        _check_not_begun(server, id_, fragments, waiting)
        over = [str(fragment.path.parent) for fragment in waiting if not (at_work and fragment is last)]
        if over:
            _wandb("sync", "--yes", *over)
        if at_work:
            _wandb("beta", "sync", "--live", str(last.path))
            fragments = [read_fragment(fragment.path) for fragment in fragments]
    num_artifacts = _verify(server, id_, fragments, patience_s=_PATIENCE_S if waiting else 0.0)
    num_lost = sum(artifact.num_lost for fragment in fragments for artifact in fragment.artifacts)
    lost = f"; {num_lost} files that they refer to are gone" if num_lost else ""
    counts = f"{sum(fragment.num_rows for fragment in fragments)} rows, {num_artifacts} artifacts{lost}"
    return f"sent ({counts})" if waiting else f"is there ({counts})"


def _num_rows(server: Server, id_: str) -> int:
    found = server.run(id_)
    return 0 if found is None else int(found.historyLineCount or 0)


def _check_not_begun(server: Server, id_: str, fragments: Sequence[Fragment], waiting: Sequence[Fragment]) -> None:
    """What has arrived in part must not be sent once more: its rows would be there twice."""
    expected = sum(fragment.num_rows for fragment in fragments if fragment not in waiting)
    there = _num_rows(server, id_)
    if there != expected:
        raise StageError(
            f"not sent: W&B has {there} rows of it where {expected} were sent before. A sync was interrupted, or "
            f"another run has this id; sending it again would duplicate rows. {_apart(id_, fragments)}"
        )


def _apart(id_: str, fragments: Sequence[Fragment]) -> str:
    folders = " ".join(str(fragment.path.parent) for fragment in fragments)
    return f"To send all of it as a new run: wandb sync --include-online --include-synced --id {id_}-again {folders}"


def _verify(server: Server, id_: str, fragments: Sequence[Fragment], *, patience_s: float) -> int:
    """Sees that W&B has, after so long at the latest, as many rows as the logs, and every artifact whole.

    Returns:
        How many artifacts of the run it has.

    Raises:
        StageError: What it has not.
    """
    expected = sum(fragment.num_rows for fragment in fragments)
    wanted = {artifact.name for fragment in fragments for artifact in fragment.artifacts}
    end = time.monotonic() + patience_s
    while True:
        there, whole = _num_rows(server, id_), set(_committed(server, id_))
        lacking = sorted(wanted - whole)
        if there == expected and not lacking:
            return len(whole)
        if time.monotonic() >= end or there > expected:
            break
        time.sleep(1)
    lost = [f"{there} rows, but the logs have {expected}"] if there != expected else []
    lost += [f"no complete artifact {name}" for name in lacking]
    raise StageError(f"W&B has {'; '.join(lost)}. {_apart(id_, fragments)}")


def _committed(server: Server, id_: str) -> dict[str, Any]:
    """The whole artifacts that a run has made: name without version to the last of them."""
    found = server.run(id_)
    made = [] if found is None else list(found.logged_artifacts())
    return {artifact.name.rpartition(":")[0]: artifact for artifact in made if artifact.state == "COMMITTED"}


def _wandb(*words: str) -> None:
    """A command of wandb's.

    Raises:
        StageError: It fails, with its last words.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SILENT")}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = redact((done.stderr + done.stdout).strip()[-600:])
        raise StageError(f"`wandb {' '.join(words[:2])}` ended with exit code {done.returncode}: {said}")


# --- lineage -------------------------------------------------------------------------------------


def _lineage(run: RunDir, config: Config) -> Iterator[tuple[str, Callable[[Server], str | None]]]:
    """For each unit what notes one artifact that it was made from; offline, wandb cannot say so itself."""
    for consumer, producer, artifact in lineage(run, config):
        yield consumer, _link(consumer, producer, artifact)


def lineage(run: RunDir, config: Config) -> Iterator[tuple[str, str, str]]:
    """Returns which W&B run used which artifact of another: consumer's id, producer's id, artifact's name."""

    def model(stage: str) -> tuple[str, str]:
        return run_id(run, config, "train", stage), f"{config.run.name}-{stage}"

    for stage in config.train.stages:
        consumer = run_id(run, config, "train", stage.name)
        if stage.uses_society:
            yield consumer, run_id(run, config, "simulate"), f"{config.run.name}-data"
        start = config.train.start_of(stage.name)
        if start != "base":
            yield consumer, *model(start)
    for name in config.evaluated_models:
        if name != "base":
            yield run_id(run, config, "evaluate", name), *model(name)


def _link(consumer: str, producer: str, artifact: str) -> Callable[[Server], str | None]:
    """Notes that a run has used an artifact; the name where that is new, None where one of them is not there."""

    def link(server: Server) -> str | None:
        made, using = _committed(server, producer).get(artifact), server.run(consumer)
        if made is None or using is None or made.name in {used.name for used in using.used_artifacts()}:
            return None
        using.use_artifact(made)
        return str(made.name)

    return link
