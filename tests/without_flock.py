"""Runs a command for which the kernel knows no flock, as on a network file system without locks: a filter of seccomp.

python tests/without_flock.py COMMAND ...
"""

import ctypes
import errno
import os
import platform
import struct
import sys

_SYSCALL = {"x86_64": 73, "aarch64": 32}
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def is_possible() -> bool:
    return sys.platform == "linux" and platform.machine() in _SYSCALL


def take_flock_away() -> None:
    """From this process and its children, for good."""
    rows = [
        (_LOAD, 0, 0, 0),  # the call's number
        (_IF_EQUAL, 0, 1, _SYSCALL[platform.machine()]),
        (_RETURN, 0, 0, _ERRNO | errno.ENOLCK),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *row) for row in rows)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    program = _Program(len(rows), code)
    assert libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    take_flock_away()
    os.execvp(sys.argv[1], sys.argv[1:])
