"""Interactions on their way to the shard's file."""

import contextlib
import itertools
import random
import resource
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from actors import interaction

from salign.machine import peak_memory
from salign.records import to_bytes
from salign.society.spool import Spool, write_sorted

PLACES = list(itertools.product((0, 3), (1, 2, 3), range(7)))


def held(world: int, round_: int, agent: int):
    return interaction(world=world, round=round_, agent=agent, question=f"Why{'?' * (agent + round_)}")


@contextlib.contextmanager
def spools_of(folder: Path, places, num_spools: int, seed: int = 0) -> Iterator[list[Spool]]:
    """Interactions in any order, each in one of the spools."""
    generator = random.Random(seed)
    with contextlib.ExitStack() as stack:
        spools = [stack.enter_context(Spool(folder / "parts" / f"{number}")) for number in range(num_spools)]
        for place in generator.sample(places, len(places)):
            generator.choice(spools).add(held(*place))
        for spool in spools:
            spool.flush()
        yield spools


@contextlib.contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """No file grows longer."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def write(path: Path, spools, rounds) -> bytes:
    write_sorted(path, [(spool.path, dict(spool.index)) for spool in spools], rounds)
    return path.read_bytes()


def lines(places) -> bytes:
    return b"".join(to_bytes(held(*place)) for place in places)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_spools", [1, 2, 5])
def test_interactions_come_out_in_the_canonical_order_from_any_number_of_spools(num_spools, seed, tmp_path):
    rounds = list(itertools.product((0, 3), (1, 2, 3)))
    with spools_of(tmp_path, PLACES, num_spools, seed) as spools:
        assert write(tmp_path / "out.jsonl", spools, rounds) == lines(PLACES)


def test_a_spool_may_hold_nothing(tmp_path):
    with spools_of(tmp_path, PLACES, 1) as spools, Spool(tmp_path / "empty") as empty:
        assert write(tmp_path / "out.jsonl", [empty, *spools], [(0, 1)]) == lines(PLACES[:7])


def test_rounds_that_are_not_named_are_left_out(tmp_path):
    with spools_of(tmp_path, PLACES, 3) as spools:
        found = write(tmp_path / "out.jsonl", spools, [(0, 1), (0, 2), (3, 1)])
    assert found == lines(place for place in PLACES if place[:2] in {(0, 1), (0, 2), (3, 1)})


def test_a_spool_takes_its_file_with_it(tmp_path):
    with Spool(tmp_path / "new folder" / "part") as spool:
        spool.add(held(0, 1, 0))
        assert spool.path.exists()
    assert not spool.path.exists()


def test_the_file_is_whole_or_as_it_was(tmp_path):
    """A disk that is full in the midst of it: nothing half-written, no scratch file left."""
    path = tmp_path / "out.jsonl"
    with spools_of(tmp_path, PLACES, 2) as spools:
        whole = write(path, spools, [(0, 1)])
        with full_disk(len(lines(PLACES)) // 2), pytest.raises(OSError, match="File too large"):
            write(path, spools, itertools.product((0, 3), (1, 2, 3)))
    assert path.read_bytes() == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "parts"]


def test_a_spool_that_cannot_be_written_out_is_removed_all_the_same(tmp_path):
    spool = Spool(tmp_path / "part")
    spool.add(held(0, 1, 0))
    with full_disk(10), pytest.raises(OSError, match="File too large"), spool:
        spool.flush()
    assert not list(tmp_path.iterdir())


def test_what_is_read_of_a_spool_is_no_memory_of_the_process(tmp_path):
    """A file that is mapped into memory is, as long as its pages are there: 32 MiB of it."""
    num, size = 32, 1 << 20
    path = tmp_path / "spool"
    path.write_bytes(bytes(num * size))
    offsets = array("q", range(0, num * size, size))
    index = {(0, 1): (array("q", range(num)), offsets, array("q", [size] * num))}
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
    before = peak_memory()
    write_sorted(tmp_path / "sorted", [(path, index)], [(0, 1)])
    assert peak_memory() - before < 8 * size
    assert (tmp_path / "sorted").stat().st_size == num * size
