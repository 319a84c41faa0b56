"""The bench of what reads a large society's interactions, small."""

import subprocess
import sys

import pytest

from salign.bench import streams
from salign.errors import ConfigError
from salign.machine import peak_memory
from salign.records import read_interactions


@pytest.mark.slow
def test_each_reader_is_measured_in_a_process_of_its_own_against_its_bounds():
    parts: list[str] = []
    figures = streams.measure(1_000, ["collect with dataset.ratio", "summary"], parts.append)
    assert parts == ["collect with dataset.ratio", "making 1,000 interactions", "summary"]
    assert [(figure.unit, figure.to_reach) for figure in figures] == [
        ("/s of a core", ">= 20,000"),
        ("MiB", "<= 512"),
    ] * 2
    assert figures[0].name == "collect with dataset.ratio: 1,000 interactions"
    assert all(figure.value and figure.value > 0 for figure in figures)


@pytest.mark.slow
def test_a_world_that_is_copied_says_nothing_that_another_says(tmp_path):
    run, by_ratio = streams.make_runs(tmp_path, 3)
    lines = (run.shard(0) / "interactions.jsonl").read_bytes().splitlines()
    assert len(lines) == len(set(lines)) == 3_000
    interactions = list(read_interactions(run.shard(0) / "interactions.jsonl"))
    assert [item.key for item in interactions] == sorted(item.key for item in interactions)
    drafts = [item.turn("draft").text for item in interactions]
    assert len(set(drafts)) == 3_000
    assert (by_ratio.shard(0) / "interactions.jsonl").samefile(run.shard(0) / "interactions.jsonl")


def test_an_unknown_reader_is_named_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(streams, "make_runs", None)
    with pytest.raises(ConfigError, match="no part nothing of the benchmark streams; its parts: collect, "):
        streams.measure(1_000, ["nothing"], print)


@pytest.mark.slow
def test_a_run_without_wandb_loads_nothing_of_it(tmp_path):
    """Wandb would map the data into memory to hash it, also where it is disabled."""
    run, _ = streams.make_runs(tmp_path, 1)
    collect = (
        f"from salign.bench import streams; streams.read('collect', streams.RunDir(streams.Path({str(run.path)!r})))"
    )
    command = [sys.executable, "-c", f"{collect}; import sys; print('wandb' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_peak_of_memory_is_the_process_s_own():
    """Not what its parent held when it started it, as `ru_maxrss` is."""
    child = "from salign.machine import peak_memory; print(peak_memory())"
    held = b"x" * (200 << 20)
    said = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout
    assert peak_memory() > len(held) > int(said) > 1 << 20
