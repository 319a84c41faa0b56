"""Every shipped example goes its whole way."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

from salign.plan import is_complete, units
from salign.records import read_interactions
from salign.run import open_run

pytestmark = pytest.mark.integration

EXAMPLES = sorted((ROOT / "configs" / "examples").glob("*.yaml"))


def test_every_example_goes_its_whole_way_in_small(tmp_path, tiny_model):
    assert len(EXAMPLES) >= 8
    command = [sys.executable, str(Path(__file__).with_name("run_examples.py")), str(tiny_model), str(tmp_path)]
    done = subprocess.run(
        [*command, *map(str, EXAMPLES)], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for example in EXAMPLES:
        run = open_run(tmp_path / example.stem)
        everything = units(run, run.config())
        assert everything
        assert all(is_complete(unit, everything) for unit in everything)
        if run.config().has_society:
            [*interactions] = read_interactions(run.shard(0) / "interactions.jsonl")
            assert {item.protocol for item in interactions} == {run.config().society.protocol.kind}
    assert not (tmp_path / "preferences" / "simulate").exists()
