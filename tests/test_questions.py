"""Which question an agent asks in which round."""

from collections import Counter
from math import gcd

import pytest

from salign.society.questions import QuestionOrder


@pytest.mark.parametrize(("num_agents", "num_questions"), [(100, 180), (100, 100), (9, 12), (4, 1), (7, 3)])
def test_an_agent_meets_every_question_before_any_again(num_agents, num_questions):
    order = QuestionOrder(num_questions, 0, 0)
    for agent in range(num_agents):
        asked = [order.question(agent, round_) for round_ in range(1, 3 * num_questions + 1)]
        for start in (0, num_questions, 2 * num_questions):
            assert sorted(asked[start : start + num_questions]) == list(range(num_questions))


def test_an_agent_meets_as_many_questions_as_rounds():
    """By turns, 100 agents and 180 questions gave each agent 180 / gcd(100, 180) = 9."""
    order = QuestionOrder(180, 0, 0)
    for agent in range(100):
        assert len({order.question(agent, round_) for round_ in range(1, 51)}) == 50
        by_turns = {((round_ - 1) * 100 + agent) % 180 for round_ in range(1, 51)}
        assert len(by_turns) == 180 // gcd(100, 180) == 9


@pytest.mark.parametrize(("num_agents", "num_questions"), [(100, 180), (100, 100), (100, 30)])
def test_agents_of_one_round_share_out_the_questions(num_agents, num_questions):
    order = QuestionOrder(num_questions, 0, 0)
    fewest, rest = divmod(num_agents, num_questions)
    for round_ in range(1, 2 * num_questions):
        asked = Counter(order.question(agent, round_) for agent in range(num_agents))
        assert Counter(asked.values())[fewest + 1] == rest
        assert set(asked.values()) <= {fewest, fewest + 1} - {0}


def test_no_agent_follows_another_through_the_questions():
    """In a wave, whoever asks a question would have been judge of the same one at a neighbour's the round before."""
    order = QuestionOrder(180, 0, 0)
    asked = [[order.question(agent, round_) for agent in range(100)] for round_ in range(1, 51)]
    for step in range(-10, 11):
        agents = range(max(0, -step), 100 - max(0, step))
        waves = sum(
            all(asked[round_ + 1][agent] == asked[round_][agent + step] for agent in agents) for round_ in range(49)
        )
        assert waves <= 3  # by turns, the wave of -80 went on for 49 rounds; of 180 steps, each comes by chance


def test_passes_runs_and_worlds_have_orders_of_their_own():
    def asked(*place, start=1):
        order = QuestionOrder(30, *place)
        return tuple(order.question(3, round_) for round_ in range(start, start + 30))

    orders = [asked(0, 0), asked(0, 1), asked(1, 0), asked(0, 0, start=31), asked(0, 0, start=61)]
    assert len(set(orders)) == 5
    assert asked(0, 0) == orders[0]


def test_a_pass_that_is_asked_for_late_is_the_same():
    early, late = QuestionOrder(5, 0, 0), QuestionOrder(5, 0, 0)
    expected = {(agent, round_): early.question(agent, round_) for round_ in range(1, 101) for agent in range(3)}
    for agent in range(3):  # one after the other, from the last round to the first
        for round_ in range(100, 0, -1):
            assert late.question(agent, round_) == expected[agent, round_]
