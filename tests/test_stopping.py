"""When a world stops."""

import itertools
import math
import random
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from salign import compose
from salign.bench.validity import stopping as simulated
from salign.config import Stopping
from salign.errors import ConfigError
from salign.society.stopping import ERROR_RATE, StopRule

SHORT = Stopping(tolerance=0.5, window=2, min_rounds=4)


def agents(*ratings):
    return dict(enumerate(ratings))


def stopped(rule: StopRule, *rounds) -> list[str | None]:
    """What the rule says after each round of (alignment, engagement) of all agents."""
    return [rule.after(agents(*alignment), agents(*engagement)) for alignment, engagement in rounds]


def noisy(mean, num_agents, rng, sd=1.5):
    return np.clip(np.rint(rng.normal(mean, sd, num_agents)), 1, 7).tolist()


def last_round(means, num_agents, seed, stopping=None):
    rng, rule = np.random.default_rng(seed), StopRule(stopping or Stopping(), num_agents, len(means))
    for number, mean in enumerate(means, start=1):
        if rule.after(agents(*noisy(mean, num_agents, rng)), agents(*noisy(mean, num_agents, rng))):
            return number
    return len(means)


# --- what the rule is for ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_society_that_rises_by_two_points_in_fifty_rounds_is_not_stopped(seed):
    assert last_round([3 + number / 25 for number in range(1, 51)], 100, seed) == 50


@pytest.mark.parametrize("seed", range(8))
def test_noise_ends_soon_after_the_first_rounds_and_not_before(seed):
    assert 20 <= last_round([4.0] * 50, 100, seed) <= 25


def test_a_society_that_gains_no_more_ends_within_two_windows():
    ends = [last_round([3 + min(number, 20) / 10 for number in range(1, 51)], 100, seed) for seed in range(8)]
    assert 25 < min(ends) <= max(ends) <= 40


def test_few_agents_are_given_longer_windows_and_not_less_care():
    rising = [last_round([3 + number / 25 for number in range(1, 51)], 9, seed) for seed in range(20)]
    assert rising.count(50) >= 18
    flat = [last_round([4.0] * 100, 9, seed) for seed in range(8)]
    assert max(flat) < 80
    assert len(set(flat)) > 3  # it is their noise that says when


def test_the_old_rule_would_fail_the_first_two():
    """Otherwise the societies above would show nothing."""
    rising, flat = (
        simulated.Case("", np.array(means), num_trials=8) for means in ([3 + n / 25 for n in range(1, 51)], [4.0] * 50)
    )
    assert np.median(simulated.stops(rising, simulated.old_rule)) < 40
    assert max(simulated.stops(flat, simulated.old_rule)) < 20


def test_rounds_of_hard_and_easy_questions_are_no_change():
    """What differs between an agent's questions is in the standard error."""
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(8):
        rule = StopRule(Stopping(), 50, 50)
        hard = rng.normal(0, 2, (50, 50))  # of each agent and round
        for number in range(50):
            ratings = np.clip(4 + hard[number], 1, 7).tolist()
            if rule.after(agents(*ratings), agents(*ratings)):
                ends.append(number + 1)
                break
    assert len(ends) == 8


# --- its arithmetic ------------------------------------------------------------------------------


def test_the_gain_is_that_of_the_geometric_mean_paired_by_agent():
    rng = np.random.default_rng(3)
    ratings = rng.uniform(2, 6, (4, 2, 12))
    rule = StopRule(Stopping(tolerance=1e-6, window=2, min_rounds=4), 12, 50)
    stopped(rule, *ratings.tolist())
    before, last = ratings[:2].mean(axis=0), ratings[2:].mean(axis=0)  # [2, agents]
    a, e = (before + last).mean(axis=1) / 2
    gains = ((last - before) * np.array([[e], [a]])).sum(axis=0) / (2 * math.sqrt(a * e))
    gain = rule.gain
    assert gain.window == 2
    assert gain.num_compared == 12
    assert gain.points == pytest.approx(gains.mean(), rel=1e-12)
    assert gain.standard_error == pytest.approx(stats.sem(gains), rel=1e-12)
    level = 1 - ERROR_RATE / 47  # rounds 4 to 50
    assert gain.most == pytest.approx(gains.mean() + stats.t.ppf(level, 11) * stats.sem(gains), rel=1e-9)
    exact = math.sqrt(last[0].mean() * last[1].mean()) - math.sqrt(before[0].mean() * before[1].mean())
    assert gain.points == pytest.approx(exact, abs=1e-3)


def test_what_one_gains_and_the_other_loses_is_no_gain_of_the_product():
    rounds = [((2.0 + n / 10,) * 5, (6.0 - n / 3.3,) * 5) for n in range(8)]
    rule = StopRule(SHORT, 5, 50)
    assert stopped(rule, *rounds)[3] == "no improvement"


def test_agents_differ_for_good_and_that_is_no_noise():
    """Paired by agent: levels that stay cancel."""
    levels = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    rule = StopRule(SHORT, 7, 50)
    assert stopped(rule, *[(levels, levels)] * 4) == [None, None, None, "no improvement"]
    assert rule.gain.standard_error == 0


def test_without_noise_it_goes_on_while_it_gains_and_ends_when_it_does_not():
    means = [2, 2.5, 3, 3.5, 4, 4.5, 4.5, 4.5, 4.5]
    rule = StopRule(SHORT, 5, 50)
    said = stopped(rule, *[((mean,) * 5, (mean,) * 5) for mean in means])
    assert said == [None] * 7 + ["no improvement"] * 2  # (4.5, 4.5) is 0.25 above (4, 4.5)


def test_too_little_known_is_no_reason_to_stop():
    rule = StopRule(SHORT, 5, 50)
    rounds = [((1.0, 7.0, 4.0, 2.0, 6.0)[n % 5 :] + (1.0, 7.0, 4.0, 2.0, 6.0)[: n % 5],) * 2 for n in range(4)]
    assert stopped(rule, *rounds) == [None] * 4
    assert rule.gain.most > rule.gain.tolerance


def test_windows_grow_until_they_can_see_half_of_what_matters():
    rng = np.random.default_rng(1)
    rule = StopRule(Stopping(tolerance=0.3, window=3, min_rounds=6), 20, 200)
    windows = []
    for _ in range(80):
        rule.after(agents(*noisy(4, 20, rng)), agents(*noisy(4, 20, rng)))
        if rule.gain is not None:
            assert rule.gain.tolerance == pytest.approx(0.1 * rule.gain.window)
            windows.append(rule.gain.window)
    assert windows[:3] == [3, 3, 4]
    assert max(windows) <= 15  # five times the first
    assert len(windows) == 75


# --- missing ratings -----------------------------------------------------------------------------


def test_agents_that_are_not_rated_in_both_windows_are_not_compared():
    rule = StopRule(SHORT, 4, 50)
    low, high = (2.0, 2.0, 2.0, None), (4.0, 4.0, None, 7.0)
    assert stopped(rule, (low, low), (low, low), (high, high), (high, high)) == [None] * 4
    assert rule.gain.points == pytest.approx(2)
    assert rule.gain.num_compared == 2
    assert stopped(rule, (high, (None,) * 4), (high, (None,) * 4)) == [None, "no ratings"]


def test_a_world_without_ratings_ends_at_its_first_chance():
    rule = StopRule(SHORT, 2, 50)
    nothing = (None, None)
    assert stopped(rule, *[(nothing, nothing)] * 4) == [None, None, None, "no ratings"]
    assert rule.gain is None
    rule = StopRule(SHORT, 2, 50)
    assert [rule.after({}, {}) for _ in range(4)][-1] == "no ratings"


def test_one_agent_alone_can_not_be_judged():
    assert stopped(StopRule(SHORT, 1, 50), *[((4.0,), (4.0,))] * 9) == [None] * 9


def test_without_a_rule_nothing_stops():
    assert stopped(StopRule(None, 1, 50), *[((4.0,), (4.0,))] * 40) == [None] * 40


# --- the same everywhere -------------------------------------------------------------------------


def test_the_order_of_agents_changes_no_bit():
    rng, shuffle = np.random.default_rng(2), random.Random(0)
    one, other = (StopRule(Stopping(window=3, min_rounds=6), 3000, 50) for _ in range(2))
    for _ in range(9):
        alignment, engagement = (agents(*rng.uniform(1, 7, 3000).tolist()) for _ in range(2))
        shuffled = [dict(shuffle.sample(sorted(ratings.items()), 3000)) for ratings in (alignment, engagement)]
        assert one.after(alignment, engagement) == other.after(*shuffled)
        assert one.gain == other.gain
    assert one.gain is not None
    assert one.gain.num_compared == 1024  # blocks of neighbours


@pytest.mark.slow
def test_memory_does_not_grow_with_agents_or_rounds():
    num_agents = 100_000
    rule = StopRule(Stopping(window=2, min_rounds=4, tolerance=1e-9), num_agents, 1000)
    ratings = agents(*itertools.islice(itertools.cycle((1.0, 7.0, 3.0, 4.0, 2.5, None, 6.1)), num_agents))
    tracemalloc.start()
    for _ in range(60):
        rule.after(ratings, ratings)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 21 * 4 * 8 * 1024 * 1.2


# --- the config ----------------------------------------------------------------------------------


def test_two_windows_must_fit_before_the_first_look():
    with pytest.raises(ConfigError, match="min_rounds 20 is less than two windows of 15 rounds"):
        compose.parse({"society": {"stopping": {"window": 15}}}, "test")
    with pytest.raises(ConfigError, match="tolerance"):
        compose.parse({"society": {"stopping": {"tolerance": 0}}}, "test")
