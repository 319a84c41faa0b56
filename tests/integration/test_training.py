"""Training with real DeepSpeed and real ranks, on a small real model."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import python
from safetensors.torch import load_file
from waits import HANG_S, wait_until

from salign import compose, models
from salign.manifest import create_run
from salign.markers import read_done
from salign.run import RunDir
from salign.tracking.metrics import read_metrics
from salign.training.data import Order, build_tokens, split
from salign.training.objectives import stable_losses
from salign.training.settings import learning_rate_share
from salign.training.tokens import TokenGroup, TokenStore

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
NUM_STEPS = 20
LORA = {"lora": {"rank": 4, "alpha": 8.0}, "learning_rate": 2e-2}
DPO = {"objective": {"kind": "dpo"}, "num_responses": 3}
# What one rank begins and two end.
TO_TWO = ["to-two", "to-two-0", "to-two-1", "to-two-3", "to-two-bf16", "to-two-1-bf16"]
LORA_TO_TWO = ["lora-to-two", "lora-to-two-3"]
# Logits in several chunks, of which the ranks then have different numbers.
CHUNKED = ["packed", "zero3", "stopped-3", "four-3"]
# A word that no other text has.
RARE = "~"


def make_run(folder: Path, model: Path, name: str, *, zero: int = 2, rare: int | None = None, **given: Any) -> RunDir:
    """A run with thirteen groups of several lengths, trained by `stable` in twenty steps of five.

    Five groups are as many for neither 2 nor 4 ranks.
    """
    rows = [
        {
            "query": f"What do you say to neighbour {number}{RARE * (number == rare)}?",
            "responses": [f"Good morning, number {number}.", "Go away.", "Hm, I do not know " * (number % 5 + 1)],
            "scores": [6, 1, 3],
        }
        for number in range(13)
    ]
    folder.mkdir(exist_ok=True)
    (folder / f"groups-{name}.json").write_text(json.dumps(rows))
    offload = {"offload_optimizer": {"device": "cpu"}} if name.startswith("offload") else {}
    (folder / f"zero{zero}{'-offload' * bool(offload)}.json").write_text(
        json.dumps({"zero_optimization": {"stage": zero, **offload}})
    )
    stage = {
        "name": "stable",
        "objective": {"kind": "stable", "ratio": 1.0},
        "data": {"kind": "groups", "path": str(folder / f"groups-{name}.json")},
        "num_epochs": 100,
        "max_steps": NUM_STEPS,
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "groups_per_step": 5,
        "num_responses": 2,
        "deepspeed": str(folder / f"zero{zero}{'-offload' * bool(offload)}.json"),
    }
    tree = {
        "run": {"root": str(folder / "runs"), "name": name},
        "model": str(model),
        "train": {"stages": [{**stage, **given}]},
        "tracking": {"wandb": False},
    }
    return create_run(compose.parse(tree, name))


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def train(run: RunDir, *launcher: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """As a user does it."""
    command = [python(), *launcher, str(ROOT / "jobs" / "train.py"), str(run.path), "--stage", "stable"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=HANG_S, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def metrics(run: RunDir, name: str) -> list[float]:
    rows = read_metrics(run.stage("stable") / "metrics.jsonl")
    assert [row["train/global_step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row[name] for row in rows if name in row]


def losses(run: RunDir) -> list[float]:
    return metrics(run, "train/loss")


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run.model("stable") / "model.safetensors")


def assert_bitwise_equal(run: RunDir, other: RunDir) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert losses(run) == losses(other)


def checkpoints(run: RunDir) -> list[str]:
    return sorted(path.name for path in (run.stage("stable") / "checkpoints").iterdir() if path.is_dir())


def copy_of(run: RunDir, name: str) -> RunDir:
    path = run.path.with_name(name)
    shutil.copytree(run.path, path)
    return RunDir(path)


# --- what is trained, by how many ranks: one launch for all that a number of ranks does -----------


Task = tuple[RunDir, dict[str, Any]]


@dataclass
class Trained:
    """Runs by name, and what came of the tasks on each."""

    runs: dict[str, RunDir]
    results: dict[str, list[dict[str, Any]]]


def train_all(folder: Path, num_ranks: int, tasks: list[Task]) -> dict[str, list[dict[str, Any]]]:
    """Trains runs one after the other in one launch; see `train_runs`."""
    words = [{"run": str(run.path), "chunk": int(run.path.name in CHUNKED), **what} for run, what in tasks]
    (folder / "tasks.json").write_text(json.dumps(words))
    command = [python(), *TORCHRUN, str(num_ranks), str(Path(__file__).with_name("train_runs.py"))]
    done = subprocess.run(
        [*command, str(folder / "tasks.json")],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for (run, _), result in zip(tasks, json.loads((folder / "results.json").read_text()), strict=True):
        found.setdefault(run.path.name, []).append(result)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def make(folder: Path, tiny_model: Path) -> Callable[..., RunDir]:
    return lambda name, **given: make_run(folder, tiny_model, name, **given)


@pytest.fixture(scope="module")
def one(folder: Path, make: Callable[..., RunDir]) -> Trained:
    """What one rank trains."""
    runs = {
        "plain": make("plain"),
        "packed": make("packed", row_tokens=150, gradient_checkpointing=True, held_out_share=0.0),
        "held": make("held", held_out_share=0.3, evaluate_every_steps=8, zero=1),
        "dpo": make("dpo", **DPO),
        "dpo-stopped": make("dpo-stopped", **DPO),
        "to-two": make("to-two"),
        "to-two-3": make("to-two-3", zero=3, weight_decay=0.0),
        "undecayed": make("undecayed", weight_decay=0.0),
        "to-two-1": make("to-two-1", zero=1),
        "to-two-0": make("to-two-0", zero=0),
        "to-two-1-bf16": make("to-two-1-bf16", zero=1, dtype="bfloat16"),
        "to-two-bf16": make("to-two-bf16", dtype="bfloat16"),
        "lora": make("lora", **LORA),
        "lora-stopped": make("lora-stopped", **LORA),
        "lora-dpo": make("lora-dpo", **{**LORA, **DPO}),
        **{name: make(name, lora={"rank": 4, "dropout": 0.3}) for name in ("dropout", "dropout-stopped")},
        "lora-to-two": make("lora-to-two", **LORA),
        "lora-to-two-3": make("lora-to-two-3", zero=3, **LORA),
        **{
            kind: make(kind, objective={"kind": kind}, num_responses=3, max_steps=4, row_tokens=300)
            for kind in ("listwise_dpo", "rrhf", "coh", "grpo", "copr")
        },
        "in-the-way": make("in-the-way", max_steps=4),
        "too-high": make("too-high", learning_rate=1e9),
        "flex": make("flex", attention="flex"),
    }
    model = runs["in-the-way"].model("stable")
    model.parent.mkdir(parents=True)
    model.write_text("in the way")
    stopped = [*TO_TWO, *LORA_TO_TWO]
    tasks: list[Task] = [(run, {"stop_after": 7} if name in stopped else {}) for name, run in runs.items()]
    for name in ("dpo-stopped", "lora-stopped", "dropout-stopped"):
        place = next(place for place, (run, _) in enumerate(tasks) if run is runs[name])
        tasks.insert(place, (runs[name], {"stop_after": 7}))
    for name, replaced in (
        ("to-zero-3", ["zero2.json", "zero3.json"]),
        ("another-rate", ["learning_rate: 0.002", "learning_rate: 0.001"]),
    ):
        runs[name] = RunDir(runs["to-two"].path.with_name(name))
        tasks.append((runs[name], {"copy_of": str(runs["to-two"].path), "replaced": replaced}))
    return Trained(runs, train_all(folder, 1, tasks))


@pytest.fixture(scope="module")
def broken(folder: Path, tiny_model: Path) -> tuple[RunDir, int]:
    """A run whose third step alone has a group with a loss that is not finite; and that group's number.

    Its model is the tiny one with an output untied, and an input of one rare word that is infinite.
    """
    path = folder / "broken-model"
    shutil.copytree(tiny_model, path)
    model, tokenizer = models.load_model(str(tiny_model), torch.float32), models.load_tokenizer(str(tiny_model))
    [token] = tokenizer(RARE, add_special_tokens=False)["input_ids"]
    assert token > 20
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = math.inf
    model.save_pretrained(path)
    groups = [TokenGroup([number], [[1], [2], [3]], [6.0, 1.0, 3.0]) for number in range(13)]
    stage = make_run(folder, path, "order").config().stage("stable")
    numbers = [number for number, _ in Order(groups, stage, 0).groups(2)]
    bad = next(number for number in numbers[:3] if number not in numbers[3:])  # in no step before, there once
    return make_run(folder, path, "broken", rare=bad, checkpoint_every_steps=1), bad


@pytest.fixture(scope="module")
def two(folder: Path, make: Callable[..., RunDir], one: Trained, broken: tuple[RunDir, int]) -> Trained:
    """What two ranks train, and what one began and they end."""
    runs = {
        "zero0": make("zero0", zero=0),
        "zero1": make("zero1", zero=1, row_tokens=200),
        "zero2": make("zero2"),
        "zero3": make("zero3", zero=3, row_tokens=200, gradient_checkpointing=True),
        "bfloat16": make("bfloat16", dtype="bfloat16", row_tokens=200),
        "held-3": make("held-3", held_out_share=0.3, evaluate_every_steps=8, zero=3),
        "dpo-2": make("dpo-2", row_tokens=250, **DPO),
        "listwise-3": make(
            "listwise-3", objective={"kind": "listwise_dpo"}, num_responses=3, max_steps=4, zero=3, row_tokens=300
        ),
        "stopped": make("stopped"),
        "stopped-3": make("stopped-3", zero=3, row_tokens=200, gradient_checkpointing=True),
        "to-one": make("to-one"),
        "offload": make("offload"),
        "offload-3": make("offload-3", zero=3),
        "lora-2": make("lora-2", row_tokens=200, gradient_checkpointing=True, **LORA),
        "lora-3": make("lora-3", zero=3, **LORA),
        "lora-3-bf16": make("lora-3-bf16", zero=3, dtype="bfloat16", **LORA),
        **{name: copy_of(one.runs[name], f"{name}-done") for name in [*TO_TWO, *LORA_TO_TWO]},
        **{f"spoilt-{zero}": make(f"spoilt-{zero}", zero=zero, checkpoint_every_steps=1) for zero in range(4)},
        "spoilt-bf16": make("spoilt-bf16", dtype="bfloat16", checkpoint_every_steps=1),
        "broken": broken[0],
    }
    tasks: list[Task] = []
    for name, run in runs.items():
        tasks += [(run, {"stop_after": 7})] if name in ("stopped", "stopped-3", "to-one") else []
        tasks += [(run, {"spoil": 4} if name.startswith("spoilt") else {})] if name != "to-one" else []
    return Trained(runs, train_all(folder, 2, tasks))


def test_it_learns(one):
    run = one.runs["plain"]
    found = losses(run)
    assert len(found) == NUM_STEPS
    assert sum(found[-5:]) < sum(found[:5]) - 0.5
    done = read_done(run.stage("stable"))
    assert done is not None
    assert done.facts["num_steps"] == NUM_STEPS
    assert done.facts["num_tokens"] == metrics(run, "train/num_tokens")[-1]


def test_one_rank_trains_as_a_plain_loop_of_torch_does(one):
    """Each response with a query of its own, full logits, AdamW, clipping and schedule said outright."""
    run = one.runs["plain"]
    config = run.config()
    stage = config.stage("stable")
    tokenizer = models.load_tokenizer(config.model)
    store = TokenStore(build_tokens(run, stage, config.run.seed, tokenizer, 2048)[0])
    order = Order(store, stage, config.run.seed, split(store, stage, config.run.seed)[0])
    model = models.load_model(config.model, torch.float32).train()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    norms = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups_of_parameters = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups_of_parameters, lr=stage.learning_rate)

    def nll(group: TokenGroup) -> torch.Tensor:
        found = []
        for response in group.responses:
            logps = model(torch.tensor([group.query + response])).logits[0].log_softmax(-1)
            places = torch.arange(len(group.query) - 1, len(group.query) + len(response) - 1)
            found.append(-logps[places, torch.tensor(response)].mean())
        return torch.stack(found)

    expected, norms = [], []
    for step in range(NUM_STEPS):
        for parameters in optimizer.param_groups:
            parameters["lr"] = stage.learning_rate * learning_rate_share(step, NUM_STEPS, stage.warmup_share)
        groups = [group for _, group in order.groups(step)]
        loss = torch.cat(
            [
                stable_losses(nll(group)[None], torch.tensor([group.scores]), ratio=1.0, margin=1.0, scale=7.0)
                for group in groups
            ]
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), stage.max_grad_norm).item())
        optimizer.step()
        expected.append(loss.item())
    assert losses(run) == pytest.approx(expected, rel=1e-4)
    assert metrics(run, "train/grad_norm") == pytest.approx(norms, rel=1e-3)


def test_packing_and_gradient_checkpointing_change_nothing(one):
    assert losses(one.runs["packed"]) == pytest.approx(losses(one.runs["plain"]), rel=1e-5)
    assert max(metrics(one.runs["packed"], "perf/padding_share")) == 0


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_two_ranks_under_every_zero_stage_train_as_one(one, two, name):
    assert losses(two.runs[name]) == pytest.approx(losses(one.runs["plain"]), rel=1e-5)
    norms = metrics(two.runs[name], "train/grad_norm")
    assert norms == pytest.approx(metrics(one.runs["plain"], "train/grad_norm"), rel=1e-3)
    num_tokens = metrics(two.runs[name], "train/num_tokens")  # without what fills an empty row up
    assert num_tokens == metrics(one.runs["plain"], "train/num_tokens")


def test_an_empty_row_is_filled_up_and_told(two):
    """Five groups, a row each, are three rows for one rank and two for the other."""
    assert min(metrics(two.runs["zero2"], "perf/padding_share")) > 0
    assert max(metrics(two.runs["zero1"], "perf/padding_share")) == 0  # where rows are shared, they are parted


def test_four_ranks_train_as_one(folder, make, one):
    runs = [make("four"), make("four-3", zero=3, row_tokens=200)]
    train_all(folder, 4, [(run, {}) for run in runs])
    for run in runs:
        assert losses(run) == pytest.approx(losses(one.runs["plain"]), rel=1e-5)


def test_bfloat16_goes_the_same_way(one, two):
    found, exact = losses(two.runs["bfloat16"]), losses(one.runs["plain"])
    assert found[0] == pytest.approx(exact[0], rel=0.02)
    assert sum(found[-5:]) == pytest.approx(sum(exact[-5:]), rel=0.05)


def test_what_is_held_out_is_measured(one, two):
    run = one.runs["held"]
    rows = read_metrics(run.stage("stable") / "metrics.jsonl")
    measured = [row for row in rows if "eval/loss" in row]
    assert [row["train/global_step"] for row in measured] == [8, 16, 20]
    assert all(row["eval/logps/chosen"] == pytest.approx(-row["eval/loss_best"]) for row in measured)
    assert measured[-1]["eval/loss"] < measured[0]["eval/loss"]
    assert losses(two.runs["held-3"]) == pytest.approx(losses(run), rel=1e-5)
    for name in ("eval/loss", "eval/rewards/margins", "eval/rewards/accuracies"):
        assert metrics(two.runs["held-3"], name) == pytest.approx(metrics(run, name), rel=1e-4)
    assert not metrics(one.runs["plain"], "eval/loss")


# --- what is measured from the model at the start -------------------------------------------------


def test_dpo_starts_at_ln_2_and_comes_out_the_same_on_two_ranks(one, two):
    found = losses(one.runs["dpo"])
    assert found[0] == pytest.approx(math.log(2), abs=1e-6)
    assert found[-1] < found[0] - 0.1
    assert losses(two.runs["dpo-2"]) == pytest.approx(found, rel=1e-5)
    folders = [run.stage("stable") for run in (one.runs["dpo"], two.runs["dpo-2"])]
    references = [[*folder.glob("reference-*")] for folder in folders]
    assert [len(paths) for paths in references] == [1, 1]


def test_references_are_computed_once(one):
    assert [result["reference_calls"] for result in one.results["dpo"]] == [1]
    assert [result["reference_calls"] for result in one.results["plain"]] == [0]
    # Stopped and gone on with a model that is another by then.
    assert [result["exit_code"] for result in one.results["dpo-stopped"]] == [75, 0]
    assert [result["reference_calls"] for result in one.results["dpo-stopped"]] == [1, 0]
    assert_bitwise_equal(one.runs["dpo-stopped"], one.runs["dpo"])


@pytest.mark.parametrize("kind", ["listwise_dpo", "rrhf", "coh", "grpo", "copr"])
def test_the_other_objectives_train(one, kind):
    found = losses(one.runs[kind])
    assert len(found) == 4
    assert found[-1] < found[0]
    calls = [result["reference_calls"] for result in one.results[kind]]
    assert calls == [1 if kind in ("listwise_dpo", "grpo", "copr") else 0]


def test_listwise_dpo_on_sharded_weights(one, two):
    assert losses(two.runs["listwise-3"]) == pytest.approx(losses(one.runs["listwise_dpo"]), rel=1e-5)
    assert losses(two.runs["listwise-3"])[0] == pytest.approx(math.log(2) + math.log(3), abs=1e-5)


# --- offloaded, and low-rank adapters -------------------------------------------------------------


@pytest.mark.parametrize("name", ["offload", "offload-3"])
def test_an_offloaded_optimizer_trains_the_same(one, two, name):
    assert losses(two.runs[name]) == pytest.approx(losses(one.runs["plain"]), rel=1e-5)


def test_adapters_learn_and_the_rest_of_the_model_stays_bitwise(one, tiny_model):
    run = one.runs["lora"]
    assert sum(losses(run)[-5:]) < sum(losses(run)[:5]) - 0.5
    assert losses(run)[0] == pytest.approx(losses(one.runs["plain"])[0], rel=1e-6)  # they begin as nothing
    ours, base = weights(run), load_file(tiny_model / "model.safetensors")
    assert ours.keys() == base.keys()
    changed = {name for name, tensor in ours.items() if not torch.equal(tensor, base[name])}
    assert changed == {name for name in base if name.endswith("_proj.weight")}


@pytest.mark.parametrize("name", ["lora-2", "lora-3"])
def test_adapters_on_two_ranks_train_as_on_one(one, two, name):
    assert losses(two.runs[name]) == pytest.approx(losses(one.runs["lora"]), rel=1e-5)
    found, exact = weights(two.runs[name]), weights(one.runs["lora"])
    assert found.keys() == exact.keys()
    for key, tensor in exact.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4)


def test_adapters_in_bfloat16_go_the_same_way(one, two):
    found, exact = losses(two.runs["lora-3-bf16"]), losses(one.runs["lora"])
    assert found[0] == pytest.approx(exact[0], rel=0.02)
    assert sum(found[-5:]) == pytest.approx(sum(exact[-5:]), rel=0.2)
    assert {tensor.dtype for tensor in weights(two.runs["lora-3-bf16"]).values()} == {torch.bfloat16}


def test_adapters_stopped_and_gone_on_with(one, two):
    assert [result["exit_code"] for result in one.results["lora-stopped"]] == [75, 0]
    assert_bitwise_equal(one.runs["lora-stopped"], one.runs["lora"])
    for name in LORA_TO_TWO:
        assert two.results[f"{name}-done"] == [{"exit_code": 0, "error": "", "reference_calls": 0}]
        assert losses(two.runs[name])[:7] == losses(one.runs[name])
        assert losses(two.runs[name]) == pytest.approx(losses(one.runs["lora"]), rel=1e-5)
    saved = sum(path.stat().st_size for path in (one.runs["lora-to-two"].stage("stable") / "checkpoints").rglob("*"))
    whole = sum(path.stat().st_size for path in (one.runs["to-two"].stage("stable") / "checkpoints").rglob("*"))
    assert saved < 0.7 * whole  # of a model so small; its own weights are not in it


def test_what_dropout_draws_goes_on_as_if_it_had_not_been_stopped(one):
    assert [result["exit_code"] for result in one.results["dropout-stopped"]] == [75, 0]
    assert_bitwise_equal(one.runs["dropout-stopped"], one.runs["dropout"])


def test_adapters_are_measured_from_the_model_without_them(one):
    found = losses(one.runs["lora-dpo"])
    assert found[0] == pytest.approx(math.log(2), abs=1e-6)
    assert found[-1] < found[0] - 0.1


# --- stopped and gone on with ---------------------------------------------------------------------


def test_asked_to_stop_all_ranks_save_and_go_on_bitwise(two):
    for name, undisturbed in (("stopped", "zero2"), ("stopped-3", "zero3")):
        assert [result["exit_code"] for result in two.results[name]] == [75, 0]
        assert_bitwise_equal(two.runs[name], two.runs[undisturbed])


@pytest.mark.parametrize("name", TO_TWO)
def test_what_one_rank_began_two_end(one, two, name):
    assert [result["exit_code"] for result in one.results[name]] == [75]
    assert len(losses(one.runs[name])) == 7
    assert checkpoints(one.runs[name]) == ["step-0000007"]
    assert two.results[f"{name}-done"] == [{"exit_code": 0, "error": "", "reference_calls": 0}]
    run = two.runs[name]
    assert losses(run)[:7] == losses(one.runs[name])  # not made again
    whole = one.runs["undecayed" if name == "to-two-3" else "plain"]  # ZeRO-3 is converted without weight decay
    assert losses(run) == pytest.approx(losses(whole), rel=0.05 if "bf16" in name else 1e-5)
    assert checkpoints(run) == ["step-0000007", f"step-{NUM_STEPS:07d}"]


def test_what_two_ranks_began_one_ends(one, two):
    run = two.runs["to-one"]
    assert len(losses(run)) == 7
    done = train(run)
    assert "step-0000007 from 2 ranks to 1" in done.stderr
    assert "continues after step 7" in done.stderr
    assert losses(run) == pytest.approx(losses(one.runs["plain"]), rel=1e-5)


def test_sigterm_to_the_launcher_stops_all_ranks_at_a_step(make):
    run = make("terminated", max_steps=1000)
    command = [sys.executable, *TORCHRUN, "2", str(ROOT / "jobs" / "train.py"), str(run.path), "--stage", "stable"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(process, lambda: len(read_metrics(run.stage("stable") / "metrics.jsonl")) >= 3)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=HANG_S)[1]
    assert process.returncode != 0
    steps = len(losses(run))
    assert steps < 1000
    assert f"was asked to stop: saved after step {steps}" in said
    assert checkpoints(run) == [f"step-{steps:07d}"]
    assert read_done(run.stage("stable")) is None
    assert not (run.stage("stable") / "failed.json").exists()


def test_asked_to_stop_a_plain_process_tells_that_it_is_to_be_started_again(make):
    run = make("preempted", max_steps=1000)
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), str(run.path), "--stage", "stable"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(process, lambda: len(read_metrics(run.stage("stable") / "metrics.jsonl")) >= 3)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=HANG_S) == 75
    assert checkpoints(run) == [f"step-{len(losses(run)):07d}"]
    assert not (run.stage("stable") / "failed.json").exists()


def wait_for(process: subprocess.Popen[Any], what: Callable[[], bool]) -> None:
    assert wait_until(what, process), f"ended with {process.returncode}"


def test_killed_and_launched_again_it_goes_on_from_the_last_checkpoint(make, one):
    run = make("killed", checkpoint_every_steps=2)
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), str(run.path), "--stage", "stable"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(process, (run.stage("stable") / "checkpoints" / "step-0000002" / "done.json").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run.stage("stable") / "done.json").exists(), "killed too late to show anything"
    again = train(run)
    assert "continues after step" in again.stderr
    assert_bitwise_equal(run, one.runs["plain"])
    assert checkpoints(run) == ["step-0000018", "step-0000020"]


# --- what goes wrong ------------------------------------------------------------------------------


def test_what_goes_wrong_after_the_last_step_costs_no_step(one):
    """Something is where the model should be. Launched again, without it, the stage writes the model at once."""
    run = one.runs["in-the-way"]
    [result] = one.results["in-the-way"]
    assert result["exit_code"] == 1
    assert str(run.model("stable")) in result["error"]
    assert checkpoints(run)[-1] == "step-0000004"
    before = (run.stage("stable") / "metrics.jsonl").read_bytes()
    run.model("stable").unlink()
    assert "continues after step 4" in train(run).stderr
    assert (run.stage("stable") / "metrics.jsonl").read_bytes() == before
    assert losses(run) == pytest.approx(losses(one.runs["plain"])[:1] + losses(run)[1:], rel=1e-5)
    assert read_done(run.stage("stable")) is not None
    assert weights(run)


def test_a_group_whose_loss_is_not_finite_is_named_and_the_last_checkpoint_kept(two, broken):
    run, bad = broken
    [result] = two.results["broken"]
    assert result["exit_code"] == 1
    assert f"the loss of step 3 is not finite (group {bad} of its data, counted from 0)" in result["error"]
    assert len(losses(run)) == 2
    assert checkpoints(run) == ["step-0000001", "step-0000002"]
    assert read_done(run.stage("stable")) is None
    assert f"group {bad}" in json.loads((run.stage("stable") / "failed.json").read_text())["error"]


@pytest.mark.parametrize("name", ["spoilt-0", "spoilt-1", "spoilt-2", "spoilt-3", "spoilt-bf16"])
def test_a_gradient_that_is_not_finite_stops_before_a_checkpoint_has_it(two, name):
    [result] = two.results[name]
    assert result["exit_code"] == 1
    assert "the gradient of step 4 is not finite. It did not change the model" in result["error"]
    assert len(losses(two.runs[name])) == 3
    assert checkpoints(two.runs[name]) == ["step-0000002", "step-0000003"]


def test_a_rate_that_is_too_high_stops_and_says_so(one):
    [result] = one.results["too-high"]
    assert result["exit_code"] == 1
    assert "is not finite" in result["error"]
    assert "It did not change the model. Lower the learning rate" in result["error"]
    assert read_done(one.runs["too-high"].stage("stable")) is None


def test_a_checkpoint_of_another_zero_stage_is_refused(one):
    [result] = one.results["to-zero-3"]
    assert result["exit_code"] == 2
    assert "was written under ZeRO stage 2, now it is 3" in result["error"]


def test_flex_attention_without_cuda_is_refused_before_the_model_is_loaded(one):
    [result] = one.results["flex"]
    assert result["exit_code"] == 2
    assert "attention flex needs a CUDA device" in result["error"]
    assert not list(one.runs["flex"].path.rglob("tokens-*"))
    assert list(one.runs["plain"].path.rglob("tokens-*"))


def test_a_checkpoint_of_another_config_is_refused(one):
    [result] = one.results["another-rate"]
    assert result["exit_code"] == 2
    assert (
        "step-0000007 is of another model, data or config; it differs in learning_rate (was 0.002, is 0.001)"
        in result["error"]
    )


def test_a_stage_that_is_not_there_and_one_that_is_not_ready(make):
    run = make("unready")
    command = [python(), str(ROOT / "jobs" / "train.py"), str(run.path), "--stage", "stabel"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 2
    assert "no unit `train stabel`; there are: stable" in done.stderr


def test_several_processes_of_another_launcher_are_refused(make):
    run = make("foreign")
    command = [python(), str(ROOT / "jobs" / "train.py"), str(run.path), "--stage", "stable"]
    env = {**environment(), "SLURM_NTASKS": "4"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2
    assert "so each would train by itself" in done.stderr


# --- launchers, and the model ---------------------------------------------------------------------


def test_the_deepspeed_launcher(make, one):
    run = make("launched", row_tokens=200)
    deepspeed = Path(sys.executable).with_name("deepspeed")
    command = [
        str(deepspeed),
        "--num_gpus",
        "2",
        "--master_port",
        "29671",
        "jobs/train.py",
        str(run.path),
        "--stage",
        "stable",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(run) == pytest.approx(losses(one.runs["plain"]), rel=1e-5)


@pytest.mark.parametrize("name", ["plain", "zero3", "lora-3"])
def test_the_exported_model_loads_with_plain_transformers(one, two, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = {**one.runs, **two.runs}[name].model("stable")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt")
    reply = model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert reply.shape[1] > ids["input_ids"].shape[1]
    assert not list(folder.glob("*.bin"))
    card = (folder / "README.md").read_text()
    assert "| num_steps | 20 |" in card
    assert f"| ZeRO stage | {2 if name == 'plain' else 3} |" in card
    assert f"| loss | {losses({**one.runs, **two.runs}[name])[0]:.4f} |" in card
    assert (folder / "generation_config.json").is_file()
