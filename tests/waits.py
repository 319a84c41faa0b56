"""Waiting in tests: until what is waited for has come, however slow the machine is; and for the one cluster."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANG_S = 1800.0
"""Nothing that works takes so long."""
# Of all processes of one pytest: those of another would take down a cluster that tests are at work on.
_OWNER = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
CLUSTER_IS_OURS = Path(tempfile.gettempdir()) / f"salign-tests-cluster-of-{_OWNER}"
"""Is there while a Slurm runs that these tests have started."""


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> bool:
    """Waits until something is so.

    Returns:
        False if the process has ended before.

    Raises:
        AssertionError: It hangs.
    """
    end = time.monotonic() + HANG_S
    while not condition():
        if process is not None and process.poll() is not None:
            return bool(condition())
        assert time.monotonic() < end, f"waited for {HANG_S} s in vain"
        time.sleep(0.01)
    return True
