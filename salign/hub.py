"""Datasets as the package `datasets` reads them: of the hub, saved by `save_to_disk`, or a folder as downloaded."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from salign.errors import DataError
from salign.files import is_pointer
from salign.storage import sha256

# What `save_to_disk` leaves.
_SAVED = ("dataset_dict.json", "state.json")


class HubDataset:
    """One split of a dataset.

    Args:
        path: A hub id, or a folder.
        split: Its name; of a hub id also a part, such as `train[:1000]`.
        name: Of the configuration, where the dataset has several.
        data_dir: The folder inside the dataset that holds the data.
        revision: Of a hub id: a branch, a tag or a commit.

    Raises:
        DataError: It does not load, is not there, or the package datasets is missing.
    """

    def __init__(self, path: str, split: str, name: str | None, data_dir: str | None, revision: str | None) -> None:
        try:
            import datasets
            import pyarrow
        except ImportError:
            raise DataError(
                "data of kind `dataset` needs the package datasets: pip install 'salign[datasets]'"
            ) from None
        self._named = f"{path} (split {split})"
        self._errors = (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError, pyarrow.ArrowException)
        self._files: list[str] = []
        self._rows: Iterable[dict[str, Any]]
        folder = Path(path)
        if folder.is_file():
            raise DataError(f"the dataset {path} is a file; data of kind `groups`, and sources of kind `json`, read it")
        if folder.is_dir() and revision is not None:
            raise DataError(
                f"the dataset {path} is a folder, and a folder has no revision ({revision!r}); leave revision out"
            )
        try:
            if not folder.is_dir():
                self._rows = datasets.load_dataset(path, name, data_dir=data_dir, split=split, revision=revision)
            elif any((folder / file).is_file() for file in _SAVED):
                self._rows = _saved(datasets.load_from_disk(path), path, split, name or data_dir)
            else:
                self._rows = self._downloaded(datasets, path, split, name, data_dir)
        except self._errors as error:
            raise self._failed(error) from error

    def _downloaded(self, datasets: Any, path: str, split: str, name: str | None, data_dir: str | None) -> Any:
        """A folder's files, read in place: nothing is copied into a cache."""
        builder = datasets.load_dataset_builder(path, name, data_dir=data_dir)
        files = builder.config.data_files or {}
        if split not in files:
            raise DataError(f"the dataset {path} has no split {split!r}; it has {', '.join(files) or 'none'}")
        self._files = list(map(str, files[split]))
        for file in self._files:
            if (program := is_pointer(Path(file))) is not None:
                raise DataError(f"{file} is a {program} pointer, not the data: fetch the dataset's content.")
        return datasets.load_dataset(path, name, data_dir=data_dir, split=split, streaming=True)

    def _failed(self, error: BaseException) -> DataError:
        return DataError(
            f"the dataset {self._named} does not load: {error}. Give a hub id, a folder as downloaded from the hub, or "
            "one written by save_to_disk."
        )

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Its rows, numbered from 1.

        Raises:
            DataError: A file is damaged.
        """
        try:
            yield from enumerate(self._rows, start=1)
        except self._errors as error:
            raise self._failed(error) from error

    def digest(self) -> str:
        """What changes when its rows do."""
        if not self._files:
            return str(self._rows._fingerprint)  # type: ignore[attr-defined]
        digests = [sha256(Path(file)) for file in self._files]
        return hashlib.sha256(repr(digests).encode()).hexdigest()


def _saved(loaded: Any, path: str, split: str, narrowed: str | None) -> Any:
    if narrowed is not None:
        raise DataError(
            f"the dataset {path} was written by save_to_disk and has neither name nor data_dir; leave them out"
        )
    if not isinstance(loaded, dict):
        return loaded
    if split not in loaded:
        raise DataError(f"the dataset {path} (split {split}) does not load: it has the splits {', '.join(loaded)}")
    return loaded[split]
