"""Every kind of engine, by its section: what holds for all of them, also for the next one."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from salign import compose
from salign.config import EngineSection
from salign.config.effects import Effect, mark_of
from salign.engines.base import Engine
from salign.engines.check import check_engines, models_of
from salign.engines.kinds import KINDS, kind_of
from salign.errors import ConfigError

ROOT = Path(__file__).parents[1]
SECTIONS = {get_args(one.model_fields["kind"].annotation)[0]: one for one in get_args(get_args(EngineSection)[0])}
# What a section needs beside its kind.
NEEDED = {"openai": {"base_url": "http://127.0.0.1:9/v1"}, "server": {"program": "vllm"}, "fleet": {"program": "vllm"}}


def section(kind: str):
    return SECTIONS[kind](kind=kind, **NEEDED.get(kind, {}))


def loads_a_model(kind: str) -> bool:
    return kind_of(section(kind)).model_of(section(kind), "a/base") is not None


def test_every_section_has_a_kind_and_every_kind_a_section():
    assert set(KINDS) == set(SECTIONS)
    for kind in KINDS:
        assert kind_of(section(kind)) is KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_section_says_how_many_calls_are_made_at_a_time(kind):
    field = SECTIONS[kind].model_fields["max_in_flight"]
    assert mark_of(field) is Effect.FREE
    assert section(kind).max_in_flight > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_of_a_run_are_those_that_its_engines_load(kind, tmp_path):
    """Their digests are in the manifest; a server elsewhere has its own."""
    tree = {"run": {"root": str(tmp_path)}, "engine": {"kind": kind, **NEEDED.get(kind, {})}, "model": "a/base"}
    assert models_of(compose.parse(tree, "test")) == ("a/base",)
    if loads_a_model(kind):
        tree["engine"]["model"] = "an/other"
        assert models_of(compose.parse(tree, "test")) == ("a/base", "an/other")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_answers_for_a_model_under_evaluation_or_says_what_to_do(kind):
    try:
        loading = kind_of(section(kind)).answering_for(section(kind), "a/model")
    except ConfigError as error:
        assert "evaluate.engine" in str(error)
        assert "Set evaluate.engine=" in str(error)
    else:
        assert kind_of(loading).model_of(loading, "no/such-model") == "a/model"


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_engine_lacks_is_named_at_the_launch(kind, tmp_path, monkeypatch):
    """A folder that is no model, for each kind that loads one here."""
    monkeypatch.setenv("PATH", "/nowhere")
    base = {"run": {"root": str(tmp_path)}, "society": {"observer": {"kind": kind, **NEEDED.get(kind, {})}}}
    if not loads_a_model(kind):
        check_engines(compose.parse(base, "test"), fetch=False)
        return
    base["society"]["observer"]["model"] = str(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.json|vllm"):
        check_engines(compose.parse(base, "test"), fetch=False)


def test_the_scripted_engine_is_an_engine(tmp_path):
    async def run():
        async with KINDS["scripted"].open(section("scripted"), "a/model", tmp_path) as engine:
            return {name: callable(getattr(engine, name)) for name in ("generate", "rate", "facts")}, engine.identity

    assert asyncio.run(run()) == ({"generate": True, "rate": True, "facts": True}, "scripted")
    assert {"generate", "rate", "facts", "identity"} <= set(dir(Engine))


def test_planning_loads_no_engine():
    code = "import sys, salign.engines.check; print(sorted({'torch', 'transformers', 'aiohttp'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- the next kind -------------------------------------------------------------------------------

IMPORTS = """
from typing import Any
from salign.config import Sampling
from salign.engines.base import Prompt, RatingReply, Reply, normalise

"""
ECHO = """
import asyncio
from pathlib import Path
from salign import compose
from salign.config import Sampling
from salign.engines.base import Prompt
from salign.engines.check import check_engines
from salign.engines.opening import open_engine

config = compose.parse({"engine": {"kind": "echo", "num_words": 2}}, "test")

async def main():
    async with open_engine(config.engine, "no/such-model", Path()) as engine:
        reply = await engine.generate(Prompt("ask listen help"), Sampling(), 0)
        rating = await engine.rate(Prompt("ask"), 0)
        print(engine.identity, reply.text, round(rating.expectation, 6), engine.num_calls, sep=", ")

check_engines(config, fetch=False)
asyncio.run(main())
"""


def test_the_kind_that_the_page_adds_works(tmp_path):
    """With its three blocks alone, each where the page puts it."""
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    added = page[page.index("## Adding an engine kind") :]
    section, engine, kind = re.findall(r"```python\n(.*?)```", added, re.DOTALL)
    package = tmp_path / "salign"
    shutil.copytree(ROOT / "salign", package, ignore=shutil.ignore_patterns("__pycache__"))
    put(package / "config" / "engines.py", f"{section}\n\n", "EngineSection = Annotated[\n    ", "EchoEngine | ")
    (package / "engines" / "echo.py").write_text(IMPORTS + engine)
    put(package / "engines" / "kinds.py", f"{kind}\n\n", "KINDS: dict[str, Kind[Any]] = {\n", '"echo": _Echo(),\n')
    put(package / "engines" / "kinds.py", "\nfrom salign.config.engines import EchoEngine\n", "\n\nclass _Section", "")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", ECHO]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    assert done.stdout == "echo of 2 words, listen help, 4.0, 2\n", done.stderr


def put(path: Path, before: str, place: str, after: str) -> None:
    text = path.read_text()
    assert text.count(place) == 1
    path.write_text(text.replace(place, before + place + after))
