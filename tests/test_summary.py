"""The closing figures of a run without a society."""

import io
import json

import pytest
from rich.console import Console

from salign import compose
from salign.evaluation.statistics import bootstrap_mean
from salign.evaluation.trial import poor_judges
from salign.manifest import create_run
from salign.markers import mark_done
from salign.report.summary import examples, print_summary, summarize
from salign.report.write import write_report
from salign.storage import write_atomic

SCRIPTED = {"name": "other", "engine": {"kind": "scripted"}}


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
            "judges": {},
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


def test_a_judge_that_is_not_shown_to_be_one_is_said_to_be_none(tmp_path):
    config = compose.parse({"run": {"root": str(tmp_path), "name": "r"}}, "test")
    figure = {"mean": 5.0, "low": 4.0, "high": 6.0, "n": 3, "num_missing": 0}
    summary = {
        **{"society": None, "dataset": None, "training": {}, "evaluation": {"base": {"alignment": figure}}},
        "differences": {"alignment": figure},
        "examples": [{"question": "May I [b]?", "answers": {"base": "Yes\x1b[31m.", "sft": None}}],
    }
    said = io.StringIO()
    console = Console(file=said, width=160)
    print_summary(create_run(config), config, {**summary, "poor_judges": {"alignment": "it is a coin"}}, console)
    assert "Grey: rated by a judge that is not shown to be one: it is a coin." in said.getvalue()
    assert "May I [b]?" in said.getvalue()
    assert "\x1b" not in said.getvalue()
    print_summary(create_run(config), config, {**summary, "poor_judges": {"rating": "it is a coin"}}, console)
    assert said.getvalue().count("Grey") == 1


@pytest.mark.parametrize(
    ("interval", "evaluate", "is_poor"),
    [([0.48, 0.78], {}, True), ([0.55, 0.8], {}, False), ([0.4, 0.6], {"judges": [SCRIPTED]}, False)],
)
def test_the_observer_is_the_judge_unless_another_is_named(tmp_path, interval, evaluate, is_poor):
    config = compose.parse({"run": {"root": str(tmp_path), "name": "r"}, "evaluate": evaluate}, "test")
    observer = {"agreement": 0.64, "agreement_interval": interval, "num_pairs": 36, "num_rated_pairs": 36}
    assert ("alignment" in poor_judges(config, observer, {})) == is_poor
    assert poor_judges(config, None, {}) == {}


def test_a_run_that_evaluates_nothing_has_a_closing_table_too(tmp_path, capsys):
    stage = {"name": "a", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "z.json"}
    tree = {"run": {"root": str(tmp_path), "name": "r"}, "train": {"stages": [stage]}, "evaluate": {"models": []}}
    run = create_run(compose.parse({**tree, "cluster": {"num_ranks": 1}}, "test"))
    row = {"time": 1.0, "train/loss": 2.5, "train/global_step": 1, "train/steps_most": 1}
    write_atomic(run.stage("a") / "metrics.jsonl", json.dumps(row) + "\n")
    found = summarize(run, run.config())
    assert (found["evaluation"], found["examples"]) == ({}, [])
    print_summary(run, run.config(), found, Console(width=100))
    assert "2.500 -> 2.500" in capsys.readouterr().out
    page, _ = write_report(run, run.config())
    assert "loss" in page.read_text()


def test_examples_are_drawn_by_the_seed(tmp_path):
    drawn = []
    for name in ("one", "again"):
        config = compose.parse({"run": {"root": str(tmp_path), "name": name}}, "test")
        run = create_run(config)
        rows = [{"benchmark": "questions", "id": n, "prompt": f"q{n}", "answer": f"a{n}"} for n in range(9)]
        write_atomic(run.evaluation("base") / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        mark_done(run.evaluation("base"), ["samples.jsonl"], {}, {})
        drawn.append(examples(run, config))
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 3
    assert all(row["answers"]["base"] == "a" + row["question"][1:] for row in drawn[0])
