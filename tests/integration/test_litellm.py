"""LiteLLM's proxy in front of servers: what a run asks, and is told, through it.

It is not part of `make test`: `make test-litellm` installs LiteLLM and says where, in SALIGN_SERVER.
"""

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, environment, launch_afresh, small_config
from journals import records_of
from ports import free_port
from servers import MAX_IN_FLIGHT, Mock, answers
from waits import HANG_S, wait_until

from salign.config import OpenAIEngine as OpenAISection
from salign.config import Sampling
from salign.engines.base import Prompt
from salign.engines.opening import open_engine
from salign.errors import CallRejectedError, ConfigError, EngineError
from salign.markers import read_done
from salign.run import RunDir

pytestmark = pytest.mark.integration

KEY = "sk-of-the-litellm-of-this-test-0001"
WHY = Prompt("Why is it kind to listen?", "Be brief.")
HOW_GOOD = Prompt("How good is the word 'kind'? Rate it from 1 to 7.")


# --- the proxy, and what is behind it ------------------------------------------------------------


@pytest.fixture(scope="module")
def program():
    found = Path(os.environ.get("SALIGN_SERVER", ".")) / "bin" / "litellm"
    if not found.exists():
        pytest.skip("make test-litellm tries LiteLLM itself")
    return found


@pytest.fixture(scope="module")
def mock(program):
    with Mock() as mock:
        yield mock


@pytest.fixture(scope="module")
def outside():
    """Where LiteLLM would turn to for anything that is not on this machine: it is heard, and gets no answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture(scope="module")
def litellm(program, mock, llama_cpp, outside, tmp_path_factory):
    """The address of LiteLLM's proxy: as it is installed, with a key, and without the network."""
    folder = tmp_path_factory.mktemp("litellm")
    mocked = {"api_base": f"http://127.0.0.1:{mock.port}/v1", "api_key": "none"}
    served = {
        "mock": {"model": "openai/mock", **mocked},
        "smollm2": {"model": "openai/smollm2", "api_base": llama_cpp, "api_key": "none"},
        "seedless": {"model": "perplexity/mock", **mocked},  # a provider that takes no seed and shows no probabilities
        "dropping": {"model": "perplexity/mock", "drop_params": True, **mocked},
    }
    models = [{"model_name": name, "litellm_params": parameters} for name, parameters in served.items()]
    tree = {"model_list": models, "router_settings": {"num_retries": 0}}  # salign tries again itself
    (folder / "config.yaml").write_text(json.dumps(tree))
    env = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HTTP_PROXY": f"http://127.0.0.1:{outside.getsockname()[1]}",
        "HTTPS_PROXY": f"http://127.0.0.1:{outside.getsockname()[1]}",
        "NO_PROXY": "127.0.0.1",
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_TELEMETRY_DISABLED": "True",
        **{f"LITELLM_LOCAL_{what}": "True" for what in ("MODEL_COST_MAP", "BLOG_POSTS", "ANTHROPIC_BETA_HEADERS")},
    }
    port = free_port()
    command = [str(program), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        assert wait_until(lambda: answers(f"http://127.0.0.1:{port}/health/liveliness"), process), log.name
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=HANG_S)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def through(url: str, model: str, call, ratings=None, **settings: Any):
    """What an engine that was opened measured, and what it answers to a call."""

    async def run():
        asked = {"dialect": "litellm", "num_retries": 1, **settings}
        section = OpenAISection(kind="openai", base_url=url, model=model, **asked)
        async with open_engine(section, model, Path(), ratings=ratings) as engine:
            return engine.facts(), await call(engine)

    return asyncio.run(run())


# --- a society -----------------------------------------------------------------------------------


def config_of(folder: Path, model: Path, url: str) -> Path:
    """One small world of two rounds."""
    tree = small_config(folder, model)
    tree["engine"] = {
        "kind": "openai",
        "base_url": url,
        "dialect": "litellm",
        "model": "mock",
        "max_in_flight": MAX_IN_FLIGHT,
    }
    tree["society"] = {
        "topology": {"size": 2},
        "max_rounds": 2,
        "audience_size": 2,
        "num_initial_memories": 6,
        "observer_check": None,
        "stopping": None,
        "rating": "parse",
    }
    tree["train"]["stages"] = []
    tree["evaluate"]["models"] = []
    path = folder / "config.yaml"
    path.write_text(json.dumps(tree))
    return path


def test_a_society_is_killed_and_goes_on_as_if_there_were_no_proxy(tmp_path, tiny_model, mock, litellm):
    alone = tmp_path / "alone"
    alone.mkdir()
    with Mock() as direct:
        done = launch_afresh(
            str(config_of(alone, tiny_model, f"http://127.0.0.1:{direct.port}/v1")), "--only", "simulate"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        num_calls = len(direct.answered())
    shard = RunDir(tmp_path / "runs" / "small").shard(0)

    with mock.instead("--ms-per-call", 50):
        command = [sys.executable, str(ROOT / "jobs" / "launch.py"), str(config_of(tmp_path, tiny_model, litellm))]
        with (tmp_path / "killed.log").open("wb") as log:
            killed = subprocess.Popen([*command, "--only", "simulate"], env=environment(), stdout=log, stderr=log)
            assert wait_until(lambda: len(records_of(shard)) >= num_calls // 3, killed), log.name
            killed.kill()
            killed.wait()
        noted = {key.hex() for key, _ in records_of(shard)}
        then = mock.answered()
        done = launch_afresh(*command[2:], "--only", "simulate")
        assert done.returncode == 0, done.stdout + done.stderr
        answered = mock.answered()

    assert (shard / "interactions.jsonl").read_bytes() == (
        RunDir(alone / "runs" / "small").shard(0) / "interactions.jsonl"
    ).read_bytes()
    assert len(answered) == num_calls
    assert {key: answered[key] for key in noted} == {key: then[key] for key in noted}
    assert sum(len(times) - 1 for times in answered.values()) <= MAX_IN_FLIGHT  # on their way at the kill
    [measured] = read_done(shard).facts["engines"].values()
    assert measured["refused"] == []
    said = done.stdout + done.stderr + (tmp_path / "killed.log").read_text()
    assert KEY not in said
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


# --- single calls --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["told", "begun", "choices"])  # the mock knows no schema
def test_a_call_comes_to_the_server_as_it_was_made(mock, litellm, way):
    """The mock's reply is a function of all that it is sent: the seed, temperature, log-probabilities and fields."""

    async def ask(engine):
        return await engine.generate(WHY, Sampling(temperature=0.7, top_p=0.9, max_tokens=9), 3), await engine.rate(
            HOW_GOOD, 3
        )

    settings = {"ratings": "logprob", "rating_way": way}
    assert through(litellm, "mock", ask, **settings) == through(
        f"http://127.0.0.1:{mock.port}/v1", "mock", ask, **settings
    )


def test_a_reply_is_begun_through_it(litellm):
    """llama.cpp, with a model: what it says after "Rating: " is mostly a digit."""
    facts, rating = through(litellm, "smollm2", lambda engine: engine.rate(HOW_GOOD, 0), ratings="logprob")
    assert facts["refused"] == []
    assert facts["rating_way"] == "begun"
    assert facts["ways"]["begun"]["mass"] > 0.85
    assert facts["ways"]["schema"]["mass"] > 0.85
    assert facts["ways"]["told"]["mass"] < 0.3
    assert rating.mass > 0.5


def test_the_server_s_own_words_come_through_it(litellm, mock):
    long = Prompt("one two three four " * 400)
    with pytest.raises(CallRejectedError, match=r"exceeds the available context size"):
        through(litellm, "smollm2", lambda engine: engine.generate(long, Sampling(), 0))
    with (
        mock.instead("--refuse-at", 2),
        pytest.raises(EngineError, match="the quota is used up"),
    ):  # after the first call
        through(litellm, "mock", lambda engine: engine.generate(WHY, Sampling(), 0))


def test_a_server_behind_it_that_goes_away_is_waited_for(litellm, mock):
    async def ask(engine):
        mock.kill()
        call = asyncio.create_task(engine.generate(WHY, Sampling(), 0))
        while engine.waiting_since is None and not call.done():
            await asyncio.sleep(0.01)
        mock.start()
        return await call

    _, reply = through(litellm, "mock", ask, num_retries=0)
    assert reply.text


def test_what_it_refuses_itself_is_left_out(litellm, caplog):
    facts, reply = through(litellm, "seedless", lambda engine: engine.generate(WHY, Sampling(), 0))
    assert facts["refused"] == ["seed"]
    assert reply.text
    assert "refuses `seed`" in caplog.text


def test_what_drop_params_leaves_out_nobody_is_told(litellm, mock):
    with mock.instead():
        facts, _ = through(litellm, "dropping", lambda engine: engine.generate(WHY, Sampling(), 0))
        assert facts["refused"] == []
        assert not any("seed" in item["payload"] for item in mock.get("stats")["answered"])
        with pytest.raises(ConfigError, match=r"returned no log-probabilities.*society\.rating=parse"):
            through(litellm, "dropping", lambda engine: engine.rate(HOW_GOOD, 0), ratings="logprob")


def test_a_wrong_key(litellm, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        through(litellm, "mock", lambda engine: engine.generate(WHY, Sampling(), 0))


def test_it_asked_for_nothing_outside(litellm, outside):
    """Last: of all that is above."""
    assert select.select([outside], [], [], 0)[0] == []
