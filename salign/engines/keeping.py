"""A server as a process of this one, under a keeper (keeper.py) that ends it when this process is gone."""

import asyncio
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from salign.engines import keeper
from salign.shown import redact

logger = logging.getLogger(__name__)

_POLL_S = 0.05
_NUM_LAST_LINES = 12


@dataclass
class KeptProcess:
    """A server that was started under a keeper.

    Attributes:
        process: The keeper's.
        key: The server's.
        log: What it writes.
        log_start: Where in the log this start of it begins.
    """

    process: subprocess.Popen[bytes]
    key: str
    log: Path
    log_start: int

    def quote(self) -> str:
        """The end of what it wrote, without its key."""
        with self.log.open("rb") as file:
            file.seek(max(self.log_start, self.log.stat().st_size - 16_000))
            said = file.read().decode("utf-8", "replace")
        lines = (said.replace(self.key, "<key>") if self.key else said).splitlines()
        last = "\n".join(f"  {line}" for line in lines[-_NUM_LAST_LINES:])
        return f"Its log {self.log} ends:\n{redact(last) or '  (it is empty)'}"

    async def exit_code(self, timeout_s: float) -> int | None:
        """None if it still lives after a while."""
        until = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        return self.process.poll()

    async def end(self) -> None:
        """Lets the keeper end the server, and waits until both are gone."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if await self.exit_code(keeper.GRACE_S + 10) is None:
            logger.warning("the keeper of server %s does not exit; its process id is %d", self.log, self.process.pid)


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a server's keeper; returns it, and where in the log it begins to write."""
    with log.open("ab") as file:
        # A session of its own: Ctrl-C reaches this process, which ends the server in its own time.
        process = subprocess.Popen(
            [sys.executable, "-m", "salign.engines.keeper", *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
        return process, file.tell()


def explain(code: int) -> str:
    """The exit code of a keeper in words."""
    if code == 128 + signal.SIGKILL:
        return "signal 9, as where memory runs out"
    return f"exit code {code}" if code <= 128 else f"signal {code - 128}"
