"""From which checkpoint a stage goes on. (That a real one resumes exactly is tested with real training.)"""

import json
import logging
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from salign.config import TrainStage
from salign.errors import ConfigError, StageError
from salign.markers import mark_done
from salign.training import checkpoint
from salign.training.checkpoint import Found, Store
from salign.training.distributed import Ranks


class Engine:
    """As far as checkpoints know one."""

    def __init__(self, zero_stage: int = 2) -> None:
        self._zero_stage = zero_stage
        self.optimizer = SimpleNamespace(param_groups=[{"weight_decay": 0.1}, {"weight_decay": 0.0}])

    def zero_optimization_stage(self) -> int:
        return self._zero_stage

    def save_checkpoint(self, folder: str, tag: str, client_state: dict[str, Any], save_latest: bool) -> None:
        assert not save_latest
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "state.json").write_text(json.dumps(client_state))

    def load_checkpoint(self, folder: str, tag: str):
        return tag, json.loads((Path(folder) / tag / "state.json").read_text())


@pytest.fixture
def ranks(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


def saved(tmp_path, ranks, *steps: int, inputs=None, keep: int = 2) -> Store:
    store = Store(tmp_path / "checkpoints", inputs or {}, keep)
    for step in steps:
        checkpoint.save(Engine(), store, ranks, {"step": step})
    return store


def written(store: Store, step: int, num_ranks: int, zero_stage: int) -> Path:
    """A checkpoint as other ranks would have left it."""
    folder = store.folder / f"step-{step:07d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    names = ["state.json"]
    if zero_stage:
        names += [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(num_ranks)]
    for name in names[1:]:
        torch.save({}, folder / name)
    mark_done(folder, names, store.inputs, {"step": step, "num_ranks": num_ranks, "zero_stage": zero_stage})
    return folder


def names(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def step_of(found: Found | None) -> int:
    state = checkpoint.resume(Engine(), found)
    assert state is not None
    return state["step"]


def damage(folder: Path) -> None:
    """Other bytes, as many."""
    state = folder / "state.json"
    state.write_bytes(state.read_bytes()[::-1])


def test_the_newest_is_taken_and_old_ones_go(tmp_path, ranks):
    store = saved(tmp_path, ranks, 2, 4, 6)
    assert names(store) == ["step-0000004", "step-0000006"]
    found = checkpoint.find(store, ranks, 2)
    assert found == Found(store.folder / "step-0000006", universal=False)
    assert step_of(found) == 6


def test_each_group_of_parameters_keeps_its_weight_decay(tmp_path, ranks):
    """DeepSpeed gives all of them that of the first out of a converted checkpoint of ZeRO-3."""

    class Levelling(Engine):
        def load_checkpoint(self, folder: str, tag: str):
            self.optimizer.param_groups = [{"weight_decay": 0.1} for _ in range(2)]
            return super().load_checkpoint(folder, tag)

    engine = Levelling()
    checkpoint.resume(engine, checkpoint.find(saved(tmp_path, ranks, 2), ranks, 2))
    assert [group["weight_decay"] for group in engine.optimizer.param_groups] == [0.1, 0.0]


def test_one_that_is_not_whole_is_passed_over(tmp_path, ranks):
    store = saved(tmp_path, ranks, 2, 4)
    (store.folder / "step-0000004" / "state.json").unlink()
    (store.folder / "step-0000008").mkdir()  # killed while saving
    assert step_of(checkpoint.find(store, ranks, 2)) == 2


def test_one_that_is_damaged_is_passed_over_with_a_warning(tmp_path, ranks, caplog):
    store = saved(tmp_path, ranks, 2, 4)
    damage(store.folder / "step-0000004")
    with caplog.at_level(logging.WARNING):
        assert step_of(checkpoint.find(store, ranks, 2)) == 2
    assert "step-0000004 is damaged (state.json) and is skipped" in caplog.text
    damage(store.folder / "step-0000002")
    assert checkpoint.find(store, ranks, 2) is None


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('run')",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Evil(), r"holds builtins\.exec,"),
        (b"x" * 100, "something else than torch.save's form"),
        (b"", "something else than torch.save's form"),
    ],
)
def test_one_that_could_run_code_is_not_loaded(tmp_path, ranks, content, said):
    store = Store(tmp_path / "checkpoints", {}, 2)
    folder = written(store, 1, 1, 2)
    path = next(folder.glob("*.pt"))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"step": torch.zeros(2), "more": content}, path)
    mark_done(folder, ["state.json", path.name], {}, {"step": 1, "num_ranks": 1, "zero_stage": 2})
    with pytest.raises(ConfigError, match=said):
        checkpoint.find(store, ranks, 2)


def test_one_that_was_trained_from_something_else_is_ignored_and_goes(tmp_path, ranks):
    store = saved(tmp_path, ranks, 20, inputs={"dataset": "old"})
    new = Store(store.folder, {"dataset": "new"}, keep=1)
    assert checkpoint.find(new, ranks, 2) is None
    assert checkpoint.find(new, ranks, 3) is None  # nor is its ZeRO stage looked at
    assert step_of(checkpoint.find(store, ranks, 2)) == 20
    checkpoint.save(Engine(), new, ranks, {"step": 2})
    assert names(store) == ["step-0000002"]  # though its number is lower
    assert step_of(checkpoint.find(new, ranks, 2)) == 2


def test_where_there_is_none_the_stage_begins(tmp_path, ranks):
    assert checkpoint.find(Store(tmp_path / "none", {}, 2), ranks, 2) is None
    assert checkpoint.resume(Engine(), None) is None


def test_none_kept_leaves_no_folder(tmp_path, ranks):
    store = saved(tmp_path, ranks, 2, keep=0)
    assert names(store) == ["step-0000002"]  # while the stage runs, the newest stays
    checkpoint.prune(store, 0)
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("before", "now"), [(written, now) for written in range(4) for now in range(4) if written != now]
)
def test_another_zero_stage_is_refused_with_the_remedy_unless_it_converts(tmp_path, ranks, monkeypatch, before, now):
    store = Store(tmp_path / "checkpoints", {}, 2)
    written(store, 2, 1, before)
    monkeypatch.setattr(checkpoint, "universal", lambda folder, *_: folder.with_name(f"universal-{folder.name}"))
    if (before, now) == (1, 2):
        assert checkpoint.find(store, ranks, now) == Found(store.folder / "universal-step-0000002", universal=True)
    else:
        said = rf"under ZeRO stage {before}, now it is {now}.* with ZeRO stage {before}, or remove {store.folder}"
        with pytest.raises(ConfigError, match=said):
            checkpoint.find(store, ranks, now)


def test_one_of_other_ranks_under_zero_3_is_refused_but_for_adapters(tmp_path, ranks, monkeypatch):
    monkeypatch.setattr(checkpoint, "universal", lambda folder, *_: folder.with_name(f"universal-{folder.name}"))
    store = Store(tmp_path / "checkpoints", {}, 2, decays=True)
    written(store, 2, 2, 3)
    with pytest.raises(ConfigError, match=r"by 2 ranks under ZeRO stage 3, now there are 1.* Use 2 ranks again"):
        checkpoint.find(store, ranks, 3)
    assert checkpoint.find(Store(store.folder, {}, 2, adapters=True), ranks, 3) is not None
    assert checkpoint.find(Store(store.folder, {}, 2), ranks, 3) is not None  # without weight decay


def test_one_of_other_ranks_is_converted_once(tmp_path, ranks, monkeypatch):
    store = Store(tmp_path / "checkpoints", {}, 2)
    folder = written(store, 2, 2, 2)
    calls = []

    def convert(command, **_):
        calls.append(command)
        given = dict(zip(command[3::2], command[4::2], strict=False))
        assert given["--input_folder"] == str(folder)
        (Path(given["--output_folder"]) / "state.json").write_text('{"step": 2}')
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", convert)
    for _ in range(2):
        found = checkpoint.find(store, ranks, 2)
        assert found == Found(store.folder / "universal-step-0000002", universal=True)
        assert step_of(found) == 2
    assert len(calls) == 1
    checkpoint.save(Engine(), store, ranks, {"step": 4})
    assert names(store) == ["step-0000002", "step-0000004"]  # what was converted is not needed any more
    assert checkpoint.find(store, ranks, 2) == Found(store.folder / "step-0000004", universal=False)


def test_one_without_zero_serves_any_number_of_ranks(tmp_path, ranks):
    store = Store(tmp_path / "checkpoints", {}, 2)
    folder = written(store, 2, 4, 0)
    assert checkpoint.find(store, ranks, 0) == Found(folder, universal=False)


def test_one_that_cannot_be_converted_is_named_and_leaves_nothing_half(tmp_path, ranks, monkeypatch):
    store = Store(tmp_path / "checkpoints", {}, 2)
    written(store, 2, 4, 2)

    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "Traceback ...\nKeyError: 'optimizer_state_dict'\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(StageError, match=r"of 4 ranks cannot be converted for 1: KeyError.*Continue with 4 ranks"):
        checkpoint.find(store, ranks, 2)
    assert names(store) == ["step-0000002"]


def test_one_of_another_model_data_or_config_is_refused_with_what_differs(tmp_path, ranks):
    made_by = {"data": "1234", "learning_rate": 2e-5, "objective.kind": "stable", "lora": None}
    store = Store(tmp_path / "checkpoints", {}, 2, made_by)
    checkpoint.save(Engine(), store, ranks, {"step": 2})
    assert step_of(checkpoint.find(store, ranks, 2)) == 2
    other = {"data": "5678", "learning_rate": 2e-5, "objective.kind": "stable", "lora.rank": 8}
    said = r"step-0000002 is of another .* differs in data \(was '1234', is '5678'\), lora.rank \(was None, is 8\)"
    with pytest.raises(ConfigError, match=said):
        checkpoint.find(Store(store.folder, {}, 2, other), ranks, 2)
    # One that was trained from other stages is not looked at.
    assert checkpoint.find(Store(store.folder, {"dataset": "new"}, 2, other), ranks, 2) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_tokens": 2000}, r"differs in num_tokens \(was 1000, is 2000\)"),
        ({"objective": {"kind": "dpo", "beta": 0.5}}, r"differs in objective\.beta \(was 0\.1, is 0\.5\)"),
        ({"num_responses": 3}, r"differs in num_responses"),
        ({"row_tokens": 64, "attention": "flex", "checkpoint_every_steps": 7, "gradient_checkpointing": True}, None),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_of_another_layout_gone_on_with(tmp_path, ranks, changed, said):
    given = {
        "name": "s",
        "objective": {"kind": "dpo"},
        "data": {"kind": "groups", "path": "g.jsonl"},
        "deepspeed": "ds.json",
        "num_tokens": 1000,
    }

    def store(**settings):
        stage = TrainStage.model_validate({**given, **settings})
        made_by = checkpoint.made_by(stage, 0, "1234", {"model": "abcd"})
        return Store(tmp_path / "checkpoints", {}, 2, made_by)

    checkpoint.save(Engine(), store(), ranks, {"step": 2})
    if said is None:
        assert step_of(checkpoint.find(store(**changed), ranks, 2)) == 2
        return
    with pytest.raises(ConfigError, match=said):
        checkpoint.find(store(**changed), ranks, 2)


def test_a_checkpoint_of_another_base_model_is_refused(tmp_path, ranks):
    stage = TrainStage.model_validate(
        {"name": "s", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "ds.json"}
    )
    made_by = [checkpoint.made_by(stage, 0, "1234", {"model": digest}) for digest in ("old", "new")]
    checkpoint.save(Engine(), Store(tmp_path / "checkpoints", {}, 2, made_by[0]), ranks, {"step": 2})
    with pytest.raises(ConfigError, match=r"differs in model \(was 'old', is 'new'\)"):
        checkpoint.find(Store(tmp_path / "checkpoints", {}, 2, made_by[1]), ranks, 2)


def test_of_adapters_the_models_own_weights_are_not_saved(tmp_path, ranks):
    class Recording(Engine):
        def save_checkpoint(self, *args, exclude_frozen_parameters: bool = False, **kwargs) -> None:
            super().save_checkpoint(*args, **kwargs)
            assert exclude_frozen_parameters

        def load_checkpoint(self, folder: str, tag: str, *, load_module_strict: bool = True):
            assert not load_module_strict
            return super().load_checkpoint(folder, tag)

    store = Store(tmp_path / "checkpoints", {}, 2, adapters=True)
    checkpoint.save(Recording(), store, ranks, {"step": 2})
    state = checkpoint.resume(Recording(), checkpoint.find(store, ranks, 2), adapters=True)
    assert state is not None
    assert state["step"] == 2
