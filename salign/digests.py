"""Identifies a model by its content: digests of its files, so that another model under the same name is noticed.

Only files are read, no library of models is loaded: a login node does it too. Where a model lies does not matter.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salign import models
from salign.cache import remembered_sha256

# What transformers, vLLM or a tokenizer reads of a model's folder.
_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".tiktoken")
_NAMES = ("vocab.txt", "merges.txt")


@dataclass(frozen=True)
class ModelDigest:
    """The files of a model.

    Attributes:
        revision: The commit of the hub that they are of; None for a folder, a file or an embedded model.
        files: Name to bytes and sha256, as in a marker of `salign.markers`.
    """

    revision: str | None
    files: dict[str, dict[str, Any]]

    @property
    def digest(self) -> str:
        """One hash for all of them."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {"digest": self.digest, "revision": self.revision, "files": self.files}


def identify(model: str) -> ModelDigest | None:
    """The digests of a model's files; None where they are not on this machine (yet).

    Args:
        model: An embedded name, a hub id, a folder in Hugging Face format, or a GGUF file.
    """
    path = models.find_local(model)
    if path is None:
        return None
    if path.is_file():
        return ModelDigest(None, _digests([path]))
    files = [file for file in sorted(path.iterdir()) if file.name.endswith(_SUFFIXES) or file.name in _NAMES]
    return ModelDigest(models.revision_of(path), _digests([file for file in files if file.is_file()]))


def name_of(model: str, files: str | None = None) -> str:
    """A model as results and journals name it: without its place, with its digest where its files are here.

    Args:
        model: Its name in the config.
        files: What is loaded under that name, where it is something else.
    """
    found = identify(files or model)
    label = Path(model).name if Path(model).expanduser().exists() else model
    return label if found is None else f"{label}@{found.digest[:12]}"


def _digests(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    return {path.name: {"bytes": path.stat().st_size, "sha256": remembered_sha256(path)} for path in paths}
