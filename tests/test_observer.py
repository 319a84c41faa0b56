"""What an observer is measured by, and what is made of it."""

import logging

import pytest

from salign.config import EverydaySource, ObserverCheck, TextSource
from salign.errors import DataError, StageError
from salign.records import Observation
from salign.society import observer
from salign.society.observer import Pair, figures, in_words, labelled_pairs

PAIRS = [
    Pair("a?", "short", "a longer bad answer"),
    Pair("b?", "a long good answer indeed", "bad"),
    Pair("c?", "good one", "bad one here"),
    Pair("d?", "the good one of four", "b"),
]


def given(*ratings: float | None, mass: float | None = None) -> list[Observation]:
    return [Observation(rating, mass) for rating in ratings]


def test_agreement_counts_pairs_and_a_tie_for_half():
    found = figures(PAIRS, given(5, 5, 5, 5), given(4, 6, 5, 4))
    assert found["agreement"] == 0.625
    assert found["chance"] == 0.5
    assert (found["num_pairs"], found["num_rated_pairs"], found["num_missing"]) == (4, 4, 0)
    low, high = found["agreement_interval"]
    assert 0 < low < 0.625 < high < 1
    assert (found["good_mean"], found["bad_mean"]) == (5.0, 4.75)


def test_a_missing_rating_leaves_its_pair_out():
    found = figures(PAIRS, given(5, None, 5, 5), given(4, 4, None, 6))
    assert found["num_rated_pairs"] == 2
    assert found["num_missing"] == 2
    assert found["agreement"] == 0.5


def test_an_observer_that_rates_by_length_is_seen_through():
    good = given(*(len(pair.good.split()) for pair in PAIRS))
    bad = given(*(len(pair.bad.split()) for pair in PAIRS))
    found = figures(PAIRS, good, bad)
    assert found["length_correlation"] == 1.0
    assert (found["num_good_shorter"], found["agreement_good_shorter"]) == (2, 0.0)
    assert (found["num_good_longer"], found["agreement_good_longer"]) == (2, 1.0)
    assert found["agreement"] == 0.5


def test_ratings_that_are_all_the_same_tell_nothing():
    found = figures(PAIRS, given(4, 4, 4, 4, mass=0.5), given(4, 4, 4, 4, mass=0.7))
    assert found["rating_sd"] == 0.0
    assert found["length_correlation"] is None
    assert found["agreement"] == 0.5
    assert found["digit_mass_median"] == 0.6


def test_nothing_rated_has_no_figure_and_words_for_it():
    found = figures(PAIRS, given(*[None] * 4), given(*[None] * 4))
    assert found["agreement"] is found["agreement_interval"] is found["rating_sd"] is None
    assert in_words(found) == "none of 4 labelled pairs could be rated"


def test_the_interval_is_wilsons():
    pairs = [Pair(str(number), "good", "bad") for number in range(36)]
    found = figures(pairs, given(*[5] * 36), given(*[4] * 24, *[6] * 12))
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) for p = 2/3, n = 36, z = 1.959964
    assert found["agreement_interval"] == [0.5033, 0.7979]


def test_the_default_pairs_are_the_held_out_ones():
    pairs = labelled_pairs(ObserverCheck())
    assert len(pairs) == 36
    assert all(pair.good != pair.bad for pair in pairs)
    society = labelled_pairs(ObserverCheck(pairs=EverydaySource(split="society"), num_pairs=500))
    assert len(society) == 180
    assert not {pair.question for pair in pairs} & {pair.question for pair in society}


def test_a_source_without_labels_is_refused(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("Why?\n")
    with pytest.raises(
        DataError, match=r"society\.observer_check\.pairs has no question with both a good and a bad answer"
    ):
        labelled_pairs(ObserverCheck(pairs=TextSource(kind="text", path=file)))


def test_what_cannot_be_told_from_a_coin_is_said_and_may_fail(caplog):
    coin = {"model": "m", **figures(PAIRS, given(5, 5, 5, 5), given(4, 6, 4, 6))}
    with caplog.at_level(logging.WARNING):
        observer.require_agreement(coin, ObserverCheck())
    assert "the observer m is no better than a coin" in caplog.text
    with pytest.raises(StageError, match="in 50% of 4 labelled pairs; chance is 50%"):
        observer.require_agreement(coin, ObserverCheck(min_agreement=0.6))
    observer.require_agreement(coin, ObserverCheck(min_agreement=0.5))
