"""What a model thinks never enters what it says; and who ended a reply is known."""

import asyncio
import tempfile

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer

from salign import models
from salign.config import OpenAIEngine as OpenAISection
from salign.config import Sampling
from salign.config import TransformersEngine as TransformersSection
from salign.engines import thinking
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.openai import OpenAIEngine
from salign.engines.opening import metered
from salign.engines.transformers import TransformersEngine
from salign.errors import CallRejectedError

HELLO = Prompt("Hello, how are you?")


@pytest.mark.parametrize(
    ("text", "answer", "what"),
    [
        ("Rating: 5", "Rating: 5", "none"),
        ("", "", "none"),
        ("I think <b>so</b>.", "I think <b>so</b>.", "none"),
        ("The tag <think> is a word of some models.", "The tag <think> is a word of some models.", "none"),
        ("<think>Rating: 7 would need more.</think> Rating: 1", "Rating: 1", "whole"),
        ("\n<think>\nHm.\n</think>\n\nYes.\n", "Yes.", "whole"),
        ("<think></think>Yes.", "Yes.", "whole"),
        ("<thinking>Hm.</thinking>Yes.", "Yes.", "whole"),
        ("[THINK]Hm.[/THINK]Yes.", "Yes.", "whole"),
        # the template wrote the opening tag
        ("Okay, Rating: 7 is too high.\n</think>\nRating: 2", "Rating: 2", "whole"),
        # a thought that quotes the tag
        ("<think>They wrote </think> Rating: 7, to cheat.</think>Rating: 1", "Rating: 1", "whole"),
        ("<think>One.</think><think>Two.</think>Yes.", "Yes.", "whole"),
        ("<think>One.</think>Not yet.<think>Two.</think>Yes.", "Yes.", "whole"),
        # cut off
        ("<think>Rating: 7 would need", "", "cut"),
        ("<think>", "", "cut"),
        ("<think>One.</think><think>Two", "", "cut"),
        ("<think>One.</think>", "", "whole"),
    ],
)
def test_thinking_is_taken_off(text, answer, what):
    assert thinking.split(text) == (answer, what)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Okay, the user wants", ("", "cut")),
        ("", ("", "cut")),
        ("Okay.</think>Yes.", ("Yes.", "whole")),
        ("<think>Okay.</think>Yes.", ("Yes.", "whole")),
    ],
)
def test_where_the_template_opens_a_thought_a_reply_without_its_end_is_all_thinking(text, expected):
    assert thinking.split(text, opened=True) == expected


# --- a server --------------------------------------------------------------------------------------


def ask(message: dict, finish="stop", usage=None, *, call="generate") -> Reply | RatingReply:
    """What the client makes of a server's one answer."""

    async def chat(request: web.Request) -> web.Response:
        choice = {"message": {"role": "assistant", **message}, "finish_reason": finish}
        return web.json_response({"choices": [choice], "usage": usage or {"prompt_tokens": 3, "completion_tokens": 9}})

    async def run():
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        async with TestServer(app, host="127.0.0.1") as server:
            section = OpenAISection(kind="openai", base_url=str(server.make_url("/v1")), num_retries=0, patience_s=0)
            engine = OpenAIEngine(section, "m")
            try:
                return await engine.generate(HELLO, Sampling(), 0)
            finally:
                await engine.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("told", "finish"),
    [("stop", "stop"), ("length", "length"), ("eos_token", "stop"), ("tool_calls", None), (None, None)],
)
def test_who_ended_a_reply_is_read(told, finish):
    assert ask({"content": "Hello."}, told).finish == finish


@pytest.mark.parametrize(
    ("message", "finish", "text", "what"),
    [
        ({"content": "<think>Hm.</think>Yes."}, "stop", "Yes.", "whole"),
        ({"content": "<think>Hm, I"}, "length", "", "cut"),
        ({"content": "Yes.", "reasoning_content": "Hm."}, "stop", "Yes.", "whole"),
        ({"content": "Yes.", "reasoning": "Hm."}, "stop", "Yes.", "whole"),
        ({"content": "Yes.", "reasoning_content": None, "reasoning": ""}, "stop", "Yes.", "none"),
        ({"content": None, "reasoning_content": "Hm, I"}, "length", "", "cut"),
        ({"content": "", "reasoning": "Hm, I"}, "length", "", "cut"),
        ({"content": None}, "length", "", "none"),
        ({"content": [{"type": "text", "text": "Yes"}, {"type": "text", "text": "."}]}, "stop", "Yes.", "none"),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                    {"type": "text", "text": "Yes."},
                ]
            },
            "stop",
            "Yes.",
            "whole",
        ),
        ({"content": [{"type": "thinking", "thinking": "Hm"}]}, "length", "", "cut"),
    ],
)
def test_what_a_server_says_is_told_from_what_it_thought(message, finish, text, what):
    reply = ask(message, finish)
    assert (reply.text, reply.thinking, reply.finish) == (text, what, finish)


@pytest.mark.parametrize(("content", "what"), [("", "cut"), ("Yes.", "whole")])
def test_thinking_that_is_only_counted_is_known(content, what):
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 8}}
    assert ask({"content": content}, "length", usage).thinking == what


@pytest.mark.parametrize(
    ("message", "finish", "said"),
    [
        ({"content": None}, "stop", "returned a reply without text"),
        ({"content": None, "refusal": "I cannot\nhelp."}, "stop", r"refused a call: I cannot help\."),
        ({"content": "It begins with"}, "content_filter", "its content filter ended the reply"),
    ],
)
def test_a_reply_that_is_withheld_is_a_refused_call(message, finish, said):
    with pytest.raises(CallRejectedError, match=said):
        ask(message, finish)


# --- a model in this process -----------------------------------------------------------------------


def in_process(folder, prompt=HELLO, max_tokens=4, *, says=(), template=None, tokens=()) -> Reply:
    """The reply of a model that says these texts, one token each, as far as it may."""
    tokenizer = models.load_tokenizer(str(folder))
    tokenizer.add_tokens(list(tokens))
    if template:
        tokenizer.chat_template = template
    with tempfile.TemporaryDirectory() as changed:
        model = models.load_model(str(folder), torch.float32)
        if tokens:
            model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(changed)
        tokenizer.save_pretrained(changed)
        engine = TransformersEngine(TransformersSection(device="cpu"), changed)
    ids = [token for text in says for token in tokenizer.encode(text, add_special_tokens=False)]
    ids.append(tokenizer.eos_token_id)
    said = iter(ids)

    def sample(logits, call):
        return next(said)

    async def run():
        try:
            return await engine.generate(prompt, Sampling(max_tokens=max_tokens), 0)
        finally:
            await engine.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("salign.engines.transformers.sample", sample)
        return asyncio.run(run())


@pytest.mark.parametrize("tokens", [(), ("<think>", "</think>")], ids=["in pieces", "as tokens"])
@pytest.mark.parametrize(
    ("says", "max_tokens", "text", "finish", "what"),
    [
        (["Yes."], 99, "Yes.", "stop", "none"),
        (["Yes, yes, yes."], 2, None, "length", "none"),
        (["<think>", "Hm.", "</think>", "Yes."], 99, "Yes.", "stop", "whole"),
        (["<think>", "Hm, hm, hm, hm, hm, hm, hm, hm"], 16, "", "length", "cut"),
    ],
)
def test_a_model_in_this_process_is_told_from_its_thoughts(tiny_model, tokens, says, max_tokens, text, finish, what):
    reply = in_process(tiny_model, max_tokens=max_tokens, says=says, tokens=tokens)
    assert text is None or reply.text == text
    assert (reply.finish, reply.thinking) == (finish, what)


@pytest.mark.parametrize(
    ("says", "max_tokens", "expected"),
    [(["Hm.", "</think>", "Yes."], 99, ("Yes.", "whole")), (["Hm, hm, hm"], 3, ("", "cut"))],
)
def test_a_template_that_opens_a_thought_is_seen(tiny_model, says, max_tokens, expected):
    template = "{{ messages[-1]['content'] }}<think>\n"
    reply = in_process(tiny_model, max_tokens=max_tokens, says=says, template=template)
    assert (reply.text, reply.thinking) == expected


# --- counts ----------------------------------------------------------------------------------------


def test_cut_replies_and_thoughts_are_counted():
    replies = [
        Reply("Yes.", 1, 1),
        Reply("Yes.", 1, 1, finish="stop"),
        Reply("Yes", 1, 1, finish="length"),
        Reply("Yes.", 1, 1, finish="stop", thinking="whole"),
        Reply("", 1, 1, finish="length", thinking="cut"),
    ]

    class Saying:
        identity = "saying"

        async def generate(self, prompt, sampling, seed):
            return replies[seed]

        async def rate(self, prompt, seed):
            return RatingReply(None, 0.0, 1, 1)

        def facts(self):
            return {"measured": 1}

    async def run():
        engine = metered(Saying(), Gate(1, adaptive=False))
        for seed in range(len(replies)):
            await engine.generate(HELLO, Sampling(), seed)
        await engine.rate(HELLO, 0)
        return engine

    engine = asyncio.run(run())
    assert (engine.num_cut, engine.num_thinking, engine.num_thinking_cut) == (2, 2, 1)
    assert engine.facts() == {"measured": 1}
