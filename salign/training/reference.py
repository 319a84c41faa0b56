"""The reference of DPO: each response's likelihood when the stage starts; computed once, kept on disk."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from salign.arrays import load_array, save_array
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


def reference_path(store: Path, inputs: dict[str, str], dtype: str) -> Path:
    """Returns where the references of a store are kept; the digest of the stage's first model is part of it."""
    text = repr((store.name, sorted(inputs.items()), dtype))
    return store.parent / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"


def with_references(
    store: TokenStore,
    path: Path,
    ranks: Ranks,
    nll_of: Callable[[Sequence[TokenGroup]], list[list[float] | None]],
) -> ReferencedGroups:
    """Adds references to the store's groups, computed unless that is done; every rank calls it.

    Args:
        store: The stage's data.
        path: Of the references.
        ranks: This rank among all.
        nll_of: Gives the mean nll of each response of those groups that this rank computed, None for the others'.
    """
    kept = share_from_main((load_array(path),) if ranks.is_main else None)[0]
    if kept is None:
        kept = found = np.full(store.num_responses, np.nan, dtype=np.float32)
        for start in range(0, len(store), _WINDOW):
            groups = [store[index] for index in range(start, min(start + _WINDOW, len(store)))]
            first, end = store.responses_of(start).start, store.responses_of(start + len(groups) - 1).stop
            own = torch.zeros(end - first, dtype=torch.float64, device=ranks.device)
            for index, values in enumerate(nll_of(groups), start=start):
                if values is not None:
                    place = store.responses_of(index)
                    own[place.start - first : place.stop - first] = torch.tensor(values, dtype=own.dtype)
            dist.all_reduce(own)
            found[first:end] = own.cpu().numpy()
        if ranks.is_main:
            save_array(path, found)
    if ranks.is_main:
        for other in path.parent.glob("reference-*"):  # of other data or another model
            if other != path:
                other.unlink()
    return ReferencedGroups(store, kept)
