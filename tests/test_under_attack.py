"""The held-out pairs under attack: how they are asked, and `salign attack` on a run of a tiny model."""

import json
import sys

import pytest

from salign import compose
from salign.commands import attack
from salign.config import EvaluateSection
from salign.errors import ConfigError
from salign.evaluation import evaluate as evaluating
from salign.evaluation import resistance
from salign.evaluation.figures import estimates, sample_row
from salign.evaluation.jailbreaks import jailbroken
from salign.evaluation.judged import Item, Sample
from salign.evaluation.tasks import check_known, load_task, local_rows
from salign.evaluation.under_attack import is_attack, names, num_shots, plain
from salign.manifest import create_run
from salign.markers import mark_done
from salign.report.attacks import attack_curve, refusals_by_family
from salign.report.record import read_run

PLAIN = local_rows("pairs", EvaluateSection())


@pytest.mark.parametrize("benchmark", names((0, 2)))
def test_each_pair_is_asked_under_attack_with_the_same_answers(benchmark):
    rows = local_rows(benchmark, EvaluateSection())
    assert [(row["question"], row["choices"]) for row in rows] == [(row["question"], row["choices"]) for row in PLAIN]
    assert all(row["question"] in row["asked"] for row in rows)
    assert (benchmark == "attack_none") == all(row["asked"] == row["question"] for row in rows)
    assert is_attack(benchmark)
    assert is_attack(plain(benchmark))
    assert plain(plain(benchmark)) == plain(benchmark)


def test_more_examples_begin_with_the_fewer():
    two, five = (local_rows(f"attack_shots_{k}", EvaluateSection()) for k in (2, 5))
    for fewer, more in zip(two, five, strict=True):
        assert fewer["asked"].count("Answer:") == 3
        assert more["asked"].count("Answer:") == 6
        examples = fewer["asked"].removesuffix(f"Question: {fewer['question']}\nAnswer:")
        assert more["asked"].startswith(examples)
    assert len({row["asked"][:60] for row in two}) > 50  # each item has its own


def test_the_task_asks_what_the_row_says():
    task = load_task("attack_persona", EvaluateSection())
    row = task.eval_docs[0]
    assert task.doc_to_text(row) == row["asked"] != row["question"]
    assert task.doc_to_choice(row) == PLAIN[0]["choices"]
    assert task.config.task == "attack_persona"


def test_names_that_are_none():
    assert not any(map(is_attack, ("attack", "attack_shots_", "attack_shots_x", "attack_nonesuch", "pairs")))
    assert num_shots("attack_persona") is None
    with pytest.raises(ConfigError, match="has a benchmark 'attack_shots_x'"):
        check_known("attack_shots_x")
    with pytest.raises(ConfigError, match="attack_shots_500: there are 180 examples"):
        local_rows("attack_shots_500", EvaluateSection())


@pytest.fixture
def run(tmp_path, tiny_model):
    section = {"models": ["base"], "benchmarks": ["pairs"], "num_resamples": 100}
    tree = {"run": {"root": str(tmp_path), "name": "r"}, "model": str(tiny_model), "evaluate": section}
    return create_run(compose.parse({**tree, "engine": {"kind": "scripted"}}, "test"))


@pytest.mark.slow
def test_a_run_is_attacked(run, monkeypatch, capsys):
    words = ["salign attack", str(run.path), "--num", "3", "--shots", "2"]
    monkeypatch.setattr(sys, "argv", words)
    attack.main()
    said = capsys.readouterr().out
    assert "attacking base" in said
    folder = resistance.folder_of(run, "base")
    by = {}
    for line in (folder / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        by.setdefault(row["benchmark"], []).append(row["metrics"]["unsafe_nll"])
    assert {name: len(values) for name, values in by.items()} == dict.fromkeys(names((0, 2)), 3)
    rows = json.loads((run.path / "attack" / "changes.json").read_text())
    found = {row["benchmark"]: row for row in rows if row["metric"] == "unsafe_nll"}
    assert found["attack_none"]["change"] is None
    for benchmark in ("attack_persona", "attack_shots_2"):
        mean = sum(by[benchmark]) / 3
        assert found[benchmark]["mean"] == pytest.approx(mean)
        assert found[benchmark]["change"]["mean"] == pytest.approx(mean - sum(by[plain(benchmark)]) / 3)
    (line,) = [line for line in said.splitlines() if line.startswith("| base | shots_2 | 3 |")]
    assert line.count("[") == 6
    # What is measured is not measured again; with more pairs it is another measurement.
    monkeypatch.setattr(resistance, "evaluate", None)
    attack.main()
    monkeypatch.setattr(sys, "argv", [*words[:3], "4", *words[4:]])
    with pytest.raises(TypeError):
        attack.main()


@pytest.mark.slow
def test_attacks_in_the_plan_have_a_curve_in_the_report(run):
    config = run.config()
    section = config.evaluate.model_copy(
        update={"benchmarks": ("attack_shots_2", "attack_shots_0"), "num_documents": 2}
    )
    evaluating.evaluate(run, config.model_copy(update={"evaluate": section}), "base")
    plot = attack_curve(read_run(run, config))
    assert [row[:2] for row in plot.rows] == [["base", 0], ["base", 2]]
    (trace,) = [trace for trace in plot.figure["data"] if trace["name"] == "base"]
    assert trace["x"] == [0, 2]


def test_refusals_are_told_by_family_and_against_the_same_questions(run):
    refused = {0: True, 1: True, 2: False, 3: True, 4: True, 5: False}
    sure, no = "Sure.", "I can't help with that."
    rows = [sample_row(Sample(Item("hh", number, "q", "q"), no if said else sure)) for number, said in refused.items()]
    for number, (family, _) in enumerate(jailbroken(["q"] * 6, EvaluateSection())):
        said = no if family == "suffix" and number else sure
        rows.append(sample_row(Sample(Item("hh_a", number, "q?", "q", family), said)))
    config = run.config()
    folder = run.evaluation("base")
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = {name: found.to_json() for name, found in estimates(rows, config).items()}
    (folder / "results.json").write_text(json.dumps({"figures": figures}))
    mark_done(folder, ["results.json", "samples.jsonl"], {}, {})
    found = {one.metric: one for one in resistance.refusals(run, config, ["base"])}
    assert {name: (one.value.mean, one.value.n, one.change.mean) for name, one in found.items()} == {
        "refused_suffix": (0.5, 2, -0.5),
        "refused_role_play": (0.0, 2, -0.5),
        "refused_persona": (0.0, 1, 0.0),
        "refused_many_shot": (0.0, 1, -1.0),
    }
    text = resistance.write_changes(run, [], list(found.values()))
    assert "| base | role_play | 2 | 0.000 [0.000, 0.000] | -0.500 [-1.000, 0.000] |" in text
    written = json.loads((run.path / "attack" / "changes.json").read_text())
    assert [row["metric"] for row in written] == list(found)
    plot = refusals_by_family(read_run(run, config))
    assert [row[1:3] for row in plot.rows[:2]] == [["no attack", pytest.approx(4 / 6)], ["suffix", 0.5]]
    assert len(plot.rows) == 5
    assert attack_curve(read_run(run, config)) is None


def test_a_model_that_is_not_there_is_named(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["salign attack", str(run.path), "--models", "base,dpo"])
    with pytest.raises(ConfigError, match="no training stage is named 'dpo'"):
        attack.main()
