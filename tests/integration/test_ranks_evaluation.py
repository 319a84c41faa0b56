"""The evaluation as a user runs it: by ranks that share the work, and models beside each other."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, environment
from forks import python
from vllm_stand_in import path_with_vllm
from waits import HANG_S

from salign import compose
from salign.manifest import create_run
from salign.markers import mark_done
from salign.run import RunDir

pytestmark = pytest.mark.integration

# Not multiples of the number of ranks.
NUM_STORIES, NUM_SCENARIOS = 7, 3


def write_data(folder: Path) -> None:
    stories = [
        {
            "norm": "It is good to be patient.",
            "situation": f"Neighbour {number} is locked out" + " of the house" * (number % 3) + ".",
            "intention": "She wants to get in.",
            "moral_action": "She calls the landlord and waits.",
            "immoral_action": "She breaks a window" + " and laughs" * number + ".",
        }
        for number in range(NUM_STORIES)
    ]
    (folder / "moral_stories_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stories))
    excuses = [
        f"{n % 2},Did you feed cat {group}?,No because of {n}." for group in range(NUM_SCENARIOS) for n in range(4)
    ]
    (folder / "ethics_deontology_test.csv").write_text("\n".join(["label,scenario,excuse", *excuses]) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> RunDir:
    folder = tmp_path_factory.mktemp("evaluation")
    write_data(folder)
    stage = {"name": "same", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": "none.json"}
    tree = {
        "run": {"root": str(folder), "name": "shared"},
        "model": str(tiny_model),
        "engine": {"kind": "scripted"},
        "train": {"stages": [stage]},
        "evaluate": {
            "benchmarks": ["moral_stories", "ethics_deontology", "general", "questions", "over_refusal"],
            "data_dir": str(folder),
            "num_questions": 5,
            "answer": {"max_tokens": 6},
            "num_resamples": 200,
        },
    }
    return create_run(compose.parse(tree, "test"))


def evaluate(run: RunDir, *words: str, num_ranks: int = 1, **variables: str) -> subprocess.CompletedProcess[str]:
    launcher = [python()]
    if num_ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [*launcher, str(ROOT / "jobs" / "evaluate.py"), str(run.path), *words]
    env = {**environment(), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", **variables}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=HANG_S, check=False)


@pytest.fixture(scope="module")
def by_ranks(run: RunDir) -> dict[int, tuple[str, dict[str, object]]]:
    """The samples and results by number of ranks; the last stay in the run."""
    found = {}
    for num_ranks in (3, 2, 1):
        (run.evaluation("base") / "done.json").unlink(missing_ok=True)
        done = evaluate(run, "--model", "base", num_ranks=num_ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        folder = run.evaluation("base")
        found[num_ranks] = (
            (folder / "samples.jsonl").read_text(),
            json.loads((folder / "results.json").read_text()),
        )
    return found


def test_figures_are_the_same_for_any_number_of_ranks(by_ranks):
    samples, results = by_ranks[1]
    assert len(samples.splitlines()) == NUM_STORIES + 4 * NUM_SCENARIOS + 64 + 5 + 50
    assert results["figures"]["ethics_deontology/em"]["n"] == NUM_SCENARIOS
    for num_ranks in (2, 3):
        assert by_ranks[num_ranks][0] == samples
        assert by_ranks[num_ranks][1]["figures"] == results["figures"]
        assert by_ranks[num_ranks][1]["versions"] == results["versions"]


def test_models_are_compared_by_a_command(run, by_ranks):
    source, folder = run.evaluation("base"), run.evaluation("same")
    folder.mkdir()
    for name in ("samples.jsonl", "results.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    mark_done(folder, ["results.json", "samples.jsonl"], {}, {})
    done = evaluate(run, "--compare", "base,same")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| moral_stories/acc | {NUM_STORIES} |" in done.stdout
    assert "moral_stories/acc: same - base" in done.stdout
    assert "comparison.md" in done.stdout
    alone = evaluate(run, "--compare", "base")
    assert (alone.returncode, "names one model" in alone.stderr) == (2, True)


def test_what_is_there_is_prefetched_and_what_is_not_is_named(run):
    done = evaluate(run, "--prefetch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"benchmark moral_stories: {NUM_STORIES} documents" in done.stdout
    assert "benchmark questions: 5 prompts" in done.stdout
    tree = run.config().model_dump(mode="json")
    tree["run"]["name"] = "missing"
    tree["evaluate"]["benchmarks"][2] = "truthfulqa_mc1"
    missing = create_run(compose.parse(tree, "test"))
    done = evaluate(missing, "--model", "base")
    assert done.returncode == 1
    assert "benchmark truthfulqa_mc1 has no data here" in done.stderr
    assert "Traceback" not in done.stderr
    done = evaluate(missing, "--model", "base", "--allow-missing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((missing.evaluation("base") / "results.json").read_text())["skipped"] == ["truthfulqa_mc1"]


def test_the_first_rank_alone_starts_the_servers_that_answer(run, tmp_path):
    """Of any number of ranks, for all prompts; every other judge then rates them there."""
    tree = run.config().model_dump(mode="json")
    tree["run"]["name"] = "served"
    tree["evaluate"] |= {"benchmarks": ["general", "questions"], "engine": {"kind": "server", "program": "vllm"}}
    served = create_run(compose.parse(tree, "test"))
    path, samples = path_with_vllm(tmp_path / "bin"), []
    for num_ranks in (1, 2):
        (served.evaluation("base") / "done.json").unlink(missing_ok=True)
        done = evaluate(served, "--model", "base", num_ranks=num_ranks, PATH=path, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stdout + done.stderr
        folder = served.evaluation("base")
        samples.append((folder / "samples.jsonl").read_text())
        assert json.loads((folder / "results.json").read_text())["answered_by"].endswith(" (vllm)")
        assert [log.parent.name for log in folder.glob("servers-*/*.log")] == ["servers-0"]
    assert samples[0] == samples[1]
    rows = [json.loads(line) for line in samples[0].splitlines()]
    answers = [row["answer"] for row in rows if row["benchmark"] == "questions"]
    assert answers == [f"I am {Path(tree['model']).name}"] * 5
