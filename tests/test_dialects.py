"""What a server is sent in its dialect, and what is said before a launch of one that lacks what a run needs."""

import asyncio
import json
import typing

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from salign import compose
from salign.config import DIALECTS, Dialect, Sampling
from salign.config import OpenAIEngine as OpenAISection
from salign.config.dialects import DialectName
from salign.engines.base import Prompt
from salign.engines.journal import CallKeys
from salign.engines.openai import OpenAIEngine
from salign.errors import CallRejectedError, ConfigError

URL = "http://127.0.0.1:9/v1"


def asked(call, choice=None, **settings) -> dict:
    """The first request of a call, which may be refused."""
    requests = []

    async def chat(request: web.Request) -> web.Response:
        requests.append(await request.json())
        return web.json_response({"choices": [choice or {"message": {"content": "Yes."}}]})

    async def run():
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        async with TestServer(app, host="127.0.0.1") as server:
            section = OpenAISection(kind="openai", base_url=str(server.make_url("/v1")), **settings)
            engine = OpenAIEngine(section, "m")
            try:
                return await call(engine)
            finally:
                await engine.close()

    answer = asyncio.run(run())
    return {"answer": answer, **requests[0]}


def said(engine):
    return engine.generate(Prompt("Why?", "Be kind."), Sampling(temperature=0.5, max_tokens=9), 3)


def form(engine):
    engine.capabilities = engine.capabilities.model_copy(update={"json_schema": True})
    return engine.generate(Prompt("How good?", form="rating"), Sampling(), 3)


def test_every_preset_has_its_name():
    assert set(typing.get_args(DialectName)) == set(DIALECTS)


@pytest.mark.parametrize(
    ("dialect", "has", "lacks"),
    [
        ("vllm", {"max_tokens": 9, "temperature": 0.5, "top_p": 1.0, "seed": 3}, {"max_completion_tokens"}),
        ("openai", {"max_completion_tokens": 9, "temperature": 0.5, "seed": 3}, {"max_tokens"}),
        ("openai_reasoning", {"max_completion_tokens": 9, "seed": 3}, {"max_tokens", "temperature", "top_p"}),
        ("tgi", {"max_tokens": 9, "temperature": 0.5}, {"top_p"}),
        ({"leaves_out": ["seed"]}, {"max_tokens": 9}, {"seed"}),
        ({"leaves_out": ["system"]}, {"messages": [{"role": "user", "content": "Be kind.\n\nWhy?"}]}, set()),
        (
            {"content": "parts"},
            {
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
                    {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
                ]
            },
            set(),
        ),
    ],
)
def test_a_request_is_in_the_server_s_dialect(dialect, has, lacks):
    request = asked(said, dialect=dialect)
    assert {name: request[name] for name in has} == has
    assert not lacks & request.keys()


def test_tgi_has_its_schema_elsewhere():
    assert set(asked(form, dialect="tgi")["response_format"]["value"]) == {"name", "strict", "schema"}
    assert "json_schema" in asked(form)["response_format"]


def test_a_request_for_more_tokens_than_are_shown_asks_for_those():
    top = [{"token": "5", "logprob": -0.1}]
    choice = {"message": {"content": "5"}, "logprobs": {"content": [{"token": "5", "top_logprobs": top}]}}
    request = asked(lambda engine: engine.rate(Prompt("?"), 0), choice, dialect={"max_top_logprobs": 5})
    assert request["top_logprobs"] == 5


# --- more fields -----------------------------------------------------------------------------------


def test_more_fields_are_sent_and_are_another_model_to_the_journal():
    extra = {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}}
    request = asked(said, extra_body=extra)
    assert {name: request[name] for name in extra} == extra

    def key(**settings) -> bytes:
        section = OpenAISection(kind="openai", base_url=URL, **settings)

        async def run():
            engine = OpenAIEngine(section, "m")
            await engine.close()
            return CallKeys(engine.identity).of(Prompt("Why?"), Sampling(), 3)

        return asyncio.run(run())

    assert key() == key(extra_body={})
    assert len({key(), key(extra_body=extra), key(extra_body={"top_k": 21})}) == 3
    assert key(extra_body={"a": 1, "b": 2}) == key(extra_body={"b": 2, "a": 1})


def test_a_section_with_more_fields_is_one_of_a_set_and_comes_back_from_a_file():
    tree = {"engine": {"kind": "openai", "base_url": URL, "extra_body": {"top_k": 20}}}
    config = compose.parse(tree, "test")
    assert len({config.engine, compose.parse(json.loads(config.model_dump_json()), "again").engine}) == 1


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"seed": 3}, r"extra_body.*seed: set by salign"),
        ({"stream": True, "n": 4}, "n, stream: set by salign"),
        ("top_k=20", "extra_body"),
    ],
)
def test_more_fields_are_not_those_of_salign(extra, said):
    tree = {"engine": {"kind": "openai", "base_url": URL, "extra_body": extra}}
    with pytest.raises(ConfigError, match=said):
        compose.parse(tree, "test")


# --- replies that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            {"message": {"content": None, "tool_calls": [{"function": {"name": "web_search"}}]}},
            "called a tool instead of replying.*web_search",
        ),
        ({"message": {"content": "Yes"}, "finish_reason": "error", "error": {"message": "upstream"}}, "upstream"),
        ({"message": {"content": ""}, "finish_reason": "content_filter"}, "content filter"),
    ],
)
def test_what_is_no_reply_is_named(choice, words):
    with pytest.raises(CallRejectedError, match=words):
        asked(said, choice)


# --- before a launch ------------------------------------------------------------------------------


def config_of(dialect, **more):
    return compose.parse({"engine": {"kind": "openai", "base_url": URL, "dialect": dialect}, **more}, "test")


@pytest.mark.parametrize("dialect", ["transformers", "openai_reasoning", {"max_top_logprobs": 0}])
def test_a_dialect_without_probabilities_is_refused_where_ratings_need_them(dialect):
    with pytest.raises(ConfigError, match=r"engine\.dialect shows no log-probabilities.*society\.rating=parse"):
        config_of(dialect)
    assert config_of(dialect, society={"rating": "parse"}).engine.speaks.max_top_logprobs == 0


def test_each_engine_is_held_to_what_it_is_asked_for():
    without = {"kind": "openai", "base_url": URL, "model": "m", "dialect": "transformers"}
    for society in ({"observer": without}, {"mixture": [{"name": "a", "share": 1, "engine": without}]}):
        with pytest.raises(ConfigError, match=r"society\.(observer|mixture\.a\.engine)\.dialect shows no log-prob"):
            compose.parse({"society": society}, "test")
    judge = {"evaluate": {"judges": [{"name": "mild", "engine": without}]}}
    with pytest.raises(ConfigError, match=r"evaluate\.judges\.mild\.engine\.dialect"):
        compose.parse(judge, "test")
    compose.parse({**judge, "society": {"rating": "parse"}}, "test")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dialect": "vlm"}, "dialect"),
        ({"dialect": {"leaves_out": ["messages"]}}, "leaves_out"),
        ({"dialect": "openai", "rating_way": "begun"}, "rating_way begun: the dialect does not have it"),
    ],
)
def test_a_dialect_that_is_none(settings, said):
    with pytest.raises(ConfigError, match=said):
        compose.parse({"engine": {"kind": "openai", "base_url": URL, **settings}}, "test")


def test_a_dialect_of_one_s_own_keeps_the_rest():
    assert Dialect(leaves_out=("seed",)).max_tokens == "max_tokens"
