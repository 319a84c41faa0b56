"""Processes of Python that need not import torch, transformers and DeepSpeed again: forks of one that has.

Importing them takes four seconds of processor time, a process of a small test much less. `python()` names a program
that is called as Python is. Where it is to run a file or a module, it asks a server that has imported all that, and has
started no thread, to fork. The fork has the caller's arguments, environment, folder, open files and, on a node of the
cluster, namespaces, starts its own processes in the same way, and is listed by its words like any process. The program
stays in its place: it hands on the signals that it gets, ends as the fork does, and the fork ends with it. Everything
else is done by Python itself.

What a test says of processes themselves (which signals they get, what they load) it says of `sys.executable`.
"""

import array
import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_MAX_FILES = 200
_HIGH = 512  # above any number of an open file of a caller
_NAMESPACES = ("net", "uts", "mnt")
_ROOM = " " * 4096  # the server's last argument: where its forks write theirs
# What a unit of any stage imports, at once or when it comes to it. None of it starts a thread or asks for a GPU.
_IMPORTED = (
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "plotly.graph_objs._figure",
    "scipy.stats",
    "torch._inductor.compile_fx",
    "torch.distributed.run",
    "torch.utils.cpp_extension",
    "transformers.models.llama.modeling_llama",
    "salign.commands.launch",
    "salign.dataset.collect",
    "salign.engines.transformers",
    "salign.evaluation.evaluate",
    "salign.report.write",
    "salign.society.shard",
    "salign.training.loop",
)

# Without site or any import of ours: it starts in 20 ms.
_CALLER = """#!{python} -IS
import os, sys
words = [word for word in sys.argv[1:] if word != "-u"]
if not words or words[0].startswith("-") and words[0] != "-m":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import array, json, signal, socket
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
files = [number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{{number}}")]
files.remove(server.fileno())
asked = dict(words=words, environment=dict(os.environ), folder=os.getcwd(), files=files)
said = json.dumps(asked).encode()
server.sendmsg([len(said).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
server.sendall(said)
def received():
    number = server.recv(4, socket.MSG_WAITALL)
    return int.from_bytes(number, "big", signed=True) if len(number) == 4 else sys.exit("the server of forks is gone")
child = received()
for name in {forwarded}:
    signal.signal(getattr(signal, name), lambda number, _: os.kill(child, number))
code = received()
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def python() -> str:
    """Starts the server, once; it ends with this process.

    Returns:
        The program's path; Python's own where there are GPUs, which a fork could not use.
    """
    if Path("/dev/nvidiactl").exists():
        return sys.executable
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    for program in Path(sys.executable).parent.iterdir():  # what is looked for beside Python
        (Path(folder.name) / program.name).symlink_to(program)
    address, caller = f"{folder.name}/socket", Path(folder.name) / "python"
    caller.unlink(missing_ok=True)
    caller.write_text(_CALLER.format(python=sys.executable, address=address, forwarded=_FORWARDED))
    caller.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, address, str(caller), _ROOM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.read(1), "the server of forks did not start"

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return str(caller)


class _Server:
    """Forks when it is asked to, and tells each caller of its fork's end."""

    def __init__(self, address: str) -> None:
        self._callers: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._fork)
        self._selector.register(0, selectors.EVENT_READ, self._end)

    def serve(self) -> list[str]:
        """Returns in a fork, with the words that it was called by; the server ends when its standard input does."""
        while True:
            for key, _ in self._selector.select():
                if (words := key.data()) is not None:
                    return words

    def _fork(self) -> list[str] | None:
        caller = self._listener.accept()[0]
        length, ancillary, _, _ = caller.recvmsg(4, socket.CMSG_SPACE(4 * _MAX_FILES))
        said = caller.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL) if ancillary else b""
        if not said.endswith(b"}"):  # it was ended while it asked
            caller.close()
            return None
        asked, files = json.loads(said), array.array("i", ancillary[0][2])
        if (child := os.fork()) == 0:
            _enter_namespaces(caller)
            for of_server in (caller, self._listener, *self._callers.values()):
                of_server.detach()  # their numbers are about to be others'
            self._become(asked, files)
            return asked["words"]
        for number in files:
            os.close(number)
        ended = os.pidfd_open(child)
        self._callers[child] = caller
        self._selector.register(ended, selectors.EVENT_READ, functools.partial(self._reap, child, ended))
        self._selector.register(caller, selectors.EVENT_READ, functools.partial(self._kill, child))
        with contextlib.suppress(OSError):
            caller.sendall(child.to_bytes(4, "big"))
        return None

    def _become(self, asked: dict[str, Any], files: Sequence[int]) -> None:
        """Gives this process the caller's files, environment and folder, and nothing of the server's."""
        self._selector.close()
        kept = [fcntl.fcntl(number, fcntl.F_DUPFD, _HIGH) for number in files]
        os.closerange(0, _HIGH)
        for number, target in zip(kept, asked["files"], strict=True):
            os.dup2(number, target)
            os.close(number)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])

    def _reap(self, child: int, ended: int) -> None:
        caller = self._callers.pop(child)
        self._selector.unregister(ended)
        self._selector.unregister(caller)
        os.close(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):
            caller.sendall(code.to_bytes(4, "big", signed=True))
        caller.close()

    def _kill(self, child: int) -> None:
        """The caller is gone, and its fork goes too."""
        if child in self._callers:
            os.kill(child, signal.SIGKILL)

    def _end(self) -> None:
        for child in self._callers:
            os.kill(child, signal.SIGKILL)
        os._exit(0)


def _enter_namespaces(caller: socket.socket) -> None:
    """Enters those of the process at the other end, where they are others than this one's."""
    pid = int.from_bytes(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder)
    libc = ctypes.CDLL(None, use_errno=True)
    for name in _NAMESPACES:
        place = Path(f"/proc/{pid}/ns/{name}")
        if place.readlink() != Path(f"/proc/self/ns/{name}").readlink():
            with place.open() as namespace:
                if libc.setns(namespace.fileno(), 0):  # 0: of whichever kind
                    raise OSError(ctypes.get_errno(), f"setns {place}")


def _import() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    for module in _IMPORTED:
        importlib.import_module(module)
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()  # what no collection goes through is not copied
    gc.set_threshold(50_000, 20, 100)


def _show(words: Sequence[str]) -> None:
    """Makes these the words of this process in /proc, and so in `ps`."""
    of_arguments = slice(45, 47)  # arg_start and arg_end, fields 48 and 49 of proc_pid_stat(5), counted from the third
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[of_arguments])
    said = b"\0".join(map(os.fsencode, words))[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, said, len(said))


def _main() -> None:
    address, program, _ = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller's, in the same terminal
    ready = os.dup(1)
    os.dup2(2, 1)  # for whatever is printed by an import
    _import()
    server = _Server(address)
    os.write(ready, b".")
    os.close(ready)
    words = server.serve()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.executable = program
    _show([program, *words])
    if words[0] == "-m":
        module, sys.argv = words[1], words[1:]
        sys.path[0] = str(Path.cwd())
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).absolute().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _main()
