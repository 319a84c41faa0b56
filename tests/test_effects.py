"""What each field of the config decides stands on the field itself, and whoever needs to know reads it there."""

import re
import typing
from pathlib import Path

import pytest

from salign import compose
from salign.config import (
    NOT_FREE,
    Config,
    Effect,
    EngineSection,
    SocietySection,
    TrainStage,
    given,
    selected,
    settings_of,
)
from salign.config.effects import mark_of, sections_in
from salign.errors import ConfigError
from salign.manifest import create_run
from salign.markers import mark_done
from salign.society.headers import journal_header

SETTINGS = list(settings_of(Config))


def all_sections(section, seen):
    if section not in seen:
        seen.append(section)
        for field in section.model_fields.values():
            for inner in sections_in(field.annotation):
                all_sections(inner, seen)
    return seen


def marks_within(annotation) -> list[Effect]:
    """Marks that stand where pydantic does not see them, as in `Annotated[int, Effect.FREE] | None`."""
    found = [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, Effect)]
    for inner in typing.get_args(annotation):
        found += marks_within(inner)
    return found


def test_every_field_of_every_section_has_an_effect_of_its_own_or_of_what_holds_it():
    sections = all_sections(Config, [])
    leaves = {(s, name) for s in sections for name, f in s.model_fields.items() if not sections_in(f.annotation)}
    assert leaves <= {(setting.section, setting.name) for setting in SETTINGS}
    for section in sections:
        for name, field in section.model_fields.items():
            assert marks_within(field.annotation) == [], f"{section.__name__}.{name}: a mark where nobody reads it"
            mark_of(field)  # of several it is an error


def test_what_is_not_marked_decides():
    assert {s.effect for s in SETTINGS if s.path == "engine.dtype"} == {Effect.DECIDES}
    assert {s.effect for s in SETTINGS if s.path == "run.seed"} == {Effect.DECIDES}


@pytest.mark.parametrize(
    ("path", "effect"),
    [
        ("engine.base_url", Effect.FREE),
        ("engine.num_servers", Effect.FREE),
        ("engine.arguments", Effect.DECIDES),
        ("engine.context_length", Effect.DECIDES),
        ("engine.model", Effect.INPUT),
        ("evaluate.judges.*.engine.timeout_s", Effect.FREE),
        ("society.observer.max_in_flight", Effect.FREE),
        ("society.mixture.*.engine.base_url", Effect.FREE),
        ("society.mixture.*.share", Effect.DECIDES),
        ("society.embedder.api_key_env", Effect.FREE),
        ("society.schedule", Effect.FREE),
        ("society.max_rounds", Effect.EXTENT),
        ("society.stopping.tolerance", Effect.EXTENT),
        ("society.num_initial_memories", Effect.DECIDES),
        ("cluster.num_ranks", Effect.FREE),
        ("cluster.train.timeout_min", Effect.FREE),
        ("tracking.wandb", Effect.FREE),
        ("train.stages.*.num_tokens", Effect.DECIDES),
        ("train.stages.*.row_tokens", Effect.FREE),
        ("train.stages.*.data.path", Effect.INPUT),
        ("train.stages.*.deepspeed", Effect.INPUT),
    ],
)
def test_the_effect_of_a_field(path, effect):
    assert {setting.effect for setting in SETTINGS if setting.path == path} == {effect}


# --- what may change inside a run ------------------------------------------------------------------

STAGE = {"name": "s", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "ds.json"}
SERVER = {"kind": "server", "program": "vllm", "model": "somebody/model"}
REMOTE = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}


def config(tmp_path, engine=SERVER, stage=None, **sections) -> Config:
    tree = {
        "run": {"root": str(tmp_path), "name": "mine"},
        "engine": engine,
        "train": {"stages": [{**STAGE, **(stage or {})}]},
        **sections,
    }
    return compose.parse(tree, "test")


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"engine": {**SERVER, "arguments": ["--quantization", "fp8"]}}, "engine.arguments"),
        ({"engine": {**SERVER, "num_top_logprobs": 7}}, "engine.num_top_logprobs"),
        ({"stage": {"num_tokens": 1000}}, "train.stages.s.num_tokens"),
        ({"stage": {"lora": {}}}, "train.stages.s.lora"),
        ({"society": {"max_rounds": 3}}, "society.max_rounds"),
        ({"society": {"stopping": None}}, "society.stopping"),
        ({"society": {"observer": REMOTE}}, "society.observer"),
        ({"model": "somebody/other"}, "model"),
    ],
)
def test_what_decides_may_not_change_inside_a_run(tmp_path, changed, names):
    run = create_run(config(tmp_path))
    mark_done(run.shard(0), [], {}, {})
    with pytest.raises(ConfigError, match=rf"differs in {names.replace('.', '[.]')}") as caught:
        create_run(config(tmp_path, **changed))
    assert "holds a run of another config" in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": {**SERVER, "num_servers": 4, "num_slots": 8, "start_timeout_s": 5}},
        {"stage": {"row_tokens": 64, "gradient_checkpointing": True, "checkpoint_every_steps": 7}},
        {"society": {"schedule": "lockstep", "max_alive": 7}},
        {"cluster": {"kind": "slurm", "simulate": {"timeout_min": 5}}},
        {"tracking": {"wandb": False}},
        # what is measured of its models, which are then evaluated anew
        {"evaluate": {"judges": [{"name": "mild", "engine": REMOTE}], "data_dir": "/data", "benchmarks": ["hh"]}},
    ],
)
def test_where_and_how_it_is_done_may_change_inside_a_run(tmp_path, changed):
    run = create_run(config(tmp_path))
    mark_done(run.shard(0), [], {}, {})
    assert create_run(config(tmp_path, **changed)).config() == config(tmp_path, **changed)


# --- its readers -----------------------------------------------------------------------------------


def test_what_is_given_is_what_is_not_as_by_default(tmp_path):
    judges = [{"name": "mild", "engine": {**REMOTE, "model": "m", "max_in_flight": 3}}]
    section = config(tmp_path, evaluate={"judges": judges, "num_questions": 3, "judge_check": None}).evaluate
    engine = {"kind": "openai", "model": "m"}  # and what is free, such as the address, is left out
    assert given(section, *NOT_FREE) == {"num_questions": 3, "judges": [{"name": "mild", "engine": engine}]}


def test_selected_keeps_the_shape_of_the_config(tmp_path):
    mixture = [{"name": "others", "share": 0.5, "engine": {**REMOTE, "model": "m"}}, {"name": "rest", "share": 0.5}]
    society = config(tmp_path, society={"mixture": mixture, "observer": REMOTE}).society
    free = selected(society, Effect.FREE)
    assert set(free) == {"mixture", "observer", "schedule", "max_alive"}
    assert free["observer"]["base_url"] == REMOTE["base_url"]
    decides = compose.leaves(selected(society, Effect.DECIDES), "society")
    assert decides["society.mixture"] == ["others", "rest"]
    assert decides["society.mixture.others.engine.num_top_logprobs"] == 20
    assert "society.mixture.others.engine.base_url" not in decides
    assert "society.mixture.others.engine.model" not in decides
    assert not {"society.max_rounds", "society.gates.min_rated_share", "society.num_shards"} & set(decides)
    assert selected(society, *Effect) == society.model_dump(mode="json")


def test_a_free_field_is_one_effect_of_four():
    assert set(NOT_FREE) == set(Effect) - {Effect.FREE}


def test_the_settings_of_a_stage_that_decide_are_all_in_what_a_checkpoint_is_made_by(tmp_path):
    stage = config(tmp_path, stage={"num_tokens": 500, "lora": {"rank": 8}}).stage("s")
    made_by = compose.leaves(selected(stage, Effect.DECIDES))
    assert made_by["num_tokens"] == 500
    assert made_by["lora.rank"] == 8
    assert not {"data.kind", "start", "deepspeed", "row_tokens", "keep_checkpoints"} & set(made_by)
    assert {name.split(".")[0] for name in made_by} == {
        name for name, field in TrainStage.model_fields.items() if mark_of(field) is None
    }


def test_every_engine_says_where_it_is_and_what_of_it_decides():
    for engine in sections_in(EngineSection):
        marks = {name: mark_of(field) for name, field in engine.model_fields.items()}
        assert marks.get("model", Effect.INPUT) is Effect.INPUT
        assert marks["max_in_flight"] is Effect.FREE
    assert {name for name, field in SocietySection.model_fields.items() if mark_of(field) is Effect.FREE} == {
        "schedule",
        "max_alive",
    }


def test_a_journal_says_of_every_engine_what_its_answers_depend_on(tmp_path):
    mixture = [{"name": "others", "share": 0.5, "engine": {**SERVER, "arguments": ["--dtype", "half"]}}]
    questions = tmp_path / "q.txt"
    questions.write_text("How?\n")
    society = {"mixture": mixture, "questions": {"kind": "text", "path": str(questions)}}

    def header(**changes):
        made = config(tmp_path, society={**society, **changes.pop("society", {})}, **changes)
        return journal_header(made, ["first", "observer", "others"])

    before = header()
    assert before["model"] == "first"
    assert before["society.mixture.others.model"] == "others"
    assert before["society.mixture.others.engine.arguments"] == ["--dtype", "half"]

    def changed(**changes):
        after = header(**changes)
        return sorted(name for name in before | after if before.get(name) != after.get(name))

    assert changed(engine={**SERVER, "arguments": ["--quantization", "fp8"]}) == ["engine.arguments"]
    assert changed(engine={**SERVER, "context_length": 8192}) == ["engine.context_length"]
    assert changed(engine={**SERVER, "num_servers": 2}) == []
    assert changed(society={"audience_size": 2, "max_rounds": 3, "num_worlds": 2, "schedule": "lockstep"}) == [
        "society.audience_size"
    ]
    moved = tmp_path / "moved.txt"
    moved.write_bytes(questions.read_bytes())
    assert changed(society={"questions": {"kind": "text", "path": str(moved)}}) == []
    questions.write_text("Why?\n")
    assert changed() == ["society.questions.path"]


# --- the page of the docs --------------------------------------------------------------------------


def table() -> str:
    """The settings with a mark, by where they are; a section that may stand at several places once for all of them."""
    holders: dict[type, dict[str, None]] = {}
    for setting in SETTINGS:
        if mark_of(setting.section.model_fields[setting.name]) is not None:
            holders.setdefault(setting.section, {})[setting.path.rpartition(".")[0]] = None
    names: dict[tuple[Effect, str], dict[str, None]] = {}
    for section, places in holders.items():
        # The parts of a stage's data and their sources are part of `data`.
        shown = [place for place in places if not place.startswith("train.stages.*.data")]
        of = ", ".join(f"`{place}`" for place in shown) or "a stage's data" if any(places) else "the config"
        for name, field in section.model_fields.items():
            if (mark := mark_of(field)) is not None:
                names.setdefault((mark, of), {})[name] = None
    lines = ["| | of | settings |", "|---|---|---|"]
    for (mark, of), found in sorted(names.items(), key=lambda item: (item[0][0].value, item[0][1])):
        lines.append(f"| {mark.value} | {of} | {', '.join(f'`{name}`' for name in found)} |")
    return "\n".join(lines)


def test_the_docs_say_what_may_change():
    page = (Path(__file__).parents[1] / "docs" / "reproducibility.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- settings:.*?-->\n(.*?)\n<!-- end of settings -->", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == table(), f"docs/reproducibility.md must have:\n{table()}"
