"""Servers of our own: a stand-in for vLLM, its life and its end. (llama.cpp: integration/test_llama_server.py.)"""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from pydantic import ValidationError
from waits import HANG_S, wait_until

from salign.config import Sampling, ServerEngine
from salign.digests import name_of
from salign.engines import server as server_module
from salign.engines.base import Prompt, PushesBack, Reply
from salign.engines.server import LeastLoaded, reserve_port, servers
from salign.errors import ConfigError, EngineError
from salign.machine import share_out, visible_devices

HELLO = Prompt("Hello, how are you?")

# `vllm serve MODEL ...`: hears the same words, asks for the same key, and leaves in $VLLM_STUB how it was started.
STUB = """#!{python}
import json, os, signal, subprocess, sys, tempfile, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

words, key, facts = sys.argv[1:], os.environ["VLLM_API_KEY"], Path(os.environ["VLLM_STUB"])
option = dict(zip(words[2::2], words[3::2]))
behaviour = os.environ.get("VLLM_BEHAVIOUR", "")
child = subprocess.Popen(["sleep", "600"])
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
env = {{name: value for name, value in os.environ.items() if value != key}}
started = dict(words=words, key=key, env=env, tmp=tempfile.gettempdir(), pids=[os.getpid(), child.pid])
(facts / f"{{time.time_ns()}}.json").write_text(json.dumps(started))
print("vLLM, or what stands in for it; the key is", key, flush=True)
if behaviour == "fail":
    print("no GPU here")
    sys.exit(3)
if behaviour == "slow":
    time.sleep(600)

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") == f"Bearer {{key}}":
            return content
        self.answer(401, {{"error": "Unauthorized"}})

    def do_GET(self):
        if self.body() is not None:
            self.answer(200, {{"object": "list", "data": [{{"id": option["--served-model-name"]}}]}})

    def do_POST(self):
        if (content := self.body()) is None:
            return
        asked = json.loads(content)
        if asked["messages"][-1]["content"] == "crash":
            os._exit(9)
        if asked["messages"][-1]["content"] == "busy":
            self.answer(429, {{"error": {{"message": "too many"}}}})
            return
        choice = {{"index": 0, "message": {{"role": "assistant", "content": f"port {{option['--port']}}"}}}}
        usage = {{"prompt_tokens": 3, "completion_tokens": 2}}
        self.answer(200, {{"model": asked["model"], "choices": [choice], "usage": usage}})

    def log_message(self, *_):
        pass

ThreadingHTTPServer((option["--host"], int(option["--port"])), Handler).serve_forever()
"""

# A simulation's shard, as far as servers see it.
SHARD = """
import asyncio, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do without
from pathlib import Path
from salign.config import ServerEngine
from salign.engines.server import servers

async def main():
    async with servers(ServerEngine.model_validate_json(sys.argv[1]), sys.argv[2], Path(sys.argv[3])):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


class Stub:
    """What the stand-ins were started with."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = str(model)
        self.logs = folder / "logs"

    @property
    def started(self):
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]

    def section(self, **settings) -> ServerEngine:
        return ServerEngine(kind="server", program="vllm", num_retries=0, **settings)

    def servers(self, **settings):
        return servers(self.section(**settings), self.model, self.logs)

    def all_ended(self) -> bool:
        """All processes of all servers, and their folders, soon."""

        def ended() -> bool:
            left = any(alive(pid) or Path(one["tmp"]).exists() for one in self.started for pid in one["pids"])
            return not left

        return wait_until(ended)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def stub(tmp_path, monkeypatch) -> Stub:
    binaries, model = tmp_path / "bin", tmp_path / "model"
    binaries.mkdir()
    model.mkdir()
    (binaries / "vllm").write_text(STUB.format(python=sys.executable))
    (binaries / "vllm").chmod(0o755)
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("VLLM_STUB", str(tmp_path))
    monkeypatch.delenv("VLLM_BEHAVIOUR", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return Stub(tmp_path, model)


async def status(port: int, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.request("GET", f"http://127.0.0.1:{port}/v1/models", headers=headers) as response:
        return response.status


def option(started, name: str) -> str:
    words = started["words"]
    return words[words.index(name) + 1]


# --- the command and what it answers -------------------------------------------------------------


def test_vllm_gets_its_words_and_answers(stub):
    async def run():
        arguments = ("--enforce-eager", "--tensor-parallel-size=2")
        async with stub.servers(context_length=1234, num_slots=5, arguments=arguments) as engine:
            return engine.identity, await engine.generate(HELLO, Sampling(), 0)

    identity, reply = asyncio.run(run())
    [started] = stub.started
    assert started["words"][:2] == ["serve", stub.model]
    assert started["words"][-3:] == ["--disable-uvicorn-access-log", "--enforce-eager", "--tensor-parallel-size=2"]
    assert option(started, "--host") == "127.0.0.1"
    assert option(started, "--max-model-len") == "1234"
    assert option(started, "--max-num-seqs") == "5"
    assert option(started, "--max-logprobs") == "20"
    assert option(started, "--generation-config") == "vllm"
    assert identity == f"{name_of(stub.model)} (vllm)"
    assert identity.startswith("model@")
    assert reply == Reply(f"port {option(started, '--port')}", 3, 2, stub.model)
    assert stub.all_ended()


def test_the_key_is_in_no_command_and_no_file_of_ours(stub, caplog, monkeypatch):
    monkeypatch.setenv("VLLM_BEHAVIOUR", "fail")
    with caplog.at_level(logging.DEBUG), pytest.raises(EngineError) as error:
        asyncio.run(opened(stub))
    [started] = stub.started
    assert len(started["key"]) > 30
    assert started["key"] not in " ".join(started["words"]) + caplog.text + str(error.value)
    assert "the key is <key>" in str(error.value)


async def opened(stub, **settings) -> None:
    async with stub.servers(**settings):
        pass


def test_each_server_has_a_folder_of_its_own(stub):
    asyncio.run(opened(stub, num_servers=2))
    folders = [one["tmp"] for one in stub.started]
    assert len(set(folders)) == 2
    for one in stub.started:
        assert one["env"]["VLLM_CACHE_ROOT"] == one["env"]["TMPDIR"] == one["tmp"]
    assert {path.name for path in stub.logs.iterdir()} == {"server-0.log", "server-1.log"}
    assert stub.all_ended()


# --- what may be wrong ---------------------------------------------------------------------------


def test_a_missing_program_is_said_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pip install vllm"):
        asyncio.run(opened(Stub(tmp_path, tmp_path)))
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match="pip install xllamacpp"):
        asyncio.run(llama(tmp_path, "smollm2-135m"))


async def llama(folder: Path, model: str) -> None:
    async with servers(ServerEngine(kind="server", program="llama_cpp"), model, folder):
        pass


def test_llama_cpp_wants_a_gguf_file(tmp_path):
    pytest.importorskip("xllamacpp")
    with pytest.raises(ConfigError, match="is not a file on this machine"):
        asyncio.run(llama(tmp_path, str(tmp_path / "none.gguf")))
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ConfigError, match="not in GGUF format"):
        asyncio.run(llama(tmp_path, str(tmp_path / "text.gguf")))


@pytest.mark.parametrize("word", ["--port", "--api-key=secret", "--served_model_name", "--host"])
def test_arguments_leave_alone_what_is_not_theirs(word):
    with pytest.raises(ValidationError, match="is set by salign"):
        ServerEngine(kind="server", program="vllm", arguments=(word,))


def test_arguments_are_for_vllm():
    with pytest.raises(ValidationError, match="llama_cpp takes none"):
        ServerEngine(kind="server", program="llama_cpp", arguments=("--enforce-eager",))


def test_a_server_that_fails_to_start_is_quoted(stub, monkeypatch):
    monkeypatch.setenv("VLLM_BEHAVIOUR", "fail")
    with pytest.raises(EngineError, match=r"server 0 of vllm ended before it was ready \(exit code 3\)") as error:
        asyncio.run(opened(stub))
    assert str(stub.logs / "server-0.log") in str(error.value)
    assert "no GPU here" in str(error.value)
    assert len(stub.started) == 1
    assert stub.all_ended()


def test_a_server_that_is_never_ready_is_given_up(stub, monkeypatch, caplog):
    monkeypatch.setenv("VLLM_BEHAVIOUR", "slow")
    monkeypatch.setattr(server_module, "SAY_EVERY_S", 0.5)
    with caplog.at_level(logging.INFO), pytest.raises(EngineError, match=r"engine.start_timeout_s = 1.5 s") as error:
        asyncio.run(opened(stub, start_timeout_s=1.5))
    assert "what stands in for it" in str(error.value)
    assert "waiting for server 0 of vllm (1 s)" in caplog.text
    assert stub.all_ended()


def test_one_that_fails_ends_the_others(stub, monkeypatch):
    monkeypatch.setenv("VLLM_BEHAVIOUR", "fail")
    with pytest.raises(EngineError):
        asyncio.run(opened(stub, num_servers=2))
    assert stub.all_ended()


# --- ports ---------------------------------------------------------------------------------------


def test_a_reserved_port_is_given_to_nobody_but_a_server_that_asks_for_it():
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        others = [reserve_port() for _ in range(50)]
        assert port not in {other.getsockname()[1] for other in others}
        for other in others:
            other.close()
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.bind(("127.0.0.1", port))
            ours.listen()


def on_taken_ports(monkeypatch, taken: int, num: int) -> None:
    """Lets the first servers be told a port on which somebody listens."""
    told = [taken] * num

    def reserve():
        return Told(told.pop()) if told else reserve_port()

    class Told:
        def __init__(self, port):
            self.port = port

        def getsockname(self):
            return "127.0.0.1", self.port

        def close(self):
            pass

    monkeypatch.setattr(server_module, "reserve_port", reserve)


def test_another_port_where_somebody_took_the_first(stub, monkeypatch):
    async def run(taken):
        on_taken_ports(monkeypatch, taken, 2)
        async with stub.servers() as engine:
            return await engine.generate(HELLO, Sampling(), 0)

    with socket.create_server(("127.0.0.1", 0)) as somebody:  # who does not even answer
        taken = somebody.getsockname()[1]
        monkeypatch.setattr(server_module, "ANSWER_S", 0.5)
        reply = asyncio.run(run(taken))
    assert [option(one, "--port") == str(taken) for one in stub.started] == [True, True, False]
    assert reply.text == f"port {option(stub.started[-1], '--port')}"
    assert len({one["key"] for one in stub.started}) == 3


def test_a_server_of_another_shard_on_the_port_is_not_ours(stub, monkeypatch):
    async def run():
        async with stub.servers() as first:
            port = int(option(stub.started[0], "--port"))
            on_taken_ports(monkeypatch, port, 1)
            async with stub.servers() as second:
                replies = [await engine.generate(HELLO, Sampling(), 0) for engine in (first, second)]
                ours, theirs = stub.started[0], stub.started[-1]
                crossed = [
                    await status(port, theirs["key"]),
                    await status(int(option(theirs, "--port")), ours["key"]),
                ]
                return replies, crossed

    replies, crossed = asyncio.run(run())
    assert replies[0].text != replies[1].text
    assert crossed == [401, 401]
    assert stub.all_ended()


def test_ports_are_tried_a_few_times_only(stub, monkeypatch):
    monkeypatch.setattr(server_module, "ANSWER_S", 0.5)
    monkeypatch.setattr(server_module, "NUM_PORTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        on_taken_ports(monkeypatch, somebody.getsockname()[1], 9)
        with pytest.raises(EngineError, match="The same happened on 2 ports"):
            asyncio.run(opened(stub))
    assert len(stub.started) == 2
    assert stub.all_ended()


# --- the end -------------------------------------------------------------------------------------


def test_an_exception_ends_the_servers(stub):
    async def run():
        async with stub.servers():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
    assert stub.all_ended()


def test_cancellation_ends_the_servers(stub, monkeypatch):
    async def run():
        task = asyncio.create_task(opened(stub))
        while not stub.started:
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setenv("VLLM_BEHAVIOUR", "slow")
    asyncio.run(run())
    assert stub.all_ended()


@pytest.fixture
def shard(stub):
    """A process with two servers."""
    section = stub.section(num_servers=2).model_dump_json()
    command = [sys.executable, "-c", SHARD, section, stub.model, str(stub.logs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_shard_that_is_killed_leaves_nothing(stub, shard, number):
    assert all(alive(pid) for one in stub.started for pid in one["pids"])
    os.kill(shard.pid, number)
    shard.wait(HANG_S)
    assert stub.all_ended()


def test_a_server_that_does_not_listen_is_killed(stub, monkeypatch):
    monkeypatch.setenv("VLLM_BEHAVIOUR", "stubborn")
    asyncio.run(opened(stub))
    assert stub.all_ended()
    assert "did not end within 5 s" in (stub.logs / "server-0.log").read_text()


# --- a server that ends in between ---------------------------------------------------------------


def test_a_server_that_ended_is_started_again_and_the_call_made_again(stub, caplog):
    async def run():
        async with stub.servers() as engine:
            first = await engine.generate(HELLO, Sampling(), 0)
            os.kill(stub.started[0]["pids"][0], signal.SIGKILL)
            again = await asyncio.gather(*(engine.generate(HELLO, Sampling(), seed) for seed in range(4)))
            return first, again

    first, again = asyncio.run(run())
    assert len(stub.started) == 2
    assert {reply.text for reply in again} == {f"port {option(stub.started[1], '--port')}"}
    assert first.text not in {reply.text for reply in again}
    assert "ended by itself (signal 9" in caplog.text
    assert stub.all_ended()


def test_a_call_that_ends_every_server_is_given_up(stub, monkeypatch):
    monkeypatch.setattr(server_module, "NUM_RESTARTS", 1)

    async def run():
        async with stub.servers() as engine:
            await engine.generate(Prompt("crash"), Sampling(), 0)

    with pytest.raises(EngineError, match=r"(?s)ended by itself \(exit code 9\).*server-0.log.*started 2 times"):
        asyncio.run(run())
    assert len(stub.started) == 2
    assert stub.all_ended()


def test_an_error_of_a_living_server_is_its_own(stub, monkeypatch):
    monkeypatch.setattr(server_module, "SEEN_DEAD_S", 0.1)

    async def run():
        async with stub.servers() as engine:
            await engine.rate(HELLO, 0)

    with pytest.raises(EngineError, match="log-probabilities"):
        asyncio.run(run())
    assert len(stub.started) == 1


def test_push_backs_are_reported_also_of_a_server_that_is_started_again(stub, monkeypatch):
    monkeypatch.setattr(server_module, "SEEN_DEAD_S", 1.0)
    reported = []

    async def busy(engine):
        with pytest.raises(EngineError, match="too many"):
            await engine.generate(Prompt("busy"), Sampling(), 0)
        return len(reported)

    async def run():
        async with stub.servers() as engine:
            assert isinstance(engine, PushesBack)
            engine.on_push_back(lambda: reported.append(None))
            first = await busy(engine)
            os.kill(stub.started[0]["pids"][0], signal.SIGKILL)
            await engine.generate(HELLO, Sampling(), 0)
            return first, await busy(engine)

    assert asyncio.run(run()) == (1, 2)
    assert len(stub.started) == 2


# --- several -------------------------------------------------------------------------------------


class Waiting:
    """An engine whose calls wait until they are let go."""

    identity = "waiting"

    def __init__(self):
        self.calls = []

    async def generate(self, prompt, sampling, seed):
        self.calls.append(asyncio.get_running_loop().create_future())
        await self.calls[-1]
        return Reply("", 0, 0)

    async def rate(self, prompt, seed):
        raise EngineError("no")

    def facts(self):
        return {}


def test_a_call_goes_where_the_fewest_are():
    async def run():
        engines = [Waiting(), Waiting()]
        least = LeastLoaded(engines)
        tasks = []

        async def call():
            tasks.append(asyncio.create_task(least.generate(HELLO, Sampling(), 0)))
            await asyncio.sleep(0)
            return [len(engine.calls) for engine in engines]

        counts = [await call(), await call(), await call()]
        engines[1].calls[0].set_result(None)
        await tasks[1]
        counts.append(await call())
        with pytest.raises(EngineError):
            await least.rate(HELLO, 0)  # a failed call is in flight no longer
        for future in (f for engine in engines for f in engine.calls if not f.done()):
            future.set_result(None)
        await asyncio.gather(*tasks)
        return counts, least.identity

    counts, identity = asyncio.run(run())
    assert counts == [[1, 0], [1, 1], [2, 1], [2, 2]]
    assert identity == "waiting"


def test_the_calls_are_shared_by_the_servers(stub):
    async def run():
        async with stub.servers(num_servers=2) as engine:
            return await asyncio.gather(*(engine.generate(HELLO, Sampling(), seed) for seed in range(6)))

    texts = [reply.text for reply in asyncio.run(run())]
    assert sorted(texts.count(text) for text in set(texts)) == [3, 3]


@pytest.mark.parametrize(
    ("devices", "num_servers", "shares"),
    [
        ([], 2, [[], []]),
        (["0", "1"], 2, [["0"], ["1"]]),
        (["4", "6"], 3, [["4"], ["6"], ["4"]]),
        (["0", "1", "2", "3"], 2, [["0", "2"], ["1", "3"]]),
        (["GPU-a"], 1, [["GPU-a"]]),
    ],
)
def test_devices_are_shared_out(devices, num_servers, shares):
    assert share_out(devices, num_servers) == shares


def test_visible_devices(monkeypatch, tmp_path):
    for value, devices in {"": [], "-1": [], "2,3": ["2", "3"], "GPU-a, GPU-b": ["GPU-a", "GPU-b"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_devices() == devices
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == []
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: a)'\necho '  MIG'\necho 'GPU 1: B (UUID: b)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert visible_devices() == ["0", "1"]


def test_each_server_sees_its_devices(stub, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    asyncio.run(opened(stub, num_servers=2))
    assert {one["env"]["CUDA_VISIBLE_DEVICES"] for one in stub.started} == {"5", "7"}
