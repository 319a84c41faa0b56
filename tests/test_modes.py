"""Each family speaks in this process as it does by itself: in a batch, alone, or not at all."""

import asyncio
import logging

import families
import pytest
import torch
from transformers import AutoTokenizer

from salign import models
from salign.config import Sampling
from salign.config import TransformersEngine as TransformersSection
from salign.engines import modes
from salign.engines.base import Prompt
from salign.engines.transformers import TransformersEngine, end_ids
from salign.errors import ConfigError, EngineError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "mode"),
    [
        ("llama", "shared"),
        ("gpt2", "shared"),  # learned positions
        ("deepseek_v3", "shared"),  # latent attention, experts
        ("mistral", "batched"),  # a window in every layer
        ("gemma3_text", "batched"),  # in some
        ("gpt_oss", "batched"),  # and sinks
        ("llama4_text", "batched"),  # chunks
        ("gpt_neo", "batched"),  # a window of its own making
        ("mpt", "batched"),  # ALiBi, which counts columns
        ("bloom", "batched"),
        ("mamba", "alone"),
        ("mamba2", "alone"),
        ("rwkv", "alone"),
        ("lfm2", "alone"),  # convolutions
        ("qwen3_next", "alone"),  # linear attention
        ("granitemoehybrid", "alone"),
        ("falcon_h1", "alone"),
        ("openai-gpt", "alone"),  # no cache at all
    ],
)
def test_each_family_has_the_fastest_mode_that_is_right(family, mode, caplog):
    with caplog.at_level(logging.WARNING):
        assert modes.find_mode(families.build(family)) == mode
    assert ("process one call at a time here" in caplog.text) == (mode == "alone")


def test_an_encoder_is_refused_with_its_family_and_the_reasons():
    with pytest.raises(ConfigError, match=r"'bert' cannot be run in this process \(shared: logits differ .*; alone: "):
        modes.find_mode(families.build("bert"))


def test_a_family_that_does_not_run_by_itself_is_refused(monkeypatch):
    model = families.build("llama")
    monkeypatch.setattr(model.model.layers[0], "forward", lambda *_, **__: {}["what"])
    with pytest.raises(ConfigError, match=r"'llama' cannot be run in this process \(its own forward pass: KeyError"):
        modes.find_mode(model)


def test_want_of_memory_is_no_fault_of_the_family(monkeypatch):
    model = families.build("llama")

    def fail(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(EngineError, match="not enough memory for a text of 30 tokens beside the model: out of memory"):
        modes.find_mode(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_let_through_and_a_wrong_position_is_not(dtype, monkeypatch):
    model = families.build("llama", dtype)
    assert modes.find_mode(model) == "shared"
    step = modes.Batch.step

    def late(self, tokens):
        self._mask[:, :1] = 1  # as if padding were a token
        return step(self, tokens)

    monkeypatch.setattr(modes.Batch, "step", late)
    assert modes.find_mode(model) == "alone"


# --- the engine -----------------------------------------------------------------------------------

ASKED = [
    ("Is it okay to tell my grandmother that I love the sweater?", 24),
    ("Why?", 16),
    ("Is it okay to tell my brother?", 9),
]


def saved(folder, tiny_model, family: str, **settings):
    """A tiny model of a family, with the tokenizer of another."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    model = families.build(family, vocab_size=len(tokenizer), eos_token_id=None, **settings)
    model.save_pretrained(folder)
    return tokenizer, models.load_model(str(folder), torch.float32).eval()


def greedy(tokenizer, model, text: str, num_tokens: int) -> str:
    """As transformers says it, until a token with which the engine too ends a reply."""
    ids = torch.tensor([models.render(tokenizer, text)])
    ends = end_ids(model, tokenizer)
    with torch.inference_mode():
        plain = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=sorted(ends),
        )
    said = plain[0, ids.shape[1] :].tolist()
    return str(tokenizer.decode(said[:-1] if said[-1] in ends else said)).strip()


def ask(folder, asked) -> tuple[list[str], list[float], dict]:
    async def run():
        engine = TransformersEngine(TransformersSection(device="cpu"), str(folder))
        calls = (engine.generate(Prompt(text), Sampling(temperature=0, max_tokens=most), 0) for text, most in asked)
        replies = await asyncio.gather(*calls)
        ratings = await asyncio.gather(*(engine.rate(Prompt(text), 0) for text, _ in asked))
        await engine.close()
        return [reply.text for reply in replies], [rating.mass for rating in ratings], engine.facts()

    return asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "mpt", "gpt_neo", "gemma3_text", "mamba", "rwkv", "lfm2", "qwen3_next"])
def test_what_the_engine_says_is_what_plain_greedy_decoding_says(tiny_model, tmp_path, family):
    tokenizer, model = saved(tmp_path, tiny_model, family, **({"max_seq_len": 256} if family == "mpt" else {}))
    said, masses, facts = ask(tmp_path, ASKED)
    assert said == [greedy(tokenizer, model, *asked) for asked in ASKED]
    assert all(0 < mass < 1 for mass in masses)
    assert facts["calls"] == ("batched" if family in ("mpt", "gpt_neo", "gemma3_text") else facts["calls"])


def test_a_text_that_switches_longrope_leaves_its_neighbours_alone(tiny_model, tmp_path):
    """Beyond 48 tokens transformers changes the positions of a whole batch."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "rope_theta": 10000.0}
    tokenizer, model = saved(
        tmp_path,
        tiny_model,
        "phi3",
        sliding_window=None,
        original_max_position_embeddings=48,
        max_position_embeddings=256,
        rope_parameters={**rope, "original_max_position_embeddings": 48},
    )
    asked = [(ASKED[1][0], 16), (ASKED[0][0], 60), (ASKED[2][0], 9)]
    assert len(models.render(tokenizer, ASKED[0][0])) + 60 > 48 > len(models.render(tokenizer, "Why?")) + 16
    said, _, facts = ask(tmp_path, asked)
    assert said == [greedy(tokenizer, model, *one) for one in asked]
    assert facts["calls"] == "shared"
