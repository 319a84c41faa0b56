"""What a run is made from: code, versions, seed and inputs; and the code itself, as it was at the launch."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from salign import __version__
from salign.config import Config
from salign.digests import ModelDigest, identify
from salign.documents import read_json
from salign.errors import ConfigError
from salign.locks import lock
from salign.markers import DONE
from salign.models import find_local, resolve
from salign.run import RunDir, claim_run
from salign.storage import new_folder, write_atomic


class _Model(TypedDict):
    """As `ModelDigest.to_json` has it."""

    digest: str
    revision: str | None
    files: dict[str, dict[str, Any]]


class Manifest(TypedDict):
    """What stands in `manifest.json`."""

    code: dict[str, Any]
    packages: dict[str, str]
    inputs: dict[str, str]
    python: NotRequired[str]
    seed: NotRequired[int]
    models: NotRequired[dict[str, _Model]]
    later_launches: NotRequired[list[dict[str, Any]]]


PACKAGES = ("torch", "transformers", "deepspeed", "submitit", "mpi4py", "wandb", "openai", "numpy", "scipy", "networkx")
_PACKAGE = Path(__file__).parent
# Beside a snapshot of the package: what `code_version` said of the checkout that it was taken from.
_SNAPSHOT_OF = "code.json"


def code_version() -> dict[str, Any]:
    """Returns this package's version, its commit, and whether the checkout was changed since."""
    noted = _PACKAGE.parent / _SNAPSHOT_OF
    if noted.is_file():
        return read_json(noted, f"the code's version {noted}", dict[str, Any])

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(_PACKAGE), *args], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain", "--", str(_PACKAGE.parent))
    return {
        "salign": __version__,
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "sha256": _digest(_sources()),
    }


def _sources() -> list[Path]:
    """The package's files."""
    return sorted(path for path in _PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _digest(files: list[Path]) -> str:
    hasher = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        hasher.update(f"{path.relative_to(_PACKAGE)}\0{len(content)}\0".encode() + content)
    return hasher.hexdigest()


def read_manifest(run: RunDir) -> Manifest | None:
    """The run's manifest; None where there is none yet.

    Raises:
        DataError: It is damaged.
    """
    if not run.manifest.exists():
        return None
    return read_json(run.manifest, f"the manifest {run.manifest}", Manifest)


def take_snapshot(run: RunDir) -> Path:
    """Copies this package into the run's folder, once for each version: later changes do not reach queued jobs.

    Returns:
        The folder to import it from.
    """
    version = code_version()
    folder = run.code / str(version["sha256"])[:12]
    if not folder.is_dir():
        with new_folder(folder) as part:
            for path in _sources():
                copy = part / _PACKAGE.name / path.relative_to(_PACKAGE)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            write_atomic(part / _SNAPSHOT_OF, json.dumps(version) + "\n")
    return folder


def write_manifest(
    run: RunDir, config: Config, inputs: Mapping[str, str], models: Mapping[str, ModelDigest] | None = None
) -> None:
    """Writes what the run is made from: code, versions, seed, and the hashes of its input files and models.

    Once something is complete, what was noted stays; a later launch by other code is added.

    Args:
        run: The run's folder.
        config: Its config.
        inputs: File to sha256.
        models: Those that are on this machine, by their names in the config.

    Raises:
        ConfigError: An input file or a model has changed since a part of the run was made from it.
    """
    now = {"code": code_version(), "packages": package_versions()}
    manifest: Manifest = {
        "code": now["code"],
        "packages": now["packages"],
        "python": platform.python_version(),
        "seed": config.run.seed,
        "inputs": dict(inputs),
        "models": {},
        "later_launches": [],
    }
    noted = read_manifest(run)
    if noted is not None and next(run.path.rglob(DONE), None) is not None:
        manifest = noted
        changed = [name for name, digest in inputs.items() if manifest["inputs"].get(name, digest) != digest]
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} changed since a part of the run {run.path} was made from it. Choose another "
                "run.name, or restore the file."
            )
        manifest["inputs"] |= inputs  # other benchmarks have other files
        known = manifest.setdefault("models", {})
        for name, model in (models or {}).items():
            _check_model(run, name, known.get(name), model)
        later = manifest.setdefault("later_launches", [])
        if now not in ({"code": manifest["code"], "packages": manifest["packages"]}, *later):
            later.append(now)
    for name, model in (models or {}).items():
        manifest["models"].setdefault(name, _note_of(model))
    write_atomic(run.manifest, json.dumps(manifest, indent=2) + "\n")


def create_run(config: Config) -> RunDir:
    """Makes a run's folder without starting or checking anything; see `salign.run.claim_run`."""
    with claim_run(config) as run:
        write_manifest(run, config, {})
    return run


def require_model(run: RunDir, model: str) -> ModelDigest:
    """Returns the digests of a model that a unit is about to use, downloaded if need be.

    Where the launcher did not have its files, they are noted now. It reads the model's files (of large ones once).

    Raises:
        ConfigError: It cannot be had, or is not the one that the run was begun with.
    """
    if find_local(model) is None:
        resolve(model)
    found = identify(model)
    assert found is not None, model
    if not run.manifest.exists():  # a folder that no launch has made
        return found
    with lock(run.path / ".manifest.lock", f"the manifest of {run.path}", wait=True):
        manifest = read_manifest(run)
        assert manifest is not None
        known = manifest.setdefault("models", {})
        _check_model(run, model, known.get(model), found)
        if model not in known:
            known[model] = _note_of(found)
            write_atomic(run.manifest, json.dumps(manifest, indent=2) + "\n")
    return found


def _note_of(model: ModelDigest) -> _Model:
    return {"digest": model.digest, "revision": model.revision, "files": model.files}


def noted_model(run: RunDir, model: str) -> Mapping[str, Any] | None:
    """Returns what the manifest says of a model (digest, revision, files); None if it says nothing."""
    manifest = read_manifest(run)
    return None if manifest is None else manifest.get("models", {}).get(model)


def _check_model(run: RunDir, name: str, noted: Mapping[str, Any] | None, now: ModelDigest) -> None:
    before = now.files if noted is None else noted["files"]
    changed = [file for file in sorted({*before, *now.files}) if before.get(file) != now.files.get(file)]
    if noted is None or not changed:
        return
    if run.number > 1 and Path(name).is_relative_to(run.first.path):
        raise ConfigError(
            f"the model {name} of generation {run.number - 1} changed since generation {run.number} was made from it. "
            f"Remove {run.path} and the folders of later generations, and launch again."
        )
    if now.revision != noted["revision"]:
        what = f"the hub's revision of the model {name} here is {now.revision}, and the run {run.path} was begun with "
        what += f"{noted['revision']}"
        remedy = f"Name it: model={name.partition('@')[0]}@{noted['revision']} gives that one to a new run"
    else:
        what = f"the model {name} changed since the run {run.path} was begun with it ({', '.join(changed[:3])}"
        what += f"{' ...' if changed[3:] else ''})"
        remedy = "Restore the files"
    raise ConfigError(f"{what}. {remedy}, or choose another run.name for the model as it is now.")


def package_versions() -> dict[str, str]:
    """Returns the installed versions of `PACKAGES`, without loading them."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
