"""Configs of later generations, and what a launch refuses of them; tests/integration runs two."""

import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from salign import compose, work
from salign.config import ScriptedEngine, TransformersEngine
from salign.engines.check import check_engines
from salign.errors import ConfigError
from salign.manifest import create_run
from salign.markers import mark_done
from salign.report.generations import print_generations, read_generations
from salign.report.judges import by_generation
from salign.report.record import RunRecord
from salign.run import RunDir, generations
from salign.storage import write_atomic


def loaded(*words: str):
    return compose.load(compose.shipped("quickstart.yaml"), ["generations.num=3", *words])


def test_each_generation_speaks_through_what_the_one_before_trained():
    config, run = loaded(), RunDir(Path("/runs/loop"))
    everything = generations(run, config)
    assert [str(its.path) for its, _ in everything] == [
        "/runs/loop",
        "/runs/loop/generation-2",
        "/runs/loop/generation-3",
    ]
    assert everything[0] == (run, config)
    assert [own.model for _, own in everything[1:]] == [
        "/runs/loop/train/stable/model",
        "/runs/loop/generation-2/train/stable/model",
    ]
    assert {own.engine for _, own in everything} == {config.engine}  # it names no model: the run's is meant
    assert len({own.run.seed for _, own in everything}) == 3


def test_what_rates_stays_the_same():
    _, (_, second), (_, third) = generations(RunDir(Path("/runs/loop")), loaded())
    for own in (second, third):
        assert own.society.observer == TransformersEngine(model="smollm2-135m")
        assert [judge.engine for judge in own.judges] == [TransformersEngine(model="smollm2-135m")]
        assert own.evaluation_seed == 0
        assert own.evaluated_models == ("stable",)


def test_an_observer_that_names_its_model_keeps_it():
    words = (
        "society.observer={kind: transformers, model: /judge}",
        "evaluate.judges=[{name: a, engine: {kind: scripted}}]",
    )
    second = generations(RunDir(Path("/runs/loop")), loaded(*words))[1][1]
    assert second.society.observer.model == "/judge"
    assert [judge.engine for judge in second.judges] == [ScriptedEngine(kind="scripted")]


def test_training_from_the_base_leaves_the_society_the_trained_model():
    second = generations(RunDir(Path("/runs/loop")), loaded("generations.start=base", "generations.stage=sft"))[1][1]
    assert second.model == "smollm2-135m"
    assert second.engine.model == "/runs/loop/train/sft/model"


def test_a_later_generation_is_opened_by_its_folder(tmp_path):
    config = loaded(f"run.root={tmp_path}", "run.name=loop")
    run = RunDir(tmp_path / "loop")
    run.path.mkdir()
    run.config_file.write_text(compose.dump(config))
    second = run.generation(2)
    assert (second.number, second.first) == (2, run)
    assert second.config() == generations(run, config)[1][1]
    assert second.config().run.name == "loop-generation-2"
    with pytest.raises(ConfigError, match="has 3 generations, not 4"):
        run.generation(4).config()
    assert RunDir(tmp_path / "generation-7").number == 1  # a run of that name, in no other's folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.stages=[]"], "generations.num 3 needs a training stage on data of kind `run`"),
        (["generations.stage=dpo"], "generations.stage is 'dpo'; it may be: sft, stable"),
        (["engine.model=smollm2-135m"], "engine.model 'smollm2-135m' would speak in every one of generations.num 3"),
        (["generations.num=0"], "generations.num"),
        (["generations.num=100000"], "each is a whole run"),
    ],
)
def test_generations_that_cannot_be_are_refused(words, said):
    with pytest.raises(ConfigError) as refused:
        loaded(*words)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "engine", ["{kind: openai, base_url: 'http://127.0.0.1:9/v1'}", "{kind: server, program: llama_cpp}"]
)
def test_an_engine_that_cannot_load_what_is_trained_is_refused(engine):
    with pytest.raises(ConfigError, match=r"cannot speak through a model that the run trains.*kind: transformers"):
        check_engines(loaded(f"engine={engine}"), fetch=False)


# --- the loop ends early ---------------------------------------------------------------------------

STOP = "generations.stop={figure: alignment, patience: 2}"


def evaluated(run, config, values):
    """Writes the values of the base and of each generation's model as far as they are there."""
    folders = [run.evaluation("base"), *(run.generation(number).evaluation("stable") for number in range(1, 10))]
    for folder, value in zip(folders, values, strict=False):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps({"figures": {"alignment": {"mean": value}}}))
        mark_done(folder, ["results.json"], {}, {})
    return len(generations(run, config))


@pytest.mark.parametrize(
    ("values", "words", "last"),
    [
        ([], [STOP], 3),
        ([5, 6, 6], [STOP], 3),
        ([5, 4], [STOP], 3),
        ([5, 4, 4.9], [STOP], 2),
        ([5, 4, 5.1], [STOP], 3),
        ([5, 6, 5, 5.9], [STOP, "generations.num=9"], 3),
        ([5, 5], [STOP, "generations.stop.patience=1"], 1),
        ([5, 4, 3], [STOP, "generations.stop.patience=1", "generations.stop.lower_is_better=true"], 3),
        ([5, None], [STOP, "generations.stop.patience=1"], 1),
        ([5, 4, 3], [], 3),
    ],
)
def test_no_other_generation_begins_once_the_figure_no_longer_gets_better(tmp_path, values, words, last):
    assert evaluated(RunDir(tmp_path), loaded(*words), values) == last


def test_without_the_bases_value_the_first_generations_is_what_is_compared_with(tmp_path):
    run, config = RunDir(tmp_path), loaded(STOP, "generations.stop.patience=1", "evaluate.models=[stable]")
    assert evaluated(run, config, [9, 4]) == 3
    assert evaluated(run, config, [9, 4, 3]) == 2


def test_a_figure_that_no_evaluation_has_is_told_with_those_that_there_are(tmp_path):
    config = loaded("generations.stop={figure: questions/kindness}")
    with pytest.raises(ConfigError, match=r"'questions/kindness' is not in .*results\.json, which has: alignment"):
        evaluated(RunDir(tmp_path), config, [5])


def test_a_job_of_a_generation_after_the_last_does_nothing(tmp_path, caplog):
    config = loaded(f"run.root={tmp_path}", "run.name=loop", STOP)
    run = create_run(config)
    assert evaluated(run, config, [5, 4, 4]) == 2
    run.generation(3).path.mkdir()
    with caplog.at_level(logging.INFO):
        work.do_all(run.generation(3).path, [("train", "stable")])
    assert "generation 2 was the last (generations.stop)" in caplog.text
    assert list(run.generation(3).path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["generations.stop={figure: kindness}"],
            "figure 'kindness' is computed by nobody: it may be alignment, ",
        ),
        (["generations.stop={figure: hh/rating}"], "computed by nobody: evaluate.benchmarks are questions"),
        ([STOP, "evaluate.models=[base]"], "computed by nobody: evaluate.models has no model that is trained"),
        ([STOP, "generations.stop.patience=0"], "generations.stop.patience"),
    ],
)
def test_a_figure_that_nobody_computes_ends_no_loop(words, said):
    with pytest.raises(ConfigError) as refused:
        loaded(*words)
    assert said in str(refused.value)


def test_a_rule_of_the_society_may_end_the_loop():
    rule = "society.criteria=[{name: alignment}, {name: short, rule: {kind: length, max_words: 9}}]"
    assert loaded(rule, "generations.stop={figure: short}").generations.stop.figure == "short"


# --- who rates -----------------------------------------------------------------------------------


def judged(own: float, anchor: float) -> dict:
    """Results of an evaluation by two judges."""
    agreement = {"means": {"own": own, "anchor": anchor}}
    figures = {"alignment": {"mean": (own + anchor) / 2, "low": None, "high": None, "n": 2, "num_missing": 0}}
    return {"figures": figures, "judging": {"questions": {"alignment": {"agreement": agreement}}}}


def test_a_judge_that_nothing_was_trained_on_stands_beside_the_one_that_was(tmp_path):
    engine = "{kind: scripted}"
    judges = f"[{{name: own, engine: {engine}}}, {{name: anchor, engine: {engine}}}]"
    config, run = loaded(f"evaluate.judges={judges}"), RunDir(tmp_path / "loop")
    found = [(run.evaluation("base"), judged(3, 4)), (run.evaluation("stable"), judged(5, 4))]
    found.append((run.generation(2).evaluation("stable"), judged(7, 2.5)))
    for folder, results in found:
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results))
    for number, rating in enumerate((3.5, 4.5), start=1):
        report = run.generation(number).report
        report.mkdir()
        means = {"alignment": {"draft": 1.0, "revision": rating}}
        (report / "summary.json").write_text(json.dumps({"society": {"means": means}}))
    table = read_generations(run, config)
    shown = {who: values for who, values in table.curves.items() if any(values)}
    assert shown == {
        "society: alignment, revisions": (3.5, 4.5, None, None),  # a society speaks through the model before it
        "judge own: alignment": (3, 5, 7, None),
        "judge anchor: alignment": (4, 4, 2.5, None),
    }
    assert dict(table.rows)["judge anchor: alignment"] == ("4.000", "4.000", "2.500", None)
    (plot,) = by_generation(RunRecord(run.path, config, None, {}, generations=table))
    assert "judge own: alignment from 3 to 7; judge anchor: alignment from 4 to 2.5." in plot.alt
    assert ["judge anchor: alignment", 2, 2.5] in plot.rows


def test_one_judge_is_the_figure_itself(tmp_path):
    config, run = loaded("society.criteria=[{name: short, rule: {kind: length, max_words: 9}}]"), RunDir(tmp_path / "r")
    folder = run.evaluation("base")
    folder.mkdir(parents=True)
    results = judged(3, 4)
    del results["judging"]
    (folder / "results.json").write_text(json.dumps(results))
    table = read_generations(run, config)
    assert table.curves["judge engine: alignment"] == (3.5, None, None, None)
    assert "judge engine: alignment" not in dict(table.rows)


def test_generations_whose_models_nobody_evaluates_have_a_table_of_their_societies(tmp_path, capsys):
    config = loaded("evaluate.models=[]", f"run.root={tmp_path}")
    run = create_run(config)
    summary = {"society": {"means": {"alignment": {"draft": 4.0}}}}
    for its, _ in generations(run, config):
        write_atomic(its.report / "summary.json", json.dumps(summary))
    print_generations(run, config, Console(width=100))
    assert "society: alignment, drafts" in capsys.readouterr().out
