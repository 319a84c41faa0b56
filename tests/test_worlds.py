"""Worlds that live: what they record does not depend on when what is held, and when what is held."""

import asyncio
import itertools
import json
import random
from collections import Counter, defaultdict

import pytest
from actors import (
    NO_DIGIT,
    PRIOR,
    QUESTIONS,
    Actor,
    Call,
    audience_of,
    certain,
    live,
    make_setting,
    memory_of,
    metered,
    now,
    random_delay,
    run,
    simulate,
    text_of,
)

from salign.config import SocietySection, Stopping
from salign.errors import CallRejectedError, EngineError, StageError
from salign.records import Recalled, to_bytes
from salign.society.calls import Speaker
from salign.society.protocols import protocol_of
from salign.society.sources import Exemplar
from salign.society.spool import Spool
from salign.society.world import World

# Whoever is asked remembers something similar, so what is said depends on what was said before.
ALIKE = {"max_recall_distance": 0.5}
SCHEDULES = ("lockstep", "dependency")


def plain(call: Call):
    """Nothing fails, and the least is said."""
    return certain(4) if call.sampling is None else f"{call.step} {call.place}"


def path_of(tmp_path, links) -> dict:
    """A society with these links."""
    (tmp_path / "links.txt").write_text("".join(f"{one} {other}\n" for one, other in links))
    return {"kind": "edges", "path": tmp_path / "links.txt"}


LINE = [(agent, agent + 1) for agent in range(5)]


TOPOLOGIES = ("grid", "torus", "complete", "small world", "scale free", "links, and one alone")


def topology_of(name: str, tmp_path) -> dict:
    return {
        "grid": {"size": 3, "radius": 1.5},
        "torus": {"size": 3, "radius": 1, "torus": True, "metric": "von_neumann"},
        "complete": {"kind": "complete", "num_agents": 7},
        "small world": {"kind": "small_world", "num_agents": 10, "num_neighbours": 4, "rewired_share": 0.3},
        "scale free": {"kind": "scale_free", "num_agents": 9, "num_links": 2},
        "links, and one alone": path_of(tmp_path, [(0, 1), (1, 3), (3, 4), (4, 0), (4, 5)]),
    }[name]


# --- the same, whenever what is held -------------------------------------------------------------

WAYS = [
    {"schedule": "lockstep"},
    {"schedule": "lockstep", "max_alive": 2, "gate": 3},
    {"schedule": "dependency"},
    {"schedule": "dependency", "max_alive": 1},
    {"schedule": "dependency", "max_alive": 3, "gate": 1},
    {"schedule": "dependency", "gate": 1},
    {"schedule": "dependency", "gate": 7},
    {"schedule": "dependency", "num_ranks": 2, "max_alive": 2},
    {"schedule": "dependency", "num_ranks": 3},
    {"schedule": "lockstep", "num_ranks": 2, "gate": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rating"), list(zip(TOPOLOGIES, ["logprob", "parse"] * 3, strict=True)))
def test_the_same_bytes_come_of_any_schedule_window_gate_ranks_and_delays(name, rating, tmp_path):
    settings = {**ALIKE, "topology": topology_of(name, tmp_path), "rating": rating, "audience_size": 3}
    expected = live(Actor(), schedule="lockstep", **settings)
    assert expected.file == b"".join(map(to_bytes, sorted(expected.interactions, key=lambda item: item.key)))
    assert {item.round for item in expected.interactions if memory_of(item)} == {2, 3}
    for seed, way in list(enumerate(WAYS))[TOPOLOGIES.index(name) // 2 % 2 :: 2]:  # half of them each
        assert live(Actor(delay=random_delay(seed)), **settings, **way).file == expected.file, way


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"global_share": 0.5},
        {"without": ["memory"]},
        {"without": ["feedback_text"]},
        {"without": ["audience"]},
        {"wording": "reference"},
        {"populations": ["all_bad", "half_half"], "numbers": (0, 1, 4)},
        {"seed": 7, "questions": ["what about the one subject"]},
    ],
    ids=str,
)
def test_the_same_bytes_come_under_other_settings(settings):
    settings = {**ALIKE, **settings}
    expected = live(Actor(), schedule="lockstep", **settings).file
    for seed, way in enumerate(WAYS[5:8]):
        assert live(Actor(delay=random_delay(seed)), **settings, **way).file == expected, way


@pytest.mark.parametrize("delay", [lambda call: 0.0, lambda call: 1.0], ids=["at once", "together"])
def test_the_same_bytes_come_where_much_ends_in_one_moment(delay):
    expected = live(Actor(), schedule="lockstep", **ALIKE).file
    for way in WAYS[2:9]:
        assert live(Actor(delay=delay), **ALIKE, **way).file == expected, way


def test_round_r_reads_memories_as_after_round_r_minus_1():
    """Also where some have long gone on."""
    for way in ({}, {"max_alive": 3}, {"num_ranks": 2}):
        life = live(Actor(delay=random_delay(3, longest=9)), questions=["what about it"], max_rounds=5, **way)
        assert sum(text_of(item, "revision") is None for item in life.interactions) < 4
        said = dict.fromkeys(range(9))
        for number in range(1, 6):
            for item in life.of_round(number):
                assert ((recalled := memory_of(item)) and recalled.answer) == said[item.agent]
                for given in audience_of(item):
                    assert (given.recalled and given.recalled.answer) == said[given.agent]
            for item in life.of_round(number):
                if text_of(item, "revision") is not None:
                    said[item.agent] = text_of(item, "revision")
        assert None not in said.values()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_no_window_or_gate_leads_to_a_standstill(seed, tmp_path):
    """`run` would say so: nobody would wait for the clock."""
    generator = random.Random(seed)
    num_agents = generator.randint(2, 12)
    pairs = list(itertools.combinations(range(num_agents), 2))
    links = generator.sample(pairs, generator.randint(1, min(len(pairs), 2 * num_agents)))
    worlds = tuple(range(generator.randint(1, 3)))
    rounds = generator.randint(1, 5)
    settings = {
        "topology": path_of(tmp_path, links),
        "numbers": worlds,
        "max_rounds": rounds,
        "max_alive": generator.randint(1, 4),
        "gate": generator.randint(1, 4),
        "global_share": generator.choice((0.0, 0.5)),
        "num_ranks": generator.choice((1, 1, 2, 3)),
        "rating": "parse",
    }
    life = live(Actor(delay=random_delay(seed, longest=generator.choice((0.1, 1, 50)))), **settings)
    agents = max(map(max, links)) + 1
    assert [item.key for item in life.interactions] == list(
        itertools.product(worlds, range(1, rounds + 1), range(agents))
    )


# --- when what is held ---------------------------------------------------------------------------


def start(actor: Actor, place: tuple[int, int, int], step: str = "draft") -> float:
    (call,) = (call for call in actor.calls if call.place == place and call.step == step)
    return call.start


def end(actor: Actor, place: tuple[int, int, int], step: str) -> float:
    (call,) = (call for call in actor.calls if call.place == place and call.step == step)
    assert call.end is not None
    return call.end


def slow_at_the_end_of_the_line(call: Call) -> float:
    return 100.0 if call.place == (0, 1, 5) and call.step == "draft" else 1.0


def test_an_agent_goes_on_before_a_slow_one_far_away_has_finished(tmp_path):
    actor = Actor(plain, slow_at_the_end_of_the_line)
    live(actor, topology=path_of(tmp_path, LINE), audience_size=2)
    published = end(actor, (0, 1, 5), "revision")
    assert published > 100
    for agent in range(5):
        assert start(actor, (0, 2, agent)) < 100  # its own memory suffices for a draft, also beside the slow one
    assert start(actor, (0, 3, 0)) < 100
    # who asks the slow one waits for its memory, and for nothing else
    assert start(actor, (0, 2, 4), "rating:3") < 100
    assert start(actor, (0, 2, 4), "rating:5") == published
    assert start(actor, (0, 3, 4)) > published
    # what is slow holds back one place in the line a round
    assert start(actor, (0, 3, 3)) < 100
    assert start(actor, (0, 3, 3), "rating:4") > published


def test_in_lockstep_a_round_waits_for_the_slowest(tmp_path):
    actor = Actor(plain, slow_at_the_end_of_the_line)
    life = live(actor, topology=path_of(tmp_path, LINE), audience_size=2, schedule="lockstep")
    for round_ in (2, 3):
        before = max(call.end for call in actor.calls if call.round == round_ - 1)
        assert {call.start for call in actor.calls if call.round == round_ and call.step == "draft"} == {before}
    assert before > 100
    quick = Actor(plain, slow_at_the_end_of_the_line)
    assert live(quick, topology=path_of(tmp_path, LINE), audience_size=2).file == life.file


def test_an_agent_goes_on_before_its_revision_is_observed():
    actor = Actor(plain, lambda call: 50.0 if call.step.startswith("observe:revision") else 1.0)
    live(actor)
    assert start(actor, (0, 2, 4)) == end(actor, (0, 1, 4), "revision") < 50


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("max_alive", [1, 2, 5, 9])
def test_no_more_are_alive_than_the_window_allows(max_alive, schedule):
    simulations, alive = [], []

    def told(call):
        alive.append(simulations[0].num_alive)

    actor = Actor(told, random_delay(max_alive))
    live(actor, max_alive=max_alive, schedule=schedule, numbers=(0, 1), watch=simulations.append, gate=1000)
    assert max(alive) == max_alive
    spans = defaultdict(list)
    for call in actor.calls:
        spans[call.place] += [call.start, call.end]
    changes = [change for span in spans.values() for change in ((min(span), 1), (max(span), -1))]
    assert max(itertools.accumulate(step for _, step in sorted(changes))) <= max_alive


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("max_alive", [1, 2, 4, 10])
def test_of_those_that_are_ready_the_oldest_round_goes_first(max_alive, schedule):
    """Then the lower world, then the lower agent."""
    actor = Actor(plain, random_delay(5))
    live(actor, max_alive=max_alive, schedule=schedule, numbers=(0, 1), gate=1000)
    begun = {(call.round, call.world, call.agent): call.start for call in actor.calls if call.step == "draft"}
    ready = {(call.round + 1, call.world, call.agent): call.end for call in actor.calls if call.step == "revision"} | {
        place: -1.0 for place in begun if place[0] == 1
    }
    if schedule == "lockstep":
        for round_, world, agent in ready:
            whole = [call.end for call in actor.calls if (call.round, call.world) == (round_ - 1, world)]
            ready[round_, world, agent] = max(whole, default=-1.0)
    assert len(begun) == 2 * 3 * 9
    for one, other in itertools.permutations(begun, 2):
        if other < one and ready[other] < begun[one]:
            assert begun[other] <= begun[one], f"{one} began before {other}, which was ready"
    if max_alive == 1 and schedule == "dependency":
        assert sorted(begun, key=lambda place: begun[place]) == sorted(begun)


def test_memory_that_nobody_can_read_any_more_is_given_up():

    def kept(**how):
        life = live(Actor(plain, lambda call: 1.0), questions=["what about it"], max_rounds=8, **how)
        return life.worlds[0].num_answers

    assert kept(schedule="lockstep") == 2 * 9  # of the last round, and of the one before
    assert 2 * 9 <= kept() <= 3 * 9  # where all go on at one pace
    assert kept(without=["memory"]) == 0


# --- stopping ------------------------------------------------------------------------------------


def rated(ratings):
    """Revisions are rated as the list of their world says, round by round; None: cannot be read."""

    def told(call: Call):
        if call.sampling is not None:
            return f"{call.step} {call.place}"
        if not call.step.startswith("observe:revision"):
            return certain(4)
        of_world = ratings[call.world % len(ratings)]
        rating = of_world[min(call.round, len(of_world)) - 1]
        return NO_DIGIT if rating is None else certain(rating)

    return told


STOPPING = {"stopping": Stopping(window=1, min_rounds=3), "max_rounds": 20, "num_rating_retries": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ratings", "num_rounds"), [([4], 3), ([None], 3), ([2, 3, 4, 5, 6, 6], 6), ([2, 2, 3, 4, 3], 5), ([2, 2, 5, 5], 4)]
)
def test_a_world_stops_in_the_same_round_however_far_some_have_run_ahead(ratings, num_rounds):
    expected = live(Actor(rated([ratings])), schedule="lockstep", **STOPPING)
    assert expected.simulation.last_rounds == {0: num_rounds}
    assert expected.simulation.num_discarded == 0
    ran_ahead = 0
    ways = [
        (random_delay(1), {}),
        (random_delay(2, longest=30), {"max_alive": 5}),
        (random_delay(3, longest=30), {"gate": 3}),
        (random_delay(4), {"schedule": "lockstep"}),
        (lambda call: 0.0, {}),
        (lambda call: 1.0, {"gate": 5}),
    ]
    for delay, way in ways:
        actor = Actor(rated([ratings]), delay)
        life = live(actor, **STOPPING, **way)
        assert life.file == expected.file
        assert [round_.number for round_ in life.rounds] == list(range(1, num_rounds + 1))
        assert life.simulation.validity == expected.simulation.validity
        # What was begun either counts or is discarded, with at most one an agent that has not said anything yet.
        num_ahead = len({call.place for call in actor.calls if call.round > num_rounds})
        assert num_ahead <= life.simulation.num_discarded <= num_ahead + 9
        assert 0 <= life.simulation.num_held - 9 * num_rounds <= life.simulation.num_discarded
        assert "schedule" not in way or life.simulation.num_discarded == 0
        ran_ahead += life.simulation.num_discarded
    assert ran_ahead > 0


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_agree_on_the_round_in_which_a_world_stops(num_ranks):
    ratings = [[2, 3, 4, 5, 6, 6, 7], [3, 4, 5, 5, 7]]
    expected = live(Actor(rated(ratings)), numbers=(0, 1), schedule="lockstep", **STOPPING)
    assert expected.simulation.last_rounds == {0: 6, 1: 4}
    for seed in range(4):
        delay = random_delay(seed, longest=seed * 0.02)  # at times faster than messages
        life = live(Actor(rated(ratings), delay), numbers=(0, 1), num_ranks=num_ranks, **STOPPING)
        assert life.file == expected.file
        assert life.simulation.validity == expected.simulation.validity
        numbers = [(round_.world, round_.number) for round_ in life.rounds]
        assert sorted(numbers) == [(0, number) for number in range(1, 7)] + [(1, number) for number in range(1, 5)]


def test_what_ran_ahead_is_ended_when_its_world_stops():
    """Calls that nobody needs are cut off at once, while another world goes on."""

    def delay(call):
        if call.world == 1:
            return 10.0
        return 100.0 if call.round == 5 else 1.0

    actor = Actor(rated([[3, 4, 5, 5], [2, 3, 4, 5, 6, 7]]), delay)
    life = live(actor, numbers=(0, 1), **STOPPING)
    assert life.simulation.last_rounds == {0: 4, 1: 7}
    assert max(call.start for call in actor.calls) > 200
    ahead = [call for call in actor.calls if call.place[:2] == (0, 5)]
    assert ahead
    assert {call.end for call in ahead} == {None}


def test_without_stopping_a_world_runs_to_the_end():
    life = live(Actor(rated([[4]])), max_rounds=7, stopping=None)
    assert life.simulation.last_rounds == {0: 7}
    assert life.simulation.num_discarded == 0
    assert life.simulation.num_held == len(life.interactions) == 63


# --- several worlds ------------------------------------------------------------------------------


def test_worlds_live_side_by_side_as_each_would_alone():
    numbers = (2, 4, 6)
    ratings = [[1, 2, 3, 4, 5], [4], [None]]
    how = {**STOPPING, "max_rounds": 5, "populations": ["all_good", "all_bad"]}
    alone = [live(Actor(rated(ratings)), numbers=(number,), **how) for number in numbers]
    for way in ({}, {"max_alive": 2}, {"schedule": "lockstep"}):
        life = live(Actor(rated(ratings), random_delay(4)), numbers=numbers, **how, **way)
        assert life.file == b"".join(one.file for one in alone)
        assert life.simulation.last_rounds == {2: 3, 4: 3, 6: 5}
        whys = ["no ratings", "no improvement", "max_rounds"]
        assert [(stop.world, stop.why) for stop in life.simulation.stops] == list(zip(numbers, whys, strict=True))
        counts = life.simulation.validity.num_interactions, life.simulation.validity.num_ratings
        each = [one.simulation.validity for one in alone]
        assert counts == (sum(one.num_interactions for one in each), sum(one.num_ratings for one in each))


def test_a_world_holds_one_interaction_an_agent_and_round():
    life = live(Actor(), numbers=(5,))
    assert [item.key for item in life.interactions] == list(itertools.product([5], (1, 2, 3), range(9)))


def test_populations_take_turns():
    setting = make_setting([Speaker(metered(Actor()))], populations=["all_good", "all_bad", "half_half"])
    populations = [World(setting, number).population for number in range(5)]
    assert populations == ["all_good", "all_bad", "half_half", "all_good", "all_bad"]


def test_each_agent_is_asked_every_question_before_any_comes_again():
    """Nine agents and twelve questions: by turns, each agent would have met four of them for ever."""
    life = live(Actor(), max_rounds=24)
    for agent in range(9):
        asked = [item.topic for item in life.interactions if item.agent == agent]
        assert sorted(asked[:12]) == sorted(asked[12:]) == QUESTIONS
        assert asked[:12] != asked[12:]
    assert all(len({item.topic for item in life.of_round(number)}) == 9 for number in range(1, 25))
    other = live(Actor(), numbers=(1,))
    assert [item.topic for item in other.interactions] != [item.topic for item in life.interactions[:27]]


HOW = [f"how do I tell my {who} that I {what} it" for who in ("boss", "aunt", "son") for what in ("broke", "lost")]
LIKE_THEM = [
    Exemplar(f"how do I tell the {who} that I {what} it", f"the {label} one: {who}, {what}", label)
    for who in ("teacher", "police", "doctor", "captain", "judge")
    for what in ("took", "like", "want", "hide")
    for label in ("good", "bad")
]


def answers(**settings) -> list[tuple[str, str | None, str | None]]:
    """What is asked and answered where the replies follow from the prompt alone, with the defaults of memory."""
    life = live(Actor(), questions=HOW, prior=LIKE_THEM, **settings)
    return [(item.topic, text_of(item, "draft"), text_of(item, "revision")) for item in life.interactions]


def test_populations_answer_differently_by_default():
    """No question is remembered to the letter; with a distance of 0.3, all interactions would be the same."""
    good, bad = answers(populations=["all_good"]), answers(populations=["all_bad"])
    assert [question for question, *_ in good] == [question for question, *_ in bad]
    first = sum(one[1] != other[1] for one, other in zip(good[:9], bad[:9], strict=True))
    assert first >= 7  # nine in ten drafts recall something
    assert sum(one != other for one, other in zip(good, bad, strict=True)) >= 25  # of 27
    near = {"max_recall_distance": 0.3, "max_rounds": 1}
    assert answers(populations=["all_good"], **near) == answers(populations=["all_bad"], **near)


def test_without_memory_most_interactions_are_others():
    whole, forgetful = answers(), answers(without=["memory"])
    assert sum(one != other for one, other in zip(whole, forgetful, strict=True)) >= 25


def test_what_is_recalled_comes_from_the_beginning_and_from_the_agent_itself():
    life = live(Actor(), questions=HOW, prior=LIKE_THEM, max_rounds=12)
    sources = [
        Counter(memory.source for item in life.of_round(number) if (memory := memory_of(item)) is not None)
        for number in range(1, 13)
    ]
    assert set(sources[0]) == {"initial"}
    assert sum(sources[0].values()) >= 7
    assert sum((one["own"] for one in sources[6:]), 0) == 54  # each question has been answered before
    shares = [round_.metrics(protocol_of(SocietySection()))["sim/recalled_initial_share"] for round_ in life.rounds]
    assert shares == [one["initial"] / 9 for one in sources]


def test_initial_memories_are_recalled_in_the_first_round():
    questions = [exemplar.question for exemplar in PRIOR[::2]]
    settings = {"num_initial_memories": 20, "populations": ["half_half"], "max_rounds": 1}
    for item in live(Actor(), questions=questions, **settings).interactions:
        number = int(item.topic[-2:])
        label = "good" if item.agent < 5 else "bad"
        assert memory_of(item) == Recalled(item.topic, f"{label} {number}", "initial", 0.0)
        for given in audience_of(item):
            assert given.recalled.answer == f"{'good' if given.agent < 5 else 'bad'} {number}"


@pytest.mark.parametrize("rating", ["parse", "logprob"])
def test_seeds_of_calls_are_distinct_and_calls_are_counted(rating):
    actor = Actor(delay=random_delay(1))
    life = live(actor, numbers=(0, 1), rating=rating)
    assert len({call.seed for call in actor.calls}) == len(actor.calls)
    assert sum(item.num_calls for item in life.interactions) == len(actor.calls)
    assert sum(item.prompt_tokens for item in life.interactions) > 0


def test_seeds_and_worlds_differ():
    lives = {(seed, number): live(Actor(), seed=seed, numbers=(number,)).file for seed in (0, 1) for number in (0, 1)}
    assert lives[0, 0] == live(Actor()).file
    texts = []
    for file in lives.values():
        rows = [json.loads(line) for line in file.splitlines()]
        texts.append({turn["text"] for row in rows for turn in row["turns"] if turn["observed"]})
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_each_world_draws_its_own_initial_memories():
    settings = {"populations": ["all_good"], "num_initial_memories": 10, "max_recall_distance": 0.01, "max_rounds": 1}

    def knowing(seed, number):
        life = live(Actor(), seed=seed, numbers=(number,), questions=[PRIOR[0].question], **settings)
        return tuple(memory_of(item) is not None for item in life.interactions)

    assert len({knowing(seed, number) for seed in (0, 1, 2) for number in (0, 1, 2)}) > 6


def test_each_round_draws_its_own_audience_among_the_neighbours():
    life = live(Actor(), topology={"size": 3, "radius": 2}, audience_size=3, max_rounds=6)
    drawn = defaultdict(list)
    for item in life.interactions:
        drawn[item.agent].append(tuple(given.agent for given in audience_of(item)))
    assert {member for audience in drawn[0] for member in audience} == {1, 2, 3, 4, 6}
    assert all(len(set(audiences)) > 1 for audiences in drawn.values())


# --- societies of another kind -------------------------------------------------------------------


def test_who_has_no_neighbours_revises_unheard(tmp_path):
    life = live(Actor(plain), topology=path_of(tmp_path, [(0, 1), (1, 3)]))
    audiences = {item.agent: {given.agent for given in audience_of(item)} for item in life.interactions}
    assert audiences == {0: {1}, 1: {0, 3}, 2: set(), 3: {1}}
    assert len(life.interactions) == 12
    assert all(item.failure is None and text_of(item, "revision") for item in life.interactions)
    assert {item.num_calls for item in life.interactions if item.agent == 2} == {6}


def test_isolation_is_a_society_without_audience():
    isolated = live(Actor(), topology={"kind": "isolated", "num_agents": 9}, **ALIKE)
    assert {audience_of(item) for item in isolated.interactions} == {()}
    assert {item.num_calls for item in isolated.interactions} >= {6}
    assert sum(text_of(item, "revision") is not None for item in isolated.interactions) == 27
    assert any(memory_of(item) for item in isolated.of_round(3))
    assert live(Actor(), without=["audience"], **ALIKE).file == isolated.file


def test_without_memory_nobody_recalls_anything():
    life = live(Actor(), questions=[PRIOR[0].question], without=["memory"], num_initial_memories=20)
    assert {memory_of(item) for item in life.interactions} == {None}
    assert {given.recalled for item in life.interactions for given in audience_of(item)} == {None}
    remembered = live(Actor(), questions=[PRIOR[0].question], num_initial_memories=20)
    assert None not in {memory_of(item) for item in remembered.interactions}


def who(call):
    """As whom the system text has it speak; what follows says how what is judged is marked."""
    return call.prompt.system and call.prompt.system.split("\n\n")[0]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_in_a_mixed_society_each_speaks_through_its_own_engine_under_its_own_instructions(num_ranks):
    run_s, harsh, kind, observing = engines = [Actor(delay=random_delay(number)) for number in range(4)]
    speakers = [Speaker(metered(run_s)), Speaker(metered(harsh), "Be harsh."), Speaker(metered(kind), "Be kind.")]
    mixture = [{"name": "harsh", "share": 0.4}, {"name": "kind", "share": 0.3}]
    for observer in (None, Speaker(metered(observing))):
        for engine in engines:
            engine.calls.clear()
        life = live(run_s, speakers=speakers, mixture=mixture, observer=observer, num_ranks=num_ranks)
        parts = {item.agent: item.agents[0].part for item in life.interactions}
        assert Counter(parts.values()) == {"harsh": 3, "kind": 3, None: 3}
        assert {(item.agent, item.agents[0].part) for item in life.interactions} == set(parts.items())
        told = {None: [None, "You judge answers."], "harsh": ["Be harsh."], "kind": ["Be kind."]}
        for name, engine in ((None, run_s), ("harsh", harsh), ("kind", kind)):
            said = [call for call in engine.calls if not call.step.startswith("observe")]
            assert {who(call) for call in said} == set(told[name])
            assert {call.step.split(":")[0] for call in said} == {"draft", "rating", "reason", "revision"}
            for call in said:
                _, _, member = call.step.partition(":")
                assert parts[int(member) if member else call.agent] == name
        where = run_s if observer is None else observing
        observed = [call for engine in engines for call in engine.calls if call.step.startswith("observe")]
        assert observed
        assert all(call in where.calls for call in observed)
        assert {who(call) for call in observed} == {"You judge answers."}
        assert sum(item.num_calls for item in life.interactions) == sum(len(engine.calls) for engine in engines)


# --- failures ------------------------------------------------------------------------------------


def test_a_failed_interaction_leaves_the_others_as_they_are():
    def refusing(call):
        return CallRejectedError("refused") if "subject07" in call.prompt.user else None

    whole, some = live(Actor(), max_rounds=1).interactions, live(Actor(refusing), max_rounds=1).interactions
    assert "what about subject07" in [item.topic for item in whole]
    for one, other in zip(whole, some, strict=True):
        if one.topic == "what about subject07":
            assert (other.failure, text_of(other, "draft")) == ("refused", None)
        else:
            assert other == one


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_failed_interaction_leaves_no_memory_and_keeps_nobody_waiting(schedule):
    def told(call):
        return CallRejectedError("refused") if call.step == "revision" else plain(call)

    life = live(Actor(told, random_delay(1)), questions=["what about the one subject"], schedule=schedule)
    assert len(life.interactions) == 27
    assert None not in {text_of(item, "draft") for item in life.interactions}
    assert {item.failure for item in life.interactions} == {"refused"}
    assert {memory_of(item) for item in life.interactions} == {None}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("step", ["draft", "rating:2", "observe:draft:alignment", "revision"])
def test_an_engine_at_fault_ends_all_at_once(step, schedule):
    """Also what would take for ever; `run` sees that no task is left and no error unseen."""

    def broken(call):
        return call.round == 2 and call.step == step

    def told(call):
        return EngineError(f"unreachable at {call.place}") if broken(call) else None

    for others, how in ((1.0, {}), (1e9, {}), (1e9, {"numbers": (0, 1)}), (1.0, {"gate": 2, "max_alive": 3})):
        delay = lambda call, others=others: 0.5 if broken(call) or call.round == 1 or call.step == "draft" else others  # noqa: E731
        if others > 1 and step == "revision":
            continue  # nobody comes so far
        actor = Actor(told, delay)

        async def ended(actor=actor, how=how):
            with pytest.raises(EngineError, match="unreachable at"):
                await simulate(actor, schedule=schedule, **how)
            return now()

        when = run(ended())
        assert when == min(call.end for call in actor.calls if broken(call) and call.end is not None)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_where_one_rank_fails_all_end_and_say_why(rank):
    def told(call):
        failing = call.round == 2 and call.step == "draft" and call.agent // 3 == rank
        return EngineError("unreachable") if failing else None

    with pytest.raises((EngineError, StageError), match="unreachable") as raised:
        live(Actor(told, random_delay(1)), num_ranks=3)
    assert rank == 0 or str(raised.value) == f"rank {rank} of this shard failed: unreachable"


def test_a_disk_that_is_full_ends_the_run(monkeypatch):
    added = []

    def add(self, interaction):
        added.append(interaction)
        if len(added) == 12:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "add", add)
    with pytest.raises(OSError, match="No space left"):
        live(Actor(delay=random_delay(1)))
    assert len(added) == 12


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_round_that_cannot_be_told_of_ends_the_run(schedule):
    """As where its metrics cannot be written."""

    def complete(round_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        live(Actor(delay=random_delay(1)), schedule=schedule, complete=complete)


def test_a_bug_of_one_rank_is_shown_with_its_traceback(caplog):
    """The other ranks end that one before it could do so by itself."""

    def told(call):
        return KeyError("a bug") if call.round == 2 and call.step == "draft" and call.agent // 3 == 1 else None

    with pytest.raises((KeyError, StageError), match="a bug"):
        live(Actor(told, random_delay(1)), num_ranks=3)
    (shown,) = [record for record in caplog.records if record.exc_info]
    assert shown.getMessage() == "rank 1 failed"
    assert shown.exc_info[0] is KeyError


def test_a_bug_ends_the_run_as_itself():
    def told(call):
        return ZeroDivisionError("a bug") if call.place == (0, 2, 4) else None

    with pytest.raises(ZeroDivisionError, match="a bug"):
        live(Actor(told, random_delay(1)))


@pytest.mark.parametrize(
    "how", [{}, {"gate": 1}, {"max_alive": 2}, {"schedule": "lockstep"}, {"num_ranks": 2}], ids=str
)
@pytest.mark.parametrize("after", [0.5, 4.2, 9.9])
def test_a_run_that_is_cancelled_leaves_nothing_behind(how, after):
    async def cancelled():
        actor = Actor(plain, lambda call: 1.0)
        task = asyncio.create_task(simulate(actor, **how))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert now() < after + 2
        num_calls = len(actor.calls)
        await asyncio.sleep(1000)
        assert len(actor.calls) == num_calls

    run(cancelled())
