"""Keeps one server for a shard: when the shard is gone, however it went, the server and all that it started are ended.

    python -m salign.engines.keeper COMMAND...

The shard holds the other end of standard input and never writes to it; even a shard that is killed closes it. The
server gets a temporary and cache folder of its own, which is removed with it. The keeper exits with the server's code
(128 + n for signal n).
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

GRACE_S = 5.0
"""How long a server has to end by itself."""
_POLL_S = 0.2
# Not XDG_CACHE_HOME and HF_HOME: weights that are already on this machine are not downloaded again.
_FOLDERS = ("TMPDIR", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def keep(command: Sequence[str]) -> int:
    """Runs a command until it ends, standard input closes or a signal asks for the end; returns its exit code."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: asked.append(got))
    # vLLM puts sockets here, and the path of a socket is short: hence the short name
    with tempfile.TemporaryDirectory(prefix="salign-", ignore_cleanup_errors=True) as folder:
        env = os.environ | dict.fromkeys(_FOLDERS, folder)
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
        while server.poll() is None and not asked and not select.select([sys.stdin], [], [], _POLL_S)[0]:
            pass
        if server.poll() is None:
            _signal_group(server.pid, signal.SIGTERM)
            try:
                server.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                print(f"the server did not end within {GRACE_S:g} s and is killed", file=sys.stderr)
        _signal_group(server.pid, signal.SIGKILL)  # also what a server that is gone left behind
        code = server.wait()
    return code if code >= 0 else 128 - code


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # none of it is left
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
