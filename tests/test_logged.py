"""The value of a model on logged answers, against exact values and plain sums."""

import json
import math

import numpy as np
import pytest
from tiny import make_model

from salign.commands.main import run
from salign.errors import ConfigError
from salign.evaluation.logged import logged_value

HOW = {"num_resamples": 2000, "seed": 0}


def bandit(seed, num_groups=150, size=4):
    """Answers of a sampler among six, with another model's probabilities and the score of each."""
    generator = np.random.default_rng(seed)
    sampler = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    model = np.array([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
    rewards = np.array([1.0, 2.0, 3.0, 5.0, 6.0, 7.0])
    answers = generator.choice(6, size=(num_groups, size), p=sampler)
    return np.log(model / sampler)[answers].tolist(), rewards[answers].tolist(), float(model @ rewards)


def test_the_true_value_is_in_95_of_100_intervals():
    found = [
        (logged_value(logs, scores, num_resamples=200, seed=seed), truth)
        for seed in range(100)
        for logs, scores, truth in [bandit(seed)]
    ]
    covered = sum(value.interval[0] <= truth <= value.interval[1] for value, truth in found)
    assert 89 <= covered <= 99
    assert np.mean([value.value for value, _ in found]) == pytest.approx(found[0][1], abs=0.05)


def test_it_is_the_plain_sum_of_the_formula():
    logs, scores = [[0.5, -1.0], [2.0, 0.0, -3.0]], [[1.0, 7.0], [2.0, 3.0, 6.0]]
    weights = [math.exp(log) / len(group) for group in logs for log in group]
    flat = [score for group in scores for score in group]
    value = sum(w * r for w, r in zip(weights, flat, strict=True)) / sum(weights)
    found = logged_value(logs, scores, **HOW)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.sampler == pytest.approx((4 + 11 / 3) / 2)
    assert found.num_effective == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))
    assert found.largest_share == pytest.approx(max(weights) / sum(weights))
    assert found.difference == pytest.approx(found.value - found.sampler)


def test_the_samplers_own_value_is_the_mean_score_and_every_answer_counts():
    found = logged_value([[0.0] * 3] * 40, [[1.0, 4.0, 7.0]] * 40, **HOW)
    assert (found.value, found.sampler) == (pytest.approx(4), pytest.approx(4))
    assert found.num_effective == pytest.approx(120)
    assert found.difference_interval == pytest.approx((0, 0), abs=1e-12)
    assert "effective answers" not in str(found)


def test_what_adds_to_all_weights_changes_nothing_and_nothing_overflows():
    logs, scores, _ = bandit(0)
    shifted = [[log - 5000 for log in group] for group in logs]
    assert logged_value(shifted, scores, **HOW).value == pytest.approx(logged_value(logs, scores, **HOW).value)
    one = logged_value([[0.0, 4000.0], [0.0, 0.0]], [[1.0, 6.0], [2.0, 3.0]], **HOW)
    assert one.value == 6.0
    assert one.num_effective == pytest.approx(1)
    assert "neither value nor interval is to be relied on" in str(one)


@pytest.mark.parametrize(
    ("logs", "scores"), [([], []), ([[0.0]], [[1.0, 2.0]]), ([[math.inf]], [[1.0]]), ([[0.0]], [[math.nan]])]
)
def test_what_says_nothing_is_refused(logs, scores):
    with pytest.raises(ValueError, match=r"must be of the same answers|not finite"):
        logged_value(logs, scores, **HOW)


def test_the_command_weighs_a_files_answers_by_two_models(tmp_path, capsys):
    model = make_model(tmp_path / "model")
    file = tmp_path / "groups.jsonl"
    groups = [{"query": f"Why {number}?", "responses": ["yes", "no"], "scores": [2, 5]} for number in range(20)]
    file.write_text("".join(json.dumps(group) + "\n" for group in groups))
    run(["value", str(file), "--model", str(model), "--sampler", str(model)])
    said = capsys.readouterr().out
    assert "value 3.500 [3.500, 3.500], the sampler's 3.500" in said
    assert "40 answers in 20 groups, worth 40.0 of equal weight" in said
    with pytest.raises(ConfigError, match="--sampler is missing"):
        run(["value", str(file), "--model", str(model)])
