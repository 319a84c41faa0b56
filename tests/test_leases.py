"""Locks where the kernel knows no flock: held, refused, left behind, lost; by several processes."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import without_flock

from salign import leases, locks
from salign.errors import StageError
from salign.locks import is_locked, lock

pytestmark = pytest.mark.skipif(not without_flock.is_possible(), reason="takes flock away by seccomp, on Linux")

HOLDER = """
import signal, sys
from pathlib import Path
from salign import leases, locks
from salign.markers import mark_done

leases.BEAT_S = 0.05
folder = Path(sys.argv[1])

def publish(*_):
    try:
        mark_done(folder, [], {}, {})
    except Exception as error:
        print(error, flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, publish)
with locks.lock(folder / ".lock", "the thing", wait=True):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNTER = """
import sys
from pathlib import Path
from salign import locks

file = Path(sys.argv[1]) / "counter"
for _ in range(20):
    with locks.lock(file.with_name(".lock"), "the counter", wait=True):
        file.write_text(str(int(file.read_text()) + 1))
"""


@pytest.fixture(autouse=True)
def _no_flock(monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, without_flock.__file__, sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """One that has the folder's lock; killed with SIGKILL at the end."""
    with start(HOLDER, folder) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_lease_keeps_others_out_until_its_holder_is_killed(tmp_path):
    path = tmp_path / ".lock"
    assert not is_locked(path)
    with another_process(tmp_path) as holder:
        assert is_locked(path)
        said = f"the thing is already being worked on by process {holder.pid} on "
        with pytest.raises(StageError, match=said), lock(path, "the thing"):
            pytest.fail("two have it")
    assert not is_locked(path)
    with lock(path, "the thing"):
        assert is_locked(path)
        locks.require_held(path)
    assert not is_locked(path)
    assert len(list(tmp_path.iterdir())) == 2  # what earlier holders left is gone


def test_a_lease_of_a_machine_that_died_is_taken_when_it_shows_no_sign_of_life(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    left = {"holder": "process 1 on n3 (job 7)", "machine": "another", "process": 1, "begun": "1", "beat": "1"}
    (tmp_path / ".lock").touch()
    (tmp_path / ".lock.4").write_text(json.dumps(left))
    assert is_locked(path)
    monkeypatch.setattr(leases, "LIFE_S", 0.1)
    with lock(path, "the thing"):
        assert not (tmp_path / ".lock.4").exists()


def test_a_lease_that_nobody_has_refreshed_for_long_is_not_shown_as_held(tmp_path):
    (tmp_path / ".lock").touch()
    file = tmp_path / ".lock.4"
    file.write_text('{"holder": "process 1 on n3"}')
    assert is_locked(tmp_path / ".lock")
    os.utime(file, (time.time() - 3600,) * 2)
    assert not is_locked(tmp_path / ".lock")


def test_who_stood_still_has_lost_the_lock_and_publishes_nothing(tmp_path, monkeypatch):
    with another_process(tmp_path) as holder:
        holder.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(leases, "LIFE_S", 0.2)
        with lock(tmp_path / ".lock", "the thing"):
            holder.send_signal(signal.SIGCONT)
            said = holder.stdout.readline()
            assert holder.wait() == 143
    assert "was lost: this process showed no sign of life" in said
    assert not (tmp_path / "done.json").exists()


def test_processes_that_take_turns_do_not_meet(tmp_path):
    (tmp_path / "counter").write_text("0")
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(start(COUNTER, tmp_path)) for _ in range(4)]
    assert [process.returncode for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "80"


def test_a_file_system_that_keeps_no_locks_of_any_kind_is_named(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StageError, match="keeps no locks"), lock(tmp_path / ".lock", "the thing"):
        pytest.fail("it was held")


def test_with_flock_a_lease_of_a_node_without_it_counts(tmp_path, monkeypatch):
    with another_process(tmp_path):
        monkeypatch.undo()
        monkeypatch.setattr(locks, "PATIENCE_S", 0.0)
        assert is_locked(tmp_path / ".lock")
        with pytest.raises(StageError, match="is already being worked on"), lock(tmp_path / ".lock", "the thing"):
            pytest.fail("two have it")
