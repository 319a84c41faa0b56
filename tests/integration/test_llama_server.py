"""llama.cpp's server as a server of our own, with the embedded model."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from waits import wait_until

from salign import compose, models
from salign.config import Sampling, ServerEngine
from salign.digests import name_of
from salign.engines.base import Prompt
from salign.engines.check import check_engines
from salign.engines.opening import open_engine
from salign.engines.server import servers
from salign.errors import ConfigError, EngineError
from salign.evaluation.check import check_evaluation
from salign.evaluation.evaluate import evaluate
from salign.manifest import create_run

pytestmark = pytest.mark.integration

CAPITAL = Prompt("What is the capital of France? Answer with one word.")
GREEDY = Sampling(temperature=0.0, max_tokens=8)

SHARD = """
import asyncio, sys
from pathlib import Path
from salign.config import ServerEngine
from salign.engines.server import servers

async def main():
    async with servers(ServerEngine.model_validate_json(sys.argv[1]), "smollm2-135m", Path(sys.argv[2])):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def _model() -> None:
    pytest.importorskip("xllamacpp")
    try:
        models.embedded_gguf("smollm2-135m")
    except ConfigError as error:
        pytest.skip(f"the embedded model cannot be had here: {error}")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def section(**settings) -> ServerEngine:
    settings = {"context_length": 500, "num_slots": 3, "num_retries": 0} | settings
    return ServerEngine(kind="server", program="llama_cpp", **settings)


def opened(folder: Path, **settings):
    return servers(section(**settings), "smollm2-135m", folder)


def children(pid: int) -> list[int]:
    """A process's children and theirs."""
    try:
        own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, own) for found in (child, *children(child))]


def server_pids(pid: int) -> list[int]:
    """The processes of a shard's servers, keepers left out."""
    return [
        found for found in children(pid) if b"llama_server" in command_of(found) and b"keeper" not in command_of(found)
    ]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def ended(pids: list[int]) -> bool:
    return wait_until(lambda: not any(command_of(pid) for pid in pids))


async def get(url: str, key: str) -> tuple[int, str]:
    async with aiohttp.request("GET", url, headers={"Authorization": f"Bearer {key}"}) as response:
        return response.status, await response.text()


def running(engine):
    """What the only server of an engine was started with."""
    return engine.engines[0].running


def test_it_speaks_rates_and_ends(tmp_path):
    async def run():
        before = set(children(os.getpid()))
        async with opened(tmp_path) as engine:
            pids = set(children(os.getpid())) - before
            key = running(engine).key
            assert not any(key.encode() in command_of(pid) for pid in pids)
            url = running(engine).base_url.removesuffix("/v1")
            slots = await get(f"{url}/slots", key)
            properties = await get(f"{url}/props", key)
            reply = await engine.generate(CAPITAL, GREEDY, 0)
            rating = await engine.rate(Prompt("Rate the word 'good' from 1 to 7."), 0)
            many = await asyncio.gather(*(engine.generate(CAPITAL, Sampling(max_tokens=3), s) for s in range(8)))
            return engine.identity, pids, key, slots, properties, reply, rating, many

    identity, pids, key, slots, properties, reply, rating, many = asyncio.run(run())
    gguf = str(models.embedded_gguf("smollm2-135m"))
    assert identity == f"{name_of('smollm2-135m', gguf)} (llama_cpp)"
    assert len(pids) == 2
    assert "Paris" in reply.text
    assert reply.served == "smollm2-135m"
    assert rating.mass > 0.5
    assert sum(rating.probabilities) == pytest.approx(1)
    assert len(many) == 8
    # context_length is of each slot (llama.cpp rounds it up to a multiple of 256)
    assert slots[1].count('"n_ctx":512') == 3
    # temperature, then top_p, and none of llama.cpp's own cuts
    assert '"samplers":["temperature","top_p"]' in properties[1]
    assert ended(pids)
    assert key not in (tmp_path / "server-0.log").read_text()


def test_it_is_asked_for_ratings_in_the_way_that_puts_the_mass_on_digits(tmp_path):
    plain = Prompt("How good is the word 'kind'? Rate it from 1 to 7.")
    words = Prompt(plain.user + ' Reply in the form "Rating: <1 to 7> Reason: <one sentence>".', form="rating")

    async def run(ratings):
        async with open_engine(section(), "smollm2-135m", tmp_path, ratings=ratings) as engine:
            said = [await engine.generate(words, Sampling(max_tokens=40), seed) for seed in range(3)]
            return engine.facts(), await engine.rate(plain, 0), [reply.text for reply in said]

    facts, rating, _ = asyncio.run(run("logprob"))
    mass = {way: measured["mass"] for way, measured in facts["ways"].items()}
    assert facts["rating_way"] == "begun"
    assert mass["begun"] > 0.85
    assert mass["schema"] > 0.85
    assert mass["told"] < 0.3
    assert mass["choices"] < 0.3  # what is shown is what the model would have said without the grammar
    assert rating.mass > 0.5
    facts, _, said = asyncio.run(run("parse"))
    assert facts["json_schema"] is True
    assert all(re.match(r"Rating: [1-7] Reason: ", text) for text in said)


def test_the_model_under_evaluation_answers_through_it(tmp_path):
    """The model in the process, of the same weights in float32, is not taken for it."""
    engine = section(context_length=1024).model_dump(exclude={"model"})
    tree = {
        "run": {"root": str(tmp_path), "name": "served"},
        "engine": {"kind": "scripted"},
        "evaluate": {"models": ["base"], "num_questions": 3, "answer": {"temperature": 0, "max_tokens": 12}},
    }
    tree["evaluate"]["engine"] = engine
    config = compose.parse(tree, "test")
    check_evaluation(config)
    check_engines(config, fetch=True, here=True)
    run = create_run(config)
    evaluate(run, config, "base")
    results = json.loads((run.evaluation("base") / "results.json").read_text())
    gguf = str(models.embedded_gguf("smollm2-135m"))
    assert results["answered_by"] == f"{name_of('smollm2-135m', gguf)} (llama_cpp)" != name_of("smollm2-135m")
    assert (results["num_unanswered"], results["num_cut_answers"]) == (0, 3)
    rows = [json.loads(line) for line in (run.evaluation("base") / "samples.jsonl").read_text().splitlines()]
    assert len({row["answer"] for row in rows}) == 3
    assert all(len(row["answer"].split()) > 3 for row in rows)
    assert (run.evaluation("base") / "servers-0" / "server-0.log").exists()


def test_the_whole_context_of_a_slot_may_be_used(tmp_path):
    async def run():
        async with opened(tmp_path) as engine:
            words = Prompt("Repeat: " + "one two three four " * 100)
            return await asyncio.gather(*(engine.generate(words, GREEDY, seed) for seed in range(3)))

    assert all(reply.prompt_tokens > 400 for reply in asyncio.run(run()))


def test_two_shards_never_meet(tmp_path):
    async def run():
        async with opened(tmp_path / "a") as first, opened(tmp_path / "b") as second:
            a, b = running(first), running(second)
            crossed = [await get(f"{a.base_url}/models", b.key), await get(f"{b.base_url}/models", a.key)]
            own = [await get(f"{one.base_url}/models", one.key) for one in (a, b)]
            replies = await asyncio.gather(*(engine.generate(CAPITAL, GREEDY, 0) for engine in (first, second)))
            return crossed, own, replies

    crossed, own, replies = asyncio.run(run())
    assert [status for status, _ in crossed] == [401, 401]
    assert [status for status, _ in own] == [200, 200]
    assert all("Paris" in reply.text for reply in replies)


def test_two_shards_started_at_once_and_killed_leave_nothing(tmp_path):
    command = [sys.executable, "-c", SHARD, section(num_servers=2).model_dump_json()]
    shards = [subprocess.Popen([*command, str(tmp_path / name)], stdout=subprocess.PIPE, text=True) for name in "ab"]
    try:
        assert [shard.stdout.readline() for shard in shards] == ["ready\n", "ready\n"]
        pids = [children(shard.pid) for shard in shards]
        assert [len(server_pids(shard.pid)) for shard in shards] == [2, 2]
        os.kill(shards[0].pid, signal.SIGKILL)
        assert ended(pids[0])
        assert all(command_of(pid) for pid in pids[1])
        os.kill(shards[1].pid, signal.SIGTERM)
        assert ended(pids[1])
    finally:
        for shard in shards:
            shard.kill()
            shard.communicate()


def test_a_server_that_is_killed_is_started_again(tmp_path):
    async def run():
        async with opened(tmp_path) as engine:
            [pid] = server_pids(os.getpid())
            os.kill(pid, signal.SIGKILL)
            return await asyncio.gather(*(engine.generate(CAPITAL, GREEDY, seed) for seed in range(2)))

    assert all("Paris" in reply.text for reply in asyncio.run(run()))


def test_a_damaged_model_is_told_from_the_log(tmp_path):
    gguf = tmp_path / "damaged.gguf"
    gguf.write_bytes(models.embedded_gguf("smollm2-135m").read_bytes()[:1000])

    async def run():
        async with servers(section(), str(gguf), tmp_path):
            pass

    with pytest.raises(EngineError, match=r"(?s)ended before it was ready.*server-0.log ends:.*failed to load model"):
        asyncio.run(run())
