"""Answers ranked beside each other: exact shares, both orders, and that rankings go where ratings go."""

import asyncio
from collections import Counter

import pytest
from actors import NO_DIGIT, QUESTIONS, SMALL, Actor, live, metered
from pydantic import ValidationError

from salign.config import Criterion, DatasetSection, SocietySection
from salign.dataset.gathering import build_groups
from salign.engines.base import RatingReply, Reply
from salign.society.calls import Calls, Speaker
from salign.society.prompts import Wording
from salign.society.protocols import protocol_of
from salign.society.protocols.learning import weighted_score
from salign.society.raters import agreement, rank, rate_answers

BEST = {
    "name": "best",
    "wording": "Which is kind? Rate it from 0 (not) to 10 (very).",
    "scale": [0, 10],
    "ranked": True,
}
RANKED = {"protocol": {"kind": "sample", "num_answers": 3}, "criteria": [BEST, {"name": "alignment"}]}


class Judge:
    """Chooses an answer by a worth of its text, times that of the place where it stands."""

    identity = "judge"

    def __init__(self, worths, places=(1, 1, 1), words=lambda order: f"Ranking: {order}"):
        self.worths, self.places, self.words = worths, places, words
        self.prompts = []

    def _seen(self, prompt):
        self.prompts.append(prompt.user)
        found = sorted((prompt.user.index(text), text) for text in self.worths)
        return [self.worths[text] * place for (_, text), place in zip(found, self.places, strict=True)]

    async def rate(self, prompt, seed):
        seen = self._seen(prompt)
        assert prompt.scale == (1, len(seen))
        return RatingReply(tuple(one / sum(seen) for one in seen), 1.0, 1, 0)

    async def generate(self, prompt, sampling, seed):
        seen = self._seen(prompt)
        order = sorted(range(len(seen)), key=lambda place: -seen[place])
        return Reply(self.words(" > ".join(str(place + 1) for place in order)), 1, 1)

    def facts(self):
        return {}


WORTHS = {"red answer": 1.0, "green answer": 4.0, "blue answer": 3.0}


def ranked(judge, rating="logprob", answers=tuple(WORTHS)):
    society = SocietySection(**{**SMALL, **RANKED, "rating": rating})
    calls = Calls(society, Wording(society), Speaker(metered(judge)), (0, 0, 1, 0))
    return asyncio.run(rank(calls, society.criterion("best"), "Why?", answers))


def test_shares_are_plackett_and_luces_chances_of_being_better():
    found = [one.observation.rating for one in ranked(Judge(WORTHS))]
    chances = [(1 / 5 + 1 / 4) / 2, (4 / 5 + 4 / 7) / 2, (3 / 4 + 3 / 7) / 2]
    assert found == pytest.approx([10 * chance for chance in chances])
    assert sum(found) == pytest.approx(15)  # the middle of the scale, however they are ranked


def test_a_liking_for_a_place_that_grows_from_place_to_place_cancels():
    biased = Judge(WORTHS, places=(1, 5, 25))
    found = ranked(biased)
    fair = ranked(Judge(WORTHS))
    assert [one.observation.rating for one in found] == pytest.approx([one.observation.rating for one in fair])
    assert agreement([one.shares for one in fair]) == 1.0
    assert agreement([one.shares for one in found]) < 1.0  # which shows the liking
    orders = [sorted(WORTHS, key=prompt.index) for prompt in biased.prompts]
    assert orders[0] == orders[1][::-1]


def test_in_words_a_share_is_bordas_count():
    found = ranked(Judge(WORTHS), rating="parse")
    assert [one.observation.rating for one in found] == [0.0, 10.0, 5.0]
    first_alone = ranked(Judge(WORTHS, words=lambda order: f"Ranking: {order[0]}"), rating="parse")
    assert [one.observation.rating for one in first_alone] == [2.5, 10.0, 2.5]


@pytest.mark.parametrize("words", ["I like them all.", "Ranking: 1 > 1", "Ranking: 4 > 1"])
def test_what_is_no_ranking_rates_nobody(words):
    found = ranked(Judge(WORTHS, words=lambda _: words), rating="parse")
    assert [one.observation.rating for one in found] == [None, None, None]


def test_one_answer_and_ten_have_no_ranking():
    assert ranked(Judge(WORTHS), answers=["red answer"])[0].observation.rating is None
    assert {one.observation.rating for one in ranked(Judge(WORTHS), answers=["red answer"] * 10)} == {None}


def test_agreement_counts_pairs_and_ties_for_half():
    assert agreement([(0.1, 0.2), (0.5, 0.6), (0.9, 0.7)]) == 1.0
    assert agreement([(0.1, 0.9), (0.5, 0.5), (0.9, 0.1)]) == 0.0
    assert agreement([(0.5, 0.1), (0.5, 0.9)]) == 0.5


def test_a_society_ranks_all_answers_of_an_interaction_with_two_calls():
    life = live(Actor(), questions=QUESTIONS[:4], **RANKED)
    protocol = protocol_of(SocietySection(**{**SMALL, **RANKED}))
    for interaction in life.interactions:
        assert interaction.num_calls == 3 + 3 + 2 <= protocol.max_calls + 2
        ratings = [turn.observed_rating("best") for turn in interaction.turns]
        assert None in ratings or sum(ratings) == pytest.approx(15)
        for turn in interaction.turns:
            assert ("ranked" in turn.data) == (turn.observed_rating("best") is not None)
    assert any("ranked" in turn.data for item in life.interactions for turn in item.turns)
    shares = [round_.metrics(protocol)["sim/ranking_agreement_share"] for round_ in life.rounds]
    assert all(0 <= share <= 1 for share in shares)
    assert life.file == live(Actor(), questions=QUESTIONS[:4], num_ranks=2, **RANKED).file
    groups = list(build_groups(life.interactions, protocol, DatasetSection(), Counter()))
    assert groups
    assert all(1 <= score <= 7 for group in groups for score in group.scores)


def test_drafts_and_revisions_are_ranked_and_a_missing_ranking_is_counted():
    criteria = [{"name": "alignment", "ranked": True}]
    life = live(Actor(lambda call: NO_DIGIT if "rank:" in str(call.step) else None), criteria=criteria)
    ratings = [turn.observed_rating("alignment") for item in life.interactions for turn in item.turns if turn.observed]
    assert ratings
    assert set(ratings) == {None}
    assert life.simulation.validity.num_missing_ratings >= len(ratings)


@pytest.mark.parametrize(
    ("society", "said"),
    [
        ({**RANKED, "protocol": {"kind": "sample", "num_answers": 10}}, "has 10 answers beside each other"),
        ({**RANKED, "protocol": {"kind": "game"}}, "best is ranked, and an interaction of the protocol game has 1"),
        ({"criteria": [{"name": "x", "ranked": True, "rule": {"kind": "copy"}}]}, "x is ranked, which observers do by"),
    ],
)
def test_rankings_that_cannot_be_are_refused(society, said):
    with pytest.raises(ValidationError) as refused:
        SocietySection(**{**SMALL, **society})
    assert said in str(refused.value)


def test_several_criteria_are_a_weighted_mean_and_a_missing_one_leaves_none():
    short, kind = Criterion(name="short", rule={"kind": "copy"}), Criterion(**BEST)
    ratings = {"short": 7.0, "best": 5.0}
    assert weighted_score([(short, 1.0), (kind, 3.0)], ratings) == pytest.approx((7 + 3 * 4) / 4)
    assert weighted_score([(short, 1.0), (kind, 3.0)], {**ratings, "best": None}) is None
    assert weighted_score([(short, 1.0)], {**ratings, "best": None}) == 7.0


def test_data_are_scored_by_weights_of_the_config():
    how = {"protocol": {"kind": "sample"}, "criteria": [{"name": name, "rule": rule} for name, rule in RULES.items()]}
    life = live(Actor(), questions=QUESTIONS[:4], **how)
    protocol = protocol_of(SocietySection(**{**SMALL, **how}))
    section = DatasetSection(criteria={"short": 3, "plain": 1})
    scores = {
        score for group in build_groups(life.interactions, protocol, section, Counter()) for score in group.scores
    }
    assert scores == {(3 * 1 + 1 * 7) / 4}


RULES = {
    "short": {"kind": "pattern", "pattern": "nobody says this"},
    "plain": {"kind": "pattern", "pattern": "."},
}


def test_rules_rankings_and_observers_are_asked_for_by_one_function():
    society = SocietySection(**{**SMALL, **RANKED})
    calls = Calls(society, Wording(society), Speaker(metered(Judge(WORTHS))), (0, 0, 1, 0))
    rule = Criterion(name="short", rule={"kind": "length", "max_words": 1})
    assert [one.rating for one in asyncio.run(rate_answers(calls, rule, "Why?", ["one", "one two"]))] == [7.0, 1.0]
    by_rank = asyncio.run(rate_answers(calls, society.criterion("best"), "Why?", list(WORTHS)))
    assert by_rank[1].rating > by_rank[0].rating
