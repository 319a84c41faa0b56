"""A run of two generations: the second society speaks through what was trained on the first."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import OPEN_GATES, launch, launch_here, small_config

from salign.arrays import load_array
from salign.digests import identify
from salign.markers import read_done
from salign.plan import units
from salign.run import RunDir, generations
from salign.tracking.metrics import mean, read_metrics
from salign.training.tokens import TokenStore

pytestmark = pytest.mark.integration


def looped_config(folder: Path, model: Path) -> Path:
    tree = small_config(folder, model)
    tree["engine"] = {"kind": "transformers"}
    tree["society"] |= {"num_worlds": 1, "num_shards": 1, "topology": {"size": 2}, "populations": ["all_good"]}
    tree["society"]["audience_size"] = 2
    tree["society"] |= {name: {"max_tokens": 4} for name in ("draft", "feedback", "revision")}
    tree["dataset"] = {"keep_flagged": ["cut", "imitates_frame", "control_tokens", "repeats_prompt", "imitates_form"]}
    replay = {"max_steps": 2, "data": {"kind": "run", "replay": [1.0]}}
    tree["train"]["stages"] = [stage | replay for stage in tree["train"]["stages"][1:]]
    fitted = {"name": "fitted", "objective": {"kind": "copr"}, "max_steps": 1, "data": {"kind": "run", "replay": [1.0]}}
    tree["train"]["stages"].append(tree["train"]["stages"][0] | fitted)
    tree["generations"] = {"num": 2, "stage": "stable"}
    path = folder / "looped.yaml"
    path.write_text(json.dumps(tree))
    return path


@pytest.fixture(scope="module")
def looped(tmp_path_factory, tiny_model) -> tuple[RunDir, Path, str]:
    folder = tmp_path_factory.mktemp("looped")
    config = looped_config(folder, tiny_model)
    done = launch(str(config), OPEN_GATES)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunDir(folder / "runs" / "small"), config, done.stdout


def test_the_second_society_speaks_through_what_the_first_trained(looped, tiny_model):
    run, _, _ = looped
    first, second = (read_done(run.generation(number).shard(0)).facts for number in (1, 2))
    base, trained = (identify(str(model)).digest[:12] for model in (tiny_model, run.model("stable")))
    assert base != trained
    spoken, later = ({name.partition("@")[2][:12] for name in facts["models"]} for facts in (first, second))
    assert (spoken, later) == ({base}, {base, trained})  # the observer stays the base
    assert read_done(run.generation(2).stage("stable")).inputs["model"] == identify(str(run.model("stable"))).digest


def test_what_was_trained_on_is_as_old_as_the_shares_of_replay_say(looped):
    run, _, said = looped
    ages = []
    for number in (1, 2):
        its = run.generation(number)
        rows = [row for row in read_metrics(its.stage("stable") / "metrics.jsonl") if "train/global_step" in row]
        assert [row["train/replay/age"] for row in rows] == [row["train/replay/share"] for row in rows]  # 0 or 1 each
        ages.append(mean(row["train/replay/age"] for row in rows))
    assert ages[0] == 0 < ages[1] < 1
    done = read_done(run.generation(2).stage("stable"))
    assert done.facts["num_replayed_groups"] == read_done(run.dataset).facts["num_groups"]
    assert done.inputs["generation-1/dataset"] == read_done(run.dataset).digest
    assert "trained on: age of the groups" in said


def references_by_tokens(run: RunDir, *, replayed: bool) -> dict[tuple, list[float]]:
    """Of the groups that a generation's stage was made to fit, its own or those that it replayed."""
    folder = run.stage("fitted")
    [tokens], [path] = folder.glob("tokens-*"), folder.glob("reference-*")
    store, references = TokenStore(tokens), load_array(path)
    return {
        (tuple(store[index].query), *map(tuple, store[index].responses)): references[store.responses_of(index)].tolist()
        for index in range(len(store))
        if (store[index].age > 0) == replayed
    }


def test_a_replayed_group_is_fitted_to_what_was_optimal_in_its_own_generation(looped):
    run, _, _ = looped
    second = run.generation(2)
    own, replayed = references_by_tokens(run, replayed=False), references_by_tokens(second, replayed=True)
    assert replayed == own
    assert references_by_tokens(second, replayed=False).keys() - own.keys()
    [row] = (row for row in read_metrics(second.stage("fitted") / "metrics.jsonl") if "train/global_step" in row)
    assert row["train/target/replayed_divergence"] > 0
    assert row["train/target/entropy"] >= 0


def test_the_models_of_all_generations_are_compared_on_the_same_questions(looped):
    run, _, said = looped
    found = json.loads((run.path / "evaluate" / "generations.json").read_text())
    assert found["models"] == ["base", "1", "2"]
    assert {len(rows) for rows in found["differences"].values()} == {3}
    page = (run.report / "index.html").read_text()
    for figure in ("society: alignment, revisions", "model: engagement"):
        assert figure in said
        assert figure in page


def markers(run):
    """When each unit was done."""
    everything = [unit for one in generations(run, run.config()) for unit in units(*one)]
    return {unit.folder: (unit.folder / "done.json").stat().st_mtime_ns for unit in everything}


def test_a_run_that_is_complete_stays_as_it_is(looped):
    run, config, _ = looped
    before = markers(run)
    again = launch_here(str(config), OPEN_GATES)
    assert again.returncode == 0, again.stderr
    assert "nothing to run" in again.stdout
    assert markers(run) == before
    assert len(before) == 2 * 4 + 3  # shard, data, training of two stages; of three models


def test_no_other_generation_begins_where_one_was_no_better(looped):
    run, config, _ = looped
    results = [json.loads((run.evaluation(name) / "results.json").read_text()) for name in ("base", "stable")]
    base, first = (found["figures"]["alignment"]["mean"] for found in results)
    stop = f"{{figure: alignment, lower_is_better: {str(first > base).lower()}}}"
    before = markers(run)
    ended = launch_here(str(config), OPEN_GATES, "generations.num=3", f"generations.stop={stop}")
    assert ended.returncode == 0, ended.stderr
    assert "Generation 1 was the last: alignment did not get better in 1" in ended.stdout
    assert not run.generation(3).path.exists()
    assert markers(run).items() <= before.items()


def test_a_later_generation_is_a_run_of_its_own(looped):
    run, _, _ = looped
    assert (run.generation(2).report / "index.html").is_file()
    assert run.generation(2).config().run.seed != run.config().run.seed
    assert run.generation(2).config().model == str(run.model("stable"))
    logged = list((run.generation(2).wandb / "wandb").glob("*run-*"))
    assert len(logged) == 4  # the society, two stages, the evaluation


def test_a_model_that_changes_under_a_later_generation_is_noticed(looped, tmp_path):
    run, config, _ = looped
    copy = tmp_path / "runs" / "small"
    shutil.copytree(run.path, copy)
    place = f"run.root={tmp_path / 'runs'}"
    assert launch_here(str(config), OPEN_GATES, place).returncode == 0  # notes the model under its new place
    weights = copy / "train" / "stable" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused = launch_here(str(config), OPEN_GATES, place)
    assert refused.returncode == 2
    assert "of generation 1 changed since generation 2 was made from it" in refused.stderr
