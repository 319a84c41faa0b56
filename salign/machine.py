"""Describes this machine: its name, cores and GPUs, and the memory that this process has used."""

import contextlib
import os
import platform
import random
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salign.errors import ConfigError


def this_machine() -> dict[str, Any]:
    """Describes where this process runs: host, cores and, as NVIDIA's driver names them, GPUs."""
    gpus = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        named = re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE)
        gpus.append(named.group(1) if named else "GPU")
    return {"host": platform.node(), "cores": os.cpu_count(), "gpus": gpus}


def peak_memory() -> int:
    """Returns the most bytes of memory that this process has held at once (Linux).

    `ru_maxrss` is never less than what the parent process held when it started this one.
    """
    return int(re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[0]) << 10


def multiplies_in_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has instructions for it, as far as Linux says; True where it says nothing.

    Without them PyTorch goes from number to number: products of 512 x 576 by 576 x 1536 took 46 times as long as in
    float32 on an AMD EPYC with AVX2.
    """
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return True
    return found is None or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(found[1].split())


def visible_devices() -> list[str]:
    """Returns the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none if there are none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        devices = [device.strip() for device in named.split(",")]
        return [] if devices[0] in ("", "-1", "NoDevFiles") else devices
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(gpus))]


def share_out(devices: Sequence[str], num_parts: int) -> list[list[str]]:
    """Divides devices among parts: each gets its share, or one in turn if there are fewer devices than parts."""
    return [
        list(devices[index::num_parts] or devices[index % len(devices) :][:1]) if devices else []
        for index in range(num_parts)
    ]


def free_port(address: str) -> int:
    """A port that nobody uses, and that no connection of another process is given before it is used here.

    Raises:
        ConfigError: There is none.
    """
    # Linux takes the ports of connections from 32768 on; the last one is whatever is free.
    for port in [*random.SystemRandom().sample(range(20_000, 32_768), 50), 0]:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((address, port))
            return int(listener.getsockname()[1])
    raise ConfigError(f"no port of {address} is free")
