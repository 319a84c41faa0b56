"""A model's name: what it leads to, and what is said of one that leads nowhere."""

import shutil
import subprocess

import pytest

from salign import models
from salign.errors import ConfigError


def test_a_folder_and_a_hub_id(tiny_model):
    assert models.resolve(str(tiny_model)) == str(tiny_model)
    models.check_name("Qwen/Qwen2.5-0.5B")
    models.check_name("Qwen/Qwen2.5-0.5B@main")
    assert models.hub_name("Qwen/Qwen2.5-0.5B@main") == ("Qwen/Qwen2.5-0.5B", "main")
    assert models.hub_name("Qwen/Qwen2.5-0.5B") == ("Qwen/Qwen2.5-0.5B", None)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing-at-all", "smollm", "a/b/c"])
def test_a_name_that_leads_nowhere(name):
    with pytest.raises(ConfigError, match="smollm2-135m") as caught:
        models.resolve(name)
    assert name in str(caught.value)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        models.resolve(str(tmp_path))


def test_a_hub_id_that_cannot_be_had():
    with pytest.raises(ConfigError, match="nobody/nothing is not in the cache of the hub and cannot be fetched"):
        models.load_tokenizer("nobody/nothing")


def test_weights_are_read_from_safetensors_alone(tiny_model, tmp_path):
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    model = models.load_model(str(folder), torch.float32)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        models.load_model(str(folder), torch.float32)


def test_a_tokenizer_without_an_end_token(tiny_model, tmp_path):
    import json

    folder = tmp_path / "endless"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="no end token"):
        models.load_tokenizer(str(folder))


def test_weights_that_are_missing_are_not_made_up(tiny_model, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "incomplete"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 of its weights are missing, such as model\.layers\.1\.mlp\.up_proj"):
        models.load_model(str(folder), torch.float32)


def test_a_torn_file_of_weights_and_a_missing_tokenizer(tiny_model, tmp_path):
    import torch

    folder = tmp_path / "torn"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ConfigError, match="does not load"):
        models.load_model(str(folder), torch.float32)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match="no tokenizer"):
        models.resolve(str(folder))


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ('{"vocab_size": 0}', "vocab_size"),
        ('{"num_hidden_layers": 1000000000000}', "num_hidden_layers"),
        ('{"hidden_size": NaN}', "hidden_size"),
        ('{"vocab_size": "many"}', "vocab_size"),
        ("[", "config.json"),
        ("", "config.json"),
    ],
)
def test_an_absurd_config_of_a_model_is_refused_before_it_is_loaded(tmp_path, said, name):
    (tmp_path / "config.json").write_text(said)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=name):
        models.check_name(str(tmp_path))


def test_the_cached_file_of_the_embedded_model_is_compared_with_its_digest_at_each_use(tmp_path, monkeypatch):
    monkeypatch.setenv("SALIGN_CACHE", str(tmp_path))
    cached = tmp_path / "smollm2-135m" / models.EMBEDDED["smollm2-135m"].member.split("/")[-1]
    cached.parent.mkdir()
    cached.write_bytes(b"GGUF of somebody else's")
    with pytest.raises(ConfigError, match="is damaged"):
        models.embedded_gguf("smollm2-135m")


def test_the_embedded_models_weights_are_compared_with_their_digests_at_each_use(tmp_path, monkeypatch):
    monkeypatch.setenv("SALIGN_CACHE", str(tmp_path))
    folder = tmp_path / "smollm2-135m" / "huggingface"
    folder.mkdir(parents=True)
    names = ("config.json", "model.safetensors", "tokenizer.json")
    for name in names:
        (folder / name).write_text("what we made")
    sums = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True)
    (folder / "SHA256SUMS").write_text(sums.stdout)
    assert models.resolve("smollm2-135m") == str(folder)
    (folder / "model.safetensors").write_text("what we mad3")
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged or missing .* Remove"):
        models.resolve("smollm2-135m")
