"""Requests to W&B's server outside of a run: counts, artifacts, lineage, the workspace's view."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from salign.config import TrackingSection
from salign.errors import ConfigError, StageError
from salign.shown import redact
from salign.tracking.mirror import has_key


@contextlib.contextmanager
def asking_wandb() -> Iterator[None]:
    """Turns what W&B refuses, and a server that is not reached, into errors of the user's.

    Raises:
        ConfigError: There is no key.
        StageError: With what W&B said.
    """
    if not has_key():
        raise ConfigError(
            "W&B needs an API key and none is set: set WANDB_API_KEY (and WANDB_BASE_URL, where the "
            "server is not W&B's own), or run `wandb login`."
        )
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import requests
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        # At once; wandb itself would try for half a minute.
        requests.head(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"), timeout=10)
        yield
    except (wandb.Error, WandbApiFailedError, requests.RequestException, TimeoutError, ConnectionError) as error:
        said = redact(str(error))
        raise StageError(f"the W&B server refused the request: {said}. Check the key and WANDB_BASE_URL.") from error


class Server:
    """A project on W&B's server.

    Args:
        tracking: Names project and entity; without an entity, the key's own.
    """

    def __init__(self, tracking: TrackingSection) -> None:
        import wandb

        self._api = wandb.Api(timeout=30)
        self.project = tracking.project
        self.entity = tracking.entity or str(self._api.default_entity)

    def run(self, id_: str) -> Any | None:
        """Returns a run by its id; None if there is none."""
        from wandb.apis.public.runs import RunNotFoundError
        from wandb.errors import CommError

        self._api.flush()  # it keeps what it has once read
        try:
            return self._api.run(f"{self.entity}/{self.project}/{id_}")
        except RunNotFoundError:
            return None
        except CommError as error:
            if "not find run" in str(error):
                return None
            raise
