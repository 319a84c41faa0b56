"""What an engine measures when it opens: which way puts the mass on the digits, what a server refuses, who knows."""

import asyncio
import contextlib
import json
import logging
import math

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from salign.config import OpenAIEngine as OpenAISection
from salign.config import Sampling, ScriptedEngine, TransformersEngine
from salign.engines import capabilities, kept
from salign.engines.base import Prompt
from salign.engines.capabilities import Capabilities, Measured, choose
from salign.engines.chat import in_words
from salign.engines.opening import metered, open_engine, open_unmetered
from salign.errors import CallRejectedError, ConfigError, EngineError

RATE = Prompt("How good is it?")
DIGITS = {str(digit): share for digit, share in enumerate((0.01, 0.02, 0.05, 0.1, 0.5, 0.2, 0.06), start=1)}
CHATTY = {"The": 0.9, "5": 0.04, "4": 0.01, "3": 0.005}
ALONE = {digit: share / sum(DIGITS.values()) for digit, share in DIGITS.items()}


class Server:
    """A chatty model behind a server that can do so much.

    Args:
        begun, choices, schema: What is shown for the digit, each way; None: as if the server were not asked for it.
        told: What is shown otherwise.
        refuses: Parameters, and what is said to them.
        logprobs: Whether any are shown.
        text: What the model says to everything else.
    """

    def __init__(self, begun=None, choices=None, schema=None, told=CHATTY, *, refuses=(), logprobs=True, text="Yes."):
        self.ways = {"begun": begun, "choices": choices, "schema": schema}
        self.told = told
        self.refuses = dict(refuses)
        self.logprobs = logprobs
        self.text = text
        self.requests: list[dict] = []
        self.broken, self.status = "nothing", 500

    def way_of(self, asked: dict) -> str | None:
        if asked.get("continue_final_message"):
            return "begun"
        if "response_format" in asked:
            return "schema"
        return "choices" if "structured_outputs" in asked else None

    async def chat(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.requests.append(asked)
        if self.way_of(asked) == self.broken:
            return web.json_response({"error": {"message": "no template"}}, status=self.status)
        roles = {message["role"] for message in asked["messages"]}
        for name, said in self.refuses.items():
            if (name in asked and (name != "top_logprobs" or asked[name] > 5)) or name in roles:
                return web.json_response({"error": {"message": said}}, status=400)
        way = self.way_of(asked)
        shares = self.ways.get(way or "") or self.told
        choice: dict = {"message": {"content": self.text}, "finish_reason": "stop"}
        if asked.get("logprobs"):
            top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
            digit = {"token": max(shares, key=shares.__getitem__), "top_logprobs": top[: asked["top_logprobs"]]}
            before = [{"token": token, "top_logprobs": []} for token in ('{"', "rating", '":')]
            answered = way == "schema" and self.ways["schema"] is not None
            choice["logprobs"] = {"content": [*(before if answered else ()), digit] if self.logprobs else None}
        elif way == "schema" and self.ways["schema"] is not None:
            choice["message"]["content"] = json.dumps({"rating": 6, "reason": 'It is "kind".'})
        return web.json_response({"choices": [choice], "model": "m"})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    @contextlib.asynccontextmanager
    async def engine(self, ratings="logprob", kept=None, **settings):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        async with TestServer(app, host="127.0.0.1") as server:
            section = OpenAISection(
                kind="openai", base_url=str(server.make_url("/v1")), num_retries=0, patience_s=0, **settings
            )
            async with open_unmetered(section, "m", kept, ratings=ratings, kept=kept) as opened:
                yield metered(*opened)

    def measured(self, ratings="logprob", **settings) -> dict:
        async def run():
            async with self.engine(ratings, **settings) as engine:
                return engine.facts()

        return asyncio.run(run())

    def call(self, call, **settings):
        """What an opened engine answers, and what it asked for that."""

        async def run():
            async with self.engine(**settings) as engine:
                self.requests.clear()
                return await call(engine), self.requests[-1]

        return asyncio.run(run())


# --- which way -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "way", "mass"),
    [
        (Server(begun=DIGITS), "begun", 0.94),
        (Server(begun=DIGITS, schema=DIGITS, choices=DIGITS), "begun", 0.94),
        (Server(schema=DIGITS), "schema", 0.94),
        (Server(told=DIGITS), "told", 0.94),
        # a little more is no reason to ask a server for more
        (Server(begun=DIGITS, schema={**DIGITS, "5": 0.53}), "begun", 0.94),
        # what is masked is taken where nothing honest is good
        (Server(choices=ALONE), "choices", 1.0),
        (Server(begun=DIGITS, choices=ALONE), "begun", 0.94),
        (Server(schema=ALONE, choices=ALONE), "schema", 1.0),
        # nothing is good
        (Server(), "told", 0.055),
    ],
)
def test_the_way_with_the_mass_on_the_digits_is_taken(server, way, mass):
    facts = server.measured()
    assert facts["rating_way"] == way
    assert facts["ways"][way]["mass"] == pytest.approx(mass, abs=1e-3)
    reply, asked = server.call(lambda engine: engine.rate(RATE, 3))
    assert server.way_of(asked) == (None if way == "told" else way)
    assert reply.mass == pytest.approx(mass, abs=1e-3)
    assert asked["seed"] == 3
    assert asked["temperature"] == 0


def test_what_is_measured_is_said_beside_what_it_says(caplog):
    with caplog.at_level(logging.INFO):
        facts = Server(choices=ALONE, refuses={"continue_final_message": "extra fields not permitted"}).measured()
    assert facts["ways"] == {
        "begun": None,
        "told": {"mass": 0.055, "digits": 3.0, "masked": False},
        "schema": {"mass": 0.0, "digits": 0.0, "masked": False},
        "choices": {"mass": 1.0, "digits": 7.0, "masked": True},
    }
    assert "`choices`" in caplog.text
    assert "begun is refused" in caplog.text
    assert "choices 1.000 (masked: says nothing)" in caplog.text


def test_little_mass_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        Server().measured()
    assert "Consider society.rating=parse" in caplog.text


@pytest.mark.parametrize("server", [Server(logprobs=False), Server(told={"The": 1.0})])
def test_a_server_that_cannot_rate_is_refused_with_the_remedy(server):
    with pytest.raises(ConfigError, match=r"no probabilities for the digits 1 to 7 in any way.*society\.rating=parse"):
        server.measured()


def test_a_way_that_breaks_the_server_is_refused():
    """llama.cpp answers 500 where a template raises."""
    server = Server(told=DIGITS)
    server.broken = "begun"
    facts = server.measured()
    assert (facts["rating_way"], facts["ways"]["begun"]) == ("told", None)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_without_time_is_not_one_that_cannot(status):
    server = Server(begun=DIGITS)
    server.broken, server.status = "begun", status
    with pytest.raises(EngineError, match=f"HTTP {status}"):
        server.measured()


def test_a_way_that_is_named_is_measured_alone():
    server = Server(begun=DIGITS)
    facts = server.measured(rating_way="told")
    assert facts["rating_way"] == "told"
    assert set(facts["ways"]) == {"told"}
    with pytest.raises(ConfigError, match=r"in any way \(begun: .*extra fields"):
        Server(refuses={"continue_final_message": "extra fields not permitted"}).measured(rating_way="begun")


def test_an_engine_that_does_not_rate_is_not_asked_to():
    server = Server(logprobs=False)
    assert server.measured(None)["rating_way"] is None
    assert len(server.requests) == 1


def test_probes_are_the_same_each_time():
    first, second = Server(begun=DIGITS), Server(begun=DIGITS)
    assert first.measured() == second.measured()
    assert sorted(map(str, first.requests)) == sorted(map(str, second.requests))
    assert {(asked["seed"], asked["temperature"]) for asked in first.requests} == {(0, 0.0)}


def test_of_about_equal_ways_the_order_does_not_depend_on_noise():
    near = {"begun": Measured(mass=0.93, digits=7), "schema": Measured(mass=0.95, digits=7)}
    assert choose(near) == choose(dict(reversed(near.items()))) == "begun"
    assert choose({"begun": Measured(mass=0.7, digits=7), "schema": Measured(mass=0.95, digits=7)}) == "schema"
    assert choose({"begun": None, "told": Measured(mass=0.0, digits=0)}) is None


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refuses", "left", "has"),
    [
        (
            {"max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."},
            {"max_tokens"},
            {"max_completion_tokens": 9},
        ),
        (
            {"temperature": "'temperature' does not support 0.7, only the default"},
            {"temperature"},
            {},
        ),
        ({"seed": "Unrecognized request argument supplied: seed"}, {"seed"}, {}),
        ({"top_p": "unknown field `top_p`", "seed": "unknown field `seed`"}, {"top_p", "seed"}, {}),
        (
            {"system": "System role not supported"},
            set(),
            {"messages": [{"role": "user", "content": "Be kind.\n\nHello."}]},
        ),
    ],
)
def test_what_a_server_says_that_it_refuses_is_left_out(refuses, left, has, caplog):
    server = Server(begun=DIGITS, refuses=refuses)
    prompt, sampling = Prompt("Hello.", "Be kind."), Sampling(temperature=0.7, max_tokens=9)
    reply, asked = server.call(lambda engine: engine.generate(prompt, sampling, 3))
    assert reply.text == "Yes."
    assert not left & set(asked)
    assert {name: asked[name] for name in has} == has
    facts = server.measured()
    assert set(facts["refused"]) == set(refuses)
    assert facts["rating_way"] == "begun"
    assert all(f"refuses `{name}`" in caplog.text for name in refuses)


def test_five_top_logprobs_are_asked_for_where_more_are_refused():
    server = Server(begun=DIGITS, refuses={"top_logprobs": "top_logprobs must be at most 5"})
    reply, asked = server.call(lambda engine: engine.rate(RATE, 0))
    assert asked["top_logprobs"] == 5
    assert reply.mass == pytest.approx(sum(list(DIGITS.values())[:5]))


def test_a_refusal_of_something_else_is_told_and_no_reason_to_change(caplog):
    server = Server(refuses={"user": "the prompt is longer than max_tokens allows"})
    facts = server.measured(None)
    assert facts["refused"] == []
    assert "the prompt is longer than max_tokens allows" in caplog.text


def test_calls_that_are_refused_later_change_nothing():
    server = Server(begun=DIGITS)

    async def run():
        async with server.engine() as engine:
            server.refuses = {"seed": "Unrecognized request argument supplied: seed"}
            with pytest.raises(CallRejectedError):
                await engine.generate(RATE, Sampling(), 0)
            server.refuses = {}
            await engine.generate(RATE, Sampling(), 0)
            return server.requests[-1]

    assert "seed" in asyncio.run(run())


# --- thinking --------------------------------------------------------------------------------------


def test_a_template_that_opens_a_thought_is_learnt_from_the_first_reply():
    server = Server(text="The user asks.\n</think>\n\nYes.")
    assert server.measured(None)["opens_thinking"] is True

    async def cut(engine):
        server.text = "The user wants"
        return await engine.generate(RATE, Sampling(), 0)

    reply, _ = server.call(cut)
    assert (reply.text, reply.thinking) == ("", "cut")
    assert Server(text="<think>Hm.</think>Yes.").measured(None)["opens_thinking"] is False


# --- words in a form -------------------------------------------------------------------------------

FORM = Prompt('How good is it? Reply in the form "Rating: <1 to 7> Reason: ...".', form="rating")


def test_a_rating_in_words_is_held_to_a_schema_where_the_server_does_that():
    server = Server(schema=DIGITS)
    reply, asked = server.call(lambda engine: engine.generate(FORM, Sampling(), 0), ratings="parse")
    assert reply.text == 'Rating: 6 Reason: It is "kind".'
    schema = asked["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == ["rating", "reason"]
    plain, asked = server.call(lambda engine: engine.generate(RATE, Sampling(), 0), ratings="parse")
    assert plain.text == "Yes."
    assert "response_format" not in asked


def test_a_judge_of_ten_is_held_to_ten_where_digits_rate_the_rest():
    """An evaluation asks one engine both ways."""
    ten = Prompt('Reply in the form "Rating: <1 to 10> Reason: ...".', form="rating", scale=(1, 10))
    server = Server(begun=DIGITS, schema=DIGITS)
    facts = server.measured("both")
    assert (facts["rating_way"], facts["json_schema"]) == ("begun", True)

    async def ask(engine):
        server.ways["schema"], server.text = None, '{"rating": 10, "reason": "Kind."}'
        return await engine.generate(ten, Sampling(), 0), await engine.rate(RATE, 0)

    server.ways["schema"] = DIGITS
    (reply, rating), _ = server.call(ask, ratings="both")
    assert reply.text == "Rating: 10 Reason: Kind."
    assert rating.mass > 0.9
    held, rated = server.requests
    schema = held["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["rating"]["enum"] == list(range(1, 11))
    assert "<1 to 10>" in held["messages"][-1]["content"].splitlines()[-1]
    assert rated["continue_final_message"]


@pytest.mark.parametrize(
    ("said", "highest", "words"),
    [
        ('{"rating": 10', 10, "Rating: 10 Reason:"),
        ('{"rating": 1', 10, None),  # of 10, it may be
        ('{"rating": 1,', 10, "Rating: 1 Reason:"),
        ('{"rating": 1', 7, "Rating: 1 Reason:"),
        ('{"rating": 11', 10, None),
        ('{"rating": 10, "reason": "x"}', 7, None),
    ],
)
def test_a_form_of_ten_that_is_cut_off(said, highest, words):
    assert in_words(said, (1, highest)) == words


def test_a_0_is_whole_where_the_scale_begins_with_it():
    assert in_words('{"rating": 0', (0, 10)) == "Rating: 0 Reason:"
    assert in_words('{"rating": 0', (1, 10)) is None


@pytest.mark.parametrize("server", [Server(), Server(schema=DIGITS, refuses={"response_format": "unknown field"})])
def test_where_it_does_not_words_are_read_as_they_come(server):
    assert server.measured("parse")["json_schema"] is False
    reply, asked = server.call(lambda engine: engine.generate(FORM, Sampling(), 0), ratings="parse")
    assert reply.text == "Yes."
    assert "response_format" not in asked
    assert asked["messages"][-1]["content"] == FORM.user


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ('{"rating": 3, "reason": "Rude."}', "Rating: 3 Reason: Rude."),
        (' {"rating":3,"reason":"Rude, and', "Rating: 3 Reason: Rude, and"),
        ('{"rating": 3', "Rating: 3 Reason:"),
        ("I would say 3.", "I would say 3."),
        ('{"rating": 9, "reason": "x"}', '{"rating": 9, "reason": "x"}'),
        ('{"rating": 3.5, "reason": "x"}', '{"rating": 3.5, "reason": "x"}'),
        ('{"rating": true, "reason": "x"}', '{"rating": true, "reason": "x"}'),
        ("[3]", "[3]"),
    ],
)
def test_a_form_that_is_cut_off_or_none_is_read_as_far_as_it_goes(said, text):
    server = Server(schema=DIGITS)

    async def ask(engine):
        server.ways["schema"], server.text = None, said
        return await engine.generate(FORM, Sampling(), 0)

    reply, _ = server.call(ask, ratings="parse")
    server.ways["schema"] = DIGITS
    assert reply.text == text


# --- kept for the run ------------------------------------------------------------------------------


def test_what_was_measured_once_counts_for_all(tmp_path):
    first, second = Server(begun=DIGITS), Server(schema=DIGITS)
    facts = first.measured(kept=tmp_path)
    assert facts["rating_way"] == "begun"
    assert second.measured(kept=tmp_path) == facts  # at another address: what answers is the same by name
    assert second.requests == []
    assert second.measured("parse", kept=tmp_path)["json_schema"] is True
    assert second.measured(kept=tmp_path, rating_way="schema")["rating_way"] == "schema"
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_of_those_that_measure_at_once_one_counts(tmp_path):
    path = tmp_path / "engine.json"
    one, other = Capabilities(rating_way="begun"), Capabilities(rating_way="told")
    assert kept.publish(path, one) == one
    assert kept.publish(path, other) == one
    assert [found.name for found in tmp_path.iterdir()] == ["engine.json"]


def test_of_those_that_ask_at_once_one_measures_and_the_others_wait(tmp_path):
    path, begun = tmp_path / "engine.json", []

    async def ask(number):
        async def measure():
            begun.append(number)
            await asyncio.sleep(0.05)
            if len(begun) == 1:
                raise EngineError("gone")
            return Capabilities(ways={"begun": Measured(mass=number / 10, digits=7)})

        return await kept.once(path, Capabilities, measure)

    async def ask_all():
        return await asyncio.gather(*map(ask, range(4)), return_exceptions=True)

    failed, *found = sorted(asyncio.run(ask_all()), key=lambda one: not isinstance(one, EngineError))
    assert str(failed) == "gone"  # and one of the others measures
    assert len(begun) == 2
    assert found == [found[0]] * 3 == [kept.read(path, Capabilities)] * 3


def test_what_is_not_to_be_kept_is_measured_again(tmp_path):
    path, begun = tmp_path / "engine.json", []

    async def measure():
        begun.append(None)
        return Capabilities()

    for answer in (lambda: False, lambda: True, lambda: True):
        assert asyncio.run(kept.once(path, Capabilities, measure, answer)) == Capabilities()
    assert len(begun) == 2


def test_what_decides_is_the_same_whoever_says_it():
    known = Capabilities(rating_way="begun", ways={"begun": Measured(mass=0.9, digits=7)})
    facts = {**known.facts(), "calls": "shared"}  # an engine may say more of itself
    assert capabilities.deciding(facts) == capabilities.deciding(known.facts())
    assert capabilities.deciding(facts)["rating_way"] == "begun"
    assert "ways" not in capabilities.deciding(facts)
    assert capabilities.deciding({}) == {}


def test_a_damaged_file_is_named(tmp_path):
    Server(begun=DIGITS).measured(kept=tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text('{"rating_way": "by guess"}')
    with pytest.raises(ConfigError, match=rf"{path.name} is not a valid measurement"):
        Server(begun=DIGITS).measured(kept=tmp_path)


def test_an_engine_that_fails_while_it_is_measured_is_closed(tiny_model, tmp_path, monkeypatch):
    closed = []
    from salign.engines.transformers import TransformersEngine as Transformers

    async def fail(self, ratings):
        raise EngineError("out of memory")

    async def close(self, really=Transformers.close):
        closed.append(self)
        await really(self)

    monkeypatch.setattr(Transformers, "probe", fail)
    monkeypatch.setattr(Transformers, "close", close)

    async def run():
        async with open_engine(TransformersEngine(device="cpu"), str(tiny_model), tmp_path):
            raise AssertionError("it is open")

    with pytest.raises(EngineError, match="out of memory"):
        asyncio.run(run())
    assert len(closed) == 1


def test_a_model_in_this_process_begins_its_replies(tiny_model, tmp_path):
    async def run():
        section = TransformersEngine(device="cpu")
        async with open_engine(section, str(tiny_model), tmp_path, ratings="logprob") as engine:
            return engine.facts(), [(await engine.rate(prompt, 0)).mass for prompt in capabilities.PROBES]

    facts, masses = asyncio.run(run())
    assert facts["rating_way"] == "begun"
    assert facts["ways"]["begun"]["mass"] == pytest.approx(sorted(masses)[2], abs=1e-4)


def test_a_scripted_engine_has_nothing_to_measure(tmp_path):
    async def run():
        section = ScriptedEngine(kind="scripted")
        async with open_unmetered(section, "m", tmp_path, ratings="logprob", kept=tmp_path) as (e, _):
            return e.facts(), (await e.generate(RATE, Sampling(), 0)).finish

    assert asyncio.run(run()) == ({}, "stop")
    assert list(tmp_path.iterdir()) == []
