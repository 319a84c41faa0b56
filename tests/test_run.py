"""A run's folder: what an interrupted process leaves, what counts as done, and how errors reach the user."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from salign import compose, locks
from salign.commands import attack, init, status
from salign.config import Config
from salign.errors import ConfigError, DataError, StageError, explain_os_error
from salign.locks import is_locked, lock
from salign.manifest import create_run, write_manifest
from salign.markers import DONE, FAILED, Done, mark_done, read_done, read_failure, recording_failure, require_done
from salign.run import RunDir, claim_run, open_run
from salign.shown import redact
from salign.storage import new_folder, noticing_full_disk, sha256, write_atomic


class StopError(Exception):
    """What no code of the package knows."""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- atomic writes -------------------------------------------------------------------------------


def test_a_file_is_written_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_atomic(path, "one ✓\n")
    write_atomic(path, "two ✓\n")
    assert path.read_text(encoding="utf-8") == "two ✓\n"
    assert names_in(path.parent) == ["b.json"]


def test_processes_of_one_number_on_several_nodes_may_write_the_same_file(tmp_path):
    """As threads do, which have one number here."""
    texts = [letter * 100_000 for letter in "abcd"]

    def write(text):
        for _ in range(50):
            write_atomic(tmp_path / "x", text)

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(write, texts)) == [None] * 4
    assert (tmp_path / "x").read_text() in texts
    assert names_in(tmp_path) == ["x"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "new.txt", "x" * 100_000 + "\ud800")
    assert names_in(tmp_path) == []


def test_a_write_that_fails_keeps_what_was_there(tmp_path):
    write_atomic(tmp_path / "old.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "old.txt", "x" * 100_000 + "\ud800")
    assert (tmp_path / "old.txt").read_text() == "old"
    assert names_in(tmp_path) == ["old.txt"]


def test_a_folder_appears_when_it_is_full(tmp_path):
    with new_folder(tmp_path / "deep" / "model") as part:
        (part / "weights").write_text("1")
        assert not (tmp_path / "deep" / "model").exists()
    assert names_in(tmp_path / "deep") == ["model"]
    assert (tmp_path / "deep" / "model" / "weights").read_text() == "1"


def test_a_new_folder_takes_the_place_of_the_old_whole(tmp_path):
    for name in ("one", "two"):
        with new_folder(tmp_path / "model") as part:
            (part / name).write_text(name)
    assert names_in(tmp_path / "model") == ["two"]


def test_a_folder_that_fails_leaves_nothing_and_keeps_the_old(tmp_path):
    with pytest.raises(StopError), new_folder(tmp_path / "new") as part:
        (part / "weights").write_text("1")
        raise StopError
    assert names_in(tmp_path) == []
    with new_folder(tmp_path / "old") as part:
        (part / "weights").write_text("1")
    with pytest.raises(StopError), new_folder(tmp_path / "old") as part:
        (part / "weights").write_text("2")
        raise StopError
    assert names_in(tmp_path) == ["old"]
    assert (tmp_path / "old" / "weights").read_text() == "1"


# --- what counts as done -------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path):
    folder = tmp_path / "stage"
    (folder / "model").mkdir(parents=True)
    (folder / "rows.jsonl").write_text("0123456789")
    (folder / "model" / "weights").write_text("abc")
    mark_done(folder, ["rows.jsonl", "model/weights"], {"before": "f00"}, {"num_rows": 1, "rate": 0.5})
    return folder


def test_a_marker_says_what_was_done(stage):
    done = read_done(stage)
    assert done.facts == {"num_rows": 1, "rate": 0.5}
    assert done.inputs == {"before": "f00"}
    assert done.files["rows.jsonl"] == {"bytes": 10, "sha256": sha256(stage / "rows.jsonl")}
    assert require_done(stage, "the stage", "") == done


def test_a_folder_without_a_marker_is_not_done(tmp_path, stage):
    assert read_done(tmp_path / "nowhere") is None
    (stage / DONE).unlink()
    assert read_done(stage) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"facts": {}, "files": {}}'])
def test_a_marker_that_is_no_marker_does_not_count(stage, text):
    (stage / DONE).write_text(text)
    assert read_done(stage) is None


def test_a_file_that_is_missing_or_of_another_size_is_not_done(stage):
    (stage / "rows.jsonl").write_text("012345678")
    assert read_done(stage) is None
    (stage / "rows.jsonl").write_text("0123456789")
    assert read_done(stage) is not None
    (stage / "model" / "weights").unlink()
    assert read_done(stage) is None
    with pytest.raises(StageError, match=r"the stage is not complete \(.*done\.json.*\)\. Run it\.$"):
        require_done(stage, "the stage", "Run it.")


def test_changed_bytes_are_an_error_that_names_the_file(stage):
    (stage / "rows.jsonl").write_text("012345678X")
    assert read_done(stage) is not None  # a size alone tells nothing
    with pytest.raises(StageError, match=r"rows\.jsonl has changed since the stage was done"):
        require_done(stage, "the stage", "")


def test_the_digest_is_of_the_files_alone(stage):
    digest = read_done(stage).digest
    names = ["rows.jsonl", "model/weights"]
    assert mark_done(stage, names, {}, {"num_rows": 2}).digest == digest
    (stage / "rows.jsonl").write_text("012345678X")
    assert mark_done(stage, names, {}, {"num_rows": 2}).digest != digest


def test_what_is_not_there_cannot_be_declared_done(tmp_path):
    with pytest.raises(FileNotFoundError):
        mark_done(tmp_path, ["rows.jsonl"], {}, {})
    assert names_in(tmp_path) == []


def test_the_digest_is_of_the_files_in_whatever_order_they_are_named():
    one, other = {"bytes": 1, "sha256": "a"}, {"bytes": 2, "sha256": "b"}
    assert Done({}, {"x": one, "y": other}, {}).digest == Done({}, {"y": other, "x": one}, {}).digest
    assert Done({}, {"x": one, "y": other}, {}).digest != Done({}, {"x": other, "y": one}, {}).digest


# --- locks ---------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from salign import locks
locks.PATIENCE_S = 0.0

def wait(seconds, sleep=time.sleep):
    print("waiting", flush=True)
    time.sleep = sleep
    sleep(seconds)

time.sleep = wait
print("starting", flush=True)
with locks.lock(Path(sys.argv[1]), "the thing", wait=True):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def another_process(path: Path):
    """One that takes the lock as soon as it can; killed with SIGKILL at the end."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "starting\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_lock_is_one_of_the_system_where_it_keeps_locks(tmp_path):
    with lock(tmp_path / ".lock", "the thing"), (tmp_path / ".lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_keeps_others_out_until_its_holder_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_S", 0.1)
    path = tmp_path / "deep" / ".lock"
    assert not is_locked(path)
    with another_process(path) as holder:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        with (
            pytest.raises(StageError, match=rf"the thing is already being worked on by process {holder.pid} on "),
            lock(path, "the thing"),
        ):
            pass
        assert is_locked(path)
    assert not is_locked(path)
    with lock(path, "the thing"):
        assert is_locked(path)
    assert not is_locked(path)


def test_a_lock_writes_through_no_link(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / ".lock"
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(StageError, match=r"the lock .*\.lock is a link. Remove it"), lock(path, "the thing"):
        pass
    assert victim.read_text() == "precious"


def test_a_job_waits_longer_for_a_lock_that_a_dead_node_left(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_S", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with another_process(tmp_path / ".lock") as holder:
        assert holder.stdout.readline() == "held\n"
        sleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: (holder.kill(), sleep(seconds)))
        with lock(tmp_path / ".lock", "the thing"):
            assert holder.wait() != 0


def test_who_waits_gets_the_lock_when_the_holder_is_killed(tmp_path):
    with another_process(tmp_path / ".lock") as first:
        assert first.stdout.readline() == "held\n"
        with another_process(tmp_path / ".lock") as second:
            assert second.stdout.readline() == "waiting\n"
            first.kill()
            assert second.stdout.readline() == "held\n"


def test_a_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(StopError), lock(tmp_path / ".lock", "the thing"):
        raise StopError
    assert not is_locked(tmp_path / ".lock")
    with lock(tmp_path / ".lock", "the thing"):
        pass


# --- failures ------------------------------------------------------------------------------------


def test_a_failure_is_left_for_status_until_the_next_try(tmp_path):
    assert read_failure(tmp_path) is None
    with pytest.raises(StageError), recording_failure(tmp_path):
        raise StageError("too many ratings are missing")
    assert read_failure(tmp_path) == ("too many ratings are missing", 1)
    with recording_failure(tmp_path):
        assert read_failure(tmp_path) is None
    assert names_in(tmp_path) == []


def test_a_failure_hides_secrets_and_explains_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "opensesame1")
    with pytest.raises(DataError), recording_failure(tmp_path):
        raise DataError("the server refuses opensesame1")
    assert read_failure(tmp_path) == ("the server refuses <MY_API_KEY>", 2)
    with pytest.raises(OSError, match="No space left"), recording_failure(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "rows.jsonl")
    said, code = read_failure(tmp_path)
    assert said.startswith("no space left on the disk while writing rows.jsonl.")
    assert code == 1


def test_a_new_try_forgets_the_old_result(tmp_path):
    mark_done(tmp_path, [], {}, {})
    with recording_failure(tmp_path):
        assert read_done(tmp_path) is None


def test_a_stage_that_is_done_has_not_failed(tmp_path):
    with pytest.raises(StageError), recording_failure(tmp_path):
        raise StageError("no")
    mark_done(tmp_path, [], {}, {})
    assert names_in(tmp_path) == [DONE]


def test_a_failure_file_that_is_torn_is_none(tmp_path):
    (tmp_path / FAILED).write_text('{"error": "n')
    assert read_failure(tmp_path) is None


def test_an_error_of_a_library_on_a_full_disk_is_the_full_disk():
    with pytest.raises(OSError, match="No space left") as caught, noticing_full_disk(Path("/proc")):  # holds 0 bytes
        raise StopError
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value.__cause__, StopError)


def test_an_error_of_a_library_is_itself_where_there_is_room(tmp_path):
    with pytest.raises(StopError), noticing_full_disk(tmp_path):
        raise StopError


# --- the run's folder ----------------------------------------------------------------------------


def config(root: Path, **sections) -> Config:
    stages = [
        {"name": name, "objective": {"kind": "sft"}, "data": {"kind": "run"}, "deepspeed": "zero2.json"}
        for name in ("first", "second")
    ]
    tree = {"run": {"root": str(root), "name": "mine"}, "engine": {"kind": "scripted"}, "train": {"stages": stages}}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return compose.parse(tree, "test")


def test_a_run_keeps_its_resolved_config(tmp_path):
    run = create_run(config(tmp_path, society={"max_rounds": 7}))
    assert run.path == tmp_path / "mine"
    assert open_run(run.path) == run
    assert run.config() == config(tmp_path, society={"max_rounds": 7})


def test_the_same_config_goes_on_with_a_run(tmp_path):
    run = create_run(config(tmp_path))
    run.shard(0).mkdir(parents=True)
    assert create_run(config(tmp_path)) == run
    assert run.shard(0).is_dir()


def test_another_config_is_refused_and_the_keys_that_differ_are_named(tmp_path):
    run = create_run(config(tmp_path))
    mark_done(run.shard(0), [], {}, {})
    before = run.config_file.read_bytes()
    with pytest.raises(ConfigError, match="holds a run of another config") as caught:
        create_run(config(tmp_path, run={"seed": 1}, society={"max_rounds": 7}, cluster={"num_workers": 9}))
    assert "differs in run.seed, society.max_rounds." in str(caught.value)
    assert run.config_file.read_bytes() == before


def test_a_run_in_which_nothing_is_complete_may_still_change(tmp_path):
    create_run(config(tmp_path))
    assert create_run(config(tmp_path, run={"seed": 1})).config().run.seed == 1


def test_stages_in_another_order_are_another_config(tmp_path):
    mark_done(create_run(config(tmp_path)).shard(0), [], {}, {})
    turned = config(tmp_path).model_dump(mode="json")
    turned["train"]["stages"].reverse()
    with pytest.raises(ConfigError, match=r"differs in train\.stages"):
        create_run(compose.parse(turned, "test"))


def test_where_and_how_it_is_shown_may_change(tmp_path):
    create_run(config(tmp_path))
    changed = config(
        tmp_path, cluster={"num_workers": 9, "num_ranks": 4}, tracking={"wandb": False, "project": "other"}
    )
    assert create_run(changed).config() == changed


def test_a_run_may_move(tmp_path):
    create_run(config(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    assert create_run(config(tmp_path / "new")).config().run.root == tmp_path / "new"


def test_what_another_launch_has_begun_is_no_strangers_folder(tmp_path):
    """As tasks of an array see it that begin at the same time, each by sbatch alone."""
    begun = tmp_path / "mine"
    (begun / "logs").mkdir(parents=True)
    for name in (".launch.lock", ".config.yaml.17.part"):
        (begun / name).write_text("")
    assert create_run(config(tmp_path)).config_file.is_file()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"is no run's folder: it has no config\.yaml"):
        open_run(tmp_path / "mine")
    with pytest.raises(ConfigError, match="is no run's folder"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="exists and is no run's folder"):
        create_run(config(tmp_path))
    assert names_in(tmp_path / "mine") == ["thesis.tex"]


def test_a_config_that_waits_for_its_launch_is_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["salign init", str(tmp_path / "mine")])
    init.main()
    monkeypatch.setattr(sys, "argv", ["salign", str(tmp_path / "mine")])
    for command in (status, attack):
        with pytest.raises(ConfigError, match=r"mine is no run's folder: .* no manifest\.json.*launch\.py .*\.yaml"):
            command.main()
    assert names_in(tmp_path / "mine") == ["config.yaml"]


def test_an_empty_folder_becomes_a_run(tmp_path):
    (tmp_path / "mine").mkdir()
    assert create_run(config(tmp_path)).config_file.is_file()


def test_a_file_in_the_place_of_a_run_is_refused(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="mine"):
        create_run(config(tmp_path))


def test_a_run_whose_config_is_damaged_is_refused(tmp_path):
    run = create_run(config(tmp_path))
    run.config_file.write_text("society: {max_rounds: 0}")
    with pytest.raises(ConfigError, match=r"config\.yaml.*\n.*society\.max_rounds"):
        open_run(run.path)


def test_the_paths_of_a_run_are_the_contract():
    run = RunDir(Path("r"))
    assert str(run.shard(42)) == "r/simulate/shard-00042"
    assert str(run.model("stable")) == "r/train/stable/model"
    assert str(run.evaluation("base")) == "r/evaluate/base"
    assert [str(path) for path in (run.config_file, run.manifest, run.dataset, run.report, run.logs, run.wandb)] == [
        f"r/{name}" for name in ("config.yaml", "manifest.json", "dataset", "report", "logs", "wandb")
    ]


def test_the_manifest_says_what_a_run_is_made_from(tmp_path):
    run = create_run(config(tmp_path, run={"seed": 5}))
    write_manifest(run, run.config(), {"questions.txt": "f00"})
    manifest = json.loads(run.manifest.read_text())
    assert manifest["seed"] == 5
    assert manifest["inputs"] == {"questions.txt": "f00"}
    assert manifest["packages"]["torch"]
    assert set(manifest["code"]) == {"salign", "commit", "dirty", "sha256"}


# --- errors --------------------------------------------------------------------------------------


def test_secrets_of_the_environment_are_hidden(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "opensesame1")
    monkeypatch.setenv("hf_token", "opensesame2")
    monkeypatch.setenv("DB_PASSWORD", "opensesame3")
    monkeypatch.setenv("GREETING", "hello there")
    monkeypatch.setenv("SHORT_KEY", "on")
    text = redact("hello there: opensesame1, opensesame2/opensesame3 go on")
    assert text == "hello there: <WANDB_API_KEY>, <hf_token>/<DB_PASSWORD> go on"


def test_a_secret_that_begins_like_another_is_hidden_whole(monkeypatch):
    monkeypatch.setenv("A_KEY", "opensesame")
    monkeypatch.setenv("B_KEY", "opensesame-and-more")
    assert redact("got opensesame-and-more") == "got <B_KEY>"


def test_only_a_disk_or_its_permissions_are_explained():
    assert "Check the path and its permissions" in explain_os_error(PermissionError(errno.EACCES, "no", "some/x"))
    assert explain_os_error(PermissionError(errno.EACCES, "no", "some/x")).startswith("some/x ")
    assert explain_os_error(OSError(errno.EROFS, "read-only", "x")) is not None
    assert explain_os_error(OSError(errno.EDQUOT, "quota", "x")).startswith("no space left")
    assert explain_os_error(FileNotFoundError(errno.ENOENT, "none", "x")) is None


def main_that(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """An entry point in a process of its own."""
    lines = ["from salign import errors", "def main():", f"    {code}", "errors.run_main(main)"]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("ConfigError", 2),
        ("DataError", 2),
        ("EngineError", 1),
        ("CallRejectedError", 1),
        ("StageError", 1),
        ("SalignError", 1),
    ],
)
def test_an_error_of_the_user_is_one_paragraph_and_an_exit_code(kind, code):
    ended = main_that(f"raise errors.{kind}('no opensesame1 here')", MY_TOKEN="opensesame1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "error: no <MY_TOKEN> here\n")


def test_a_full_disk_is_one_paragraph():
    ended = main_that("open('/dev/full', 'w', buffering=1).write('line\\n')")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: no space left on the disk while writing the run's folder.")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("code", ["{}['key']", "raise FileNotFoundError(2, 'none', 'x')"])
def test_a_bug_keeps_its_traceback(code):
    ended = main_that(code)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")


def test_the_ends_that_are_no_error():
    assert main_that("print('well')").stdout == "well\n"
    assert main_that("pass").returncode == 0
    assert main_that("raise SystemExit(3)").returncode == 3
    interrupted = main_that("raise KeyboardInterrupt")
    assert interrupted.returncode == 130
    assert interrupted.stderr.startswith("interrupted; launch again")
    assert "Traceback" not in interrupted.stderr


def test_an_input_that_changed_after_something_was_made_from_it_is_refused(tmp_path):
    made = config(tmp_path)
    run = create_run(made)
    write_manifest(run, made, {"q.txt": "one"})
    write_manifest(run, made, {"q.txt": "two"})  # nothing is complete yet
    mark_done(run.shard(0), [], {}, {})
    write_manifest(run, made, {"q.txt": "two"})
    with pytest.raises(ConfigError, match=r"q\.txt changed since"):
        write_manifest(run, made, {"q.txt": "three"})
    assert json.loads(run.manifest.read_text())["inputs"] == {"q.txt": "two"}


def test_what_was_noted_of_the_code_stays(tmp_path, monkeypatch):
    made = config(tmp_path)
    run = create_run(made)
    write_manifest(run, made, {})
    mark_done(run.shard(0), [], {}, {})
    first = json.loads(run.manifest.read_text())
    monkeypatch.setattr("salign.manifest.code_version", lambda: {"commit": "later"})
    write_manifest(run, made, {})
    write_manifest(run, made, {})
    second = json.loads(run.manifest.read_text())
    assert second["code"] == first["code"]
    assert [launch["code"] for launch in second["later_launches"]] == [{"commit": "later"}]


def test_a_launch_that_is_refused_leaves_the_config_of_the_one_at_work(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_S", 0.1)
    with claim_run(config(tmp_path)) as run:
        before = run.config_file.read_bytes()
        with pytest.raises(StageError, match="already being worked on"), claim_run(config(tmp_path, run={"seed": 5})):
            pass
        assert run.config_file.read_bytes() == before


def test_a_run_that_was_copied_works_in_its_own_folder(tmp_path):
    import shutil

    run = create_run(config(tmp_path))
    shutil.copytree(run.path, tmp_path / "elsewhere" / "copy")
    copied = RunDir(tmp_path / "elsewhere" / "copy").config().run
    assert copied.root / copied.name == tmp_path / "elsewhere" / "copy"


def test_a_marker_says_where_its_unit_was_made_and_counts_only_as_it_was_written(tmp_path):
    (tmp_path / "rows").write_text("1\n")
    mark_done(tmp_path, ["rows"], {}, {"num": 1, "by_world": {10: 1, 9: 2}})
    machine = read_done(tmp_path).machine
    assert machine["host"] == platform.node()
    assert machine["cores"] == os.cpu_count()
    marker = json.loads((tmp_path / DONE).read_text())
    (tmp_path / DONE).write_text(json.dumps(marker))
    assert read_done(tmp_path).facts == {"num": 1, "by_world": {"10": 1, "9": 2}}
    marker["facts"]["num"] = "many"
    (tmp_path / DONE).write_text(json.dumps(marker))
    assert read_done(tmp_path) is None


@pytest.mark.parametrize(
    "name", ["GITHUB_PAT", "SMTP_PASS", "MY_PASSWD", "PROXY_AUTH", "AWS_CREDENTIALS", "DATABASE_URL", "HF_TOKEN"]
)
def test_what_is_named_like_a_secret_is_one(monkeypatch, name):
    monkeypatch.setenv(name, "opensesame1")
    assert redact("it said opensesame1") == f"it said <{name}>"


def test_paths_and_the_like_are_no_secrets(monkeypatch):
    for name in ("PATH", "XAUTHORITY", "COMPASS", "PATTERN"):
        monkeypatch.setenv(name, "opensesame1")
    assert redact("it said opensesame1") == "it said opensesame1"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_of_a_folder_are_for_whom_the_user_lets_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "model") as part:
            (part / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model" / "weights").stat().st_mode) == mode
