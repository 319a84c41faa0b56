"""vLLM itself, on CPUs: a society that is killed and goes on, ratings by probabilities, a trained model that answers.

It takes minutes, and is not part of `make test`: `make test-vllm` installs vLLM and says where, in SALIGN_SERVER.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, environment, launch_afresh, small_config
from journals import records_of
from waits import wait_until

from salign.markers import read_done
from salign.records import read_interactions
from salign.run import RunDir

pytestmark = pytest.mark.integration

VLLM = {
    "kind": "server",
    "program": "vllm",
    "context_length": 1024,
    "num_slots": 8,
    "arguments": ["--enforce-eager", "--dtype=bfloat16"],
}


@pytest.fixture
def env() -> dict[str, str]:
    if not (Path(os.environ.get("SALIGN_SERVER", ".")) / "bin" / "vllm").exists():
        pytest.skip("make test-vllm tries vLLM itself")
    path = f"{os.environ['PATH']}{os.pathsep}{os.environ['SALIGN_SERVER']}/bin"  # `vllm` is found there, after all else
    return {**environment(), "PATH": path, "VLLM_CPU_KVCACHE_SPACE": "1"}


def config_of(folder: Path) -> dict[str, Any]:
    """One small world of two rounds; one step of training, and an evaluation of what it trained."""
    tree = small_config(folder, Path("smollm2-135m"))
    says = {"max_tokens": 12}
    tree["engine"] = VLLM
    tree["society"] = {
        "topology": {"size": 2},
        "max_rounds": 2,
        "audience_size": 1,
        "num_initial_memories": 5,
        "observer_check": None,
        "gates": {"min_rated_share": 0, "max_repeated_share": 1, "max_flagged_share": 1, "max_cut_share": 1},
        **dict.fromkeys(("draft", "feedback", "revision"), says),
    }
    [sft, _] = tree["train"]["stages"]
    tree["train"]["stages"] = [{**sft, "max_steps": 1, "learning_rate": 1e-5}]  # a larger step leaves it speechless
    tree["evaluate"] = {
        "models": ["sft"],
        "num_questions": 2,
        "answer": {"max_tokens": 8, "temperature": 0.0},
        "num_resamples": 100,
        "engine": VLLM,
        "judges": [{"name": "scripted", "engine": {"kind": "scripted"}}],
    }
    tree["cluster"] = {"kind": "local", "num_ranks": 1}
    return tree


def test_a_society_is_killed_and_goes_on_and_its_trained_model_is_served(tmp_path, env):
    config = tmp_path / "vllm.yaml"
    config.write_text(json.dumps(config_of(tmp_path)))
    society = [str(config), "run.name=society", "train.stages=[]", "evaluate.models=[]", "--only", "simulate"]
    run = RunDir(tmp_path / "runs" / "society")

    with (tmp_path / "killed.log").open("wb") as log:
        command = [sys.executable, str(ROOT / "jobs" / "launch.py"), *society]
        killed = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        assert wait_until(lambda: len(records_of(run.shard(0))) >= 5, killed), log.name
        killed.kill()
        killed.wait()
    before = records_of(run.shard(0))
    done = launch_afresh(*society, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    records = records_of(run.shard(0))
    assert set(before) <= set(records)
    facts = read_done(run.shard(0)).facts
    assert facts["num_calls"] == len(records)
    interactions = list(read_interactions(run.shard(0) / "interactions.jsonl"))
    assert {one.round for one in interactions} == {1, 2}
    [measured] = facts["engines"].values()
    assert measured["rating_way"] == "begun"
    assert measured["ways"]["begun"]["mass"] > 0.5

    done = launch_afresh(str(config), "run.name=trained", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(tmp_path / "runs" / "trained")
    results = json.loads((run.evaluation("sft") / "results.json").read_text())
    assert results["answered_by"].startswith("model@")  # the folder of what was trained
    assert results["answered_by"].endswith("(vllm)")
