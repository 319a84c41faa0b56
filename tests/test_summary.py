"""The closing figures of a run without a society."""

import io
import json

from rich.console import Console

from salign import compose
from salign.evaluation.statistics import bootstrap_mean
from salign.markers import mark_done
from salign.report.summary import print_summary, summarize
from salign.run import create_run
from salign.storage import write_atomic


def test_a_run_on_files_alone_has_no_society_in_its_table(tmp_path):
    stage = {"name": "sft", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "z.json"}
    tree = {"run": {"root": str(tmp_path), "name": "r"}, "train": {"stages": [stage]}, "cluster": {"num_ranks": 1}}
    config = compose.parse(tree, "test")
    run = create_run(config)
    write_atomic(run.stage("sft") / "metrics.jsonl", json.dumps({"time": 0.0, "train/loss": 2.0}) + "\n")
    for model, value in (("base", 0.0), ("sft", 1.0)):
        row = {"benchmark": "a", "id": 0, "metrics": {"acc": value}}
        figures = {"a/acc": bootstrap_mean([value], num_resamples=100, seed=0).to_json()}
        about = {
            "versions": {},
            "code": {},
            "leak_check": {"num_evaluation_prompts": 1, "num_near": 0},
            "calibration": {},
            "judging": {},
            "skipped": [],
        }
        write_atomic(run.evaluation(model) / "samples.jsonl", json.dumps(row) + "\n")
        write_atomic(run.evaluation(model) / "results.json", json.dumps({"figures": figures, **about}))
        mark_done(run.evaluation(model), ["samples.jsonl", "results.json"], {}, figures)
    summary = summarize(run, config)
    assert summary["society"] is None
    assert summary["dataset"] is None
    assert summary["differences"]["a/acc"]["mean"] == 1.0
    assert "a/acc: sft - base" in (run.path / "evaluate" / "comparison.md").read_text()
    said = io.StringIO()
    print_summary(run, config, summary, Console(file=said, width=160))
    assert "sft - base: a/acc" in said.getvalue()
    assert "interactions" not in said.getvalue()
    assert "groups.jsonl" not in said.getvalue()
