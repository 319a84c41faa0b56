"""What stands beside the weights of a trained model: card, generation config, tokenizer and template."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from salign import compose, models
from salign.errors import ConfigError
from salign.training.card import Facts, licence_of, model_card
from salign.training.export import complete_generation_config, write_model

FACTS = Facts({"num_steps": 3, "num_tokens": 1234, "num_bad_rows_left_out": 2}, "0123456789abcdef", 8, 3)
ROWS = [
    {"train/global_step": 1, "train/loss": 4.0, "train/loss_best": 3.5, "train/rewards/margins": None},
    {"train/global_step": 2, "train/loss": 3.0, "train/loss_best": 2.5, "eval/loss": 3.25},
    {"train/global_step": 3, "train/loss": 2.0, "train/loss_best": 1.5, "train/rewards/margins": 0.5},
]


def config(model: str, **changes):
    first = {"name": "sft", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "z.json"}
    second = {
        "name": "stable",
        "objective": {"kind": "stable", "ratio": 0.3},
        "data": {"kind": "groups", "path": "/home/somebody/secret/Groups.jsonl"},
        "deepspeed": "z.json",
        **changes,
    }
    return compose.parse({"run": {"name": "mine"}, "model": model, "train": {"stages": [first, second]}}, "test")


def card(model: str = "smollm2-135m", base: str | None = None, **changes) -> tuple[dict, str]:
    made = config(model, **changes)
    text = model_card(made, made.stage("stable"), base or model, FACTS, ROWS)
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def test_the_front_says_what_a_hub_reads():
    front, _ = card()
    assert front == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["salign", "stable"],
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    assert card("somebody/something", lora={"rank": 8})[0]["tags"] == ["salign", "stable", "lora"]
    assert card("somebody/something")[0]["base_model"] == "somebody/something"


def test_it_says_which_model_of_that_name_training_started_from():
    made = config("somebody/something@main")
    facts = dataclasses.replace(FACTS, base={"digest": "0f" * 32, "revision": "ab" * 20, "files": {}})
    text = model_card(made, made.stage("stable"), made.model, facts, ROWS)
    assert "`somebody/something` -> `sft` -> **`stable`**" in text
    assert f"the digest `{'0f' * 8}`, revision `{'ab' * 20}` of the hub." in text
    assert "base_model: somebody/something\n" in text
    assert "digest `0f" not in card()[1]


def test_it_says_data_objective_settings_and_figures():
    _, text = card(lora={"rank": 8})
    assert "`HuggingFaceTB/SmolLM2-135M-Instruct` -> `sft` -> **`stable`**" in text
    assert "Graded groups of responses, from the file `Groups.jsonl`; digest `0123456789abcdef`" in text
    assert "/home/somebody" not in text
    assert '"ratio": 0.3' in text
    assert "| learning_rate | 2e-05 |" in text
    assert '| lora, merged into the weights | {"rank": 8' in text
    assert "| ranks | 8 |" in text
    assert "| num_bad_rows_left_out | 2 |" in text
    assert "| loss | 4.0000 | 2.0000 | 3.2500 |" in text
    assert "| rewards/margins | - | 0.5000 | - |" in text


def test_the_licence_is_that_of_what_it_started_from(tmp_path):
    assert licence_of("smollm2-135m") == "apache-2.0"
    assert licence_of("somebody/something") is None
    base = tmp_path / "base"
    base.mkdir()
    assert licence_of(str(base)) is None
    front, text = card(str(base))
    assert front["license"] == "unknown"
    assert "base_model" not in front
    assert str(tmp_path) not in text
    assert "Find out before you distribute this model" in text
    for written, licence in (
        ("---\nlicense: mit\n---\nx", "mit"),
        ("---\nlicense: [\n---\n", None),
        ("---\n3\n---\n", None),
        ("no front", None),
    ):
        (base / "README.md").write_text(written)
        assert licence_of(str(base)) == licence


@pytest.mark.parametrize(
    ("written", "licence"),
    [
        (b"---\nlicense: mit\n---\n# Mod\xe8le\n", "mit"),  # Latin-1
        (b"---\nlicense: mit\ndate: 2023-13-45\n---\n", "mit"),  # no such day
        (b"---\r\nlicense: mit\r\n---\r\n", "mit"),
        (b"---\nlicense: null\n---\n", None),
        (b"---\nlicense: " + b"[" * 100_000 + b"\n---\n", None),
        (b"---\nlicense: \x00\n---\n", None),
        (b"---\nlicense: [mit, apache-2.0]\n---\n", None),
        (b"---\n- mit\n---\n", None),
        (b"\xff\xfe", None),
    ],
)
def test_of_a_card_that_cannot_be_read_the_rest_is_left_out(tmp_path, written, licence):
    (tmp_path / "README.md").write_bytes(written)
    assert licence_of(str(tmp_path)) == licence


def test_the_shared_cases_of_cards_are_read(shared_data, tmp_path):
    for name in ("model_card_latin1.md", "model_card_date.md"):
        (tmp_path / "README.md").write_bytes((shared_data.parent / "cases" / name).read_bytes())
        assert licence_of(str(tmp_path)) == "mit"


def test_a_stage_inherits_the_licence_of_the_stage_before(tmp_path):
    made = config("smollm2-135m")
    (tmp_path / "README.md").write_text(model_card(made, made.stage("sft"), "smollm2-135m", FACTS, ROWS))
    assert card("smollm2-135m", base=str(tmp_path))[0]["license"] == "apache-2.0"


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tiny_model):
    return models.load_tokenizer(str(tiny_model))


def test_all_that_is_needed_is_there_and_loads_in_transformers(tiny_model, tokenizer, tmp_path):
    model = models.load_model(str(tiny_model), torch.float32)
    write_model(tmp_path / "model", model, None, tokenizer, "the card")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    wanted = {"config.json", "model.safetensors", "generation_config.json", "README.md", "chat_template.jinja"}
    assert names >= {*wanted, "tokenizer.json", "tokenizer_config.json"}
    assert not any(name.endswith((".bin", ".py")) for name in names)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert models.render(again, "Hello") == models.render(tokenizer, "Hello")
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([models.render(again, "Hello")])
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_template_that_the_config_asks_for_is_written(tiny_model, tmp_path):
    alpaca = models.load_tokenizer(str(tiny_model), "alpaca")
    write_model(tmp_path / "model", models.load_model(str(tiny_model), torch.float32), None, alpaca, "")
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again.chat_template == models.ALPACA_TEMPLATE


def with_generation(tiny_model: Path, folder: Path, **settings):
    shutil.copytree(tiny_model, folder)
    known = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**known, **settings}))
    return models.load_model(str(folder), torch.float32)


@pytest.mark.parametrize(("known", "ends"), [(None, 1), (7, [1, 7]), ([7, 1], [7, 1]), ([7], [1, 7])])
def test_a_reply_ends_where_training_ends_one(tiny_model, tokenizer, tmp_path, known, ends):
    assert tokenizer.eos_token_id == 1
    model = with_generation(tiny_model, tmp_path / "m", eos_token_id=known)
    model.generation_config.eos_token_id = known
    complete_generation_config(model, tokenizer)
    assert model.generation_config.eos_token_id == ends


def test_settings_of_sampling_without_sampling_are_mended(tiny_model, tokenizer, tmp_path):
    """Such a config is shipped with some models, and transformers refuses to write it."""
    model = with_generation(tiny_model, tmp_path / "m", temperature=0.6, top_p=0.9, do_sample=False)
    write_model(tmp_path / "out", model, None, tokenizer, "")
    assert GenerationConfig.from_pretrained(tmp_path / "out").do_sample is True


def test_a_generation_config_that_cannot_be_mended_is_refused(tiny_model, tokenizer):
    model = models.load_model(str(tiny_model), torch.float32)
    model.generation_config.num_return_sequences = 4
    model.generation_config.num_beams = 2
    with pytest.raises(ConfigError, match=r"generation_config\.json of the model .* is not valid"):
        complete_generation_config(model, tokenizer)
