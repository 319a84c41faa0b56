"""A round is parted into casts, which hold an interaction together: by seed and topology, whoever holds it."""

import random
from typing import Literal

import pytest
from actors import QUESTIONS, Actor, live, random_delay

from salign.config import CompleteTopology, GridTopology, IsolatedTopology, SampleProtocol, SmallWorldTopology
from salign.config import SocietySection as Society
from salign.engines.base import Prompt
from salign.errors import CallRejectedError, ConfigError
from salign.society.calls import spoken
from salign.society.casts import Casts
from salign.society.check import check_society
from salign.society.protocols import PROTOCOLS, protocol_of
from salign.society.protocols.messages import Update
from salign.society.protocols.sample import Sample
from salign.society.stopping import Stop
from salign.society.topology import Isolated, make_topology

TOPOLOGIES = [
    GridTopology(size=6),
    GridTopology(size=5, radius=1, torus=True),
    CompleteTopology(kind="complete", num_agents=17),
    SmallWorldTopology(kind="small_world", num_agents=40, num_neighbours=4),
]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda section: section.kind)
@pytest.mark.parametrize("size", [2, 3])
def test_casts_are_parts_of_the_agents_and_neighbours_of_their_leader(topology, size):
    links = make_topology(topology, 0, 0)
    casts = Casts(links, size, 0, 0)
    for round_ in range(1, 6):
        parting = casts.of_round(round_)
        members = [agent for cast in parting.casts for agent in cast]
        assert len(set(members)) == len(members)
        for cast in parting.casts:
            assert len(cast) == size
            assert set(cast[1:]) <= set(links.neighbours(cast[0]))
            assert all(parting.cast(agent) == cast for agent in cast)
        resting = set(range(links.num_agents)) - set(members)
        assert all(parting.cast(agent) == () for agent in resting)
        # Nobody rests beside enough others that do.
        assert all(len(resting & set(links.neighbours(agent))) < size - 1 for agent in resting)
        if isinstance(topology, CompleteTopology):
            assert len(resting) == 17 % size
    assert casts.of_round(1).casts != casts.of_round(2).casts


def test_casts_are_the_same_for_everybody_and_others_in_another_world():
    links = make_topology(GridTopology(size=6), 0, 0)
    one, other, elsewhere = Casts(links, 2, 0, 0), Casts(links, 2, 0, 0), Casts(links, 2, 0, 1)
    later = one.of_round(9).casts
    one.forget(10)
    assert [other.of_round(9).casts, one.of_round(9).casts] == [later, later] != [elsewhere.of_round(9).casts] * 2


def test_of_pairs_on_a_grid_hardly_anybody_rests():
    links = make_topology(GridTopology(size=10), 0, 0)
    casts = Casts(links, 2, 0, 0)
    resting = sum(100 - 2 * len(casts.of_round(round_).casts) for round_ in range(1, 51))
    assert resting <= 0.03 * 100 * 50


def test_who_acts_alone_does_so_in_each_round():
    casts = Casts(Isolated(4), 1, 0, 0)
    assert [casts.cast(agent, 3) for agent in range(4)] == [(0,), (1,), (2,), (3,)]


# --- interactions of several agents ---------------------------------------------------------------


class TalkProtocol(SampleProtocol):
    """Several agents talk."""

    kind: Literal["sample"] = "sample"
    num_speakers: int = 2

    @property
    def cast_size(self):
        return self.num_speakers


class Talk(Sample):
    """Each of the cast says something after the other, and notes how often it has spoken with whom."""

    figures = {"talks": "Talks before"}  # noqa: RUF012 (as its base has it)

    @property
    def max_calls(self):
        return self.section.num_speakers * 3

    async def interact(self, conversation):
        seat, updates = conversation.seat, []
        for place, (member, state) in enumerate(zip(seat.cast, seat.states, strict=True)):
            told = f"{seat.question} {state.recalled} {state.notes} {len(updates)}"
            name = f"answer:{place}"
            reply = await conversation.agents[place].generate(Prompt(told), self.society.draft, name)
            count = state.notes.get("count", 0)
            others = [other.agent for other in seat.cast if other != member]
            data = {"count": count, "met": state.notes.get("met", [])}
            said = conversation.say("answer", spoken(reply, name), state.recalled, name, by=place, data=data)
            updates.append(Update(said, {"count": count + 1, "met": others}))
        return updates

    def measure(self, interaction):
        for turn in interaction.turns_of("answer"):
            yield "talks", turn.data["count"]


@pytest.fixture(autouse=True)
def talk(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "sample", Talk)


def society(size=2, **settings):
    fields = {"topology": GridTopology(size=3), "max_rounds": 6, "stopping": None, "num_initial_memories": 4}
    made = Society(**{**fields, **settings})
    return made.model_copy(update={"protocol": TalkProtocol(num_speakers=size)})


def talks(size=2, told=lambda call: None, *, delay=None, questions=QUESTIONS[:4], run=None, **settings):
    actor = Actor(told, random_delay(delay)) if delay is not None else Actor(told)
    return live(actor, society=society(size, **settings), numbers=(0, 1), questions=questions, **(run or {}))


@pytest.mark.parametrize("size", [2, 3])
def test_each_of_a_cast_carries_on_what_it_did_and_the_others_are_left_as_they_were(size):
    life = talks(size, delay=5)
    for world in (0, 1):
        count: dict[int, int] = {}
        met: dict[int, list[int]] = {}
        for round_ in range(1, 7):
            seen = [one for one in life.of_round(round_) if one.world == world]
            acting = [member.agent for one in seen for member in one.agents]
            assert len(acting) == len(set(acting)) <= 9
            for one in seen:
                assert [turn.agent for turn in one.turns] == [member.agent for member in one.agents]
                for turn in one.turns:
                    assert turn.data == {"count": count.get(turn.agent, 0), "met": met.get(turn.agent, [])}
                for member in one.agents:
                    count[member.agent] = count.get(member.agent, 0) + 1
                    met[member.agent] = [other.agent for other in one.agents if other != member]
        assert len({one.agents[0].agent for one in life.interactions}) > 5, "any may lead"


def failing(call):
    return CallRejectedError("refused") if call.step == "answer:1" and call.seed % 4 == 0 else None


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "how",
    [
        {"schedule": "lockstep"},
        {"run": {"gate": 1}},
        {"run": {"num_ranks": 2}, "delay": 1},
        {"run": {"num_ranks": 4, "gate": 2}, "max_alive": 1},
        {"run": {"num_ranks": 3}, "max_alive": 2, "delay": 2},
        {"run": {"num_ranks": 5}, "schedule": "lockstep", "delay": 3},
        {"max_alive": 1, "delay": 4},
    ],
    ids=str,
)
def test_the_bytes_are_the_same_however_the_work_is_cut(size, how):
    """Also where a cast lives on several ranks, hardly anything is alive at a time, and interactions fail."""
    one, other = talks(size, failing), talks(size, failing, **how)
    assert any(item.failure for item in one.interactions)
    assert any(item.failure is None for item in one.interactions)
    assert other.file == one.file
    protocol = protocol_of(society(size))
    of_one, of_other = ({(r.world, r.number): r.metrics(protocol) for r in life.rounds} for life in (one, other))
    assert of_other == of_one


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("num_ranks", "max_alive"), [(2, 1), (3, 1), (2, 2)])
def test_there_is_no_standstill_where_some_calls_take_very_long(seed, size, num_ranks, max_alive):
    """All that is alive on a rank may wait for what another rank has just made ready here."""
    generator = random.Random(seed)
    how = {"society": society(size, max_alive=max_alive, topology=GridTopology(size=4, radius=1.5))}
    life = live(Actor(delay=lambda call: generator.paretovariate(0.5)), **how, num_ranks=num_ranks)
    assert max(item.round for item in life.interactions) == 6


def test_a_society_of_two_on_more_ranks_than_agents():
    fields = {"topology": CompleteTopology(kind="complete", num_agents=3), "audience_size": 0}
    one, other = talks(**fields), talks(**fields, run={"num_ranks": 4}, delay=0)
    assert len(one.interactions) == 2 * 6
    assert other.file == one.file


def test_who_has_no_neighbour_rests_in_every_round(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("0 1\n3 4\n4 5\n")  # nobody knows 2
    verdicts = []
    how = {"topology": {"kind": "edges", "path": str(path)}, "max_rounds": 9}
    one = talks(**how, run={"complete": verdicts.append})
    assert {member.agent for item in one.interactions for member in item.agents} == {0, 1, 3, 4, 5}
    assert {verdict.metrics()["sim/resting"] for verdict in verdicts} == {2}
    assert talks(**how, run={"num_ranks": 3}, delay=1).file == one.file


def test_a_world_of_casts_stops_by_its_ratings():
    stopping = {"window": 2, "min_rounds": 4, "tolerance": 7.0}
    how = {"stopping": stopping, "max_rounds": 40, "topology": GridTopology(size=6)}
    one, other = talks(**how), talks(**how, run={"num_ranks": 3}, delay=2)
    stops = one.simulation.stops
    assert all(isinstance(stop, Stop) and stop.why == "no improvement" for stop in stops)
    assert other.file == one.file


def test_calls_of_a_round_are_bounded_by_the_casts():
    protocol = protocol_of(society())
    assert protocol.most_calls(9) == 4 * protocol.max_calls
    life = talks(delay=1)
    held = [item for item in life.interactions if item.world == 0 and item.round == 1]
    assert sum(item.num_calls for item in held) <= protocol.most_calls(9)


@pytest.mark.parametrize(
    ("topology", "size", "message"),
    [
        ({"kind": "isolated", "num_agents": 4}, 2, "nobody has anybody"),
        ({"kind": "complete", "num_agents": 2}, 3, "the topology has 2"),
        ({"kind": "grid", "size": 3, "radius": 0.5}, 2, "leaves each alone"),
    ],
)
def test_a_topology_that_cannot_carry_casts_is_a_mistake_of_the_config(monkeypatch, topology, size, message):
    monkeypatch.setattr(SampleProtocol, "cast_size", size)
    with pytest.raises(ValueError, match=message):
        Society(protocol={"kind": "sample"}, topology=topology, audience_size=0)


def test_a_society_in_which_nobody_can_act_together_is_refused(tmp_path, caplog):
    with pytest.raises(ConfigError, match="no agent has so many"):
        Casts(make_topology(GridTopology(size=3, radius=1), 0), 6)
    check_society(society(questions={"kind": "everyday"}), 0)
    assert "of 9 agents, 1 must rest in each round" in caplog.text
    path = tmp_path / "edges.txt"
    path.write_text("0 1\n")
    with pytest.raises(ConfigError, match="no agent has so many"):
        check_society(society(3, topology={"kind": "edges", "path": str(path)}), 0)
    with pytest.raises(ConfigError, match="no agent has so many"):
        Casts(make_topology(IsolatedTopology(kind="isolated", num_agents=4), 0), 2)
