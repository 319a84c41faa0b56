"""Who lives in a world, what they remember at the start, and which part of a mixed society they are."""

from collections import Counter

import numpy as np
import pytest

from salign.config import MixturePart, SocietySection
from salign.errors import ConfigError, DataError
from salign.society.memory import InternalMemory, QuestionTable
from salign.society.population import answers_by_label, initial_memories, labels, parts
from salign.society.sources import Exemplar

# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("population", "num_agents", "num_good"),
    [
        ("all_good", 16, 16),
        ("all_bad", 16, 0),
        ("half_half", 16, 8),
        ("half_half", 9, 5),
        ("half_half", 7, 4),
        ("half_half", 1, 1),
        ("mixed_half_half", 16, 8),
        ("mixed_half_half", 9, 5),
    ],
)
def test_a_population_has_its_counts(population, num_agents, num_good):
    found = labels(population, num_agents, 0, 0)
    assert len(found) == num_agents
    assert (found.count("good"), found.count("bad")) == (num_good, num_agents - num_good)


def test_half_half_is_the_first_half_and_the_other():
    assert labels("half_half", 5, 0, 0) == ["good"] * 3 + ["bad"] * 2


def test_mixed_half_half_is_mixed_by_the_place_alone():
    mixed = labels("mixed_half_half", 36, 0, 0)
    assert mixed == labels("mixed_half_half", 36, 0, 0)
    assert mixed != labels("half_half", 36, 0, 0)
    assert len({tuple(labels("mixed_half_half", 36, seed, world)) for seed in (0, 1) for world in (0, 1)}) == 4


# --- what they start with ------------------------------------------------------------------------

NUM_QUESTIONS, NUM_AGENTS = 30, 16
PRIOR = [
    Exemplar(f"question on topic{number:02d}", f"{label} answer {number:02d}", label)
    for number in range(NUM_QUESTIONS)
    for label in ("good", "bad")
]


def start(population="half_half", prior=PRIOR, seed=0, world=0, agents=None, **settings) -> dict[int, InternalMemory]:
    """As a shard does it: first whether the prior suffices, then each agent's memory."""
    society = SocietySection(**{"num_initial_memories": 12, **settings})
    answers_by_label(society, prior, [population])
    names = list(dict.fromkeys(exemplar.question for exemplar in prior))
    table = QuestionTable(names, np.eye(len(names)))
    labelled = list(enumerate(labels(population, NUM_AGENTS, seed, world)))
    mine = labelled if agents is None else [labelled[agent] for agent in agents]
    return initial_memories(society, prior, table, mine, seed, world)


def remembered(memory: InternalMemory) -> dict[int, str]:
    """All that a memory holds, by the number of its question."""
    table = QuestionTable(list(map(str, range(NUM_QUESTIONS))), np.eye(NUM_QUESTIONS), 0.1)
    recalled = [memory.recall(table, number, 0) for number in range(NUM_QUESTIONS)]
    return {found.question: found.answer for found in recalled if found is not None}


@pytest.mark.parametrize("population", ["all_good", "all_bad", "half_half", "mixed_half_half"])
def test_each_remembered_answer_belongs_to_its_question_and_label(population):
    """In the released code 45 of 50 questions pointed at another's answer."""
    memories = start(population)
    for agent, label in enumerate(labels(population, NUM_AGENTS, 0, 0)):
        held = remembered(memories[agent])
        assert len(held) == len(memories[agent]) == 12
        assert held == {number: f"{label} answer {number:02d}" for number in held}


def test_agents_and_worlds_start_with_memories_of_their_own():
    first = [remembered(memory) for memory in start("all_good").values()]
    assert len({tuple(held) for held in first}) == NUM_AGENTS
    assert first == [remembered(memory) for memory in start("all_good").values()]
    assert first != [remembered(memory) for memory in start("all_good", seed=1).values()]
    assert first != [remembered(memory) for memory in start("all_good", world=1).values()]


def test_what_an_agent_starts_with_does_not_depend_on_who_else_lives_in_the_process():
    whole = start("mixed_half_half")
    for agents in ([0, 3, 5], [5], list(range(6, 16))):
        some = start("mixed_half_half", agents=agents)
        assert list(some) == agents
        assert all(remembered(some[agent]) == remembered(whole[agent]) for agent in agents)


def test_agents_share_the_texts_that_they_start_with():
    answers = [exemplar.answer for exemplar in PRIOR if exemplar.label == "good"]
    for memory in start("all_good", num_initial_memories=NUM_QUESTIONS).values():
        assert all(answer is answers[number] for number, answer in remembered(memory).items())


def test_a_prior_may_be_remembered_whole_but_not_more():
    whole = start("all_good", num_initial_memories=NUM_QUESTIONS)
    assert {len(memory) for memory in whole.values()} == {NUM_QUESTIONS}
    with pytest.raises(DataError, match=f"num_initial_memories = {NUM_QUESTIONS + 1}"):
        start("all_good", num_initial_memories=NUM_QUESTIONS + 1)


@pytest.mark.parametrize(
    ("population", "there", "missing"), [("all_good", "bad", "good"), ("mixed_half_half", "good", "bad")]
)
def test_a_prior_without_a_needed_label_is_an_error(population, there, missing):
    unlabelled = [Exemplar("who are you"), Exemplar("what is that", "a tree", None)]
    prior = [exemplar for exemplar in PRIOR if exemplar.label == there] + unlabelled
    with pytest.raises(DataError, match=f"0 answers labelled '{missing}'; agents of the population {population} start"):
        start(population, prior)


def test_a_label_that_nobody_has_is_not_needed():
    assert len(start("all_good", [exemplar for exemplar in PRIOR if exemplar.label == "good"])) == NUM_AGENTS


def test_who_remembers_nothing_at_the_start_needs_no_prior():
    memories = start(prior=[Exemplar("who are you")], num_initial_memories=0)
    assert [len(memory) for memory in memories.values()] == [0] * NUM_AGENTS


def test_without_memory_nobody_starts_with_any():
    memories = start(without=["memory"])
    assert list(memories) == list(range(NUM_AGENTS))
    assert {len(memory) for memory in memories.values()} == {0}


# --- mixed societies -----------------------------------------------------------------------------


def mixture(*shares: float) -> list[MixturePart]:
    return [MixturePart(name=f"part{number}", share=share) for number, share in enumerate(shares, start=1)]


def test_without_a_mixture_all_are_of_no_part():
    assert list(parts([], 5, 0, 0)) == [0] * 5


@pytest.mark.parametrize(
    ("shares", "num_agents", "counts"),
    [
        ((0.25,), 16, {0: 12, 1: 4}),
        ((0.25, 0.5), 16, {0: 4, 1: 4, 2: 8}),
        ((1.0,), 9, {1: 9}),
        ((0.0, 1.0), 9, {2: 9}),
        ((0.5, 0.5), 9, {1: 5, 2: 4}),  # nobody is left over where the shares are all
        ((0.5, 0.5), 7, {1: 4, 2: 3}),
        ((1 / 3, 1 / 3, 1 / 3), 10, {1: 4, 2: 3, 3: 3}),
        ((0.4, 0.3), 9, {1: 3, 2: 3, 0: 3}),  # 3.6, 2.7 and 2.7: the two that lack least get one more
        ((0.06,), 9, {0: 8, 1: 1}),
        ((0.0,), 9, {0: 9}),
    ],
)
def test_a_mixture_has_its_shares(shares, num_agents, counts):
    assert Counter(parts(mixture(*shares), num_agents, 0, 0)) == counts


@pytest.mark.parametrize(("shares", "num_agents"), [((0.05,), 9), ((0.05, 0.05), 9), ((0.01, 0.5), 40)])
def test_a_share_that_is_nobody_is_refused(shares, num_agents):
    with pytest.raises(ConfigError, match=f"the share .* rounds to no agent of {num_agents}; raise it to"):
        parts(mixture(*shares), num_agents, 0, 0)


def test_who_is_of_which_part_follows_from_the_place_alone():
    section = mixture(0.3, 0.3)
    drawn = parts(section, 40, 0, 0)
    assert drawn == parts(section, 40, 0, 0)
    assert list(drawn) != sorted(drawn)
    assert len({tuple(parts(section, 40, seed, world)) for seed in (0, 1) for world in (0, 1)}) == 4
