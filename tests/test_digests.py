"""A model is what its files hold: one that was put in its place is noticed before anything is made with it."""

import json
import os
import shutil

import pytest

from salign import cache, compose, models, storage
from salign.digests import identify, name_of
from salign.engines.check import models_of, models_of_society
from salign.errors import ConfigError, StageError
from salign.evaluation.evaluate import model_path
from salign.launch import prepare
from salign.manifest import create_run, noted_model, require_model, write_manifest
from salign.markers import mark_done
from salign.society.shard import run_shard
from salign.training.loop import base_model

STAGE = {"name": "s", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "ds.json"}


@pytest.fixture
def folder(tiny_model, tmp_path):
    copy = tmp_path / "here" / "tiny"
    shutil.copytree(tiny_model, copy)
    return copy


def overwrite(folder, name="model.safetensors") -> None:
    """Another file of the same size and time under the same name."""
    path, before = folder / name, (folder / name).stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- what identifies a model -----------------------------------------------------------------------


def test_where_a_model_lies_does_not_matter_and_each_of_its_files_does(folder, tmp_path):
    before = identify(str(folder))
    assert set(before.files) >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    moved = tmp_path / "there" / "tiny"
    shutil.copytree(folder, moved)
    assert identify(str(moved)) == before
    assert name_of(str(moved)) == name_of(str(folder)) == f"tiny@{before.digest[:12]}"
    (folder / "README.md").write_text("nothing that a model is made of")
    assert identify(str(folder)) == before
    for name in before.files:
        found = identify(str(moved)).digest
        overwrite(moved, name)
        assert identify(str(moved)).digest != found


def test_a_file_in_gguf_and_what_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("SALIGN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF1")
    assert list(identify(str(path)).files) == ["small.gguf"]
    assert name_of("served", str(path)) == f"served@{identify(str(path)).digest[:12]}"
    for name in ("smollm2-135m", "nobody/nothing", "nobody/nothing@main", "a b/c", "served-name"):
        assert identify(name) is None
        assert name_of(name) == name


def snapshot(cache, name: str, commit: str, folder, *, branch: str = "main") -> None:
    """What huggingface_hub leaves of a download."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)


def test_a_model_of_the_hub_has_the_commit_that_is_in_the_cache(folder, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    snapshot(cache, "somebody/tiny", "a" * 40, folder)
    found = identify("somebody/tiny")
    assert (found.revision, found.digest) == ("a" * 40, identify(str(folder)).digest)
    assert models.resolve("somebody/tiny") == str(cache / "models--somebody--tiny" / "snapshots" / ("a" * 40))
    assert name_of("somebody/tiny") == f"somebody/tiny@{found.digest[:12]}"
    overwrite(folder)
    snapshot(cache, "somebody/tiny", "b" * 40, folder)
    assert identify("somebody/tiny").revision == "b" * 40
    assert identify(f"somebody/tiny@{'a' * 40}") == found
    (cache / "models--somebody--tiny" / "snapshots" / ("b" * 40) / "model.safetensors").unlink()
    assert identify("somebody/tiny") is None  # a download that was stopped


def test_a_large_file_is_hashed_once_and_again_when_it_was_written_to(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "REMEMBERED_FROM", (folder / "model.safetensors").stat().st_size)
    monkeypatch.setattr(cache, "SETTLED_S", 0.0)
    hashed = []

    def counted(path):
        hashed.append(path.name)
        return storage.sha256(path)

    monkeypatch.setattr(cache, "sha256", counted)
    before = identify(str(folder))
    assert hashed.count("model.safetensors") == 1
    assert identify(str(folder)) == before
    assert hashed.count("model.safetensors") == 1
    overwrite(folder)
    assert identify(str(folder)) != before
    assert hashed.count("model.safetensors") == 2
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder: nothing can be remembered")
    assert identify(str(folder)).files["config.json"] == before.files["config.json"]


def test_a_file_that_was_just_written_is_not_remembered(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "REMEMBERED_FROM", 0)
    monkeypatch.setattr(cache, "SETTLED_S", 3600.0)
    identify(str(folder))
    assert not (tmp_path / "cache" / "digests").exists()


# --- the run that was begun with it ----------------------------------------------------------------


def config(folder, tmp_path, **sections):
    tree = {
        "run": {"root": str(tmp_path), "name": "mine"},
        "model": str(folder),
        "engine": {"kind": "scripted"},
        "train": {"stages": [STAGE]},
        **sections,
    }
    return compose.parse(tree, "test")


def launched(made):
    """A run whose launcher had the model."""
    run = create_run(made)
    write_manifest(run, made, {}, {made.model: identify(made.model)})
    return run


def test_which_models_a_run_has(folder, tmp_path):
    other = {"kind": "transformers", "model": "somebody/judge"}
    mixture = [{"name": "a", "share": 0.5, "engine": {"kind": "server", "program": "vllm"}}]
    society = {"mixture": mixture, "embedder": {"kind": "transformers", "model": "somebody/embedder"}}
    judges = [{"name": "j", "engine": other}, {"name": "k", "engine": {"kind": "openai", "base_url": "http://x/v1"}}]
    made = config(folder, tmp_path, society=society, evaluate={"judges": judges})
    assert models_of(made) == (str(folder), "somebody/judge", "somebody/embedder")
    assert models_of_society(made) == (str(folder), "somebody/embedder")
    embedded = {"kind": "server", "program": "llama_cpp", "model": "smollm2-135m"}
    assert models_of(config(folder, tmp_path, engine=embedded)) == (str(folder),)


def test_weights_that_were_overwritten_are_noticed_at_the_next_launch(folder, tmp_path):
    made = config(folder, tmp_path)
    run = launched(made)
    noted = noted_model(run, made.model)
    assert noted["digest"] == identify(made.model).digest
    overwrite(folder)
    launched(made)  # nothing is complete yet
    mark_done(run.shard(0), [], {}, {})
    overwrite(folder)
    before = run.manifest.read_bytes()
    with pytest.raises(ConfigError, match=r"the model .*tiny changed since the run .*\(model\.safetensors\)"):
        launched(made)
    assert run.manifest.read_bytes() == before
    overwrite(folder)
    launched(made)


def test_they_are_noticed_before_they_are_evaluated_or_trained_on(folder, tmp_path):
    made = config(folder, tmp_path)
    run = launched(made)
    digest = identify(made.model).digest
    assert model_path(run, made, "base") == (made.model, {"model": digest})
    assert base_model(run, made, made.stage("s")) == (made.model, {"model": digest})
    overwrite(folder)
    for use in (lambda: model_path(run, made, "base"), lambda: base_model(run, made, made.stage("s"))):
        with pytest.raises(ConfigError, match=r"Restore the files, or choose another run\.name"):
            use()


def test_they_are_noticed_before_a_shard_speaks_through_them(folder, tmp_path):
    made = config(folder, tmp_path, engine={"kind": "transformers", "device": "cpu"})
    run = launched(made)
    overwrite(folder, "tokenizer.json")
    with pytest.raises(ConfigError, match=r"changed since the run .*\(tokenizer\.json\)"):
        run_shard(run, made, 0)


def test_a_model_that_the_launcher_did_not_have_is_noted_by_the_first_who_uses_it(folder, tmp_path):
    made = config(folder, tmp_path)
    run = create_run(made)
    write_manifest(run, made, {})
    assert noted_model(run, made.model) is None
    require_model(run, made.model)
    assert noted_model(run, made.model)["files"] == identify(made.model).files
    mark_done(run.shard(0), [], {}, {})
    write_manifest(run, made, {})
    overwrite(folder)
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        require_model(run, made.model)


def test_another_revision_of_the_hub_is_named(folder, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    snapshot(cache, "somebody/tiny", "a" * 40, folder)
    made = config("somebody/tiny", tmp_path)
    run = launched(made)
    assert json.loads(run.manifest.read_text())["models"]["somebody/tiny"]["revision"] == "a" * 40
    overwrite(folder)
    snapshot(cache, "somebody/tiny", "b" * 40, folder)
    with pytest.raises(ConfigError, match=r"is b{40}, and .* begun with a{40}.*model=somebody/tiny@a{40}"):
        require_model(run, made.model)


def test_a_trained_model_is_vouched_for_by_its_marker(folder, tmp_path):
    made = config(folder, tmp_path)
    run = launched(made)
    shutil.copytree(folder, run.model("s"))
    names = [f"model/{path.name}" for path in run.model("s").iterdir()]
    done = mark_done(run.stage("s"), names, {}, {})
    assert model_path(run, made, "s") == (str(run.model("s")), {"train/s": done.digest})
    overwrite(run.model("s"))
    with pytest.raises(StageError, match=r"model\.safetensors has changed since train stage s was done"):
        model_path(run, made, "s")


def test_a_launch_notes_and_compares_the_models_of_every_engine(folder, tiny_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    judge = {"name": "mild", "engine": {"kind": "transformers", "model": str(other)}}
    made = config(folder, tmp_path, train={}, evaluate={"judges": [judge]})
    run = prepare(made)
    assert set(json.loads(run.manifest.read_text())["models"]) == {str(folder), str(other)}
    mark_done(run.shard(0), [], {}, {})
    prepare(made)
    overwrite(other, "tokenizer.json")
    with pytest.raises(ConfigError, match=r"the model .*other changed since .*\(tokenizer\.json\)"):
        prepare(made)
