"""The whole way, as a user goes it: launched, launched again, killed, and with mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, environment, launch, launch_afresh, launch_here, run_job
from forks import python
from waits import wait_until

from salign.dataset.collect import collect
from salign.dataset.groups import load_groups
from salign.markers import read_done
from salign.records import read_interactions
from salign.run import RunDir
from salign.society.shard import run_shard
from salign.storage import sha256
from salign.tracking.wandb_log import history, records

pytestmark = pytest.mark.integration


def test_the_run_folder_holds_what_the_contract_says(finished):
    run, _, _ = finished
    for name in (
        "config.yaml",
        "manifest.json",
        "simulate/shard-00000/interactions.jsonl",
        "simulate/shard-00000/metrics.jsonl",
        "simulate/shard-00001/done.json",
        "dataset/groups.jsonl",
        "dataset/card.json",
        "train/sft/metrics.jsonl",
        "train/stable/model/model.safetensors",
        "evaluate/base/results.json",
        "evaluate/stable/samples.jsonl",
        "report/summary.json",
        "report/index.html",
        "report/figures/society.svg",
        "logs/train-stable.log",
    ):
        assert (run.path / name).is_file(), name
    interactions = [i for shard in range(2) for i in read_interactions(run.shard(shard) / "interactions.jsonl")]
    assert [i.key for i in interactions] == [(w, r, a) for w in range(2) for r in (1, 2) for a in range(9)]
    assert load_groups(run.dataset / "groups.jsonl").groups
    taken = [read_done(run.stage(stage)).took_s for stage in ("sft", "stable")]
    assert f'<th scope="row">train</th><td>{sum(taken):,.0f} s</td>' in (run.report / "index.html").read_text()
    manifest = json.loads(run.manifest.read_text())
    assert manifest["packages"]["torch"]
    assert manifest["inputs"]
    results = json.loads((run.evaluation("stable") / "results.json").read_text())
    assert results["figures"]["alignment"]["n"] == 6
    assert results["versions"]["judge engine"] == "scripted"


def test_the_closing_table_says_what_came_out_and_where(finished):
    run, _, said = finished
    for words in (
        "interactions",
        "36 (504 model calls",
        "mean alignment",
        "imitation",
        "loss of stable",
        "base: alignment",
        "stable - base: alignment",
        str(run.model("stable")),
        str(run.dataset / "groups.jsonl"),
        str(run.logs),
        "wandb leet",
        str(run.report / "index.html"),
    ):
        assert words in said


def test_the_second_launch_finds_everything_done(finished):
    run, config, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("done.json")}
    again = launch(str(config))
    assert again.returncode == 0
    assert "there is nothing to run" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("done.json")}


def test_the_next_run_is_estimated_by_what_this_one_took(finished):
    run, config, _ = finished
    planned = launch_here(str(config), "run.name=next", "--dry-run")
    assert planned.returncode == 0
    estimated = planned.stdout.split("Estimate")[1]
    for unit in ("simulate", "train sft", "train stable"):
        assert re.search(rf"{unit}: [\d,.]+ (calls|tokens)/s, measured in run small", estimated), estimated
    for model in ("base", "stable"):
        took_s = read_done(run.evaluation(model)).took_s / 2  # of both, side by side
        # Both stand in one line where they took as many seconds.
        assert re.search(rf"evaluate {model}(, .*)?: {took_s:,.0f} s, measured in run small", estimated), estimated


def test_offline_wandb_runs_mirror_the_metrics(finished):
    run, _, _ = finished
    logs = sorted((run.wandb / "wandb").glob("offline-run-*/*.wandb"))
    names = {log.name.removeprefix("run-").removesuffix(".wandb") for log in logs}
    expected = {
        "simulate-small",
        "train-small-sft",
        "train-small-stable",
        "evaluate-small-base",
        "evaluate-small-stable",
    }
    assert names == expected
    by_name = {log.name.removeprefix("run-").removesuffix(".wandb"): log for log in logs}
    losses = history(by_name["train-small-stable"], "train/loss")
    rows = [json.loads(line) for line in (run.stage("stable") / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx([row["train/loss"] for row in rows])
    assert len(history(by_name["simulate-small"], "sim/alignment_mean")) == 2  # one row for each round
    kinds = {record.WhichOneof("record_type") for record in records(by_name["train-small-stable"])}
    assert "history" in kinds
    staged = [r.artifact.name for log in logs for r in records(log) if r.WhichOneof("record_type") == "artifact"]
    staged += [
        r.request.log_artifact.artifact.name
        for log in logs
        for r in records(log)
        if r.WhichOneof("record_type") == "request" and r.request.WhichOneof("request_type") == "log_artifact"
    ]
    assert {"small-data", "small-sft", "small-stable"} <= set(staged)


def test_no_secret_is_in_any_file(finished):
    run, _, said = finished
    texts = [said.encode(), *(path.read_bytes() for path in run.path.rglob("*") if path.is_file())]
    assert not any(secret in text for text in texts for secret in (b"sk-secret-of-the-test", b"hf_secret_of_the_test"))


def test_status_names_every_unit(finished):
    run, _, _ = finished
    done = run_job("status", str(run.path))
    assert done.returncode == 0
    assert "7 done" in done.stdout
    assert "logs/train-stable.log" in done.stdout


def test_another_config_for_the_same_folder_is_refused(finished):
    _, config, _ = finished
    refused = launch(str(config), "society.num_initial_memories=3")
    assert refused.returncode == 2
    assert "differs in society.num_initial_memories" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert launch(str(config), "cluster.num_workers=1").returncode == 0


def test_more_benchmarks_are_asked_of_what_is_trained(finished, tmp_path):
    run, first = RunDir(tmp_path / "small"), finished[0]
    shutil.copytree(first.path, run.path)
    made = {path: path.stat().st_mtime_ns for path in run.path.glob("[std]*/**/done.json")}

    def judged(run: RunDir, model: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted(run.evaluation(model).glob("measured-*/calls/*"))]

    more = "evaluate.benchmarks=[questions,pairs]"
    done = launch(str(run.config_file), f"run.root={tmp_path}", more, "evaluate.num_documents=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stable - base: pairs/margin" in done.stdout
    assert made == {path: path.stat().st_mtime_ns for path in made}
    for model in ("base", "stable"):
        figures, before = (
            json.loads((one.evaluation(model) / "results.json").read_text())["figures"] for one in (run, first)
        )
        assert figures["pairs/margin"]["n"] == 3
        assert {name: figures[name] for name in before} == before
        assert judged(run, model) == judged(first, model) != []  # no call was made again


def test_a_file_that_changed_is_noticed_by_the_next_stage_and_by_verify(finished, tmp_path):
    run = RunDir(tmp_path / "small")
    shutil.copytree(finished[0].path, run.path)
    words = [str(run.config_file), f"run.root={tmp_path}", "--prepare", "--verify"]
    found = launch_here(*words)
    assert (found.returncode, "every file of what is done is what it was" in found.stdout) == (0, True), found.stderr
    read_by = {
        ("collect",): (run.shard(1) / "interactions.jsonl", run.dataset),
        ("train", "stable"): (run.dataset / "groups.jsonl", run.stage("stable")),
        ("evaluate", "stable"): (run.model("stable") / "model.safetensors", run.evaluation("stable")),
    }
    for (stage, *argument), (file, folder) in read_by.items():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        said = launch_here(*words)
        assert said.returncode == 1
        assert f"files have changed since they were made: {file}. Restore them" in said.stderr
        assert f"rm -r {file.parents[file.parent.name == 'model']}" in said.stderr
        marker = (folder / "done.json").rename(folder / "kept")
        command = [python(), "-m", "salign.work", stage, str(run.path), *argument]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"error: {file} has changed since " in done.stderr
        marker.rename(folder / "done.json")
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def test_a_lost_shard_alone_is_run_again(finished, tmp_path):
    run, config, _ = finished
    copy = RunDir(tmp_path / "runs" / "small")
    shutil.copytree(run.path, copy.path)
    before = read_done(copy.shard(1))
    shutil.rmtree(copy.shard(1))
    again = launch(str(config), f"run.root={tmp_path / 'runs'}")
    assert again.returncode == 0, again.stderr
    assert "simulate: 1 of 2 shards to do" in again.stdout
    assert "train" not in again.stdout.split("Run small")[0]  # the same bytes again: what was made from them stands
    assert read_done(copy.shard(1)).digest == before.digest


def test_each_stage_by_itself(config_file, tmp_path):
    tree = json.loads(config_file.read_text())
    del tree["train"]["stages"][0]
    tree["evaluate"]["models"] = ["stable"]
    config_file.write_text(json.dumps(tree))
    plan = launch(str(config_file), "--dry-run", "train.stages.stable.max_steps=2")
    assert plan.returncode == 0
    assert "evaluate stable" in plan.stdout
    assert not (tmp_path / "runs").exists()
    from salign import compose
    from salign.manifest import create_run

    run = create_run(compose.load(config_file))

    early = run_job("collect", str(run.path))
    assert early.returncode == 1
    assert "shard 0 is not complete" in early.stderr
    assert "jobs/simulate.py" in early.stderr
    assert run_job("simulate", str(run.path), "--shard", "7").returncode == 2
    for name, *words in (
        ("simulate", "--shard", "0"),
        ("simulate", "--shard", "1"),
        ("collect",),
        ("train", "--stage", "stable"),
        ("evaluate", "--model", "stable"),
    ):
        done = run_job(name, str(run.path), *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "there is nothing to run" in launch(str(config_file)).stdout


def test_a_launch_of_a_part_does_that_part(config_file, tmp_path):
    run = RunDir(tmp_path / "runs" / "small")
    for words, said in (
        (["--only=collect"], "collect needs simulate/0 and 1 more, and that is not done: launch --until=collect, or "),
        (["--only=evaluate"], "evaluate stable needs train/stable, and that is not done: launch --until=evaluate"),
        (["--only=simulate", "--until=collect"], "not allowed with argument"),
        (["--until=report"], "invalid choice: 'report'"),
    ):
        refused = launch_here(str(config_file), *words)
        assert refused.returncode == 2
        assert said in refused.stderr
    planned = launch_here(str(config_file), "--dry-run", "--until=collect")
    assert "train sft" not in planned.stdout.partition("Run ")[0]
    done = launch(str(config_file), "--until=collect")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"left in {run.path}: train, evaluate" in done.stdout
    assert read_done(run.dataset) is not None
    assert not (run.path / "train").exists()
    again = launch_here(str(config_file), "--until=collect")
    assert (again.returncode, "left in" in again.stdout) == (0, True)


def test_killed_anywhere_the_next_launch_goes_on(finished, config_file, tmp_path):
    """The launcher is killed at three moments; its processes end with it; the result is that of an undisturbed run."""
    run, undisturbed = RunDir(tmp_path / "runs" / "small"), finished[0]
    words = [str(config_file), "evaluate.models=[]"]
    command = [python(), str(ROOT / "jobs" / "launch.py"), *words]
    for moment in (
        lambda: any(run.shard(0).glob("journal-*")),
        (run.stage("sft") / "metrics.jsonl").exists,
        (run.stage("stable") / ".lock").exists,
    ):
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert wait_until(moment, process)
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        assert "error" not in said
        assert read_done(run.stage("stable")) is None
    last = launch_afresh(*words)  # the one whole run that is not of forks
    assert last.returncode == 0, last.stdout + last.stderr
    for name in (
        "simulate/shard-00000/interactions.jsonl",
        "simulate/shard-00001/interactions.jsonl",
        "dataset/groups.jsonl",
    ):
        assert sha256(run.path / name) == sha256(undisturbed.path / name)
    weights = "train/stable/model/model.safetensors"
    assert sha256(run.path / weights) == sha256(undisturbed.path / weights)


def test_two_launches_of_one_run_at_a_time(config_file, tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "launch.py"), str(config_file)]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    lock = tmp_path / "runs" / "small" / ".launch.lock"
    wait_until(lambda: lock.exists() and lock.read_text(), first)
    second = launch(str(config_file))
    first.terminate()
    first.wait()
    assert second.returncode == 1
    assert f"already being worked on by process {first.pid}" in second.stderr


MISTAKES = {
    "unknown key": (["society.max_rouns=3"], 2, ["society.max_rouns: unknown name; did you mean 'max_rounds'?"]),
    "several at once": (
        ["society.max_rounds=0", "engine.kind=script"],
        2,
        ["2 mistakes", "society.max_rounds", "engine"],
    ),
    "audience too large": (["society.audience_size=9"], 2, ["audience_size 9 is larger than the rest of the society"]),
    "no such config": (["nothing.yaml"], 2, ["one config file at most"]),
    "missing model": (["model=/no/such/model"], 2, ["/no/such/model", "smollm2-135m"]),
    "missing data": (
        ["society.questions={kind: text, path: no/questions.txt}"],
        2,
        ["no data file", "no/questions.txt"],
    ),
    "missing DeepSpeed file": (["train.stages.sft.deepspeed=no.json"], 2, ["no DeepSpeed file", "no.json"]),
    "too many questions": (["evaluate.num_questions=99"], 2, ["exceeds the 36 held-out questions"]),
    "unreachable engine": (
        ["engine={kind: openai, base_url: 'http://127.0.0.1:9/v1', num_retries: 0}"],
        1,
        ["http://127.0.0.1:9/v1 is unreachable"],
    ),
    "leak": (
        ["evaluate.questions={kind: everyday, split: society}"],
        1,
        ["evaluation prompts are in the society's questions", "(society.questions, "],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_paragraph_with_its_remedy(config_file, mistake):
    words, code, said = MISTAKES[mistake]
    done = launch_here(str(config_file), *words, "train.stages.sft.max_steps=1", "train.stages.stable.max_steps=1")
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for part in said:
        assert part in done.stderr


def test_a_malformed_line_is_named(config_file, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"question": "Why?"}\n{"question": \n')
    path = tmp_path / "questions.jsonl"
    done = launch_here(str(config_file), f"society.questions={{kind: json, path: {path}}}")
    assert done.returncode == 2
    assert f"{path}, row 2: not valid JSON" in done.stderr


def test_a_run_folder_that_cannot_be_written(config_file, tmp_path):
    (tmp_path / "file").write_text("")
    done = launch_here(str(config_file), f"run.root={tmp_path / 'file'}")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


# Room for a part of a shard; for the tokens of the data, not for a checkpoint; for that, not for the model.
@pytest.mark.parametrize(
    ("room", "failed"),
    [
        (40_000, "simulate 0 failed: no space left on the disk"),
        (300_000, "train sft failed: no space left on the disk while writing {run}/train/sft/checkpoints"),
        (850_000, "train sft failed: no space left on the disk while writing {run}/train/sft/.model."),
    ],
    ids=["shard", "checkpoint", "model"],
)
def test_a_full_disk(config_file, small_disk, room, failed):
    words = [str(config_file), f"run.root={small_disk}", "tracking.wandb=false"]
    words += ["cluster.num_ranks=1", "cluster.num_workers=1"]
    assert launch_here(*words, "--prepare").returncode == 0
    run = RunDir(small_disk / "small")
    if failed.startswith("train"):
        for shard in range(2):
            run_shard(run, run.config(), shard)
        collect(run, run.config())
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_bsize - room))
    done = launch(*words)
    assert done.returncode == 1, done.stdout
    assert f"error: {failed.format(run=run.path)}" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (run.stage("sft") / "done.json").exists()
    assert not list(small_disk.rglob("*.part"))


def test_the_login_node_loads_no_torch(config_file):
    code = "import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='main').get('main')();"
    code += "sys.exit(9 if 'torch' in sys.modules or 'transformers' in sys.modules else 0)"
    command = [sys.executable, "-c", code, str(ROOT / "jobs" / "launch.py"), str(config_file), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
