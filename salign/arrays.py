"""Arrays that are kept between starts in files with checksums: one that is damaged is made anew."""

import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salign.storage import new_file

logger = logging.getLogger(__name__)

# Whatever numpy and zipfile raise of bytes that are not theirs.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Writes an array, whole or not at all; the name ends in `.npz`, whose format has a checksum."""
    with new_file(path) as file:
        np.savez(file, array=array)


def load_array(path: Path) -> NDArray[Any] | None:
    """The array of `save_array`; None where there is none, or where it is damaged, which is logged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            array: NDArray[Any] = found["array"]
            return array
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        logger.warning("%s is damaged (%s) and is made anew", path, error)
        return None
