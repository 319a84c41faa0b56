"""References: each response's likelihood under the model at the start of a stage; computed once, kept on disk."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from salign.arrays import load_array, save_array
from salign.errors import StageError
from salign.training.distributed import Ranks, share_from_main
from salign.training.tokens import TokenGroup, TokenStore

_WINDOW = 256  # groups that are laid out together


class ReferencedGroups:
    """The groups of a store, each with the references of its responses."""

    def __init__(self, store: TokenStore, references: NDArray[np.float32]) -> None:
        self._store = store
        self._references = references

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int, /) -> TokenGroup:
        found = self._references[self._store.responses_of(index)]
        return dataclasses.replace(self._store[index], references=found.tolist())


def reference_path(store: Path, inputs: dict[str, str], dtype: str, known: NDArray[np.float32] | None = None) -> Path:
    """Returns where the references of a store are kept.

    Args:
        store: The stage's data.
        inputs: The digests of what the stage is made from, its first model among them.
        dtype: In which the model computes.
        known: As for `with_references`.
    """
    text = repr((store.name, sorted(inputs.items()), dtype))
    if known is not None:
        text += hashlib.sha256(known.tobytes()).hexdigest()
    return store.parent / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"


def earlier_references(store: TokenStore, folders: Mapping[int, Path]) -> NDArray[np.float32]:
    """Reads the references that replayed groups had in their own generation: those of the model of that time.

    Args:
        store: The stage's data.
        folders: By age, those of the same stage in earlier generations.

    Returns:
        [responses of the store], NaN for those of its own generation.

    Raises:
        StageError: Those of a generation are not there, or are not of the groups that are replayed.
    """
    known = np.full(store.num_responses, np.nan, dtype=np.float32)
    for age, folder in folders.items():
        its = _kept(folder)
        for index in np.flatnonzero(store.ages == age).tolist():
            found = its.get(_key(store[index]))
            if found is None:
                raise _not_kept(folder, f"group {index} of {store.folder} is not among its own")
            known[store.responses_of(index)] = found
    return known


def _kept(folder: Path) -> dict[bytes, NDArray[np.float32]]:
    """The references of a stage's own groups by their tokens."""
    tokens, path = next(folder.glob("tokens-*"), None), next(folder.glob("reference-*"), None)
    if tokens is None or path is None:
        raise _not_kept(folder, "they are gone")
    references, store = load_array(path), TokenStore(tokens)
    if references is None or references.shape != (store.num_responses,):
        raise _not_kept(folder, f"{path.name} is damaged")
    own = np.flatnonzero(store.ages == 0).tolist()
    return {_key(store[index]): references[store.responses_of(index)] for index in own}


def _key(group: TokenGroup) -> bytes:
    return hashlib.sha256(repr((group.query, group.responses)).encode()).digest()


def _not_kept(folder: Path, why: str) -> StageError:
    return StageError(
        f"{folder}: the likelihoods that replayed groups had under the model of their own generation are not kept: "
        f"{why}. Remove that folder, and launch again."
    )


def _load(path: Path) -> NDArray[np.float32] | None:
    """What this stage has kept, or another of the run with the same data and model, such as a copy for another seed."""
    kept: NDArray[np.float32] | None = load_array(path)
    others = sorted(path.parent.parent.glob(f"*/{path.name}")) if kept is None else []
    for other in others:
        if other != path and (kept := load_array(other)) is not None:
            save_array(path, kept)
            break
    return kept


def with_references(
    store: TokenStore,
    path: Path,
    ranks: Ranks,
    nll_of: Callable[[Sequence[TokenGroup]], list[list[float] | None]],
    known: NDArray[np.float32] | None = None,
) -> ReferencedGroups:
    """Adds references to the store's groups, computed unless a stage of the run has them; every rank calls it.

    Args:
        store: The stage's data.
        path: Of the references.
        ranks: This rank among all.
        nll_of: Gives the mean nll of each response of those groups that this rank computed, None for the others'.
        known: [responses of the store], those that are not computed, as `earlier_references` has them; NaN elsewhere.
    """
    kept = share_from_main((_load(path),) if ranks.is_main else None)[0]
    if kept is None:
        kept = np.full(store.num_responses, np.nan, dtype=np.float32) if known is None else known.copy()
        unknown = [index for index in range(len(store)) if np.isnan(kept[store.responses_of(index)]).any()]
        for start in range(0, len(unknown), _WINDOW):
            numbers = unknown[start : start + _WINDOW]
            groups = [store[index] for index in numbers]
            sizes = np.cumsum([0, *(len(group.responses) for group in groups)]).tolist()
            own = torch.zeros(sizes[-1], dtype=torch.float64, device=ranks.device)
            for place, values in enumerate(nll_of(groups)):
                if values is not None:
                    own[sizes[place] : sizes[place + 1]] = torch.tensor(values, dtype=own.dtype)
            dist.all_reduce(own)
            for place, index in enumerate(numbers):
                kept[store.responses_of(index)] = own[sizes[place] : sizes[place + 1]].cpu().numpy()
        if ranks.is_main:
            save_array(path, kept)
    if ranks.is_main:
        for other in path.parent.glob("reference-*"):  # of other data or another model
            if other != path:
                other.unlink()
    return ReferencedGroups(store, kept)
