"""References are computed once for each store and model, and old ones go."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from salign.arrays import save_array
from salign.errors import StageError
from salign.training.distributed import Ranks
from salign.training.reference import earlier_references, reference_path, with_references
from salign.training.tokens import TokenGroup, TokenStore

GROUPS = [TokenGroup([n], [[n, 2], [2]], [2.0, 1.0]) for n in range(3, 8)]


@pytest.fixture
def ranks(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


@pytest.fixture
def store(tmp_path) -> TokenStore:
    folder = tmp_path / "tokens-1"
    folder.mkdir()
    TokenStore.write(folder, GROUPS, {})
    return TokenStore(folder)


def test_each_response_gets_its_own_and_old_files_go(tmp_path, ranks, store):
    calls = 0

    def nll_of(groups):
        nonlocal calls
        calls += 1
        return [[float(group.query[0]), float(group.query[0]) + 0.5] for group in groups]

    paths = [reference_path(tmp_path / "tokens-1", {"model": model}, "float32") for model in ("old", "new")]
    for path in [paths[0], paths[1], paths[1]]:
        found = with_references(store, path, ranks, nll_of)
        assert [found[n] for n in range(5)] == [
            dataclasses.replace(group, references=[group.query[0], group.query[0] + 0.5]) for group in GROUPS
        ]
    assert calls == 2
    assert list(tmp_path.glob("reference-*")) == [paths[1]]
    content = bytearray(paths[1].read_bytes())
    content[len(content) // 2] ^= 1
    paths[1].write_bytes(content)
    assert with_references(store, paths[1], ranks, nll_of)[0].references == [3.0, 3.5]
    assert calls == 3
    inputs = ({"model": "m"}, {"model": "n"}, {"train/sft": "m"})
    places = [(tmp_path / t, i, d) for t in "ab" for i in inputs for d in ("float32", "bfloat16")]
    assert len({reference_path(*place) for place in places}) == 12


def test_a_copy_for_another_seed_takes_those_that_are_there(tmp_path, ranks, store):
    """Which are of the same data and model; where they are damaged, it computes its own."""
    computed = []

    def nll_of(groups):
        computed.append(len(groups))
        return [[float(group.query[0]), 0.5] for group in groups]

    paths = []
    for name in ("dpo", "dpo-seed1", "dpo-seed2"):
        tokens = shutil.copytree(store.folder, tmp_path / "train" / name / "tokens-1")
        paths.append(reference_path(tokens, {"model": "m"}, "float32"))
    first, second, third = paths
    for path in (first, second):
        assert with_references(store, path, ranks, nll_of)[4].references == [7.0, 0.5]
    assert computed == [5]
    assert first.read_bytes() == second.read_bytes()
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:-9])
    assert with_references(store, third, ranks, nll_of)[0].references == [3.0, 0.5]
    assert computed == [5, 5]


# --- groups of earlier generations -----------------------------------------------------------------


def stage(folder, groups, references=None) -> TokenStore:
    """A stage's folder with its groups in tokens and, where there are some, their references."""
    tokens = folder / "tokens-1"
    tokens.mkdir(parents=True)
    TokenStore.write(tokens, groups, {})
    if references is not None:
        save_array(folder / "reference-1.npz", np.array(references, dtype=np.float32))
    return TokenStore(tokens)


@pytest.fixture
def generations(tmp_path) -> tuple[TokenStore, dict[int, Path]]:
    """The store of a third generation, which replays two groups of the second and one of the first."""
    second = [TokenGroup([9, n], [[n, 2], [2]], [2.0, 1.0]) for n in range(3, 6)]
    # The second replayed a group of the first as well, whose reference there is nobody's business here.
    stage(tmp_path / "1", GROUPS, range(10))
    stage(tmp_path / "2", [*second, dataclasses.replace(GROUPS[0], age=1)], [*range(20, 26), 98, 99])
    replayed = [dataclasses.replace(group, age=age) for group, age in [(second[2], 1), (second[0], 1), (GROUPS[3], 2)]]
    store = stage(tmp_path / "3", [*[TokenGroup([8, n], [[n, 2], [2]], [2.0, 1.0]) for n in range(3, 5)], *replayed])
    return store, {1: tmp_path / "2", 2: tmp_path / "1"}


def test_a_replayed_group_has_the_references_of_its_own_generation(generations):
    store, folders = generations
    known = earlier_references(store, folders)
    assert np.isnan(known[:4]).all()
    assert known[4:].tolist() == [24, 25, 20, 21, 6, 7]


def test_what_is_known_is_not_computed(tmp_path, ranks, generations):
    store, folders = generations
    known = earlier_references(store, folders)
    asked = []

    def nll_of(groups):
        asked.extend(group.query for group in groups)
        return [[0.25, 0.5] for _ in groups]

    path = reference_path(store.folder, {"model": "m"}, "float32", known)
    found = with_references(store, path, ranks, nll_of, known)
    assert asked == [[8, 3], [8, 4]]
    assert [found[index].references for index in range(5)] == [[0.25, 0.5]] * 2 + [[24, 25], [20, 21], [6, 7]]
    # Other references of the same groups are another file.
    assert path not in {reference_path(store.folder, {"model": "m"}, "float32", other) for other in (None, known + 1)}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "reference-1.npz").unlink(), "they are gone"),
        (lambda folder: shutil.rmtree(folder / "tokens-1"), "they are gone"),
        (lambda folder: (folder / "reference-1.npz").write_bytes(b"PK"), "reference-1.npz is damaged"),
        (lambda folder: save_array(folder / "reference-1.npz", np.zeros(3)), "reference-1.npz is damaged"),
    ],
)
def test_references_that_are_not_kept_are_named_with_their_folder(generations, damage, said):
    store, folders = generations
    damage(folders[2])
    with pytest.raises(StageError, match=f"{folders[2]}: the likelihoods .*: {said}. Remove that folder, and launch"):
        earlier_references(store, folders)


def test_a_group_that_its_generation_did_not_have_is_refused(tmp_path, generations):
    store, folders = generations
    shutil.rmtree(folders[2])
    stage(folders[2], GROUPS[:2], range(4))
    with pytest.raises(StageError, match=r"group 4 of .* is not among its own"):
        earlier_references(store, folders)
