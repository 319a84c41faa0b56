"""The order of training data is a function of seed and step alone."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from salign import compose
from salign.config import AnswersData, Config, TrainStage
from salign.dataset.groups import demonstrations
from salign.errors import ConfigError, DataError
from salign.training.data import Order, shuffled, split
from salign.training.rows import deal
from salign.training.settings import deepspeed_config, learning_rate_share
from salign.training.tokens import TokenGroup


def make_config(tmp_path, text: str = '{"zero_optimization": {"stage": 2}}', **stage) -> Config:
    (tmp_path / "ds.json").write_text(text)
    given = {
        "name": "stable",
        "objective": {"kind": "stable"},
        "data": {"kind": "run"},
        "deepspeed": str(tmp_path / "ds.json"),
    }
    return compose.parse({"train": {"stages": [{**given, **stage}]}, "cluster": {"num_ranks": 1}}, "test")


def make_groups(count: int) -> list[TokenGroup]:
    """Of several lengths; the query tells which one it is."""
    return [TokenGroup([number], [[1] * (1 + number % 7), [2]], [1.0, 2.0]) for number in range(count)]


def seen(order: Order, *steps: int) -> list[int]:
    for step in steps:
        for number, group in order.groups(step):
            assert group.query == [number]
    return [number for step in steps for number, _ in order.groups(step)]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("row_tokens", [None, 12])
def test_a_step_takes_the_same_groups_for_any_number_of_ranks(tmp_path, num_ranks, row_tokens):
    """They are drawn for all ranks together, and only then dealt."""
    stage = make_config(tmp_path, groups_per_step=8).stage("stable")
    order = Order(make_groups(21), stage, seed=3)
    for step in range(6):
        groups = [group for _, group in order.groups(step)]
        dealt = deal([group.num_tokens for group in groups], num_ranks, row_tokens)
        shares = [[groups[position].query[0] for row in own for position in row] for own in dealt]
        assert sorted(number for own in shares for number in own) == sorted(seen(order, step))
        assert all(shares)


def test_a_step_is_the_same_in_whatever_order_steps_are_asked_for(tmp_path):
    """As where a stage goes on from a checkpoint."""
    stage = make_config(tmp_path, groups_per_step=8, num_responses=2).stage("stable")
    groups = [TokenGroup([n], [[1], [2], [3], [4]], [1.0, 2.0, 7.0, 3.0]) for n in range(21)]
    order = Order(groups, stage, seed=3)
    forwards = [order.groups(step) for step in range(12)]
    assert [Order(groups, stage, seed=3).groups(step) for step in range(12)] == forwards
    assert [order.groups(step) for step in reversed(range(12))] == forwards[::-1]
    assert all([3] in group.responses and len(group.responses) == 2 for step in forwards for _, group in step)
    draws = {tuple(map(tuple, group.responses)) for step in forwards for n, group in step if n == 5}
    assert len(draws) > 1, "each epoch draws others"


def test_an_epoch_shows_every_group_once_and_the_next_in_another_order(tmp_path):
    stage = make_config(tmp_path, groups_per_step=5).stage("stable")
    order = Order(make_groups(20), stage, seed=0)
    epochs = [seen(order, *range(4 * epoch, 4 * epoch + 4)) for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]
    assert epochs[0] != seen(Order(make_groups(20), stage, seed=1), *range(4))
    assert [order.epoch(step) for step in (0, 2, 4, 6)] == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(("count", "groups_per_step"), [(7, 3), (5, 8), (1, 4), (3, 10), (20, 5)])
def test_steps_that_span_epochs_leave_no_group_out(tmp_path, count, groups_per_step):
    """A step may hold the end of an epoch and the beginning of the next, or several epochs."""
    stage = make_config(tmp_path, groups_per_step=groups_per_step).stage("stable")
    order = Order(make_groups(count), stage, seed=0)
    found = seen(order, *range(2 * count))  # 2 x groups_per_step epochs
    for start in range(0, len(found), count):
        assert sorted(found[start : start + count]) == list(range(count))


def test_only_the_given_numbers_are_trained_on(tmp_path):
    stage = make_config(tmp_path, groups_per_step=4, num_epochs=2).stage("stable")
    order = Order(make_groups(20), stage, 0, np.array([3, 5, 8, 13], dtype=np.uint32))
    assert order.num_steps == 2
    assert sorted(seen(order, 0)) == sorted(seen(order, 1)) == [3, 5, 8, 13]


def test_the_number_of_steps_follows_epochs_and_max_steps(tmp_path):
    def num_steps(count: int, **stage) -> int:
        return Order(make_groups(count), make_config(tmp_path, **stage).stage("stable"), 0).num_steps

    assert num_steps(20, groups_per_step=5, num_epochs=3) == 12
    assert num_steps(20, groups_per_step=5, num_epochs=0.5) == 2
    assert num_steps(20, groups_per_step=5, max_steps=2) == 2
    assert num_steps(20, groups_per_step=5, max_steps=200) == 4
    assert num_steps(1, groups_per_step=8) == 1


@pytest.mark.parametrize("num_tokens", [1, 100, 101, 5000])
def test_a_budget_in_tokens_ends_with_the_step_that_reaches_it(tmp_path, num_tokens):
    """Through as many epochs as that takes."""
    stage = make_config(tmp_path, groups_per_step=5, num_tokens=num_tokens, num_epochs=0.1).stage("stable")
    order = Order(make_groups(20), stage, 0)
    tokens = [sum(group.num_tokens for _, group in order.groups(step)) for step in range(order.num_steps)]
    assert sum(tokens[:-1]) < num_tokens <= sum(tokens)
    fewer = make_config(tmp_path, groups_per_step=5, num_tokens=num_tokens, max_steps=1).stage("stable")
    assert Order(make_groups(20), fewer, 0).num_steps == 1


def test_a_shuffle_is_a_permutation_that_its_place_decides():
    """Written down: the order must not depend on the version of numpy."""
    assert shuffled(8, 0, "stable", "order", 0).tolist() == [1, 2, 5, 6, 7, 3, 0, 4]
    assert sorted(shuffled(1000, 1, "a").tolist()) == list(range(1000))
    assert shuffled(1000, 1, "a").tolist() != shuffled(1000, 1, "b").tolist()


# --- what is held out ----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "share", "held_out"), [(20, 0.0, 0), (20, 0.25, 5), (21, 0.1, 2), (10, 0.94, 9)])
def test_a_share_of_the_groups_is_held_out(tmp_path, count, share, held_out):
    stage = make_config(tmp_path, held_out_share=share).stage("stable")
    trained, kept = (numbers.tolist() for numbers in split(make_groups(count), stage, seed=0))
    assert len(kept) == held_out
    assert sorted(trained + kept) == list(range(count))
    assert trained == sorted(trained)
    assert kept == sorted(kept)


def test_what_is_held_out_is_a_function_of_seed_and_stage(tmp_path):
    def held_out(seed: int, name: str = "stable", **given) -> list[int]:
        stage = make_config(tmp_path, name=name, held_out_share=0.2, **given).stage(name)
        return split(make_groups(100), stage, seed)[1].tolist()

    assert held_out(0) == held_out(0) == held_out(0, learning_rate=1.0, groups_per_step=4)
    assert held_out(0) != held_out(1)
    assert held_out(0) != held_out(0, "other")
    assert held_out(0) != list(range(20))


@pytest.mark.parametrize("kind", ["dpo", "listwise_dpo"])
def test_groups_that_compare_nothing_are_in_neither_part_where_the_objective_compares(tmp_path, kind):
    groups = [
        TokenGroup([number], [[1], [2], [3]][: len(scores)], scores)
        for number, scores in enumerate([[1.0, 2.0], [3.0], [4.0, 4.0], [4.0, 4.0, 5.0]] * 5)
    ]
    stage = make_config(tmp_path, objective={"kind": kind}, held_out_share=0.3).stage("stable")
    trained, kept = split(groups, stage, seed=0)
    assert len(kept) == 3
    assert sorted([*trained, *kept]) == [number for number in range(20) if number % 4 in (0, 3)]
    others = make_config(tmp_path, held_out_share=0.3).stage("stable")
    assert sum(map(len, split(groups, others, seed=0))) == 20


def test_nothing_to_train_on_is_an_error_that_says_why(tmp_path):
    alike = [TokenGroup([1], [[1], [2]], [4.0, 4.0])] * 6
    with pytest.raises(
        DataError, match=r"none of its 6 groups can be trained on.* dpo needs groups with responses of different"
    ):
        split(alike, make_config(tmp_path, objective={"kind": "dpo"}).stage("stable"), 0)
    with pytest.raises(DataError, match=r"none of its 2 groups can be trained on.* held_out_share is 0\.8"):
        split(alike[:2], make_config(tmp_path, held_out_share=0.8).stage("stable"), 0)
    assert [len(part) for part in split(alike, make_config(tmp_path).stage("stable"), 0)] == [6, 0]


# --- settings ------------------------------------------------------------------------------------


def test_the_rate_warms_up_and_falls_to_nothing():
    shares = [learning_rate_share(step, 100, 0.1) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == pytest.approx(1.0)
    assert shares[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))
    assert learning_rate_share(0, 10, 0.0) == 1.0


def test_the_deepspeed_file_is_completed_by_the_stage(tmp_path):
    stage = make_config(tmp_path, groups_per_step=8, dtype="bfloat16", max_grad_norm=0.5).stage("stable")
    settings = deepspeed_config(stage, num_ranks=2)
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True}
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    exact = make_config(tmp_path, groups_per_step=8, dtype="float32").stage("stable")
    assert "data_types" not in deepspeed_config(exact, num_ranks=2)


def test_bfloat16_without_zero_is_refused(tmp_path):
    stage = make_config(tmp_path, groups_per_step=8, dtype="bfloat16").stage("stable")
    for text in ("{}", '{"zero_optimization": {"stage": 0}}'):
        stage.deepspeed.write_text(text)
        with pytest.raises(ConfigError, match=r"added up in bfloat16.*set zero_optimization.stage to 1 or more"):
            deepspeed_config(stage, num_ranks=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged: Expecting property name"),
        ("[]", "must hold an object"),
        ('{"train_batch_size": 4}', "groups_per_step says it"),
        ('{"bf16": {"enabled": true}}', "dtype says it"),
        ('{"data_types": {"grad_accum_dtype": "bf16"}}', "dtype says it"),
        ('{"zero_optimization": {"stage": 4}}', "there is no ZeRO stage 4; it is 0, 1, 2 or 3"),
    ],
)
def test_a_wrong_deepspeed_file_is_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        deepspeed_config(make_config(tmp_path, text).stage("stable"), 1)
    assert "ds.json" in str(caught.value)


def test_all_that_contradicts_the_config_is_said_at_once(tmp_path):
    text = '{"fp16": {}, "train_batch_size": 4, "optimizer": {"type": "SGD"}, "zero_optimization": {"stage": 9}}'
    with pytest.raises(ConfigError) as caught:
        deepspeed_config(make_config(tmp_path, text, groups_per_step=2).stage("stable"), num_ranks=3)
    for said in ("'fp16'", "'train_batch_size'", "'optimizer'", "no ZeRO stage 9", "less than the 3 ranks"):
        assert said in str(caught.value)


def test_more_ranks_than_groups_in_a_step_are_refused(tmp_path):
    stage = make_config(tmp_path, groups_per_step=8).stage("stable")
    deepspeed_config(stage, num_ranks=8)
    deepspeed_config(stage, num_ranks=3)  # any number up to that
    with pytest.raises(ConfigError, match="groups_per_step 8 is less than the 9 ranks"):
        deepspeed_config(stage, num_ranks=9)
    with pytest.raises(ConfigError, match=r"groups_per_step 8 is less than cluster\.num_ranks 9"):
        compose.parse({**make_config(tmp_path).model_dump(mode="json"), "cluster": {"num_ranks": 9}}, "test")


def test_answers_of_both_labels_are_compared(tmp_path):
    rows = [
        ("q", "kind", "good"),
        ("q", "rude", "bad"),
        ("q", "worse", "bad"),
        ("p", "kind", "good"),
        ("r", "x", "bad"),
    ]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": a, "label": label}) + "\n" for q, a, label in rows)
    )
    source = {"kind": "json", "path": tmp_path / "a.jsonl", "label": "label"}
    data = AnswersData(kind="answers", source=source, both_labels=True)
    (group,) = demonstrations(data)
    assert (group.query, group.responses, group.scores) == ("q", ("kind", "rude", "worse"), (7, 1, 1))
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q", "answer": "a", "label": "good"}) + "\n")
    with pytest.raises(DataError, match="no question with answers labelled 'good' and 'bad'"):
        demonstrations(data)


def test_what_compares_may_be_trained_on_answers_of_both_labels():
    def stage(**data):
        given = {"data": {"kind": "answers", **data}, "deepspeed": "z.json", "num_responses": 2}
        return TrainStage(name="dpo", objective={"kind": "dpo"}, **given)

    assert stage(both_labels=True).max_responses == 2
    with pytest.raises(ValidationError, match="unless its both_labels is true"):
        stage()


def test_demonstrations_are_the_good_answers(tmp_path):
    data = make_config(tmp_path, data={"kind": "answers"}).stage("stable").data
    groups = demonstrations(data)
    assert len(groups) == 180
    assert all(len(group.responses) == 1 and group.kind == "demonstration" for group in groups)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "configs" / "deepspeed").glob("*.json")), ids=lambda path: path.stem
)
def test_every_shipped_deepspeed_file_serves(tmp_path, path):
    stage = make_config(tmp_path, deepspeed=str(path)).stage("stable")
    assert deepspeed_config(stage, 1)["zero_optimization"]["stage"] in (2, 3)
