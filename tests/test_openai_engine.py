"""The client of OpenAI-compatible servers: retries, keys, names and concurrency, against a server in this process."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from ports import free_port

from salign.config import OpenAIEngine as OpenAISection
from salign.config import Sampling
from salign.engines import http, pacing
from salign.engines.base import Prompt
from salign.engines.gate import Gate
from salign.engines.openai import OpenAIEngine, connect
from salign.engines.opening import open_engine
from salign.errors import CallRejectedError, ConfigError, EngineError

HELLO = Prompt("Hello, how are you?")
KEY = "sk-0123456789abcdef"
HANG = "hang"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def quick(monkeypatch):
    """Pauses of a hundredth."""
    monkeypatch.setattr(pacing, "FIRST_PAUSE_S", pacing.FIRST_PAUSE_S / 100)
    monkeypatch.setattr(pacing, "LONGEST_PAUSE_S", pacing.LONGEST_PAUSE_S / 100)


def says(text="Hello.", **more) -> web.Response:
    choice = {"message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 12, "completion_tokens": 5}
    return web.json_response({"choices": [choice], "usage": usage, "model": "org/model-v2", **more})


def refuses(status: int, message="no", **headers) -> web.Response:
    return web.json_response(
        {"error": {"message": message}},
        status=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


class Server:
    """Answers with what `answers` makes, one after the other and the last for ever; notes when it was asked."""

    def __init__(self, *answers):
        self.answers = answers
        self.times: list[float] = []
        self.keys: list[str] = []
        self.num_pushed_back = 0
        self.over = asyncio.Event()

    def pushed_back(self):
        self.num_pushed_back += 1

    async def chat(self, request: web.Request) -> web.Response:
        self.times.append(time.monotonic())
        self.keys.append(request.headers["Authorization"])
        answer = self.answers[min(len(self.times), len(self.answers)) - 1]
        if answer is HANG:
            await self.over.wait()
            return says()
        return answer()

    async def models(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers["Authorization"])
        return web.json_response({"data": [{"id": "m"}]})

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        return app

    @contextlib.asynccontextmanager
    async def engine(self, options=None, **settings):
        async with TestServer(self.app(), host="127.0.0.1") as server:
            try:
                async with opened(str(server.make_url("/v1")), self, options, **settings) as engine:
                    yield engine
            finally:
                self.over.set()

    def ask(self, options=None, **settings):
        async def run():
            async with self.engine(options, **settings) as engine:
                return await engine.generate(HELLO, Sampling(), 3)

        return asyncio.run(run())


@contextlib.asynccontextmanager
async def opened(url: str, server: Server | None = None, options=None, **settings):
    section = OpenAISection(kind="openai", base_url=url, **{"num_retries": 2, "patience_s": 0, **settings})
    engine = OpenAIEngine(section, "m", **options or {})
    if server is not None:
        engine.on_push_back(server.pushed_back)
    try:
        yield engine
    finally:
        await engine.close()


# --- what may pass -------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "num_pushed_back"), [(429, 0), (503, 1)])
def test_retry_after_is_waited_for_and_of_429_no_sign_of_load(status, num_pushed_back):
    server = Server(lambda: refuses(status, Retry_After="0.1"), says)
    assert server.ask().text == "Hello."
    assert server.times[1] - server.times[0] >= 0.1
    assert server.num_pushed_back == num_pushed_back


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "3600"}, 60),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": format_datetime(datetime.now(UTC) + timedelta(days=30), usegmt=True)}, 60),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers, pause_s):
    assert pacing.pause_asked_for(headers) == pause_s


def test_500_twice_then_an_answer(quick):
    server = Server(lambda: refuses(500), lambda: refuses(500), says)
    assert server.ask().text == "Hello."
    assert (len(server.times), server.num_pushed_back) == (3, 0)


@pytest.mark.parametrize(
    ("status", "pushes_back"), [(429, True), (503, True), (408, False), (409, False), (502, False)]
)
def test_what_never_passes_ends_after_the_retries(quick, status, pushes_back):
    server = Server(lambda: refuses(status, "too much"))
    with pytest.raises(EngineError, match=rf"http://127.*/v1 failed after 2 retries: HTTP {status}: too much"):
        server.ask()
    assert (len(server.times), server.num_pushed_back) == (3, 3 if status in (429, 503) else 0)


def test_a_call_that_hangs_is_made_again(quick):
    server = Server(HANG, says)
    start = time.monotonic()
    assert server.ask(timeout_s=0.3).text == "Hello."
    assert time.monotonic() - start > 0.3
    assert (len(server.times), server.num_pushed_back) == (2, 1)


def test_a_call_that_always_hangs_is_told(quick):
    server = Server(HANG)
    with pytest.raises(EngineError, match=r"did not answer within engine\.timeout_s = 0\.1 s, 2 times\. Is it overl"):
        server.ask(timeout_s=0.1, num_retries=1)
    assert server.num_pushed_back == 2


def test_five_retries_bridge_fifteen_seconds():
    for chance in (0.0, 0.5, 0.999):
        pauses = [pacing.pause_s(number, None, chance) for number in range(1, 6)]
        assert sum(pauses) >= 15
        assert max(pauses) <= 8
    assert pacing.pause_s(1, None, 0.9) < pacing.pause_s(1, None, 0.1)  # not all at once


def test_a_server_that_comes_back_is_found_again(quick):
    """Killed in mid-run, with calls in flight, and restarted at the same port."""

    async def run():
        server = Server(says, HANG)
        port = free_port()
        runner = web.AppRunner(server.app(), shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with opened(f"http://127.0.0.1:{port}/v1", num_retries=7) as engine:
            await engine.generate(HELLO, Sampling(), 0)
            calls = [asyncio.create_task(engine.generate(HELLO, Sampling(), seed)) for seed in range(5)]
            while len(server.times) < 6:
                await asyncio.sleep(0.01)
            await runner.cleanup()
            await asyncio.sleep(0.05)
            assert not any(call.done() for call in calls)
            async with TestServer(Server(says).app(), host="127.0.0.1", port=port):
                return [reply.text for reply in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == ["Hello."] * 5


def test_a_server_that_is_not_there_is_unreachable(quick):
    async def run():
        async with opened("http://127.0.0.1:1/v1") as engine:
            await engine.generate(HELLO, Sampling(), 0)

    with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:1/v1 is unreachable \(.*\), 3 times\. Start it"):
        asyncio.run(run())


async def ask_at(port: int, **settings):
    async with opened(f"http://127.0.0.1:{port}/v1", **settings) as engine:
        call = asyncio.create_task(engine.generate(HELLO, Sampling(), 0))
        while engine.waiting_since is None and not call.done():
            await asyncio.sleep(0.001)
        yield engine
        yield await call
        yield engine


def test_a_server_that_nobody_reaches_is_waited_for_however_many_tries_it_takes(quick, caplog, monkeypatch):
    monkeypatch.setattr(http, "SAY_AFTER_S", 0.05)

    async def run():
        port = free_port()
        steps = ask_at(port, num_retries=0, patience_s=60)
        engine = await anext(steps)
        while "waiting for the server since" not in caplog.text:
            await asyncio.sleep(0.01)
        async with TestServer(Server(says).app(), host="127.0.0.1", port=port):
            assert (await anext(steps)).text == "Hello."
            assert engine.waiting_since is None
            await steps.aclose()

    asyncio.run(run())
    assert "for 60 s at most" in caplog.text
    assert "answers again" in caplog.text


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_before_nobody_is_waited_for(quick, status):
    server = Server(*[lambda: refuses(status, "bad gateway")] * 9, says)
    assert server.ask(num_retries=1, patience_s=60).text == "Hello."
    assert len(server.times) == 10


def test_patience_ends_with_its_time(quick):
    async def run():
        async with opened("http://127.0.0.1:1/v1", patience_s=0.05) as engine:
            await engine.generate(HELLO, Sampling(), 0)

    with pytest.raises(EngineError, match=r"is unreachable .* in \d+ s \(engine\.patience_s = 0\.05\)\. Start it"):
        asyncio.run(run())


def test_a_call_that_alone_finds_nobody_is_not_waited_for(quick):
    """It breaks its connection each time, as one that ends the server's process does, while others are answered."""

    async def run():
        server = Server()

        async def chat(request):
            if "Break" in await request.text():
                request.transport.abort()
            return says()

        server.chat = chat
        async with server.engine(patience_s=600) as engine:
            broken = asyncio.create_task(engine.generate(Prompt("Break."), Sampling(), 0))
            while not broken.done():
                await engine.generate(HELLO, Sampling(), 0)
            return await broken

    with pytest.raises(EngineError, match="is unreachable"):
        asyncio.run(run())


def test_a_limit_on_the_rate_is_learnt_and_costs_no_call(quick):
    """A bucket of 20 requests that fills at 200 a second, under 200 calls at once that may not fail."""
    num_sent = 0

    async def run():
        level, then = 20.0, time.monotonic()

        async def chat(request):
            nonlocal level, then, num_sent
            num_sent += 1
            now = time.monotonic()
            level, then = min(level + 200 * (now - then), 20.0), now
            if level < 1:
                return refuses(429, "Rate limit reached", retry_after_ms=str(max(1, round((1 - level) * 5))))
            level -= 1
            return says()

        server = Server()
        server.chat = chat
        async with server.engine(num_retries=0, patience_s=60) as engine:
            await asyncio.gather(*(engine.generate(HELLO, Sampling(), seed) for seed in range(400)))
        return server.num_pushed_back

    assert asyncio.run(run()) == 0
    assert num_sent < 2 * 400


@pytest.mark.parametrize("seconds", [0.01, 0.05])
@pytest.mark.parametrize("num_retries", [2, 5])
def test_no_call_is_lost_to_a_server_that_is_busy_with_others(quick, num_retries, seconds):
    """A capacity of 6 under 60 calls at a time: most are refused more often than they may fail."""

    async def run():
        now = 0

        async def chat(request):
            nonlocal now
            if now >= 6:
                return refuses(429, "busy")
            now += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                now -= 1
            return says()

        server, gate = Server(), Gate(60, adaptive=True)
        server.chat = chat

        async def call(engine, seed):
            await gate.enter()
            try:
                return await engine.generate(HELLO, Sampling(), seed)
            finally:
                gate.leave()

        server.pushed_back = gate.pushed_back
        async with server.engine(num_retries=num_retries) as engine:
            replies = await asyncio.gather(*(call(engine, seed) for seed in range(60)))
        return len(replies), gate.num_pushbacks, gate.limit

    num_replies, num_refused, limit = asyncio.run(run())
    assert num_replies == 60
    assert num_refused > 54
    assert limit < 30


def test_a_server_that_refuses_everybody_is_given_up(quick):
    """As with a quota that is used up: calls that wait for their refusals are no sign of work."""

    async def run():
        server = Server(lambda: refuses(429, "quota"))
        async with server.engine() as engine:
            calls = [engine.generate(HELLO, Sampling(), seed) for seed in range(20)]
            return server, await asyncio.gather(*calls, return_exceptions=True)

    server, results = asyncio.run(run())
    assert all(isinstance(result, EngineError) for result in results)
    assert len(server.times) <= 4 * 20


# --- what does not -------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [{"code": "insufficient_quota"}, {"type": "insufficient_quota", "code": None}])
def test_an_account_without_credit_is_no_load_and_waited_for_in_vain(said):
    answer = {"error": {"message": "You exceeded your current quota", **said}}
    server = Server(lambda: web.json_response(answer, status=429))
    with pytest.raises(EngineError, match=r"has no credit left for this key: HTTP 429: You exceeded .* OPENAI_API_KEY"):
        server.ask()
    assert (len(server.times), server.num_pushed_back) == (1, 0)


def in_body(body, status=400):
    return lambda: web.json_response(body, status=status)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "Unsupported parameter: 'max_tokens'"}}, "Unsupported parameter: 'max_tokens'"),
        ({"error": "top_p is out of range", "error_type": "validation"}, "top_p is out of range"),
        ({"object": "error", "message": "too long", "code": 400}, "too long"),
        ({"detail": "no such field"}, "no such field"),
        (
            {"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}, {"loc": ["b"], "msg": "x"}]},
            "body.seed: extra fields not permitted; b: x",
        ),
        ([{"error": {"code": 400, "message": "an array, as Gemini's"}}], "an array, as Gemini's"),
        (
            {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error": {"message": "too hot"}}'}}},
            "Provider returned error: too hot",
        ),
        ({"errors": [{"message": "one"}, {"message": "two"}]}, "one; two"),
        ({"reason": "none given"}, "reason: none given"),
        ("just so", "just so"),
    ],
)
def test_a_refusal_is_told_in_the_server_s_own_words(body, words):
    with pytest.raises(CallRejectedError) as raised:
        Server(in_body(body)).ask()
    assert str(raised.value).endswith(f"refused a call: HTTP 400: {words}")


def test_a_page_is_told_without_its_tags():
    page = "<html><style>b {}</style><h1>Payload</h1> too <b>large</b></html>"
    with pytest.raises(CallRejectedError, match=r"HTTP 413: Payload too large$"):
        Server(lambda: web.Response(text=page, status=413)).ask()


def test_json_without_end_in_a_refusal_is_text(quick):
    deep = '{"error":' * 3000
    with pytest.raises(CallRejectedError, match=r"HTTP 400: \{\\?\"error"):
        Server(in_body({"error": {"message": deep}})).ask()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ({"code": 400, "message": "bad role"}, CallRejectedError, "refused a call: HTTP 200: bad role"),
        ({"code": "402", "message": "pay"}, EngineError, "failed: HTTP 200: pay"),
        ("model is loading", EngineError, "failed after 2 retries: HTTP 200: model is loading"),
        ({"code": 429, "type": "insufficient_quota", "message": "spent"}, EngineError, "no credit left .*spent"),
    ],
)
def test_an_error_that_comes_as_a_success_is_none(quick, error, kind, words):
    with pytest.raises(kind, match=words):
        Server(lambda: web.json_response({"error": error, "user_id": "u"})).ask()


def test_an_error_of_null_beside_an_answer_is_none():
    assert Server(lambda: says(error=None)).ask().text == "Hello."


# --- of LiteLLM, which stands before another server (its words as of 1.108; test_litellm asks it itself) ---


def behind_litellm(error, said, status):
    adds = "\n\nLiteLLM: model group 'm' failed with the error above. No fallback was attempted."
    message = f"litellm.{error}: {error}: OpenAIException - {said}{adds}"
    return in_body({"error": {"message": message, "code": str(status)}}, status)


def test_what_litellm_adds_to_the_words_of_the_server_behind_it_is_left_out():
    with pytest.raises(CallRejectedError) as raised:
        Server(behind_litellm("BadRequestError", "too long", 400)).ask()
    assert str(raised.value).endswith("HTTP 400: litellm.BadRequestError: BadRequestError: OpenAIException - too long")


@pytest.mark.parametrize("said", ["Connection error.", "Cannot connect to host x:1 [...]", "Server disconnected"])
def test_a_server_behind_litellm_is_waited_for(quick, said):
    server = Server(*[behind_litellm("InternalServerError", said, 500)] * 9, says)
    assert server.ask(num_retries=1, patience_s=60).text == "Hello."
    assert len(server.times) == 10


def test_a_server_behind_litellm_that_errs_is_not_waited_for(quick):
    server = Server(behind_litellm("InternalServerError", "out of memory", 500))
    with pytest.raises(EngineError, match="out of memory"):
        server.ask(num_retries=1, patience_s=60)
    assert len(server.times) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_litellm_has_for_the_server_behind_it_is_not_the_user_s(status):
    with pytest.raises(
        EngineError, match=rf"refused by the server behind it: HTTP {status}: .*bad key\. Give"
    ) as raised:
        Server(behind_litellm("AuthenticationError", "bad key", status)).ask()
    assert "OPENAI_API_KEY" not in str(raised.value)


def test_a_wrong_key_of_a_litellm_without_a_database_is_told_as_one():
    error = {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}
    with pytest.raises(ConfigError, match=r"refuses the key \(HTTP 400: No connected db\.\).* OPENAI_API_KEY"):
        Server(in_body({"error": error})).ask()


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_call_is_rejected_at_once(status):
    server = Server(lambda: refuses(status, "the prompt is\ntoo long"))
    with pytest.raises(CallRejectedError, match=rf"m at http.* refused a call: HTTP {status}: the prompt is too long"):
        server.ask()
    assert len(server.times) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_an_error_of_the_config(status, monkeypatch):
    monkeypatch.setenv("LAB_KEY", KEY)
    server = Server(lambda: refuses(status, f"bad key {KEY}"))
    with pytest.raises(ConfigError, match=rf"refuses the key \(HTTP {status}.* LAB_KEY ") as raised:
        server.ask(api_key_env="LAB_KEY")
    assert KEY not in str(raised.value)
    assert len(server.times) == 1


def test_another_status_is_told_at_once():
    server = Server(lambda: refuses(402, "pay"))
    with pytest.raises(EngineError, match=r"/v1 failed: HTTP 402: pay") as raised:
        server.ask()
    assert not isinstance(raised.value, CallRejectedError)
    assert len(server.times) == 1


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no JSON",
        '{"choices": [',
        "[]",
        "null",
        '{"choices": []}',
        '{"choices": [{"message": {"content": 7}}]}',
        '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}',
        "\xff",
    ],
)
def test_garbage_is_an_engine_error_that_names_the_server(body):
    server = Server(lambda: web.Response(body=body.encode("latin-1"), content_type="application/json"))
    with pytest.raises(
        EngineError, match=r"^m at http://127.*/v1 answered with something other than a chat comp"
    ) as raised:
        server.ask()
    assert not isinstance(raised.value, CallRejectedError)
    assert len(server.times) == 1


@pytest.mark.parametrize("logprob", ["1000.0", "NaN", '"high"'])
def test_a_log_probability_that_is_none_is_garbage(logprob):
    body = (
        '{"choices": [{"message": {"content": "5"}, "logprobs": {"content": [{"top_logprobs": '
        f'[{{"token": "5", "logprob": {logprob}}}]}}]}}}}]}}'
    )

    async def run():
        async with Server(lambda: web.Response(text=body)).engine() as engine:
            await engine.rate(HELLO, 0)

    with pytest.raises(EngineError, match="something other than a chat completion"):
        asyncio.run(run())


@pytest.mark.parametrize("given", [True, False], ids=["given", "environment"])
@pytest.mark.parametrize(
    "answer",
    [lambda s=status: refuses(s, f"Bearer {KEY}") for status in (400, 401, 402, 404, 429, 500)]
    + [lambda: web.Response(text=f"Bearer {KEY}"), lambda: web.Response(text=f"Bearer {KEY}", status=500)],
)
def test_no_message_has_the_key(quick, answer, given, monkeypatch):
    monkeypatch.setenv("LAB_CREDENTIAL", "sk-of-the-environment" if given else KEY)
    server = Server(answer)
    with pytest.raises((EngineError, ConfigError)) as raised:
        server.ask({"api_key": KEY} if given else {}, api_key_env="LAB_CREDENTIAL")
    assert KEY not in str(raised.value)
    assert set(server.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("key", ["sk-\u2028-0", "sk\nX-Header: 1", "schlüssel"])
def test_a_key_that_is_none_is_refused_unseen(key):
    with pytest.raises(ConfigError, match="characters that are not allowed in a key") as raised:
        Server(says).ask({"api_key": key})
    assert key not in str(raised.value)


# --- names ---------------------------------------------------------------------------------------


def test_the_served_name_comes_with_the_reply():
    assert Server(says).ask().served == "org/model-v2"


@pytest.mark.parametrize("model", [None, "", 7, ["m"]])
def test_a_server_need_not_say_its_name(model):
    assert Server(lambda: says(model=model)).ask().served is None


def test_the_served_name_comes_with_a_rating():
    top = [{"token": "5", "logprob": 0.0}]
    logprobs = {"content": [{"token": "5", "top_logprobs": top}]}
    server = Server(lambda: says(choices=[{"message": {"content": "5"}, "logprobs": logprobs}]))

    async def run():
        async with server.engine() as engine:
            return await engine.rate(HELLO, 0)

    found = asyncio.run(run())
    assert (found.served, found.expectation) == ("org/model-v2", 5)


def test_the_identity_is_the_model_and_not_its_address():
    async def run():
        async with TestServer(Server().app(), host="127.0.0.1") as server:
            section = OpenAISection(kind="openai", base_url=str(server.make_url("/v1")))
            engines = [await connect(section), OpenAIEngine(section, "m", identity="model.gguf (llama.cpp)")]
            for engine in engines:
                await engine.close()
            return [engine.identity for engine in engines]

    assert asyncio.run(run()) == ["m", "model.gguf (llama.cpp)"]


def test_the_gate_of_an_engine_that_is_opened_hears_of_push_backs(quick, tmp_path, monkeypatch):
    """Of the calls that measure the engine too."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Server(lambda: refuses(429), says, says, lambda: refuses(429), says)

    async def run():
        async with TestServer(server.app(), host="127.0.0.1") as at:
            section = OpenAISection(kind="openai", base_url=str(at.make_url("/v1")), max_in_flight=100)
            async with open_engine(section, "no/such-model", tmp_path) as engine:
                opened = engine.gate.num_pushbacks, engine.gate.limit
                for seed in range(2):
                    await engine.generate(HELLO, Sampling(), seed)
                return opened, (engine.gate.num_pushbacks, engine.gate.limit)

    assert asyncio.run(run()) == ((1, 70), (2, 49))
    assert server.keys == [f"Bearer {KEY}"] * 6  # of them one for the list of models


# --- the way there -------------------------------------------------------------------------------


def test_as_many_calls_as_asked_are_in_flight():
    """And each connection is used again."""

    async def run():
        together, peers = asyncio.Barrier(200), set()

        async def chat(request):
            peers.add(request.transport.get_extra_info("peername"))
            await together.wait()
            return says()

        server = Server()
        server.chat = chat
        async with server.engine(max_in_flight=200, timeout_s=20) as engine:
            for _ in range(2):
                await asyncio.gather(*(engine.generate(HELLO, Sampling(), seed) for seed in range(200)))
        return len(peers)

    assert asyncio.run(run()) == 200


def test_the_proxy_of_the_environment_is_used_and_named(monkeypatch):
    async def run():
        server = Server(says, lambda: refuses(402))
        async with TestServer(server.app(), host="127.0.0.1") as proxy:
            monkeypatch.setenv("http_proxy", f"me:secret@127.0.0.1:{proxy.port}")
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            async with opened("http://engine.invalid/v1") as engine:
                assert (await engine.generate(HELLO, Sampling(), 0)).text == "Hello."
                with pytest.raises(EngineError, match=r"through the environment's proxy 127\.0\.0\.1:\d+") as raised:
                    await engine.generate(HELLO, Sampling(), 0)
            assert "secret" not in str(raised.value)
            monkeypatch.setenv("no_proxy", "engine.invalid")
            async with opened("http://engine.invalid/v1", num_retries=0) as engine:
                with pytest.raises(EngineError, match="unreachable"):
                    await engine.generate(HELLO, Sampling(), 0)

    asyncio.run(run())


def test_a_proxy_that_refuses_is_named_without_its_password(monkeypatch):
    async def refused(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def run():
        async with await asyncio.start_server(refused, "127.0.0.1", 0) as proxy:
            port = proxy.sockets[0].getsockname()[1]
            monkeypatch.setenv("https_proxy", f"http://me:s@cr:et@127.0.0.1:{port}")
            monkeypatch.setenv("no_proxy", "")
            async with opened("https://engine.invalid/v1", num_retries=0) as engine:
                with pytest.raises(EngineError, match=r"407.*http://127\.0\.0\.1") as raised:
                    await engine.generate(HELLO, Sampling(), 0)
        assert "me:" not in str(raised.value)
        assert "cr" not in str(raised.value)

    asyncio.run(run())


def test_a_proxy_that_cannot_be_used_is_an_error_of_the_config(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://me:secret@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")

    async def run():
        section = OpenAISection(kind="openai", base_url="http://engine.invalid/v1")
        with pytest.raises(ConfigError, match=r"socks5://127\.0\.0\.1.* no_proxy") as raised:
            OpenAIEngine(section, "m")
        assert "secret" not in str(raised.value)

    asyncio.run(run())


def test_a_refusal_can_be_written_to_a_file():
    with pytest.raises(CallRejectedError) as refused:
        Server(lambda: refuses(400, "no \ud83d")).ask()
    str(refused.value).encode()


def test_loopback_needs_no_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert Server(says).ask().text == "Hello."


def test_half_an_emoji_goes_both_ways():
    async def run():
        async with Server(lambda: says("Sorry \ud83d")).engine() as engine:
            return await engine.generate(Prompt("Half \ud83d"), Sampling(), 0)

    assert asyncio.run(run()).text == "Sorry ?"
