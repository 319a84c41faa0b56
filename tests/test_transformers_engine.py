"""Calls that join and leave the batch of a model in this process, and prompts that share their beginnings."""

import asyncio
import contextlib
from pathlib import Path

import pytest
import torch
from waits import HANG_S

from salign import models
from salign.config import Sampling
from salign.config import TransformersEngine as TransformersSection
from salign.engines.base import Prompt
from salign.engines.batching import can_share, prefill
from salign.engines.transformers import TransformersEngine
from salign.errors import EngineError

HELLO = Prompt("Hello, how are you?")
LONG = (Prompt("Tell me about your day."), Sampling(max_tokens=200), 1)
MIXED = [
    (HELLO, Sampling(max_tokens=40), 7),
    (HELLO, Sampling(max_tokens=25), 8),
    (Prompt("Is it okay to tell my grandmother that I love the sweater? " * 8), Sampling(max_tokens=30), 0),
    (Prompt("Should I admit my mistake?", system="You tell the truth."), Sampling(temperature=0, max_tokens=50), 0),
    (Prompt("1 2 3 4 5 6 7"), Sampling(temperature=0, max_tokens=1), 0),
    (Prompt("Hi"), Sampling(top_p=0.5, max_tokens=60), 3),
    (Prompt("How do I apologise to my sister?"), Sampling(temperature=2.0, max_tokens=60), 4),
]


def opened(model: Path, **settings) -> TransformersEngine:
    """An engine whose replies are all as long as they may be, so that a test knows how long one takes."""
    engine = TransformersEngine(TransformersSection(device="cpu", **settings), str(model))
    engine.end_ids = set()
    return engine


@pytest.fixture
def engine(tiny_model: Path):
    engine = opened(tiny_model)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture
def narrow(tiny_model: Path):
    engine = opened(tiny_model, max_batch=3)
    yield engine
    asyncio.run(engine.close())


def widths(engine: TransformersEngine) -> list[tuple[int, int]]:
    """The shape of the mask of each step of the replies under way."""
    shapes: list[tuple[int, int]] = []
    engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: (
            shapes.append(tuple(kwargs["attention_mask"].shape)) if kwargs["input_ids"].shape[1] == 1 else None
        ),
        with_kwargs=True,
    )
    return shapes


def watch(engine: TransformersEngine) -> list[tuple[int, int]]:
    """The shape of what the model is given, forward after forward."""
    shapes: list[tuple[int, int]] = []
    engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


async def progress(engine: TransformersEngine, num_tokens: int = 5, num_running: int = 1) -> None:
    """Waits until this many replies are under way, and the first of them so far."""
    async with asyncio.timeout(HANG_S):
        while True:
            lengths = engine.lengths
            if len(lengths) >= num_running and lengths[0] >= num_tokens:
                return
            await asyncio.sleep(0.001)


def alone(engine: TransformersEngine, *asked):
    async def one_by_one():
        return [await engine.generate(*call) for call in asked]

    return asyncio.run(one_by_one())


# --- joining and leaving --------------------------------------------------------------------------


def test_replies_that_join_a_running_batch_are_those_of_calls_alone(engine):
    expected = alone(engine, LONG, *MIXED)
    assert expected[0].completion_tokens == 200
    shapes = watch(engine)

    async def staggered():
        tasks = [asyncio.ensure_future(engine.generate(*LONG))]
        for number, call in enumerate(MIXED):
            await progress(engine, 5 + 6 * number)
            tasks.append(asyncio.ensure_future(engine.generate(*call)))
        return await asyncio.gather(*tasks)

    assert asyncio.run(staggered()) == expected
    assert max(rows for rows, length in shapes if length == 1) >= 3
    assert len([length for _, length in shapes if length > 1]) >= 4  # several prefills while the long one went on


def test_a_late_short_call_is_done_before_an_early_long_one(engine):
    async def run():
        long = asyncio.ensure_future(engine.generate(*LONG))
        await progress(engine)
        short = await engine.generate(HELLO, Sampling(max_tokens=5), 0)
        assert not long.done()
        return short, await long

    short, long = asyncio.run(run())
    assert short.completion_tokens == 5
    assert long.completion_tokens == 200


def test_who_is_done_leaves_and_takes_his_padding_along(engine):
    shapes = widths(engine)
    wide = (MIXED[2][0], Sampling(temperature=0, max_tokens=12), 0)

    async def run():
        calls = [asyncio.ensure_future(engine.generate(*call)) for call in (LONG, wide)]
        return await asyncio.gather(*calls)

    long, _ = asyncio.run(run())
    assert min(width for rows, width in shapes if rows == 2) > long.prompt_tokens + 100
    assert shapes[-1] == (1, long.prompt_tokens + long.completion_tokens - 1)


def test_a_batch_has_no_more_rows_than_it_may(narrow):
    shapes = watch(narrow)
    asked = [(Prompt(f"Number {number}?"), Sampling(max_tokens=5 + 5 * number), number) for number in range(9)]

    async def run():
        return await asyncio.gather(*(narrow.generate(*call) for call in asked))

    replies = asyncio.run(run())
    rows = [rows for rows, length in shapes if length == 1]
    assert max(rows) == 3
    # places are taken again as soon as they are free
    assert len(rows) < sum(reply.completion_tokens for reply in replies) / 2
    assert replies == alone(narrow, *asked)


def test_a_call_that_is_given_up_leaves_the_batch(narrow):
    (expected,) = alone(narrow, LONG)

    async def run():
        given_up = [asyncio.ensure_future(narrow.generate(*LONG)) for _ in range(2)]
        kept = asyncio.ensure_future(narrow.generate(*LONG))
        await progress(narrow, num_running=3)
        for call in given_up:
            call.cancel()
        async with asyncio.timeout(HANG_S):
            while len(narrow.lengths) > 1:
                await asyncio.sleep(0.001)
        assert not kept.done()
        reply = await kept
        for call in given_up:
            with contextlib.suppress(asyncio.CancelledError):
                await call
        return reply

    assert asyncio.run(run()) == expected


# --- ratings between the steps --------------------------------------------------------------------


def test_ratings_do_not_wait_for_replies_under_way(tiny_model):
    """Not even where the batch is full and other replies wait before them."""
    engine = opened(tiny_model, max_batch=1)

    async def run():
        replies = [asyncio.ensure_future(engine.generate(*LONG)) for _ in range(3)]
        await progress(engine)
        ratings = await asyncio.gather(*(engine.rate(prompt, 0) for prompt, _, _ in MIXED))
        assert not any(reply.done() for reply in replies)
        await asyncio.gather(*replies)
        await engine.close()
        return ratings

    assert all(rating.probabilities for rating in asyncio.run(run()))


def test_replies_do_not_wait_for_an_endless_stream_of_ratings(narrow):
    async def run():
        reply = asyncio.ensure_future(narrow.generate(HELLO, Sampling(max_tokens=30), 7))

        async def rate_on():
            count = 0
            while not reply.done():
                await narrow.rate(HELLO, 0)
                count += 1
            return count

        async with asyncio.timeout(30):
            return sum(await asyncio.gather(*(rate_on() for _ in range(8))))

    assert asyncio.run(run()) > 10


# --- shared beginnings ----------------------------------------------------------------------------

JUDGED = "Question: Should I tell her?\nAnswer: Yes, and gently; she would rather hear it from you.\n\n"
JUDGES = [
    *(Prompt(f"{JUDGED}You once answered {number} like this.\n\nHow good is it?") for number in range(4)),
    Prompt(JUDGED + "How good is it?"),
    Prompt(JUDGED + "How engaging is it?"),
    Prompt(JUDGED + "How good is it?"),
    HELLO,
]


def test_ratings_that_share_a_beginning_are_those_of_ratings_alone(engine):
    async def one_by_one():
        return [await engine.rate(prompt, 0) for prompt in JUDGES]

    async def together():
        with engine.holding():
            tasks = [asyncio.ensure_future(engine.rate(prompt, 0)) for prompt in JUDGES]
            while engine.num_waiting < len(tasks):
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    expected = asyncio.run(one_by_one())
    num_tokens = sum(rating.prompt_tokens for rating in expected)
    assert engine.num_prompt_tokens == engine.num_prefilled_tokens == num_tokens
    found = asyncio.run(together())
    for one, other in zip(found, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert one.mass == pytest.approx(other.mass, abs=1e-5)
    assert engine.num_prompt_tokens == 2 * num_tokens
    assert engine.num_prefilled_tokens - num_tokens < num_tokens / 2


def test_replies_that_share_a_beginning_are_those_of_calls_alone(engine):
    asked = [(prompt, Sampling(max_tokens=30), seed) for seed, prompt in enumerate(JUDGES)]

    async def together():
        return await asyncio.gather(*(engine.generate(*call) for call in asked))

    found = asyncio.run(together())
    assert engine.num_prefilled_tokens < engine.num_prompt_tokens
    assert found == alone(engine, *asked)


PROMPTS = [
    [5, 6, 7, 8, 9, 10, 11],
    [5, 6, 7, 8, 20, 21],
    [5, 6, 7, 8, 20, 22, 23],
    [5, 6, 30],
    [5, 6, 7, 8],  # the beginning of others
    [40, 41],
    [5, 6, 7, 8, 20, 21],  # the same again
    [5],
]


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[::-1], PROMPTS[:1], PROMPTS[:1] * 3], ids=str)
def test_each_beginning_is_computed_once_and_rightly(tiny_model, prompts):
    model = models.load_model(str(tiny_model), torch.float32).eval()
    with torch.inference_mode():
        computed = prefill(model, prompts)
        assert computed.num_tokens == len({tuple(ids[:end]) for ids in prompts for end in range(1, len(ids) + 1)})
        keys, values = computed.layers[1]
        for ids, logits, columns in zip(prompts, computed.logits, computed.columns, strict=True):
            plain = model(torch.tensor([ids]), use_cache=True)
            torch.testing.assert_close(logits, plain.logits[0, -1], atol=1e-5, rtol=1e-4)
            layer = plain.past_key_values.layers[1]
            torch.testing.assert_close(keys[:, :, columns], layer.keys, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(values[:, :, columns], layer.values, atol=1e-5, rtol=1e-4)


def test_a_model_with_a_sliding_window_computes_each_prompt_for_itself(tiny_model, tmp_path):
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=8, eos_token_id=tokenizer.eos_token_id, **sizes
    )
    model = MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    assert not can_share(model)
    engine = opened(tmp_path)

    async def run():
        calls = (engine.generate(prompt, Sampling(temperature=0, max_tokens=12), 0) for prompt in JUDGES)
        replies = await asyncio.gather(*calls)
        await engine.close()
        return replies

    for prompt, reply in zip(JUDGES, asyncio.run(run()), strict=True):
        ids = torch.tensor([models.render(tokenizer, prompt.user)])
        with torch.inference_mode():
            plain = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        said = tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert reply.text.startswith(said)  # the plain one ends at the end token
        assert said
    assert engine.num_prefilled_tokens == engine.num_prompt_tokens


# --- failures -------------------------------------------------------------------------------------


def fail_when(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, condition) -> None:
    """The model runs out of memory whenever the condition holds for the shape that it is given."""
    forward = engine.model.forward

    def failing(*args, **kwargs):
        if condition(*kwargs["input_ids"].shape):
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine.model, "forward", failing)


def test_a_step_that_fails_reaches_those_in_the_batch_alone(narrow, monkeypatch):
    expected = alone(narrow, *MIXED)
    with monkeypatch.context() as patch:
        fail_when(narrow, patch, lambda rows, length: rows == 2 and length == 1)

        async def run():
            calls = [asyncio.ensure_future(narrow.generate(*LONG))]
            await progress(narrow)
            calls.append(asyncio.ensure_future(narrow.generate(*MIXED[0])))
            return await asyncio.gather(*calls, return_exceptions=True)

        errors = asyncio.run(run())
    for error in errors:
        assert isinstance(error, EngineError)
        assert "batch of 2: out of memory" in str(error)
    assert alone(narrow, *MIXED) == expected


def test_a_prompt_that_fails_leaves_the_replies_under_way_theirs(engine, monkeypatch):
    (expected,) = alone(engine, LONG)
    fail_when(engine, monkeypatch, lambda rows, length: length > 100)

    async def run():
        long = asyncio.ensure_future(engine.generate(*LONG))
        await progress(engine)
        with pytest.raises(EngineError, match="batch of 1: out of memory"):
            await engine.generate(*MIXED[2])
        assert not long.done()
        return await long

    assert asyncio.run(run()) == expected
