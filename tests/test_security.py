"""Whom a run trusts: its folder, its servers' replies, and who gets to see its secrets."""

import asyncio
import base64
import configparser
import gzip
import json
import os
import re
import stat
from pathlib import Path
from urllib.parse import quote

import pytest

from salign import compose, storage
from salign.config import OpenAIEmbedder, OpenAIEngine, Sampling, ServerEngine
from salign.engines.base import Prompt
from salign.engines.openai import OpenAIEngine as Engine
from salign.engines.openai import connect
from salign.engines.programs import server_environment
from salign.errors import ConfigError, DataError, EngineError
from salign.manifest import create_run
from salign.run import check_trusted, open_run
from salign.shown import redact
from salign.society.embedders import embed
from salign.storage import write_atomic

SECRET = "sk-proj-0123456789abcdefXYZ/+?secret"


def config_of(folder: Path, **run):
    return compose.parse({"run": {"root": str(folder), "name": "r", **run}, "engine": {"kind": "scripted"}}, "test")


# --- a run's folder ------------------------------------------------------------------------------


def test_a_folder_that_everybody_can_write_is_not_worked_in_unless_it_is_trusted(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    run = create_run(config)
    run.path.chmod(0o777)
    with pytest.raises(ConfigError, match=r"can be written by everybody, .* export SALIGN_TRUST="):
        create_run(config)
    with pytest.raises(ConfigError, match="can be written by everybody"):
        open_run(run.path, to_work=True)
    assert open_run(run.path) == run  # to look at it
    monkeypatch.setenv("SALIGN_TRUST", f"/elsewhere:{tmp_path}")
    create_run(config)


def test_a_folder_of_somebody_else_is_not_worked_in(tmp_path, monkeypatch):
    run = create_run(config_of(tmp_path))
    if os.geteuid() == 0:  # what root made is trusted
        os.chown(run.path, 12345, -1)
    else:
        me = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        check_trusted(run)
    assert open_run(run.path) == run  # to look at it


def test_what_is_imported_or_unpickled_is_looked_at_too_and_a_group_may_write(tmp_path):
    run = create_run(config_of(tmp_path))
    run.path.chmod(0o2775)
    check_trusted(run)
    run.code.mkdir()
    run.code.chmod(0o757)
    with pytest.raises(ConfigError, match="code can be written by everybody"):
        check_trusted(run)


def test_a_private_run_is_for_its_user_alone(tmp_path):
    before = os.umask(0o022)
    try:
        run = create_run(config_of(tmp_path, private=True))
        write_atomic(run.path / "later.json", "{}")
        for path in (run.path, run.logs, run.config_file, run.path / "later.json"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        os.umask(0o022)
        assert open_run(run.path) == run
        write_atomic(run.path / "again.json", "{}")
        assert stat.S_IMODE((run.path / "again.json").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_nothing_is_written_through_a_planted_link(tmp_path, monkeypatch):
    victim, planted = tmp_path / "victim", tmp_path / "planted"
    victim.write_text("mine")
    planted.symlink_to(victim)
    monkeypatch.setattr(storage, "part_of", lambda path: planted)  # whoever could guess its name
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "x.json", "theirs")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "x.json").exists()


def test_no_file_takes_the_place_of_what_is_none(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(DataError, match=f"{name} is a folder or a device"):
            write_atomic(tmp_path / name, "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    write_atomic(tmp_path / "link", "x")
    assert (tmp_path / "link").read_text() == "x"


# --- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copy",
    [
        SECRET,
        quote(SECRET, safe=""),
        *(base64.b64encode(b"x" * n + SECRET.encode() + b"y").decode() for n in range(3)),
        base64.urlsafe_b64encode(b"Bearer " + SECRET.encode()).decode(),
        SECRET[:20],
        SECRET[-20:],
    ],
)
def test_no_copy_of_a_secret_is_shown(monkeypatch, copy):
    monkeypatch.setenv("MY_API_KEY", SECRET)
    shown = redact(f"it said {copy} and went on")
    assert "<MY_API_KEY>" in shown
    assert not any(copy[start : start + 16] in shown for start in range(len(copy) - 15))
    assert shown.endswith(" and went on")


@pytest.mark.parametrize("name", ["GITHUB_PAT", "SMTP_PASS", "REGISTRY_AUTH", "AWS_CREDENTIALS", "DATABASE_URL"])
def test_variables_of_these_names_are_secrets(monkeypatch, name):
    monkeypatch.setenv(name, "opensesame1")
    assert redact("got opensesame1") == f"got <{name}>"


def test_the_password_of_a_proxy_is_a_secret(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://someone:opensesame1@proxy:3128")
    assert redact("via http://someone:opensesame1@proxy:3128") == "via http://someone:<https_proxy>@proxy:3128"


@pytest.mark.parametrize(
    "setup", ["export WANDB_API_KEY=abcdef", "HF_TOKEN='abc' python x", f"curl -H {SECRET}", "export MY_KEY=x"]
)
def test_a_secret_in_a_config_is_refused_and_not_said(monkeypatch, setup):
    monkeypatch.setenv("MY_API_KEY", SECRET)
    tree = {"engine": {"kind": "scripted"}, "cluster": {"kind": "slurm", "setup": [setup]}}
    with pytest.raises(ConfigError, match=r"cluster\.setup\.0: holds the secret") as refused:
        compose.parse(tree, "test")
    assert SECRET not in str(refused.value)


def test_a_setup_that_takes_its_secret_from_elsewhere_is_taken():
    lines = [
        "module load cuda",
        'export HF_TOKEN="$(cat ~/.hf)"',
        "export WANDB_API_KEY=$KEY",
        "export OMP_NUM_THREADS=4",
    ]
    compose.parse({"engine": {"kind": "scripted"}, "cluster": {"kind": "slurm", "setup": lines}}, "test")


def test_an_address_with_a_fragment_is_refused():
    with pytest.raises(ValueError, match="query or fragment"):
        OpenAIEngine(kind="openai", base_url="http://x/v1#token")


def test_a_server_gets_no_key_of_the_users(monkeypatch):
    given = {"MY_API_KEY": "a", "HF_TOKEN": "b", "VLLM_API_KEY": "c", "VLLM_LOGGING_LEVEL": "D", "SITE_LICENCE": "e"}
    for name, value in {**given, "CUDA_HOME": "/cuda"}.items():
        monkeypatch.setenv(name, value)
    section = ServerEngine(kind="server", program="llama_cpp")
    environment = server_environment(section)
    assert environment.keys().isdisjoint({"MY_API_KEY", "HF_TOKEN", "VLLM_API_KEY", "SITE_LICENCE"})
    assert {"PATH", "CUDA_HOME", "VLLM_LOGGING_LEVEL"} <= environment.keys()
    added = section.model_copy(update={"environment": ("SITE_LICENCE",)})
    assert server_environment(added)["SITE_LICENCE"] == "e"


# --- replies without end -------------------------------------------------------------------------


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: application/json", *lines, "", ""]).encode()


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(head("Connection: close"))
    while not writer.is_closing():
        writer.write(b" " * 65536)
        await writer.drain()


async def bomb(writer: asyncio.StreamWriter) -> None:
    packed = gzip.compress(b" " * 200_000_000, 1)
    writer.write(head("Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed)
    await writer.drain()


async def many_choices(writer: asyncio.StreamWriter) -> None:
    choice = {"message": {"content": "x"}, "finish_reason": "stop", "index": 0}
    body = json.dumps({"choices": [choice] * 1_000_000, "data": [{"id": "m" * 10_000_000}]}).encode()
    writer.write(head(f"Content-Length: {len(body)}") + body)
    await writer.drain()


async def headers_without_end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"X-More: " + b"x" * 1000 + b"\r\n")
        await writer.drain()


@pytest.mark.slow
@pytest.mark.parametrize("answer", [endless, bomb, many_choices, headers_without_end])
@pytest.mark.parametrize("call", ["open", "generate", "embed"])
def test_a_reply_without_end_is_an_error_and_not_read(answer, call):
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def ask() -> None:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            if call == "embed":
                embedder = OpenAIEmbedder(kind="openai", base_url=url, model="m", num_retries=0, patience_s=0)
                await asyncio.to_thread(embed, embedder, ["a"])
            section = OpenAIEngine(kind="openai", base_url=url, model="m", num_retries=0, patience_s=0)
            if call == "open":
                await connect(section)
                return
            engine = Engine(section, "m")
            try:
                await engine.generate(Prompt("Hello"), Sampling(max_tokens=16), 0)
            finally:
                await engine.close()

    with pytest.raises(EngineError, match=r"sends more than [\d,]+ bytes|is unreachable"):
        asyncio.run(ask())


# --- what is installed ---------------------------------------------------------------------------


def test_all_that_is_installed_has_a_version_and_hashes():
    root = Path(__file__).parents[1]

    def name(requirement):
        return re.split(r"[^\w.-]", requirement.strip())[0].lower().replace("_", "-")

    pins = [
        line
        for line in (root / "constraints.txt").read_text().replace("\\\n", "").splitlines()
        if not line.startswith("#")
    ]
    assert [pin for pin in pins if not re.fullmatch(r"\S+==\S+( ; [^-]+)?( +--hash=sha256:[0-9a-f]{64})+ *", pin)] == []
    cfg = configparser.ConfigParser()
    cfg.read(root / "setup.cfg")
    asked = cfg["options"]["install_requires"] + cfg["options.extras_require"]["dev"]
    # Its wheels differ from index to index.
    assert {name(line) for line in asked.split("\n") if line} - {name(pin) for pin in pins} == {"torch"}
