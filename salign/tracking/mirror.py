"""Weights & Biases as a mirror of the metrics: one run each for simulation, training stage and evaluation.

`WANDB_MODE` decides; without it and without a key a run is offline. Nothing that W&B does stops the work, or holds it
up for long: what could not be sent stays in the run's folder, for `jobs/dashboard.py sync`.
"""

import contextlib
import logging
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from salign.config import Config
from salign.plan import Unit, units
from salign.run import RunDir
from salign.shown import redact
from salign.storage import write_atomic
from salign.tracking.names import X_AXES, JobType

logger = logging.getLogger(__name__)

# How long the start of a W&B run may hold the work up; its end: tracking.finish_timeout_s.
_INIT_TIMEOUT_S = 10.0
# Of the stages that have W&B runs. Shards have none: the collector shows them all.
_JOB_TYPES: dict[str, JobType] = {"collect": "simulate", "train": "train", "evaluate": "evaluate"}


def has_key() -> bool:
    """Returns whether there is a key for W&B's server, in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def prepare_environment(run: RunDir, config: Config) -> None:
    """Sets what wandb reads from the environment before it is imported; child processes inherit it.

    Offline belongs in the environment: as an argument alone, wandb would still send telemetry, which holds a process up
    at its end where there is no route. Staged artifact bytes go into the run's folder, so that a later sync finds them;
    logged rows reach the disk within a second.
    """
    if not config.tracking.wandb:
        os.environ["WANDB_MODE"] = "disabled"
    elif not has_key():
        os.environ.setdefault("WANDB_MODE", "offline")
    run.wandb.mkdir(parents=True, exist_ok=True)
    os.environ["WANDB_DATA_DIR"] = str(run.wandb / "data")
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", "8")  # s; before an artifact is logged, the server is asked
    os.environ.setdefault("WANDB_SILENT", "true")


def _folder(run: RunDir, job_type: JobType, parts: Sequence[str]) -> Path:
    """The folder of the unit that is mirrored."""
    if job_type == "simulate":
        return run.dataset
    return run.stage(parts[0]) if job_type == "train" else run.evaluation(parts[0])


def mirrored_units(run: RunDir, config: Config) -> dict[str, Unit]:
    """Returns the units that have a W&B run, by its id, in the order in which they are done."""
    return {
        run_id(run, config, job_type, *filter(None, [unit.argument])): unit
        for unit in units(run, config)
        if (job_type := _JOB_TYPES.get(unit.stage)) is not None
    }


def run_id(run: RunDir, config: Config, job_type: JobType, *parts: str) -> str:
    """Returns the id of a W&B run, such as `train-quickstart-stable`; once it has begun, the id in its folder.

    A unit that is requeued goes on in the same W&B run, also where the run's folder was renamed since.
    """
    kept = _folder(run, job_type, parts) / "wandb-id.txt"
    if kept.exists():
        return kept.read_text(encoding="utf-8").strip()
    return "-".join((job_type, config.run.name, *parts))


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """Nothing that W&B refuses stops the work; it is said once for each time."""
    try:
        yield
    except _wandb_errors() as error:
        logger.warning("W&B failed (%s); the metrics are in metrics.jsonl all the same", redact(str(error)))


def _wandb_errors() -> tuple[type[Exception], ...]:
    """What wandb raises of itself; it is imported late."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    return (
        wandb.Error,
        TimeoutError,
        ConnectionError,
        HandleAbandonedError,
        MailboxClosedError,
        ServerResponseError,
        WandbApiFailedError,
    )


class Mirror:
    """One W&B run; does nothing if wandb is disabled, did not start, or its process has ended."""

    def __init__(self, run: Any | None) -> None:
        self._run = run

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        with _going_on():
            try:
                yield
            except ConnectionError:
                self._run = None
                raise

    def log(self, row: Mapping[str, Any]) -> None:
        """Logs one row of metrics, without missing values."""
        if self._run is not None:
            with self._going_on():
                self._run.log({name: value for name, value in row.items() if value is not None and name != "time"})

    def summarize(self, figures: Mapping[str, Any]) -> None:
        """Sets figures of the run as a whole."""
        if self._run is not None:
            with self._going_on():
                self._run.summary.update(dict(figures))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self._run is not None and rows:
            import wandb

            with self._going_on():
                self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def artifact(
        self, name: str, kind: Literal["dataset", "model"], paths: Sequence[Path], *, upload: bool = True
    ) -> None:
        """Logs files, or folders with their content; without `upload` only references with hashes."""
        if self._run is None:
            return
        import wandb

        with self._going_on():
            artifact = wandb.Artifact(name, type=kind)
            for path in paths:
                if not upload:
                    artifact.add_reference(path.as_uri())
                elif path.is_dir():
                    artifact.add_dir(str(path))
                else:
                    artifact.add_file(str(path))
            self._run.log_artifact(artifact)


def _begin(run: RunDir, config: Config, job_type: JobType, id_: str, mode: Literal["online", "offline"] | None) -> Any:
    """A W&B run; `mode` None leaves it to the environment."""
    import wandb

    begun = wandb.init(
        project=config.tracking.project,
        entity=config.tracking.entity,
        id=id_,
        name=id_,
        group=run.first.path.name,
        job_type=job_type,
        dir=str(run.wandb),
        config={**config.model_dump(mode="json"), "generation": run.number},
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(
            console="off",
            x_disable_stats=True,
            init_timeout=_INIT_TIMEOUT_S,
            finish_timeout=config.tracking.finish_timeout_s,
        ),
    )
    for pattern, axis in X_AXES[job_type].items():
        begun.define_metric(axis)
        begun.define_metric(pattern, step_metric=axis)
    return begun


def _start(run: RunDir, config: Config, job_type: JobType, parts: Sequence[str]) -> Any | None:
    """A W&B run; offline where the server does not answer in time; None where wandb is disabled or does not start."""
    id_, mode = run_id(run, config, job_type, *parts), os.environ.get("WANDB_MODE", "online")
    if mode == "disabled":  # wandb would still hash the files of artifacts, with all of them in memory
        return None
    import wandb

    write_atomic(_folder(run, job_type, parts) / "wandb-id.txt", id_ + "\n")
    begun: list[Any] = []
    tries: list[Literal["online", "offline"] | None] = ["online", "offline"] if mode == "online" else [None]
    for each in tries:
        with _going_on():
            begun.append(_begin(run, config, job_type, id_, each))
        if begun:
            return begun[0]
        with _going_on():
            wandb.teardown()  # wandb's process would take the id to be in use
    return None


@contextlib.contextmanager
def open_mirror(run: RunDir, config: Config, job_type: JobType, *parts: str) -> Iterator[Mirror]:
    """Opens the W&B run `job_type-<run>-<parts>`; finishes it at the end of the block, as failed if that raises.

    Args:
        run: Whose folder takes wandb's files.
        config: Its `tracking` section names the project; the whole of it, which holds no secret, is the run's config.
        job_type: What is mirrored.
        *parts: Stage or model.
    """
    prepare_environment(run, config)
    started, code = _start(run, config, job_type, parts), 1
    try:
        yield Mirror(started)
        code = 0
    finally:
        if started is not None:
            with _going_on():
                started.finish(exit_code=code)
