"""The trial of a judge: what it is asked, what it finds of judges of several kinds, and who is below the mark."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from salign import compose
from salign.config import EvaluateSection, ObserverCheck, SocietySection
from salign.engines.base import RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.opening import metered
from salign.errors import CallRejectedError, ConfigError, DataError, StageError
from salign.evaluation import calls
from salign.evaluation.check import check_evaluation
from salign.evaluation.judge import Judge, ScoringJudge
from salign.evaluation.judged import Item, Sample
from salign.evaluation.trial import (
    check_trial,
    criteria_to_try,
    pairs_of,
    poor_judges,
    trial_figures,
    trial_in_words,
    trial_results,
    try_judge,
)
from salign.society.check import check_society

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
    return trial_results(found, pairs_of(section.judge_check)), section


def config_of(**tree):
    return compose.parse(tree, "test")


SCORER = {"kind": "implicit", "model": "smollm2-135m", "reference": "smollm2-135m"}
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
    assert "its own answer above the better one in 100% (an upper bound of its" in trial_in_words(found["rating"])


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


@pytest.mark.parametrize("place", ["evaluate.judges", "society.criteria"])
def test_pairs_of_a_scorer_without_labels_are_named_before_the_launch(tmp_path, place):
    (tmp_path / "q.txt").write_text("Why?\n")
    scorer = {"kind": "reward_model", "model": "m", "pairs": {"kind": "text", "path": str(tmp_path / "q.txt")}}
    section, name = place.split(".")
    config = config_of(**{section: {name: [{"name": "learnt", "scorer": scorer}]}})
    with pytest.raises(DataError, match=r"scorer\.pairs has no question with both"):
        check_evaluation(config) if section == "evaluate" else check_society(config.society, 0)


@pytest.mark.parametrize("voices", [{}, {"engine": {"kind": "scripted"}, "scorer": SCORER}])
def test_a_judge_has_an_engine_or_a_scorer(voices):
    with pytest.raises(ConfigError, match="the judge x needs an engine, or a scorer, and not both"):
        config_of(evaluate={"judges": [{"name": "x", **voices}]})


class Scores:
    """Scores a good answer of the trial above all others, and says nothing."""

    identity = "scores"

    async def generate(self, prompt, sampling, seed):
        raise AssertionError("it says nothing")

    async def rate(self, prompt, seed):
        share = 0.9 if prompt.scored in GOOD else 0.2
        return RatingReply((1 - share, share), 1.0, 1, 0, lowest=0)

    def facts(self):
        return {}


def test_a_scorer_rates_by_what_it_is_tried_by_and_has_no_answers_of_its_own():
    judge = ScoringJudge(Scores(), SocietySection(), 0)
    answered = [Sample(Item(benchmark, 0, "Why?", "Why?"), min(GOOD)) for benchmark in ("questions", "hh")]
    ratings = [asyncio.run(judge.rate(sample)) for sample in answered]
    assert ratings == [{"alignment": pytest.approx(6.4)}, {"rating": pytest.approx(9.1)}]
    section = EvaluateSection()
    found = asyncio.run(try_judge(judge, Scores(), ["rating"], section, 0))
    assert set(found.answers) == {None}
    results = trial_results(found, pairs_of(section.judge_check))
    assert (results["rating"]["agreement"], results["rating"]["injected"]["agreement"]) == (1.0, 1.0)
    assert results["rating"]["own"]["agreement"] is None
    assert "own answer" not in trial_in_words(results["rating"])


# --- one trial in a run --------------------------------------------------------------------------


class Judges:
    """Judges of a run by name, each a `Speaker` of its own words; counts what they are asked."""

    def __init__(self, tmp_path, monkeypatch, **ratings) -> None:
        self.num_asked = dict.fromkeys(ratings, 0)
        self.refuses = False
        self._ratings = ratings
        judges = [
            {"name": name, "engine": {"kind": "openai", "base_url": "http://x/v1", "model": name}} for name in ratings
        ]
        section = {"judges": judges, "benchmarks": ["hh"], "judge_check": {"num_pairs": 8}, "num_resamples": 100}

        async def nothing():
            pass

        self.means = SimpleNamespace(
            config=config_of(society={"rating": "parse"}, evaluate=section),
            counter=SimpleNamespace(heard=lambda *_: None, tokens=None),
            measured=SimpleNamespace(journal=SimpleNamespace(sync=nothing)),
            ranks=SimpleNamespace(is_main=True),
            logs=tmp_path,
            trials=tmp_path / "trials",
        )
        monkeypatch.setattr(calls, "open_engine", self._open)

    @contextlib.asynccontextmanager
    async def _open(self, section, *_, **__):
        judges, name = self, section.model

        class Named(Speaker):
            identity = name

            async def generate(self, prompt, sampling, seed):
                judges.num_asked[name] += 1
                if judges.refuses:
                    raise CallRejectedError("too long")
                if prompt.form != "rating":
                    return Reply(f"{name} says so.", 1, 1)
                return await super().generate(prompt, sampling, seed)

            def facts(self):
                return {}

        yield metered(Named(self._ratings[name]), Gate(4, adaptive=False))

    def evaluate(self):
        """What an evaluation of a model with one answer has of its judges."""

        async def results():
            samples = [Sample(Item("hh", 0, "Why?", "Why?"), "Because.")]
            identities, trials = await calls.rated(self.means, self.means.config.judges, samples)
            return await calls.results_of_trials(self.means, trials, identities)

        return asyncio.run(results())


def test_a_judge_is_tried_once_in_a_run(tmp_path, monkeypatch):
    judges = Judges(tmp_path, monkeypatch, mild=fair)
    first = judges.evaluate()
    assert judges.num_asked == {"mild": 8 + 4 * 8 + 1}
    assert judges.evaluate() == first
    assert judges.num_asked == {"mild": 8 + 4 * 8 + 2}  # the answer of the second model alone
    changed = judges.means.config.society.model_copy(update={"num_rating_retries": 9})
    judges.means.config = judges.means.config.model_copy(update={"society": changed})
    judges.evaluate()
    assert judges.num_asked == {"mild": 2 * (8 + 4 * 8) + 3}  # it is asked in another way


def test_a_trial_that_was_refused_is_not_kept(tmp_path, monkeypatch):
    judges = Judges(tmp_path, monkeypatch, mild=fair)
    judges.refuses = True
    with pytest.raises(StageError, match=r"the judge mild .* too long"):
        judges.evaluate()
    judges.refuses = False
    assert judges.evaluate()["mild"]["rating"]["agreement"] == 1.0


def above_all(name):
    return lambda shown: 9 if f"{name} says so." in shown else fair(shown)


def test_a_judges_liking_for_its_own_answers_is_what_other_judges_do_not_share(tmp_path, monkeypatch):
    """Of two judges that rate their own answers above all others, one is right, as the other says."""
    judges = Judges(
        tmp_path, monkeypatch, vain=lambda shown: 9 if "says so." in shown else fair(shown), good=above_all("good")
    )
    found = {name: one["rating"] for name, one in judges.evaluate().items()}
    assert [one["own"]["agreement"] for one in found.values()] == [1.0, 1.0]
    assert found["vain"]["self_preference"] | {"num_missing": 0} == {
        **{"mean": 1.0, "low": 1.0, "high": 1.0, "n": 8, "num_missing": 0},
        "others": ["good"],
    }
    assert found["good"]["self_preference"]["mean"] == 0.0
    assert "one in 100%, +100 points (+100 to +100) as against good of the same" in trial_in_words(found["vain"])
    figures = dict(trial_figures({"vain": {"rating": found["vain"]}}))
    assert figures["vain/rating/self_preference/mean"] == 1.0
    before = dict(judges.num_asked)
    judges.evaluate()
    assert {name: num - before[name] for name, num in judges.num_asked.items()} == {"vain": 1, "good": 1}


def test_a_coin_says_nothing_of_another_judges_answers(tmp_path, monkeypatch):
    judges = Judges(tmp_path, monkeypatch, vain=above_all("vain"), coin=lambda shown: 5)
    found = judges.evaluate()
    assert "self_preference" not in found["vain"]["rating"]
    assert found["coin"]["rating"]["self_preference"]["others"] == ["vain"]
