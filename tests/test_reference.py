"""References are computed once for each store and model, and old ones go."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from salign.training.distributed import Ranks
from salign.training.reference import reference_path, with_references
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
