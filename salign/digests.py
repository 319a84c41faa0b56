"""Identifies a model by its content: digests of its files, so that another model under the same name is noticed.

Only files are read, no library of models is loaded: a login node does it too. Where a model lies does not matter.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salign import models
from salign.storage import sha256, write_atomic

logger = logging.getLogger(__name__)

# What transformers, vLLM or a tokenizer reads of a model's folder.
_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".tiktoken")
_NAMES = ("vocab.txt", "merges.txt")
# Smaller files are hashed each time: 64 MiB take some 50 ms.
REMEMBERED_FROM = 1 << 26
# A file that was just written may be written once more within the resolution of the file system's clock.
SETTLED_S = 2.0


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
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths}


def _sha256(path: Path) -> str:
    """The digest of a file; of a large one remembered until the file is written to, moved, or given other rights."""
    path = path.resolve()  # the hub's cache has links
    before = path.stat()
    if before.st_size < REMEMBERED_FROM:
        return sha256(path)
    # Nobody sets the time of a change (ctime), as `cp -p` sets that of the content.
    key = (str(path), before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    noted = models.cache_folder() / "digests" / hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, ValueError):
        known = noted.read_text(encoding="ascii").strip()
        if len(known) == hashlib.sha256().digest_size * 2:
            return known
    logger.info("hashing %s (%.1f GB), once", path, before.st_size / 1e9)
    found = sha256(path)
    is_settled = time.time() - before.st_ctime > SETTLED_S
    if is_settled and _same(before, path.stat()):
        with contextlib.suppress(OSError):  # a cache that cannot be written: it is hashed again
            write_atomic(noted, found + "\n")
    return found


def _same(before: os.stat_result, now: os.stat_result) -> bool:
    names = ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    return all(getattr(before, name) == getattr(now, name) for name in names)
