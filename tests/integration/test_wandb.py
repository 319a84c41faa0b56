"""W&B against a stand-in of its server: nothing is lost or doubled, and nothing that W&B does stops a job."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, environment
from waits import HANG_S, wait_until
from wandb_job import STAGE
from wandb_server import ENTITY, KEY, WandbServer

from salign import compose
from salign.manifest import create_run
from salign.run import RunDir
from salign.tracking.metrics import read_metrics
from salign.tracking.sync import find_fragments
from salign.tracking.workspace import is_logged

pytestmark = pytest.mark.integration

JOB = Path(__file__).parent / "wandb_job.py"
ID = f"train-job-{STAGE}"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as serving:
        yield serving


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run with one stage, in which nothing has happened yet."""
    return make_run(tmp_path)


def make_run(folder: Path, finish_timeout_s: float = HANG_S) -> RunDir:
    stage = {"name": STAGE, "objective": {"kind": "stable"}, "data": {"kind": "run"}, "deepspeed": "zero.json"}
    raw = {"run": {"root": str(folder), "name": "job"}, "engine": {"kind": "scripted"}, "train": {"stages": [stage]}}
    return create_run(compose.parse({**raw, "tracking": {"finish_timeout_s": finish_timeout_s}}, "test"))


def env(server: WandbServer, folder: Path, **more: str) -> dict[str, str]:
    """A user with a key for the stand-in; requests to anywhere else come to it as well, and are not known to it."""
    own = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HTTPS_PROXY": server.url, "HTTP_PROXY": server.url}
    places = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("CACHE", "CONFIG")}
    return {**environment(), **own, **places, "NO_PROXY": "127.0.0.1", **more}


def start(server: WandbServer, run: RunDir, first: int, last: int, seconds: float = 0.0, **more: str):
    command = [sys.executable, str(JOB), str(run.path), str(first), str(last), str(seconds)]
    return subprocess.Popen(
        command,
        env=env(server, run.path.parent, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def job(server: WandbServer, run: RunDir, first: int, last: int, seconds: float = 0.0, **more: str) -> str:
    """A job that comes to its end; what it said."""
    process = start(server, run, first, last, seconds, **more)
    said, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    assert "done" in said
    return said


def dashboard(server: WandbServer, run: RunDir, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "dashboard.py"), *words]
    return subprocess.run(
        command, env=env(server, run.path.parent, **more), capture_output=True, text=True, timeout=HANG_S, check=False
    )


def sync(server: WandbServer, run: RunDir, *words: str) -> str:
    done = dashboard(server, run, "sync", str(run.path), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps(server: WandbServer) -> list[int]:
    return server.runs[ID].values("train/global_step")


# --- what arrives --------------------------------------------------------------------------------


def test_online_and_offline_come_to_the_same(server, tmp_path):
    found = []
    for mode in ("online", "offline"):
        run = make_run(tmp_path / mode)
        with WandbServer() as own:
            job(own, run, 1, 5, WANDB_MODE=mode)
            if mode == "offline":
                assert own.asked == []  # not one request, to anybody
                sync(own, run)
            assert own.unknown == []
            [stored] = own.runs.values()
            rows = [{name: value for name, value in row.items() if name[0] != "_"} for row in stored.history]
            summary = {name: value for name, value in stored.summary.items() if name[0] != "_"}
            artifacts = [(a.name, a.type, a.state, a.digest) for a in own.artifacts.values()]
            config = {name: value for name, value in stored.config.items() if name != "_wandb"}
            config["run"]["value"].pop("root")
            found.append((stored.name, stored.attributes, rows, summary, artifacts, config, stored.exit_code))
    assert found[0] == found[1]
    name, attributes, rows, summary, artifacts, config, code = found[0]
    assert config["generation"]["value"] == 1
    assert name == ID
    assert attributes["groupName"] == "job"
    assert attributes["jobType"] == "train"
    assert rows == [{"train/global_step": n, "train/loss": 1 / n, "eval/loss": 2 / n} for n in range(1, 6)]
    assert summary["train/num_tokens"] == 35
    assert [(a[0], a[2]) for a in artifacts] == [("job-stable", "COMMITTED")]
    assert code == 0


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_requeued_job_goes_on_in_one_run(server, run, mode):
    job(server, run, 1, 3, WANDB_MODE=mode)
    moved = RunDir(run.path.with_name("renamed"))  # it stays the same W&B run
    run.path.rename(moved.path)
    job(server, moved, 4, 6, WANDB_MODE=mode)
    if mode == "offline":
        assert server.asked == []
        refused = dashboard(server, moved, "sync", str(moved.path))
        assert "link its old path to it" in refused.stderr  # wandb's logs have absolute paths
        run.path.symlink_to(moved.path)
        sync(server, moved)
    assert list(server.runs) == [ID]
    assert steps(server) == [1, 2, 3, 4, 5, 6]


def test_offline_and_without_a_key_nobody_is_asked_for_anything(server, run):
    job(server, run, 1, 2, WANDB_API_KEY="")
    assert server.asked == []
    assert [fragment.num_rows for fragment in find_fragments(run)[ID]] == [2]


def test_a_whole_run_is_sent_with_its_lineage_once(server, finished, tmp_path):
    run = RunDir(tmp_path / "runs" / "small")
    shutil.copytree(finished[0].path, run.path)
    said = sync(server, run)
    assert "train-small-stable: made from small-data:v0" in said
    assert "train-small-stable: made from small-sft:v0" in said
    assert "evaluate-small-stable: made from small-stable:v0" in said
    ids = ["simulate-small", "train-small-sft", "train-small-stable", "evaluate-small-base", "evaluate-small-stable"]
    assert list(server.runs) == ids
    for stage in ("sft", "stable"):
        rows = read_metrics(run.stage(stage) / "metrics.jsonl")
        stored = server.runs[f"train-small-{stage}"]
        assert stored.values("train/loss") == [row["train/loss"] for row in rows]
        assert stored.attributes["groupName"] == "small"
    assert server.runs["simulate-small"].summary["sim/shards_done"] == 2
    assert len(server.runs["simulate-small"].values("sim/tokens")) == 2
    names = {name for stored in server.runs.values() for row in stored.history for name in row if name[0] != "_"}
    names |= {name for stored in server.runs.values() for name in stored.summary if name[0] != "_"}
    assert [name for name in sorted(names) if not is_logged(name)] == []
    before = {name: (len(stored.history), stored.used) for name, stored in server.runs.items()}
    again = sync(server, run)
    assert "sent" not in again
    assert "made from" not in again
    assert {name: (len(stored.history), stored.used) for name, stored in server.runs.items()} == before
    assert server.unknown == []
    assert KEY not in "".join(path.read_text(errors="replace") for path in run.wandb.rglob("*") if path.is_file())


# --- what goes wrong -----------------------------------------------------------------------------


def wait_for_rows(metrics: Path, num: int) -> None:
    wait_until(lambda: len(read_metrics(metrics)) >= num)


def test_sigkill_loses_two_seconds_at_most(server, run):
    metrics = run.stage(STAGE) / "metrics.jsonl"
    with start(server, run, 1, 10_000, 0.05, WANDB_MODE="offline") as process:
        wait_for_rows(metrics, 100)
        os.killpg(process.pid, signal.SIGKILL)  # the job and wandb's process, as when a machine is lost
        killed = time.time()
    due = [row for row in read_metrics(metrics) if row["time"] < killed - 2]
    [fragment] = find_fragments(run)[ID]
    assert not fragment.ended
    assert fragment.num_rows >= len(due) > 0
    sync(server, run)
    assert steps(server) == list(range(1, fragment.num_rows + 1))


def test_lost_bytes_of_an_artifact_are_noticed_before_anything_is_sent(server, run, tmp_path):
    job(server, run, 1, 3, WANDB_MODE="offline")
    staging = run.wandb / "data" / "artifacts" / "staging"
    staging.rename(tmp_path / "away")
    refused = dashboard(server, run, "sync", str(run.path))
    assert refused.returncode == 1
    assert "files of its artifacts are gone" in refused.stderr
    assert str(staging) in refused.stderr
    assert not any("file_stream" in operation for operation in server.asked)
    shutil.rmtree(staging, ignore_errors=True)
    (tmp_path / "away").rename(staging)
    sync(server, run)
    assert [artifact.state for artifact in server.artifacts.values()] == ["COMMITTED"]


def test_an_artifact_that_does_not_arrive_whole_is_noticed(server, run):
    job(server, run, 1, 3, WANDB_MODE="offline")
    server.fault = lambda operation: (404, {}) if operation == "CommitArtifact" else None
    refused = dashboard(server, run, "sync", str(run.path))
    assert refused.returncode == 1
    assert "no complete artifact job-stable" in refused.stderr


def test_what_was_sent_in_part_is_not_sent_again(server, run):
    job(server, run, 1, 4, WANDB_MODE="offline")
    [fragment] = find_fragments(run)[ID]
    sync(server, run)
    fragment.path.with_name(fragment.path.name + ".synced").unlink()  # as if that sync had been interrupted
    refused = dashboard(server, run, "sync", str(run.path))
    assert refused.returncode == 1
    assert "W&B has 4 rows of it where 0 were sent before" in refused.stderr
    assert "wandb sync --include-online --include-synced --id" in refused.stderr
    assert steps(server) == [1, 2, 3, 4]


@pytest.mark.parametrize("status", [429, 500])
def test_a_server_that_pushes_back_for_a_while_gets_all(server, run, status):
    refused: list[str] = []

    def fault(operation: str):
        if "file_stream" not in operation or len(refused) == 2:
            return None
        refused.append(operation)
        return status, {"error": "later"}

    server.fault = fault
    job(server, run, 1, 5)
    assert steps(server) == [1, 2, 3, 4, 5]
    assert len(refused) == 2


@contextlib.contextmanager
def black_hole(server: WandbServer, *, after_rows: int) -> Iterator[None]:
    """The server takes requests, and answers none before the end of the block, once it has so many rows."""
    end = threading.Event()

    def fault(operation: str):
        if sum(len(stored.history) for stored in server.runs.values()) >= after_rows:
            end.wait()
        return

    server.fault = fault
    try:
        yield
    finally:
        server.fault = None
        end.set()


@pytest.mark.parametrize("after_rows", [0, 1])
def test_in_a_black_hole_the_job_neither_hangs_nor_dies(server, tmp_path, after_rows):
    run = make_run(tmp_path, finish_timeout_s=10)
    last, seconds = (4, 0.1) if after_rows == 0 else (40, 0.1)
    often = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}  # so that a part arrives
    with black_hole(server, after_rows=after_rows):
        said = job(server, run, 1, last, seconds, **often)
    everything = list(range(1, last + 1))
    assert [row["train/global_step"] for row in read_metrics(run.stage(STAGE) / "metrics.jsonl")] == everything
    assert sum(fragment.num_rows for fragment in find_fragments(run)[ID]) == last
    if after_rows == 0:
        assert "W&B failed" in said
        sync(server, run)  # it went on offline, and that is sent
        assert steps(server) == everything
    else:
        refused = dashboard(server, run, "sync", str(run.path))
        assert refused.returncode == 1
        assert "To send all of it as a new run: wandb sync --include-online" in refused.stderr
        [fragment] = find_fragments(run)[ID]
        words = ["--include-online", "--include-synced", "--id", f"{ID}-again", str(fragment.path.parent)]
        command = [sys.executable, "-m", "wandb", "sync", *words]
        subprocess.run(command, env=env(server, tmp_path), capture_output=True, check=True, timeout=HANG_S)
        assert server.runs[f"{ID}-again"].values("train/global_step") == everything


def test_a_refused_key_does_not_stop_the_job(server, run):
    server.fault = lambda operation: (401, {"errors": [{"message": "no such key"}]})
    assert "W&B failed" in job(server, run, 1, 3)
    server.fault = None
    sync(server, run)
    assert steps(server) == [1, 2, 3]


def test_a_job_survives_wandbs_own_process(server, run):
    said = job(server, run, 1, 10, 0.1, SPOIL="core")
    assert "the metrics are in metrics.jsonl all the same" in said
    assert len(read_metrics(run.stage(STAGE) / "metrics.jsonl")) == 10


# --- a job at work -------------------------------------------------------------------------------


def test_a_job_at_work_is_left_alone_or_followed_to_its_end(server, run):
    metrics = run.stage(STAGE) / "metrics.jsonl"
    job(server, run, 1, 3, WANDB_MODE="offline")  # before it was requeued
    with start(server, run, 4, 10_000, 0.1, WANDB_MODE="offline") as process:
        wait_for_rows(metrics, 20)
        wait_until(lambda: sum(fragment.num_rows for fragment in find_fragments(run)[ID]) > 3)
        assert "its job is running; left alone" in sync(server, run)
        assert server.runs == {}
        assert process.poll() is None
        command = [sys.executable, str(ROOT / "jobs" / "dashboard.py"), "sync", "--live", str(run.path)]
        with subprocess.Popen(
            command, env=env(server, run.path.parent), stdout=subprocess.PIPE, text=True
        ) as following:
            wait_until(lambda: ID in server.runs and server.runs[ID].history)
            assert process.poll() is None
            (run.path / "enough").touch()
            said, _ = following.communicate(timeout=HANG_S)
        process.communicate(timeout=HANG_S)
    num_rows = len(read_metrics(metrics))
    assert f"{ID}: sent ({num_rows} rows, 1 artifacts)" in said
    assert steps(server) == list(range(1, num_rows + 1))
    assert server.runs[ID].exit_code == 0


# --- the workspace, and mistakes -----------------------------------------------------------------


def test_the_workspace_is_made_once_and_then_updated_under_its_address(server, run):
    first, second = (dashboard(server, run, "apply", str(run.path)) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout == f"created: {server.url}/{ENTITY}/salign?nw=salign\n"
    assert second.stdout == first.stdout.replace("created", "updated")
    [view] = server.views.values()
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    shown = ["Society", "Training health", "Preference", "Generations", "Evaluation", "Cost"]
    assert [section["name"] for section in sections][: len(shown)] == shown
    assert server.unknown == []


def test_without_a_key_or_a_server_it_is_said_in_one_paragraph(server, run):
    job(server, run, 1, 2, WANDB_MODE="offline")
    without = dashboard(server, run, "sync", str(run.path), WANDB_API_KEY="")
    assert without.returncode == 2
    assert "set WANDB_API_KEY" in without.stderr
    nowhere = dashboard(server, run, "sync", str(run.path), WANDB_BASE_URL="http://127.0.0.1:9")
    assert nowhere.returncode == 1
    for done in (without, nowhere):
        assert "Traceback" not in done.stderr
        assert KEY not in done.stdout + done.stderr
