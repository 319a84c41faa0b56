"""Kills a whole local run with SIGKILL at random moments, launches it again until it is done, and compares its results.

    python tests/integration/kill_runs.py [NUM_KILLS] [SEED] [FOLDER]

A kill comes after a random number of changes to the run's files, so that it falls while something is written, and hits
everything, the launcher alone, or one of its processes alone. They are forks (`forks`). A run that is done before all
kills are made is followed by another. Interactions, groups, models and results must be those of a run that nobody
disturbed.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from conftest import ROOT, environment, small_config
from forks import python
from tiny import make_model

from salign.plan import damaged_files, units
from salign.run import RunDir

# In the mean so many changes come before a kill, in turn: a launch begins with some twenty, a whole run has hundreds.
MEAN_CHANGES = (8, 30, 100, 300)
_RESULTS = (
    "simulate/*/interactions.jsonl",
    "dataset/groups.jsonl",
    "train/*/model/model.safetensors",
    "evaluate/*/results.json",
    "evaluate/*/samples.jsonl",
    "report/summary.json",
)


def make_config(folder: Path, model: Path) -> Path:
    tree = small_config(folder, model)
    tree["tracking"] = {"wandb": False}
    tree["evaluate"]["models"] = ["stable"]
    tree["cluster"] = {"num_ranks": 1}
    for stage in tree["train"]["stages"]:
        stage["checkpoint_every_steps"] = 1
    path = folder / "config.yaml"
    path.write_text(json.dumps(tree))
    return path


def _result(value: Any) -> Any:
    """Results without the checkout that they were made from."""
    if isinstance(value, dict):
        return {name: _result(item) for name, item in value.items() if name != "code" or not isinstance(item, dict)}
    return [_result(item) for item in value] if isinstance(value, list) else value


def digests(run: RunDir) -> dict[str, str]:
    """The sha256 of each result."""
    found = {}
    for pattern in _RESULTS:
        for path in sorted(run.path.glob(pattern)):
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(_result(json.loads(content)), sort_keys=True).encode()
            found[str(path.relative_to(run.path))] = hashlib.sha256(content).hexdigest()
    assert len(found) >= 8, f"results are missing: {sorted(found)}"
    return found


def start(config: Path, name: str) -> subprocess.Popen[bytes]:
    command = [python(), str(ROOT / "jobs" / "launch.py"), str(config), f"run.name={name}"]
    with (config.parent / f"{name}.log").open("wb") as output:
        return subprocess.Popen(command, env=environment(), stdout=output, stderr=output, start_new_session=True)


def processes_of(config: Path, run: RunDir) -> tuple[list[int], list[int]]:
    """The processes that launch a run, and those that work on its units."""
    launchers, workers = [], []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if {str(config).encode(), f"run.name={run.path.name}".encode()} <= set(words):
                    launchers.append(int(entry.name))
                elif str(run.path).encode() in words:
                    workers.append(int(entry.name))
    return launchers, workers


def _kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for place, _, names in os.walk(folder):  # unlike rglob, it passes over folders that go meanwhile
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):
                stat = path.stat()
                found[str(path)] = (stat.st_size, stat.st_mtime_ns)
    return found


def wait_for_changes(process: subprocess.Popen[bytes], folder: Path, number: int) -> bool:
    """Whether so many changes to a folder's files came before the process ended."""
    before = _state(folder)
    while number > 0:
        if process.poll() is not None:
            return False
        now = _state(folder)
        number -= sum(before.get(path) != stat for path, stat in now.items()) + len(before.keys() - now.keys())
        before = now
        time.sleep(0.005)
    return True


def end(process: subprocess.Popen[bytes], config: Path, run: RunDir, whom: str, chance: random.Random) -> None:
    """Kills, and waits until nothing of the run is at work."""
    launchers, workers = processes_of(config, run)
    if whom == "one" and workers:
        _kill([chance.choice(workers)])
    else:
        _kill([process.pid, *launchers, *(workers if whom == "all" else [])])
    process.wait()
    while any(left := processes_of(config, run)):
        if whom == "all":
            _kill([*left[0], *left[1]])
        time.sleep(0.01)


def finish(config: Path, name: str) -> dict[str, str]:
    """Launches a run and leaves it alone."""
    process = start(config, name)
    assert process.wait() == 0, (config.parent / f"{name}.log").read_text(errors="replace")
    return digests(RunDir(config.parent / "runs" / name))


def check(config: Path, run: RunDir) -> None:
    """What counts as done is whole, and no launch has ended in a bug."""
    if (run.path / "config.yaml").exists():
        assert [(unit.name, file) for unit, file in damaged_files(units(run, run.config()))] == []
    said = (config.parent / f"{run.path.name}.log").read_text(errors="replace")
    assert "Traceback" not in said, said


def kill_runs(num_kills: int, seed: int, folder: Path) -> None:
    chance = random.Random(seed)
    (folder / "model").mkdir(parents=True)
    config = make_config(folder, make_model(folder / "model"))
    expected = finish(config, "undisturbed")
    number = kills = 0
    while kills < num_kills:
        number += 1
        name = f"disturbed-{number}"
        run = RunDir(folder / "runs" / name)
        while kills < num_kills:
            process = start(config, name)
            changes = 1 + int(chance.expovariate(1 / MEAN_CHANGES[kills % len(MEAN_CHANGES)]))
            if not wait_for_changes(process, run.path, changes):
                assert process.wait() == 0, (folder / f"{name}.log").read_text(errors="replace")
                break
            time.sleep(chance.random() * 0.02)
            whom = chance.choice(["all", "all", "launcher", "one"])
            end(process, config, run, whom, chance)
            kills += 1
            check(config, run)
            print(f"kill {kills} of {name}: {whom}; {_standing(run)}", flush=True)
        found = finish(config, name)
        assert found == expected, [path for path in expected if found.get(path) != expected[path]]
        print(f"{name} has the results of the undisturbed run", flush=True)


def _standing(run: RunDir) -> str:
    done = sorted(str(path.parent.relative_to(run.path)) for path in run.path.glob("*/*/done.json"))
    return f"{len(done)} units done"


if __name__ == "__main__":
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="salign-kills-") as own:
        place = Path(given[2]) if len(given) > 2 else Path(own)
        kill_runs(int(given[0]) if given else 10, int(given[1]) if len(given) > 1 else 0, place)
