"""Many opinions become one: ratings a number, ballots an order."""

import itertools
import random
from fractions import Fraction

import pytest

from salign import compose
from salign.config import Aggregation, SocietySection
from salign.errors import ConfigError
from salign.records import Turn
from salign.society.aggregation import one_rating, places, rated, winner
from salign.society.prompts import Judged, Wording

RULES = ("plurality", "borda", "instant_runoff", "minimax", "ranked_pairs", "range")
CONDORCET = ("minimax", "ranked_pairs")
every_rule = pytest.mark.parametrize("rule", RULES)

# --- ratings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"ratings": "mean"}, 4.0),
        ({"ratings": "median"}, 3.5),
        ({"ratings": "trimmed"}, 3.5),  # without 2 and 7
        ({"ratings": "trimmed", "trimmed_share": 0.2}, 4.0),  # less than one rating is none
        ({"ratings": "confidence"}, (7 * 0.5 + 3 * 1.0 + 4 * 0.25 + 2 * 0.25) / 2),
    ],
)
def test_ratings_become_one(how, expected):
    given = [(7.0, 0.5), (3.0, 1.0), (4.0, 0.25), (2.0, 0.25)]
    for order in itertools.permutations(given):
        ratings, weights = zip(*order, strict=True)
        assert one_rating(ratings, weights, Aggregation(**how)) == expected


def test_where_nobody_is_sure_all_count_the_same():
    assert one_rating([2.0, 5.0], [0.0, 0.0], Aggregation(ratings="confidence")) == 3.5


@pytest.mark.parametrize("how", ["mean", "median", "trimmed", "confidence"])
def test_one_rating_alone_is_what_it_is(how):
    assert one_rating([5.5], [0.3], Aggregation(ratings=how)) == 5.5


def test_a_turn_weighs_as_much_as_the_probability_that_it_rated_at_all():
    turns = [
        Turn(1, "feedback", "", about=0, rating=7.0, mass=0.25),
        Turn(2, "feedback", "", about=0, rating=3.0),  # read from words
        Turn(3, "feedback", "", about=0, rating=None, mass=0.9),
    ]
    assert rated(turns, Aggregation(ratings="confidence")) == (7 * 0.25 + 3) / 1.25
    assert rated(turns, Aggregation()) == 5.0
    assert rated(turns[2:], Aggregation()) is None


@pytest.mark.parametrize("without", [[], ["feedback_text"]])
def test_who_revises_is_told_the_aggregate_and_what_it_is(without):
    feedback = [Turn(n, "feedback", "why", about=0, rating=rating) for n, rating in enumerate((2.0, 3.0, 3.0, 7.0))]
    told = {}
    for how in ("mean", "median", "trimmed"):
        wording = Wording(SocietySection(aggregation={"ratings": how}, without=without))
        told[how] = wording.revision(Judged("q", "a", "bcdfgh"), feedback, None).user
    assert "3.8" in told["mean"] and "on average" in told["mean"]
    assert "3.0" in told["median"] and "in the median" in told["median"]
    assert told["trimmed"] == told["mean"].replace("3.8", "3.0")


def test_half_of_the_ratings_at_each_end_leave_none():
    with pytest.raises(ConfigError, match=r"society.aggregation.trimmed_share.*0.5"):
        compose.parse({"society": {"aggregation": {"ratings": "trimmed", "trimmed_share": 0.5}}}, "config.yaml")


# --- ballots -------------------------------------------------------------------------------------


def profile(text: str) -> list[tuple[int, ...]]:
    """Ballots from "3 abc, 2 bca": how many rank the candidates so, the best first."""
    ballots = []
    for part in text.split(","):
        num, order = part.split()
        candidates = sorted(order)
        ballots += [tuple(len(order) - order.index(name) for name in candidates)] * int(num)
    return ballots


def elected(text: str, rule: str) -> str:
    """All at the first place."""
    ballots = profile(text)
    found = places(ballots, rule, range(len(ballots[0])))
    return "".join("abcdefgh"[n] for n, place in enumerate(found) if place == 0)


TENNESSEE = "42 abcd, 26 bcda, 15 cdba, 17 dcba"  # Memphis, Nashville, Chattanooga, Knoxville
FIVE_WINNERS = "18 adecb, 12 bedca, 10 cbeda, 9 dceba, 4 ebdca, 2 ecdba"  # Malkevitch 1990


@pytest.mark.parametrize(
    ("text", "winners"),
    [
        (TENNESSEE, {"plurality": "a", "borda": "b", "instant_runoff": "d", "minimax": "b", "ranked_pairs": "b"}),
        (FIVE_WINNERS, {"plurality": "a", "borda": "d", "instant_runoff": "c", "minimax": "e", "ranked_pairs": "e"}),
        # A cycle whose weakest majority is the one against a.
        ("4 abc, 3 bca, 2 cab", {"plurality": "a", "borda": "ab", "minimax": "a", "ranked_pairs": "a"}),
        # Smith's winner by ranked pairs; minimax elects d, which loses to each of a cycle of three by little.
        (
            "5 dabc, 5 dbca, 5 dcab, 8 abcd, 8 bcad, 8 cabd",
            {"plurality": "d", "ranked_pairs": "a", "minimax": "d"},
        ),
        ("2 ab, 1 ba", dict.fromkeys(RULES, "a")),
        ("1 ab, 1 ba", dict.fromkeys(RULES, "ab")),
    ],
)
def test_textbook_profiles(text, winners):
    assert {rule: elected(text, rule) for rule in winners} == winners


@every_rule
def test_a_perfect_cycle_is_a_tie_that_the_lot_decides(rule):
    ballots = profile("1 abc, 1 bca, 1 cab")
    drawn = set()
    for lot in itertools.permutations(range(3)):
        found = places(ballots, rule, lot)
        assert rule == "ranked_pairs" or found == [0, 0, 0]
        drawn.add(winner(found, lot))
    assert drawn == {0, 1, 2}


def test_copies_of_an_answer_win_nothing_by_ranked_pairs_and_runoff():
    """Three prefer a to b, two b to a; c says the same as b."""
    once, twice = "3 ab, 2 ba", "3 abc, 2 bca"
    for rule in ("ranked_pairs", "instant_runoff", "minimax"):
        assert elected(once, rule) == elected(twice, rule) == "a"
    assert (elected(once, "borda"), elected(twice, "borda")) == ("a", "b")


def random_profiles(num: int, *, ties: bool):
    generator = random.Random(7)
    for _ in range(num):
        num_candidates = generator.randint(2, 5)
        scores = range(num_candidates) if not ties else [generator.randint(0, 2) for _ in range(num_candidates)]
        yield [tuple(generator.sample(list(scores), num_candidates)) for _ in range(generator.randint(1, 7))]


@every_rule
@pytest.mark.parametrize("ties", [False, True])
def test_neither_the_names_of_voters_nor_those_of_candidates_matter(rule, ties):
    generator = random.Random(3)
    for ballots in random_profiles(150, ties=ties):
        num = len(ballots[0])
        lot, renamed = generator.sample(range(num), num), generator.sample(range(num), num)
        found = places(ballots, rule, lot)
        assert sorted(set(found)) == list(range(max(found) + 1))
        assert places(generator.sample(ballots, len(ballots)), rule, lot) == found
        other = places(
            [[ballot[name] for name in renamed] for ballot in ballots], rule, [renamed.index(n) for n in lot]
        )
        assert other == [found[name] for name in renamed]


@pytest.mark.parametrize("rule", CONDORCET)
def test_who_beats_each_other_in_pairs_wins(rule):
    num_found = 0
    for ballots in random_profiles(300, ties=True):
        candidates = range(len(ballots[0]))
        for one in candidates:
            others = [other for other in candidates if other != one]
            if all(sum((b[one] > b[other]) - (b[one] < b[other]) for b in ballots) > 0 for other in others):
                num_found += 1
                assert [n for n, place in enumerate(places(ballots, rule, candidates)) if place == 0] == [one]
    assert num_found > 100


def borda(ballots):
    return [
        sum(sum(1.0 for o in b if o < b[c]) + sum(0.5 for o in b if o == b[c]) for b in ballots)
        for c in range(len(ballots[0]))
    ]


def plurality(ballots):
    return [
        sum(Fraction(1, ballot.count(max(ballot))) for ballot in ballots if ballot[candidate] == max(ballot))
        for candidate in range(len(ballots[0]))
    ]


@pytest.mark.parametrize(("rule", "by_definition"), [("borda", borda), ("plurality", plurality)])
def test_scoring_rules_are_their_definitions(rule, by_definition):
    for ballots in random_profiles(200, ties=True):
        scores = by_definition(ballots)
        order = sorted(set(scores), reverse=True)
        assert places(ballots, rule, range(len(scores))) == [order.index(score) for score in scores]


def test_range_adds_up_what_ballots_say_and_not_their_order():
    ballots = [(0.9, 0.1, 0.0), (0.4, 0.6, 0.0), (0.4, 0.6, 0.0)]
    assert places(ballots, "range", range(3)) == [0, 1, 2]
    assert places(ballots, "borda", range(3)) == [1, 0, 2]
