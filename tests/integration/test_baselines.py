"""Baselines of one comparison, trained on the same data with as many tokens, evaluated and tabled in one launch."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, environment, launch

from salign.markers import read_done
from salign.run import RunDir

pytestmark = pytest.mark.integration

BUDGET = 700


def test_a_comparison_is_one_chain_without_a_society(tmp_path: Path, tiny_model: Path):
    story = {"norm": "It is good to wait.", "intention": "She wants to get in.", "immoral_action": "She breaks in."}
    rows = [{**story, "situation": f"Door {n} is shut.", "moral_action": "She waits" * (1 + n % 3)} for n in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    (tmp_path / "moral_stories_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[8:]))
    stages = "[{name: sft, objective: {kind: sft}, num_responses: 1}, {name: dpo, objective: {kind: dpo}}]"
    done = launch(
        str(ROOT / "configs" / "compare.yaml"),
        f"run.root={tmp_path}",
        f"model={tiny_model}",
        "engine.kind=scripted",
        "tracking.wandb=false",
        f"train.stages={stages}",
        f"train.defaults.data={{kind: groups, path: {tmp_path / 'train.jsonl'}}}",
        f"train.defaults.num_tokens={BUDGET}",
        "train.defaults.groups_per_step=4",
        "evaluate.models=[base, sft, dpo]",
        "evaluate.benchmarks=[moral_stories]",
        f"evaluate.data_dir={tmp_path}",
        env={**environment(), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(tmp_path / "compare")
    assert not (run.path / "simulate").exists()
    for name in ("sft", "dpo"):
        marker = read_done(run.stage(name))
        assert set(marker.inputs) == {"model"}  # from the base, not from each other
        rows = [json.loads(line) for line in (run.stage(name) / "metrics.jsonl").read_text().splitlines()]
        seen = [row["train/num_tokens"] for row in rows]
        assert seen[-1] == marker.facts["num_tokens"]
        assert seen[-2] < BUDGET <= seen[-1]
    assert "dpo - base: moral_stories/acc" in done.stdout
    table = (run.path / "evaluate" / "comparison.md").read_text()
    assert table.startswith("| figure | n | base | sft | dpo |")
    assert "moral_stories/acc: dpo - sft | 4 |" in table
