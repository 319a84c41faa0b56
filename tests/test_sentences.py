"""A short reply ends where a sentence does."""

import asyncio

import pytest

from salign.config import Sampling
from salign.engines.base import Prompt, Reply
from salign.engines.gate import Gate
from salign.engines.opening import metered
from salign.engines.scripted import ScriptedEngine
from salign.engines.sentences import end_of, is_over, shorten

TEXT = "Ask her first, e.g. tonight. Then listen! Why? She said: “I am tired.” It was in 2020. You"


@pytest.mark.parametrize(
    ("num", "end"),
    [(1, "tonight."), (2, "listen!"), (3, "Why?"), (4, "tired.”"), (5, "2020."), (6, None)],
)
def test_sentences_end_where_a_reader_would_end_them(num, end):
    place = end_of(TEXT, num)
    assert (None if place is None else TEXT[:place].rsplit(" ", 1)[1]) == end


@pytest.mark.parametrize(
    "text", ["1. Ask her", "i.e. now", "It costs 3.50 or so", "a b c", "", "Wait", "A. Smith came"]
)
def test_what_ends_no_sentence(text):
    assert end_of(text, 1) is None


def test_a_reply_under_way_is_over_when_more_than_its_last_sentence_is_there():
    assert not is_over("Ask her. Then listen", 2)
    assert not is_over("Ask her. Then listen.", 2)  # it may yet be "listen.e." or a quotation's end
    assert is_over("Ask her. Then listen. And", 2)


@pytest.mark.parametrize(
    ("text", "finish", "shorter", "ends"),
    [
        ("One is. Two are. Three are.", "stop", "One is. Two are.", "stop"),
        ("One is. Two are. Thr", "length", "One is. Two are.", "stop"),
        ("One is. Tw", "length", "One is.", "stop"),  # to its whole sentences
        ("One is. Tw", "stop", "One is. Tw", "stop"),  # as the model ended it
        ("Without an en", "length", "Without an en", "length"),
        ("One is.", None, "One is.", None),
    ],
)
def test_a_reply_has_so_many_sentences_at_most(text, finish, shorter, ends):
    reply = shorten(Reply(text, 1, 9, finish=finish), 2)
    assert (reply.text, reply.finish, reply.completion_tokens) == (shorter, ends, 9)
    assert shorten(Reply(text, 1, 9, finish=finish), None).text == text


def test_any_engine_s_replies_are_shortened():
    class Talkative(ScriptedEngine):
        async def generate(self, prompt, sampling, seed):
            return Reply("One is. Two are. Three are.", 1, 9, finish="stop")

    engine = metered(Talkative(), Gate(1, adaptive=False))
    reply = asyncio.run(engine.generate(Prompt("Say."), Sampling(max_sentences=1), 0))
    assert reply.text == "One is."
