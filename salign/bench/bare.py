"""What a society gets from a server, and what its client costs, beside a client that only sends the same requests."""

import asyncio
import contextlib
import functools
import json
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import aiohttp
from aiohttp import web

from salign import compose
from salign.bench.figures import Figure
from salign.bench.prefixes import figures_of, prompts_of
from salign.bench.society import Bench, mock_engine
from salign.config import OpenAIEngine as OpenAISection
from salign.config import Sampling, ServerEngine
from salign.engines.base import Prompt
from salign.engines.openai import OpenAIEngine
from salign.engines.programs import program_of
from salign.engines.server import KeptServer
from salign.errors import ConfigError
from salign.garbage import rare_collections
from salign.tracking.metrics import read_metrics

T = TypeVar("T")

_MODEL = "smollm2-135m"
# Pairs of clients take two seconds each, and differ more than those of societies.
_OFTENER = 3
_SOCIETY_TO_REACH, _CLIENT_TO_REACH = ">= 0.97", ">= 0.85"


class Shape(NamedTuple):
    """What is measured: a society, the slots of its server, and how often.

    Attributes:
        society: Settings of the section.
        slots: Replies that the server makes at a time; as many calls are in flight.
        num_pairs: Of the society's run and the bare client's.
        ms_per_token: Of the mock engine.
    """

    society: dict[str, Any]
    slots: int
    num_pairs: int = 5
    ms_per_token: float = 4.0

    def __str__(self) -> str:
        side = self.society["topology"]["size"]
        return f"{self.slots} slots and calls in flight, {side} x {side}, {self.society['max_rounds']} rounds"


MOCK = Shape({"topology": {"size": 10, "radius": 2}, "max_rounds": 5, "observer_check": None}, slots=32)
_SHORT, _CONTEXT = {"max_tokens": 16}, 1024
LLAMA = Shape(
    {
        "topology": {"size": 2, "radius": 1},
        "audience_size": 1,
        "max_rounds": 1,
        "observer_check": None,
        "num_rating_retries": 0,
        "draft": _SHORT,
        "feedback": _SHORT,
        "revision": _SHORT,
    },
    slots=2,
)


class Cost(NamedTuple):
    """Of some calls: how many, seconds by the clock, and seconds of this process's processor."""

    num_calls: int
    seconds: float
    processor: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.num_calls / self.seconds

    @property
    def rate_of_processor(self) -> float:
        """Calls a second of the processor."""
        return self.num_calls / self.processor


# --- what is sent --------------------------------------------------------------------------------


class Recorder:
    """Passes requests on to a server, and keeps their bodies in the order in which they came."""

    def __init__(self, base_url: str, key: str) -> None:
        self._base_url = base_url
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.bodies: list[bytes] = []

    async def listen(self, stack: contextlib.AsyncExitStack) -> str:
        """Begins to listen on loopback, until the stack is closed; the base URL."""
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(headers=self._headers, connector=connector))

        async def pass_on(request: web.Request) -> web.Response:
            body = await request.read()
            if body:
                self.bodies.append(body)
            url = f"{self._base_url}/{request.match_info['path']}"
            async with session.request(request.method, url, data=body or None) as answer:
                return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")

        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/v1/{path:.*}", pass_on)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"


@contextlib.contextmanager
def recording(base_url: str, key: str = "none") -> Iterator[tuple[str, list[bytes]]]:
    """A recorder in a thread of its own: its base URL, and the bodies that went through it so far.

    Args:
        base_url: Of the server that answers.
        key: That the server asks for.
    """
    loop, stack, recorder = asyncio.new_event_loop(), contextlib.AsyncExitStack(), Recorder(base_url, key)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def there(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    try:
        yield there(recorder.listen(stack)), recorder.bodies
    finally:
        there(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# --- who sends it --------------------------------------------------------------------------------


def hold(bench: Bench, base_url: str, shape: Shape) -> Cost:
    """Has a society served: from its first interaction until all are written, without the start of its shard.

    Args:
        bench: Makes the run.
        base_url: Of the server.
        shape: Which society, and how many of its calls may be in flight.
    """
    engine = {"kind": "openai", "base_url": base_url, "max_in_flight": shape.slots}
    config = bench.config(**shape.society)
    began = time.process_time()
    _, run, facts = bench.run(compose.parse({**config.model_dump(mode="json"), "engine": engine}, "bench"))
    rows = read_metrics(run.shard(0) / "metrics.jsonl")
    return Cost(facts["num_calls"], rows[-1]["time"] - rows[0]["time"], time.process_time() - began)


async def each(items: Sequence[T], in_flight: int, send: Callable[[T], Awaitable[object]]) -> Cost:
    """Sends items in order.

    Args:
        items: What is sent.
        in_flight: How many at a time.
        send: Returns when one is answered.
    """
    left = iter(items)

    async def some() -> None:
        for item in left:
            await send(item)

    with rare_collections():  # as in a shard
        began, processor = time.perf_counter(), time.process_time()
        await asyncio.gather(*(some() for _ in range(in_flight)))
        return Cost(len(items), time.perf_counter() - began, time.process_time() - processor)


async def post(base_url: str, bodies: Sequence[bytes], in_flight: int) -> Cost:
    """The bare client: posts bodies over connections that are kept, and reads each reply as JSON.

    Args:
        base_url: Of the server.
        bodies: In the order in which they are sent.
        in_flight: How many at a time.
    """
    url, headers = f"{base_url}/chat/completions", {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(body: bytes) -> None:
            async with session.post(url, data=body) as answer:
                answer.raise_for_status()
                json.loads(await answer.read())

        return await each(bodies, in_flight, send)


class _Asked(NamedTuple):
    """A call as the society makes it."""

    prompt: Prompt
    sampling: Sampling
    seed: int

    @classmethod
    def of(cls, body: bytes) -> "_Asked":
        request = json.loads(body)
        said = {message["role"]: message["content"] for message in request["messages"]}
        sampling = Sampling(**{name: request[name] for name in ("temperature", "top_p", "max_tokens")})
        return cls(Prompt(said["user"], said.get("system")), sampling, request["seed"])


async def ask(base_url: str, bodies: Sequence[bytes], in_flight: int) -> Cost:
    """The project's client, with the calls of such bodies; as `post`."""
    calls = [_Asked.of(body) for body in bodies]
    engine = OpenAIEngine(OpenAISection(kind="openai", base_url=base_url), json.loads(bodies[0])["model"])
    try:
        return await each(calls, in_flight, lambda call: engine.generate(*call))
    finally:
        await engine.close()


# --- one over the other --------------------------------------------------------------------------


def over(what: str, pairs: Sequence[tuple[float, float]], unit: str, to_reach: str, told: str = "") -> Figure:
    """The median of the ratios of pairs.

    Args:
        what: Whose rate over whose.
        pairs: Rates that were measured one after the other.
        unit: Of the rates.
        to_reach: The target.
        told: More for the note.
    """
    ratios = [one / other for one, other in pairs]
    one, other = (median(rates) for rates in zip(*pairs, strict=True))
    note = f"{one:,.1f} and {other:,.1f} {unit}; ratios from {min(ratios):.3f} to {max(ratios):.3f}{told}"
    return Figure(what, median(ratios), "", to_reach, note=note)


class Bodies:
    """The requests that a society sends to the mock engine, recorded when they are first needed."""

    def __init__(self, script: Path, shape: Shape = MOCK) -> None:
        self._script = script
        self.shape = shape

    @functools.cached_property
    def sent(self) -> list[bytes]:
        """In the order in which they were sent, without those that measure the server."""
        with (
            tempfile.TemporaryDirectory(prefix="salign-bench-") as folder,
            self.engine(self.shape.ms_per_token) as url,
            recording(url) as (through, bodies),
        ):
            num = hold(Bench(Path(folder)), through, self.shape).num_calls
            return bodies[-num:]

    def engine(self, ms_per_token: float) -> contextlib.AbstractContextManager[str]:
        """The mock engine; its base URL."""
        return mock_engine(self._script, ms_per_token, self.shape.slots)


def over_mock(bodies: Bodies) -> list[Figure]:
    """What the society gets from the mock engine, over what a bare client gets."""
    shape, sent, pairs = bodies.shape, bodies.sent, []
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as folder, bodies.engine(shape.ms_per_token) as url:
        bench = Bench(Path(folder))
        for _ in range(shape.num_pairs):
            society = hold(bench, url, shape)
            pairs.append((society.rate, asyncio.run(post(url, sent, shape.slots)).rate))
    what = f"society over a bare client: mock engine, {shape.ms_per_token:g} ms a token, {shape}"
    return [over(what, pairs, "calls/s", _SOCIETY_TO_REACH, f"; {len(sent):,} calls")]


@contextlib.contextmanager
def _llama_server(slots: int, log: Path) -> Iterator[tuple[str, str]]:
    """The embedded model, served as `kind: server` serves it: base URL and key."""
    section = ServerEngine(kind="server", program="llama_cpp", num_slots=slots, context_length=_CONTEXT)
    server = KeptServer(program_of(section, _MODEL), section, 0, log, (), identity=_MODEL)
    with asyncio.Runner() as runner:
        try:
            runner.run(server.start())
            assert server.running is not None
            yield server.running.base_url, server.running.key
        finally:
            runner.run(server.close())


def over_llama(shape: Shape = LLAMA) -> list[Figure]:
    """The same with llama.cpp and the embedded model.

    A model's replies depend on what else is asked at the time, so each run is recorded, and the bare client goes the
    same way, with the requests of the run before it.
    """
    what = f"society over a bare client: llama.cpp, {_MODEL}, {shape}"
    pairs, num_calls = [], 0
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as folder, contextlib.ExitStack() as stack:
        bench = Bench(Path(folder))
        try:
            url, key = stack.enter_context(_llama_server(shape.slots, Path(folder) / "server.log"))
        except ConfigError as error:
            return [Figure(what, None, "", _SOCIETY_TO_REACH, note=str(error))]
        for _ in range(shape.num_pairs):
            with recording(url, key) as (through, bodies):
                society = hold(bench, through, shape)
                num_calls = society.num_calls
                bare = asyncio.run(post(through, bodies[-num_calls:], shape.slots))
            pairs.append((society.rate, bare.rate))
    return [over(what, pairs, "calls/s", _SOCIETY_TO_REACH, f"; {num_calls:,} calls")]


def client(bodies: Bodies) -> list[Figure]:
    """What the project's client does in a second of its processor, over what a bare client does."""
    pairs, sent, slots = [], bodies.sent, bodies.shape.slots
    with bodies.engine(0.0) as url:
        for _ in range(_OFTENER * bodies.shape.num_pairs):
            ours, bare = (asyncio.run(send(url, sent, slots)).rate_of_processor for send in (ask, post))
            pairs.append((ours, bare))
    what = f"HTTP client over a bare client: mock engine, 0 ms a token, {slots} in flight"
    return [over(what, pairs, "calls/s of a core", _CLIENT_TO_REACH, f"; {len(sent):,} calls")]


def prefixes(bodies: Bodies) -> list[Figure]:
    """How much of the society's prompts a prefix cache has, over the best order of the same prompts."""
    return figures_of(prompts_of(bodies.sent))
