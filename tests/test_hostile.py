"""Hostile and careless input through the entry points: each case ends in success, or in one paragraph.

A seed draws the cases. `SALIGN_HOSTILE=SEED:SHARE pytest tests/test_hostile.py` draws others, and more: a share of 1 is
all of them.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import hostile
import numpy as np
import pytest
import test_compare

from salign import compose
from salign.commands import main
from salign.dataset.collect import collect
from salign.errors import exit_code_of
from salign.manifest import create_run, write_manifest
from salign.report import write
from salign.report.paper import draw_figures
from salign.run import RunDir
from salign.society.shard import run_shard
from salign.tracking.metrics import MetricsLog

SEED, SHARE = os.environ.get("SALIGN_HOSTILE", "0:0").split(":")
# Of the processor, not of a clock: what takes longer has no end.
CPU_LIMIT_S = 30.0
MEMORY_LIMIT_KIB = 2 << 20
LONGEST = 6000  # characters of an error


class EndlessError(BaseException):
    """Nobody catches it."""


def drawn(cases: list[Any], number: int) -> list[Any]:
    number = max(number, round(float(SHARE) * len(cases)))
    return random.Random(SEED).sample(cases, min(number, len(cases)))


def _stop(*_: object) -> None:
    raise EndlessError


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Handlers of signals are as they were, and what has no end is ended."""
    names = (signal.SIGTERM, signal.SIGUSR2, signal.SIGVTALRM)
    before = {number: signal.getsignal(number) for number in names}
    signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def ending(*words: str) -> str | None:
    """What is wrong with how a command ends; None where all is well, be it success or an error in one paragraph."""
    return ending_and_code(*words)[0]


def ending_and_code(*words: str) -> tuple[str | None, int]:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    try:
        with (
            bounded(),
            mock.patch.object(sys, "argv", ["salign", *words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(said),
        ):
            code = exit_code_of(lambda: main.run(words))
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is what the test is about)
        return f"{type(error).__name__}: {str(error)[:300]}", 1
    out.flush()
    said.flush()
    shown, error = out.buffer.getvalue().decode(), said.buffer.getvalue().decode()
    faults = {
        f"exit code {code}": code not in (0, 1, 2),
        "no error message": code and "error: " not in error,
        "an escape reaches the terminal": "\x1b" in shown + error,
        "the error is very long": len(error) > LONGEST,
    }
    return next((fault for fault, is_there in faults.items() if is_there), None), code


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", "/nonexistent")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_LIMIT_KIB


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return hostile.scene(tmp_path / "scene")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_the_scene_itself_passes_a_dry_run(tree, config):
    config.write_text(json.dumps(tree))
    assert ending_and_code("launch", str(config), "--dry-run") == (None, 0)
    assert not compose.load(config).run.root.exists()


@pytest.mark.slow
def test_any_value_of_any_setting(tree, config):
    full = compose.parse(tree, "the scene").model_dump(mode="json")
    cases = [(full, place, value) for place in hostile.leaves(full) for value in hostile.values()]
    others: list[tuple[str, Any]] = [("topology", other) for other in hostile.OTHERS.values()]
    others += [("protocol", {"kind": kind, **settings}) for kind, settings in hostile.PROTOCOLS.items()]
    for section, other in others:
        changed = {**full, "society": {**full["society"], section: other}}
        inner = [("society", section, name) for name in other]
        cases += [(changed, place, value) for place in inner for value in hostile.values()]
    wrong = {}
    for of, place, value in drawn(cases, 250):
        config.write_text(hostile.with_value(of, place, value))
        wrong[place, value[:50]] = ending("launch", str(config), "--dry-run")
    assert {case: why for case, why in wrong.items() if why} == {}


@pytest.mark.slow
def test_anything_where_a_file_is_named(tree, config, tmp_path):
    places = hostile.places(tmp_path / "places")
    named = ("path", "deepspeed", "data_dir", "model", "root")
    settings = [place for place in hostile.leaves(tree) if place[-1] in named or place[-2:-1] == ("leak_check",)]
    cases: list[tuple[Any, Path]] = [(setting, place) for setting in settings for place in places]
    commands = [("report",), ("status",), ("launch", "--dry-run"), ("collect",), ("simulate", "--shard", "0")]
    commands += [("train", "--stage", "x"), ("evaluate", "--model", "base"), ("dashboard", "sync")]
    commands += [("export", str(tmp_path / "out.jsonl"), "--to", "groups"), ("audit",)]
    cases += [(command, place) for command in commands for place in places]
    wrong = {}
    for what, place in drawn(cases, 120):
        if what in commands:
            first, *rest = what
            wrong[what, str(place)] = ending(first, str(place), *rest)
        else:
            config.write_text(hostile.with_value(tree, what, json.dumps(str(place))))
            wrong[what, str(place)] = ending("launch", str(config), "--dry-run")
    assert {case: why for case, why in wrong.items() if why} == {}


def test_any_words_on_a_command_line(tree, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.write_text(json.dumps(tree))
    commands = [name for name in main.COMMANDS if name != "bench"]
    # A launch of a config that is right would run it.
    cases = [(name, word) for name in [*commands, "nothing"] if name != "launch" for word in hostile.WORDS]
    cases += [("launch", word, "--dry-run") for word in hostile.WORDS]
    cases += [(name, str(config), word, "--dry-run") for name in commands for word in hostile.WORDS]
    wrong = {words: ending(*words) for words in drawn(cases, 100)}
    assert {case: why for case, why in wrong.items() if why} == {}


# --- a run's own files ---------------------------------------------------------------------------

VALUES = (None, "x", "", -1, 1e308, 10**30, [], {}, [[]], True, "\x1b[2J", "\ud800")
CONTENTS = (b"", b"\0" * 50, b"[" * 100_000, b"9" * 5000, b"{", b"null", b"[]", b"\xed\xa0\x80", b"\xff\xfe")
DOCUMENTS = ("manifest.json", "simulate/shard-00000/done.json", "dataset/card.json", "evaluate/base/results.json")
ROWS = ("simulate/shard-00000/metrics.jsonl", "train/sft/metrics.jsonl")
VOUCHED_FOR = ("simulate/shard-00000/interactions.jsonl", "dataset/groups.jsonl", "evaluate/base/samples.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunDir:
    """A run that is simulated and collected, with files as training and evaluation leave them."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
    stage = {"name": "sft", "objective": {"kind": "stable"}, "data": {"kind": "run"}}
    society = {"num_worlds": 2, "num_shards": 2, "topology": {"size": 3}, "max_rounds": 3, "num_initial_memories": 6}
    raw = {
        "run": {"root": str(folder), "name": "run"},
        "engine": {"kind": "scripted"},
        "society": society,
        "train": {"stages": [{**stage, "deepspeed": str(folder / "zero2.json")}]},
        "evaluate": {"num_resamples": 100},
        "tracking": {"wandb": False},
    }
    config = compose.parse(raw, "test")
    run = create_run(config)
    for shard in range(2):
        run_shard(run, config, shard)
    collect(run, config)
    write_manifest(run, config, {"a": "b"}, {})
    with MetricsLog(run.stage("sft") / "metrics.jsonl") as log:
        for step in range(1, 5):
            log.log({"train/global_step": step, "train/steps_most": 4, "train/loss": 1.0, "eval/loss": 1.0})
    for model in ("base", "sft"):
        test_compare.put(run, config, model, **{"a/acc": np.ones(20) > 0, "hh/refused": np.zeros(20) > 0})
    return run


def changed(tree: Any, place: tuple[str | int, ...], value: Any) -> str:
    copy = json.loads(json.dumps(tree))
    *before, last = place
    inner = copy
    for key in before:
        inner = inner[key]
    inner[last] = value
    return json.dumps(copy)


def damage_to(run: RunDir) -> Iterator[list[tuple[str, Callable[[], bytes]]]]:
    """Files of the run with other contents: for each file all other contents, then all other values in it."""
    for name in ("config.yaml", *DOCUMENTS, *ROWS, *VOUCHED_FOR):
        yield [(name, functools.partial(bytes, content)) for content in CONTENTS]
    for name in (*DOCUMENTS, *ROWS, *VOUCHED_FOR):
        text = (run.path / name).read_text()
        lines = [text] if name in DOCUMENTS else text.splitlines()

        def with_other(number: int, *change: Any, lines: list[str] = lines) -> bytes:
            other = changed(json.loads(lines[number]), *change)
            return "\n".join([*lines[:number], other, *lines[number + 1 :], ""]).encode()

        yield [
            (name, functools.partial(with_other, number, place, value))
            for number in {0, len(lines) - 1}
            for place in hostile.leaves(json.loads(lines[number]))
            for value in VALUES
        ]


@pytest.mark.slow
def test_any_damage_to_a_runs_files(finished, monkeypatch):
    launch = ("launch", str(finished.path / "config.yaml"), "--dry-run")
    other = shutil.copytree(finished.path, finished.path.with_name("other"))
    compare = ("report", str(other), str(finished.path))
    for command in (("report", str(finished.path)), ("status", str(finished.path)), compare, launch):
        assert ending_and_code(*command) == (None, 0)
    wrong = {}
    for name, damaged in itertools.chain.from_iterable(drawn(cases, 1) for cases in damage_to(finished)):
        path, content = finished.path / name, damaged()
        # What is read as a whole or not at all leaves figures as they are without it.
        formats = [] if content in CONTENTS else ["svg"]
        monkeypatch.setattr(write, "draw_figures", functools.partial(draw_figures, formats=formats))
        before = path.read_bytes()
        path.write_bytes(content)
        for command in ("report", "status"):
            wrong[command, name, content[:80]] = ending(command, str(finished.path))
        wrong["launch", name, content[:80]] = ending(*launch)
        if name in ("config.yaml", *ROWS):  # what a comparison reads
            wrong["compare", name, content[:80]] = ending(*compare)
        path.write_bytes(before)
    assert {case: why for case, why in wrong.items() if why} == {}
    shutil.rmtree(finished.report)
