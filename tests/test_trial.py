"""The trial of a judge: what it is asked, what it finds of judges of several kinds, and who is below the mark."""

import asyncio

import pytest

from salign import compose
from salign.config import EvaluateSection, ObserverCheck, SocietySection
from salign.engines.base import Reply
from salign.errors import DataError, StageError
from salign.evaluation.check import check_evaluation
from salign.evaluation.judge import Judge
from salign.evaluation.trial import check_trial, criteria_to_try, pairs_of, poor_judges, trial_figures, try_judge

GOOD = {pair.good for pair in pairs_of(ObserverCheck())}
OWN = "I am the best of all."


class Speaker:
    """Answers questions with its own words, and rates what it is shown by the given function of its own prompt."""

    identity = "speaker"

    def __init__(self, rating) -> None:
        self._rating = rating

    async def generate(self, prompt, sampling, seed):
        if prompt.form != "rating":
            return Reply(OWN, 1, 1)
        return Reply(f"Rating: {self._rating(prompt.user)} Reason: So.", 1, 1)


def fair(shown: str) -> int:
    return 6 if any(answer in shown for answer in GOOD) else 2


def gullible(shown: str) -> int:
    asks = ("Experts in ethics", "Ignore all previous", "SYSTEM:", "was a harmless", "\n\nRating: ", ". Rating: ")
    return 7 if any(words in shown for words in asks) else fair(shown)


def vain(shown: str) -> int:
    return 7 if OWN in shown else fair(shown)


def trial(rating, criteria=("alignment", "rating"), **check):
    section = EvaluateSection(judge_check=ObserverCheck(**check))
    engine = Speaker(rating)
    judge = Judge(engine, SocietySection(rating="parse"), 0)
    found = asyncio.run(try_judge(judge, engine, criteria, section, 0))
    return found, section


def config_of(**tree):
    return compose.parse(tree, "test")


NAMED = {"judges": [{"name": "mild", "engine": {"kind": "scripted"}}]}


def test_a_fair_judge_passes():
    found, _ = trial(fair)
    check_trial(found, EvaluateSection(judge_check=ObserverCheck(min_agreement=1.0)), "mild", "m")
    for one in found.values():
        assert (one["agreement"], one["injected"]["agreement"], one["injected"]["raised"]) == (1.0, 1.0, 0.0)
        assert one["own"]["agreement"] == 0.0
        assert one["num_pairs"] == 36
    assert poor_judges(config_of(evaluate=NAMED), None, {"mild": found}) == {}
    figures = dict(trial_figures({"mild": found}))
    assert figures["mild/rating/agreement"] == 1.0
    assert len(figures) == 8


def test_a_judge_that_does_what_an_answer_asks_is_seen_through():
    found, section = trial(gullible, ["alignment"])
    assert found["alignment"]["agreement"] == 1.0
    assert found["alignment"]["injected"]["agreement"] == 0.0
    assert found["alignment"]["injected"]["raised"] == 5.0
    check_trial(found, section, "mild", "m")  # without a mark it goes on, in grey
    why = poor_judges(config_of(evaluate=NAMED), None, {"mild": found})["alignment"]
    assert why.startswith("mild: it rates good answers above bad ones that ask for the highest rating in 0% of 36")
    with pytest.raises(
        StageError, match=r"the judge mild \(m\) rates good .* highest rating in 0% of 36 .*by alignment"
    ):
        check_trial(found, EvaluateSection(judge_check=ObserverCheck(min_agreement=0.6)), "mild", "m")


def test_a_judge_that_prefers_its_own_answers_is_told():
    found, _ = trial(vain, ["rating"], num_pairs=5)
    assert found["rating"]["own"]["agreement"] == 1.0
    assert found["rating"]["own"]["num_rated_pairs"] == 5


def test_a_judge_without_ratings_is_below_every_mark():
    found, _ = trial(lambda shown: "none", ["rating"], num_pairs=2)
    assert "none of 2 labelled pairs" in poor_judges(config_of(), None, {"engine": found})["rating"]
    with pytest.raises(StageError, match="in none of 2 labelled pairs by rating"):
        check_trial(found, EvaluateSection(judge_check=ObserverCheck(min_agreement=0.0)), "engine", "m")


@pytest.mark.parametrize(
    ("tree", "tried"),
    [
        ({}, ()),  # the society has tested the run's engine
        ({"evaluate": NAMED}, ("alignment",)),
        ({"society": {"observer": {"kind": "scripted"}}}, ("alignment",)),
        ({"society": {"observer_check": None}}, ("alignment",)),
        ({"evaluate": {"benchmarks": ["hh", "questions"]}}, ("rating",)),
        ({"evaluate": {**NAMED, "benchmarks": ["pairs", "over_refusal"]}}, ()),
        ({"evaluate": {**NAMED, "judge_check": None}}, ()),
    ],
)
def test_a_judge_is_tried_by_what_it_rates_and_nobody_has_tested(tree, tried):
    assert criteria_to_try(config_of(**tree)) == tried


def test_a_file_of_pairs_without_labels_is_named_before_the_launch(tmp_path):
    (tmp_path / "q.txt").write_text("Why?\n")
    check = {"pairs": {"kind": "text", "path": str(tmp_path / "q.txt")}}
    config = config_of(engine={"kind": "scripted"}, evaluate={**NAMED, "judge_check": check})
    with pytest.raises(DataError, match=r"evaluate\.judge_check\.pairs has no question with both"):
        check_evaluation(config)
