"""Configs of later generations, and what a launch refuses of them; tests/integration runs two."""

from pathlib import Path

import pytest

from salign import compose
from salign.config import ScriptedEngine, TransformersEngine
from salign.engines.check import check_engines
from salign.errors import ConfigError
from salign.run import RunDir, generations


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
