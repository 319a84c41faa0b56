"""What the scheduler, the ranks and the conversations make is what a loop in plain Python makes, to the byte."""

import pytest
from actors import QUESTIONS, Actor, certain, live, random_delay
from oracle import Society, alone, answer, back_scatter, digit, pairs, talk

from salign.config import SocietySection
from salign.society.profiles import load_profiles
from salign.society.recall import question_table

CRITERIA = [
    {"name": "goal", "scale": [1, 7], "wording": "How near is the goal? Rate it from 1 (far) to 7 (reached)."},
    {"name": "warmth", "scale": [1, 7], "wording": "How warm is it? Rate it from 1 (cold) to 7 (warm)."},
]
BACK_SCATTER = ({"protocol": {"kind": "back_scatter"}, "audience_size": 3}, alone, back_scatter)
DIALOGUE = (
    {"protocol": {"kind": "dialogue", "num_candidates": 3, "max_turns": 5}, "criteria": CRITERIA, "audience_size": 0},
    pairs,
    talk,
)


def society(num_agents, **settings):
    return SocietySection(
        topology={"kind": "complete", "num_agents": num_agents},
        max_rounds=6,
        stopping=None,
        num_initial_memories=0,
        populations=["all_good"],
        max_recall_distance=2.0,
        **settings,
    )


def told(call):
    return certain(digit(call.prompt)) if call.sampling is None else answer(call.prompt, call.seed)


@pytest.mark.slow
@pytest.mark.parametrize("case", [BACK_SCATTER, DIALOGUE], ids=["back_scatter", "dialogue"])
@pytest.mark.parametrize("num_agents", [5, 8])
@pytest.mark.parametrize("how", [{}, {"num_ranks": 3}, {"delay": 1}, {"delay": 2, "num_ranks": 2}], ids=str)
def test_a_loop_in_plain_python_makes_the_same_bytes(case, num_agents, how):
    settings, casts, hold = case
    made, questions = society(num_agents, **settings), QUESTIONS[:4]
    delay = {"delay": random_delay(how["delay"])} if "delay" in how else {}
    num_ranks = how.get("num_ranks", 1)
    life = live(Actor(told, **delay), society=made, questions=questions, prior=[], num_ranks=num_ranks)
    table = question_table(made, 0, questions, [])[0]
    expected = Society(made, table, len(questions), load_profiles(made)).run(6, casts, hold)
    assert life.file.decode().splitlines() == expected.decode().splitlines()
    assert life.file == expected
