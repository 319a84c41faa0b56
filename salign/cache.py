"""The user's cache: where it is, and the digests of large files that are remembered in it."""

import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path

from salign.errors import ConfigError
from salign.storage import sha256, write_atomic

logger = logging.getLogger(__name__)

# Smaller files are hashed each time: 64 MiB take some 50 ms.
REMEMBERED_FROM = 1 << 26
# A file that was just written may be written once more within the resolution of the file system's clock.
SETTLED_S = 2.0


def cache_folder() -> Path:
    """Returns the folder of embedded models: SALIGN_CACHE, else one in the user's cache."""
    if named := os.environ.get("SALIGN_CACHE"):
        return Path(named).absolute()
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "salign"
    try:
        return Path.home() / ".cache" / "salign"
    except RuntimeError:  # no HOME, and nobody of that number
        raise ConfigError("there is no home folder for the cache of models; name a folder in SALIGN_CACHE") from None


def remembered_sha256(path: Path) -> str:
    """Computes the hex digest of a file's bytes.

    That of a large one is remembered until the file is written to, moved, or given other rights.
    """
    path = path.resolve()  # the hub's cache has links
    before = path.stat()
    if before.st_size < REMEMBERED_FROM:
        return sha256(path)
    # Nobody sets the time of a change (ctime), as `cp -p` sets that of the content.
    key = (str(path), before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    noted = cache_folder() / "digests" / hashlib.sha256(repr(key).encode()).hexdigest()[:32]
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
