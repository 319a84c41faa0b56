"""A fleet: whatever servers are there answer, and no call is answered twice though some come late and some go."""

import asyncio
import collections
import hashlib
import json
import logging
import os
import threading

import pytest
from actors import SMALL_RUN
from aiohttp import web
from vllm_stand_in import path_with_vllm
from waits import wait_until

from salign import compose, work
from salign.bench import engines as bench_engines
from salign.config import Fleet, FleetEngine, Sampling
from salign.engines import fleet as fleet_module
from salign.engines import serving
from salign.engines.base import Prompt
from salign.engines.fleet import Registration, agree_on, open_fleet, register
from salign.engines.kinds import kind_of
from salign.errors import CallRejectedError, ConfigError, EngineError, EngineUnavailableError
from salign.logfiles import read_records
from salign.markers import mark_done, read_done
from salign.plan import servers_of, units
from salign.run import RunDir
from salign.society.shard import run_shard

KEY = "a-key-of-the-test"
SAMPLING = Sampling(max_tokens=4)


class Server:
    """An OpenAI-compatible server in a thread; what it says is a function of the payload."""

    def __init__(self, key=KEY, status=200, ms=0.0):
        self.key, self.status, self.ms = key, status, ms
        self.answered = collections.Counter()
        self.in_hand = 0
        self.holds_after = float("inf")  # as many answers, and what is asked then waits
        self._has_ended = False
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    async def _chat(self, request):
        body = await request.read()
        if request.headers["Authorization"] != f"Bearer {self.key}":
            return web.json_response({"error": "no"}, status=401)
        if self.status != 200:
            return web.json_response({"error": "no"}, status=self.status)
        self.in_hand += 1
        try:
            await asyncio.sleep(self.ms / 1000)
            while self.answered.total() >= self.holds_after:
                await asyncio.sleep(0.005)
        finally:
            self.in_hand -= 1
        digest = hashlib.sha256(body).hexdigest()
        text = f"Rating: {int(digest[0], 16) % 7 + 1} Reason: {digest[:12]}"
        self.answered[json.dumps(json.loads(body), sort_keys=True)] += 1
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return web.json_response({"model": "m", "choices": [choice]})

    async def _start(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _run(self):
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()

    def stop_beating(self):
        self._has_ended = True

    def end(self):
        """Goes without a word: what was asked and not answered is lost."""
        self._has_ended = True
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()

    def register(self, folder, name="0", identity="m@1", key=KEY):
        agree_on(folder, "m@1")
        file, url = folder / f"{name}.json", f"http://127.0.0.1:{self.port}/v1"
        register(file, Registration(base_url=url, identity=identity, served="m"), key)
        asyncio.run_coroutine_threadsafe(self._beat(file), self._loop)

    async def _beat(self, file):
        while not self._has_ended:
            os.utime(file)
            await asyncio.sleep(0.1)


SOCIETY = {**SMALL_RUN, "gates": {"min_rated_share": 0, "max_repeated_share": 1, "max_flagged_share": 1}}


def config_of(folder, **engine):
    engine = {"kind": "fleet", "program": "llama_cpp", **engine}
    tree = {"run": {"root": str(folder), "name": "run"}, "engine": engine, "society": SOCIETY}
    return compose.parse(tree, "test")


def run_of(config):
    run = RunDir(config.run.root / config.run.name)
    run.logs.mkdir(parents=True, exist_ok=True)
    run.config_file.write_text(compose.dump(config))
    return run


@pytest.fixture
def soon(monkeypatch):
    """What is looked at every few seconds is looked at at once."""
    monkeypatch.setattr(fleet_module, "LOOK_S", 0.02)
    monkeypatch.setattr(serving, "BEAT_S", 0.02)


def fleet_of(folder, **settings):
    section = FleetEngine(kind="fleet", program="vllm", num_retries=1, **settings)
    return Fleet.of(section, "a/model"), folder / "fleet"


def ask(folder, during=None, **settings):
    """One call through a fleet."""

    async def run():
        async with open_fleet(*fleet_of(folder, **settings)) as engine:
            return await engine.generate(Prompt("Hello."), SAMPLING, 1), engine.identity

    return asyncio.run(run())


def test_one_goes_one_comes_late_and_the_bytes_are_those_of_a_single_server(tmp_path, soon):
    def simulate(folder, meanwhile):
        config = config_of(folder)
        run = run_of(config)
        helper = threading.Thread(target=meanwhile, args=(run.fleet(config.fleets[0].name),))
        helper.start()
        run_shard(run, config, 0)
        helper.join()
        return run.shard(0)

    alone, first, dying, late = Server(), Server(ms=3), Server(ms=3), Server(ms=3)
    expected = simulate(tmp_path / "alone", alone.register)

    def meanwhile(folder):
        dying.holds_after = 20
        first.register(folder, "0")
        dying.register(folder, "1")
        wait_until(lambda: dying.answered.total() >= 20 and dying.in_hand)
        first.ms = 100  # until the late one is asked: the run is not over before
        dying.end()
        late.register(folder, "2")
        wait_until(lambda: late.in_hand)
        first.ms = 3

    folder = simulate(tmp_path / "fleet", meanwhile)
    assert (folder / "interactions.jsonl").read_bytes() == (expected / "interactions.jsonl").read_bytes()
    assert first.answered + dying.answered + late.answered == alone.answered  # none twice
    assert late.answered
    assert dict(read_records(folder)).keys() == dict(read_records(expected)).keys()
    assert read_done(folder).facts["models"] == ["m@1"]


def test_calls_go_to_whoever_has_the_fewest_of_them_in_flight(tmp_path, soon):
    slow, quick = Server(ms=200), Server(ms=1)

    async def run():
        async with open_fleet(*fleet_of(tmp_path)) as engine:
            await engine.look()
            gate = asyncio.Semaphore(4)

            async def one(seed):
                async with gate:
                    await engine.generate(Prompt("Hello."), SAMPLING, seed)

            await asyncio.gather(*(one(seed) for seed in range(40)))

    slow.register(tmp_path / "fleet", "0")
    quick.register(tmp_path / "fleet", "1")
    asyncio.run(run())
    assert quick.answered.total() > 3 * slow.answered.total() > 0


def test_of_servers_with_as_many_calls_each_has_its_turn(tmp_path, soon):
    servers = [Server() for _ in range(3)]

    async def run():
        async with open_fleet(*fleet_of(tmp_path)) as engine:
            await engine.look()
            for seed in range(6):
                await engine.generate(Prompt("Hello."), SAMPLING, seed)

    for number, server in enumerate(servers):
        server.register(tmp_path / "fleet", str(number))
    asyncio.run(run())
    assert [server.answered.total() for server in servers] == [2, 2, 2]


def test_what_a_dead_run_left_or_another_model_serves_or_has_another_key_answers_nothing(tmp_path, soon, caplog):
    dead, other, foreign, good = Server(), Server(), Server(key="of somebody else"), Server()
    dead.register(tmp_path / "fleet", "0")
    dead.end()
    other.register(tmp_path / "fleet", "1", identity="m@2")
    foreign.register(tmp_path / "fleet", "2")
    (tmp_path / "fleet" / "3.json").write_text('{"base_url": "file:///etc/passwd", "identity": "m@1", "served": "m"}')
    (tmp_path / "fleet" / "4.json").write_text("torn")
    good.register(tmp_path / "fleet", "5")
    with caplog.at_level(logging.INFO):
        _, identity = ask(tmp_path)
    assert identity == "m@1"
    assert good.answered.total() == 1
    assert other.answered.total() == foreign.answered.total() == 0
    assert "the server 1 of the fleet model-" in caplog.text
    assert "it serves m@2, and the first one m@1" in caplog.text
    assert caplog.text.count("cannot be read") == 2


def test_a_server_without_signs_of_life_is_left_and_its_calls_are_asked_elsewhere(tmp_path, soon, monkeypatch):
    monkeypatch.setattr(fleet_module, "LIFE_S", 0.5)
    hung, good = Server(ms=3_600_000), Server()

    async def run():
        async with open_fleet(*fleet_of(tmp_path)) as engine:
            asked = asyncio.create_task(engine.generate(Prompt("Hello."), SAMPLING, 1))
            await asyncio.to_thread(wait_until, lambda: hung.in_hand)
            hung.stop_beating()
            good.register(tmp_path / "fleet", "1")
            return await asked

    hung.register(tmp_path / "fleet", "0")
    asyncio.run(run())
    assert (hung.answered.total(), good.answered.total()) == (0, 1)


def test_where_none_comes_there_is_one_error_and_where_all_fail_theirs(tmp_path, soon):
    with pytest.raises(EngineUnavailableError, match=r"no server of the fleet model-.* engine.patience_s = 0.1 s"):
        ask(tmp_path, patience_s=0.1)
    server = Server(status=500)
    server.register(tmp_path / "fleet")
    with pytest.raises(EngineError, match="HTTP 500"):
        ask(tmp_path)
    server.status = 400
    with pytest.raises(CallRejectedError, match="HTTP 400"):
        ask(tmp_path)


# --- a server's own process ------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, tiny_model, monkeypatch, soon):
    """A run whose fleet has one server, which is a stand-in for vLLM."""
    monkeypatch.setenv("PATH", path_with_vllm(tmp_path / "bin"))
    config = config_of(tmp_path, program="vllm", model=str(tiny_model))
    return run_of(config), config


def finish(run, config):
    for unit in units(run, config):
        if unit.stage == "simulate":
            unit.folder.mkdir(parents=True, exist_ok=True)
            mark_done(unit.folder, [], {}, {})


def test_a_server_registers_for_the_user_alone_and_ends_with_the_last_shard(served):
    run, config = served
    [unit] = servers_of(run, config)
    failed = []

    def serve():
        try:
            work.do_unit(run, config, unit)
        except BaseException as error:
            failed.append(error)
            raise

    process = threading.Thread(target=serve)
    process.start()
    file, key = (run.fleet(config.fleets[0].name) / f"0.{kind}" for kind in ("json", "key"))
    wait_until(lambda: file.exists() or failed)
    assert [oct(path.stat().st_mode & 0o777) for path in (file, key)] == ["0o600", "0o600"]
    assert key.read_text() not in file.read_text()
    began = file.stat().st_mtime_ns
    wait_until(lambda: file.stat().st_mtime_ns > began)  # a sign of life
    finish(run, config)
    process.join()
    assert not failed
    assert not (file.exists() or key.exists())


def test_a_registration_whose_file_has_the_inode_of_the_one_before_is_another(tmp_path, monkeypatch):
    """Where nothing else is written meanwhile, a file system gives what was freed to the next."""
    gone, back = Server(), Server(key="another key")
    file = tmp_path / "fleet" / "0.json"

    async def run():
        async with open_fleet(*fleet_of(tmp_path)) as engine:
            await engine.look()
            await engine.generate(Prompt("Hello."), SAMPLING, 1)
            gone.end()
            said = Registration(base_url=f"http://127.0.0.1:{back.port}/v1", identity="m@1", served="m")
            inode = file.stat().st_ino
            file.write_text(said.model_dump_json())  # in place
            file.with_suffix(".key").write_text(back.key)
            assert file.stat().st_ino == inode
            asking = asyncio.create_task(engine.generate(Prompt("Hello."), SAMPLING, 2))
            while not asking.done():
                os.utime(file)
                await engine.look()
                await asyncio.sleep(0.01)
            return await asking

    gone.register(tmp_path / "fleet", "0")
    asyncio.run(run())
    assert (gone.answered.total(), back.answered.total()) == (1, 1)


def test_a_server_of_other_weights_ends_before_it_serves(served):
    run, config = served
    agree_on(run.fleet(config.fleets[0].name), "another@1234 (vllm)")
    [unit] = servers_of(run, config)
    with pytest.raises(ConfigError, match=r"would serve .*, and the first one .* served another@1234 \(vllm\)"):
        work.do_unit(run, config, unit)


def test_a_server_that_nobody_asks_ends(served):
    run, config = served
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"idle_min": 0.0})})
    [unit] = servers_of(run, config)
    work.do_unit(run, config, unit)
    with pytest.raises(ConfigError, match=r"has no fleet 'x'; there are: "):
        serving.serve(run, config, "x.0")


def test_engines_of_one_model_share_a_fleet_and_others_have_their_own(tmp_path):
    same = {"kind": "fleet", "program": "llama_cpp", "num_servers": 3}
    other = {"kind": "fleet", "program": "vllm", "model": "an/other"}
    tree = {
        "engine": {**same, "max_in_flight": 8},
        "society": {"observer": same, "mixture": [{"name": "x", "share": 0.5, "engine": other}]},
    }
    config = compose.parse(tree, "test")
    assert [fleet.model for fleet in config.fleets] == ["smollm2-135m", "an/other"]
    numbers = [unit.argument for unit in servers_of(RunDir(tmp_path), config)]
    assert numbers == [f"{config.fleets[0].name}.{number}" for number in range(3)] + [f"{config.fleets[1].name}.0"]


def test_the_bench_of_a_fleet_knows_the_ideal():
    """Of 7 servers of 4 slots, 8 from the 2nd second on, 7 from the 4th: 56 + 64 + 28 seconds of a slot in 5 s."""
    times = bench_engines.Times(began=10.0, came=12.0, died=14.0, ended=16.0, work=148.0)
    assert times.ideal == pytest.approx(5.0)
    assert times._replace(work=28.0).ideal == pytest.approx(1.0)


def test_an_evaluation_starts_servers_of_its_own(served):
    run, config = served
    section = config.engine

    async def ask_judge():
        async with kind_of(section).open(section, config.model, run.evaluation("base") / "servers") as engine:
            return await engine.generate(Prompt("Hello."), SAMPLING, 1)

    assert asyncio.run(ask_judge()).text.startswith("I am tiny")
    assert not run.fleet(config.fleets[0].name).exists()
