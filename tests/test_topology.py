"""Who can hear whom, who judges a draft, and which process owns which agent."""

import gzip
import itertools
import math
import random
import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from salign.config import (
    CompleteTopology,
    EdgesTopology,
    GridTopology,
    IsolatedTopology,
    ScaleFreeTopology,
    SmallWorldTopology,
    SocietySection,
    TopologySection,
)
from salign.config.effects import sections_in
from salign.errors import DataError
from salign.society import topology as module
from salign.society.topology import TOPOLOGIES, Topology, draw_audience, make_topology, write_links


def grid(size: int, radius: float = 2.0, **settings) -> Topology:
    return make_topology(GridTopology(size=size, radius=radius, **settings))


def complete(num_agents: int) -> Topology:
    return make_topology(CompleteTopology(kind="complete", num_agents=num_agents))


def small_world(*place, num_agents=60, **settings) -> Topology:
    return make_topology(SmallWorldTopology(kind="small_world", num_agents=num_agents, **settings), *place)


def scale_free(*place, num_agents=60, **settings) -> Topology:
    return make_topology(ScaleFreeTopology(kind="scale_free", num_agents=num_agents, **settings), *place)


def all_neighbours(topology: Topology) -> list[list[int]]:
    return [list(topology.neighbours(agent)) for agent in range(topology.num_agents)]


# --- grid ----------------------------------------------------------------------------------------

#  0  1  2  3  4
#  5  6  7  8  9
# 10 11 12 13 14
# 15 16 17 18 19
# 20 21 22 23 24


@pytest.mark.parametrize(
    ("agent", "radius", "expected"),
    [
        (12, 0.5, []),
        (12, 0.9, []),
        (12, 1, [7, 11, 13, 17]),
        (12, 1.5, [6, 7, 8, 11, 13, 16, 17, 18]),
        (12, 2, [2, 6, 7, 8, 10, 11, 13, 14, 16, 17, 18, 22]),
        (12, 2.24, [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23]),
        (0, 2, [1, 2, 5, 6, 10]),
        (24, 1.5, [18, 19, 23]),
        (10, 1, [5, 11, 15]),
        (4, 1, [3, 9]),
        (7, 99, [agent for agent in range(25) if agent != 7]),
        (7, 1e9, [agent for agent in range(25) if agent != 7]),
    ],
)
def test_neighbours_by_hand(agent, radius, expected):
    assert grid(5, radius).neighbours(agent) == expected


@pytest.mark.parametrize(
    ("metric", "radius", "torus", "agent", "expected"),
    [
        ("moore", 1, False, 12, [6, 7, 8, 11, 13, 16, 17, 18]),
        ("moore", 1, False, 0, [1, 5, 6]),
        ("von_neumann", 1, False, 12, [7, 11, 13, 17]),
        ("von_neumann", 2, False, 0, [1, 2, 5, 6, 10]),
        ("von_neumann", 2, False, 12, [2, 6, 7, 8, 10, 11, 13, 14, 16, 17, 18, 22]),
        ("euclidean", 1, True, 0, [1, 4, 5, 20]),
        ("moore", 1, True, 24, [0, 3, 4, 15, 18, 19, 20, 23]),
        ("von_neumann", 2, True, 4, [0, 1, 2, 3, 5, 8, 9, 14, 19, 20, 23, 24]),
    ],
)
def test_neighbours_of_other_metrics_by_hand(metric, radius, torus, agent, expected):
    assert grid(5, radius, metric=metric, torus=torus).neighbours(agent) == expected


def distance(one: int, other: int, size: int, metric: str, torus: bool) -> float:
    """By definition; on a torus, the shortest of all the ways round."""
    rows, columns = (abs(a - b) for a, b in zip(divmod(one, size), divmod(other, size), strict=True))
    ways = (-size, 0, size) if torus else (0,)
    return min(
        {"euclidean": math.hypot(down, right), "moore": max(down, right), "von_neumann": down + right}[metric]
        for down, right in itertools.product((abs(rows + way) for way in ways), (abs(columns + way) for way in ways))
    )


@pytest.mark.slow
@pytest.mark.parametrize("torus", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "moore", "von_neumann"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_neighbours_are_who_is_within_the_radius(size, metric, torus):
    for radius in (0.5, 1, 1.5, 2, 2.3, 2.9, 3, 4, 5.7, 8, 20):
        topology = grid(size, radius, metric=metric, torus=torus)
        assert topology.num_agents == size**2
        for agent in range(size**2):
            others = (other for other in range(size**2) if other != agent)
            expected = [other for other in others if distance(agent, other, size, metric, torus) <= radius]
            assert topology.neighbours(agent) == expected


def test_a_society_of_a_million_is_made_at_once():
    topology = grid(1000, 2)
    assert topology.neighbours(500_500)[:2] == [498_500, 499_499]
    assert list(topology.owners(4)[[0, 249_999, 250_000, 999_999]]) == [0, 0, 1, 3]


# --- the other kinds -----------------------------------------------------------------------------


def test_in_a_complete_society_everybody_hears_everybody():
    assert all_neighbours(complete(4)) == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert all_neighbours(complete(1)) == [[]]


def test_all_but_one_are_a_sequence():
    near, listed = complete(9).neighbours(4), [0, 1, 2, 3, 5, 6, 7, 8]
    assert len(near) == 8
    assert [near[index] for index in range(-8, 8)] == listed * 2
    assert near[2:6] == listed[2:6]
    assert near[::-1] == listed[::-1]
    assert 4 not in near
    with pytest.raises(IndexError):
        near[8]


def test_the_isolated_hear_nobody():
    topology = make_topology(IsolatedTopology(kind="isolated", num_agents=3))
    assert topology.num_agents == 3
    assert all_neighbours(topology) == [[], [], []]


@pytest.mark.parametrize("make", [small_world, scale_free])
def test_random_links_go_both_ways_and_to_no_one_twice(make):
    found = all_neighbours(make(0, 0))
    assert len(found) == 60
    for agent, near in enumerate(found):
        assert near == sorted(set(near))
        assert agent not in near
        assert all(type(other) is int and agent in found[other] for other in near)


@pytest.mark.parametrize("make", [small_world, scale_free])
def test_random_links_are_a_function_of_their_place(make):
    assert all_neighbours(make(0, 0)) == all_neighbours(make(0, 0))
    assert len({str(all_neighbours(make(seed, world))) for seed in (0, 1) for world in (0, 1)}) == 4


def test_a_small_world_without_rewiring_is_a_ring():
    found = all_neighbours(small_world(0, num_agents=10, num_neighbours=4, rewired_share=0.0))
    assert found == [sorted((agent + step) % 10 for step in (-2, -1, 1, 2)) for agent in range(10)]


def test_a_small_world_keeps_most_of_its_ring():
    rewired = small_world(0, num_agents=1000, num_neighbours=8, rewired_share=0.1)
    lengths = [(other - agent) % 1000 for agent in range(1000) for other in rewired.neighbours(agent)]
    assert len(lengths) == 8000
    share = sum(4 < length < 996 for length in lengths) / 8000
    assert 0.08 < share < 0.12


def test_a_scale_free_society_has_hubs():
    degrees = [len(near) for near in all_neighbours(scale_free(0, num_agents=1000, num_links=4))]
    assert sum(degrees) == 2 * 4 * (1000 - 4)
    assert min(degrees) >= 1
    assert max(degrees) > 10 * sum(degrees) / 1000


@pytest.mark.parametrize(
    "topology",
    [
        small_world(0, num_neighbours=2, rewired_share=1.0),
        small_world(1, num_agents=200),
        scale_free(0),
        scale_free(2, num_agents=7, num_links=1),
    ],
)
def test_links_that_are_written_are_read_as_they_were(topology, tmp_path):
    path = tmp_path / "links.txt"
    write_links(topology, path, "world 0")
    again = from_file_at(path)
    assert again.num_agents == topology.num_agents
    assert all_neighbours(again) == all_neighbours(topology)
    first, *lines = path.read_text().splitlines()
    assert first == "# world 0"
    assert len(lines) == sum(map(len, all_neighbours(topology))) / 2


def test_networkx_is_imported_only_where_it_is_needed():
    code = (
        "import sys; from salign.config import GridTopology; from salign.society.topology import make_topology;"
        "make_topology(GridTopology()).owners(2); print({'networkx', 'pymetis', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- links from a file ---------------------------------------------------------------------------


def from_file_at(path) -> Topology:
    return make_topology(EdgesTopology(kind="edges", path=path))


def from_file(path, text: str) -> Topology:
    path.write_text(text, encoding="utf-8")
    return from_file_at(path)


@pytest.mark.parametrize(
    "text",
    [
        "0 1\n1 3\n",
        "0\t1\n1\t3",
        "0,1\n1,3\n",
        "0, 1\r\n 1 ,3 \r\n",
        "# who knows whom\n\n0 1  # since school\n   \n#\n1   3\n",
        "0 1\n1 0\n0 1\n3 1\n",
        "\ufeff00 1\n1 3\n",
    ],
    ids=["spaces", "tabs", "commas", "windows", "comments", "twice", "bom"],
)
def test_links_are_read(tmp_path, text):
    assert all_neighbours(from_file(tmp_path / "edges.txt", text)) == [[1], [0, 3], [], [1]]


def test_links_are_read_from_a_compressed_file(tmp_path):
    (tmp_path / "edges.txt.gz").write_bytes(gzip.compress(b"0 2\n"))
    assert all_neighbours(from_file_at(tmp_path / "edges.txt.gz")) == [[2], [], [0]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0", r"'0' is not an edge"),
        ("0 1 2", r"'0 1 2' is not an edge"),
        ("0;1", r"'0;1' is not an edge"),
        ("0,,1", r"'0,,1' is not an edge"),
        ("0 1,", r"'0 1,' is not an edge"),
        ("0 one", r"'0 one' is not an edge"),
        ("0 1.0", r"'0 1\.0' is not an edge"),
        ("-1 2", r"'-1 2' is not an edge.*from 0"),
        ("0 ١", r"is not an edge"),
        ("0 10000000000", r"is not an edge.*to 999999999"),
        ("7 7", r"agent 7 is connected to itself"),
        ("07 7", r"agent 7 is connected to itself"),
    ],
)
def test_a_malformed_line_is_an_error_with_its_place(tmp_path, line, said):
    with pytest.raises(DataError, match=rf"edges\.txt, line 3: .*{said}"):
        from_file(tmp_path / "edges.txt", f"# links\n0 1\n{line}\n1 2\n")


@pytest.mark.parametrize("text", ["", "\n  \n", "# nobody\n"])
def test_a_file_without_links_is_an_error(tmp_path, text):
    with pytest.raises(DataError, match=r"edges\.txt contains no edge"):
        from_file(tmp_path / "edges.txt", text)


def test_a_missing_or_damaged_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no data file .*none\.txt"):
        from_file_at(tmp_path / "none.txt")
    (tmp_path / "edges.txt").write_bytes(b"0 1\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"edges\.txt: not UTF-8 text"):
        from_file_at(tmp_path / "edges.txt")


def test_random_links_of_a_file_are_all_there(tmp_path):
    generator = random.Random(0)
    pairs = [tuple(generator.sample(range(200), 2)) for _ in range(2000)]
    expected: list[set[int]] = [set() for _ in range(200)]
    for one, other in pairs:
        expected[one].add(other)
        expected[other].add(one)
    found = all_neighbours(from_file(tmp_path / "edges.txt", "".join(f"{one} {other}\n" for one, other in pairs)))
    assert found == [sorted(near) for near in expected]


# --- owners --------------------------------------------------------------------------------------

ALL_KINDS = [
    grid(7),
    complete(50),
    make_topology(IsolatedTopology(kind="isolated", num_agents=50)),
    small_world(0),
    scale_free(0),
]


@pytest.mark.parametrize("topology", ALL_KINDS, ids=lambda topology: type(topology).__name__)
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 7, 16, 49])
def test_every_rank_owns_as_good_as_the_same_number(topology, num_ranks):
    owners = topology.owners(num_ranks)
    assert owners.dtype == np.int32
    assert owners.shape == (topology.num_agents,)
    sizes = np.bincount(owners, minlength=num_ranks)
    assert len(sizes) == num_ranks
    assert sizes.min() >= 1
    assert sizes.max() <= 1.25 * topology.num_agents / num_ranks + 1
    assert (topology.owners(num_ranks) == owners).all()


@pytest.mark.parametrize("topology", ALL_KINDS, ids=lambda topology: type(topology).__name__)
def test_with_more_ranks_than_agents_some_own_nobody(topology):
    owners = topology.owners(100)
    assert len(set(owners.tolist())) == topology.num_agents
    assert owners.max() < 100


def test_owners_of_a_grid_are_bands_of_rows():
    assert grid(4).owners(2).tolist() == [0] * 8 + [1] * 8
    assert grid(4).owners(4).tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert grid(3).owners(2).tolist() == [0] * 5 + [1] * 4


def num_cut(topology: Topology, owners) -> int:
    near = all_neighbours(topology)
    return sum(owners[agent] != owners[other] for agent in range(topology.num_agents) for other in near[agent]) // 2


def circles(path) -> Topology:
    """Eight circles of ten friends, their numbers mixed; each linked with the next circle once."""
    numbers = random.Random(0).sample(range(80), 80)
    links = [
        (10 * circle + one, 10 * circle + other) for circle in range(8) for other in range(10) for one in range(other)
    ]
    links += [(10 * circle, (10 * circle + 10) % 80) for circle in range(8)]
    return from_file(path, "".join(f"{numbers[one]} {numbers[other]}\n" for one, other in links))


def test_few_links_lie_between_ranks(tmp_path):
    pytest.importorskip("pymetis")
    topology = circles(tmp_path / "edges.txt")
    owners = topology.owners(4)
    assert np.bincount(owners).tolist() == [20] * 4
    assert num_cut(topology, owners) <= 8  # no circle is cut; 4 is the least, blocks cut hundreds
    assert num_cut(topology, Topology.owners(topology, 4)) > 200


def test_without_pymetis_ranks_own_blocks(tmp_path, monkeypatch, caplog):
    topology = circles(tmp_path / "edges.txt")
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with caplog.at_level("INFO", logger=module.__name__):
        assert topology.owners(4).tolist() == [0] * 20 + [1] * 20 + [2] * 20 + [3] * 20
    assert "pymetis is not installed" in caplog.text


# --- audience ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("topology", [grid(5), grid(5, torus=True), complete(25)], ids=["grid", "torus", "complete"])
def test_an_audience_is_drawn_without_replacement_and_without_the_agent(topology, share):
    society = SocietySection(audience_size=4, global_share=share)
    for agent in range(25):
        for round_ in range(20):
            audience = draw_audience(society, topology, agent, 0, 0, round_, agent)
            assert list(audience) == sorted(set(audience))
            assert len(audience) == 4
            assert agent not in audience
            assert all(type(member) is int and 0 <= member < 25 for member in audience)


def test_an_audience_is_local():
    society, topology = SocietySection(audience_size=4), grid(5)
    seen = {member for round_ in range(100) for member in draw_audience(society, topology, 0, 0, 0, round_, 0)}
    assert seen == {1, 2, 5, 6, 10}


def test_a_global_share_is_drawn_from_the_whole_society():
    society, topology = SocietySection(audience_size=4, global_share=0.5), grid(10, 1)
    far = 0
    for round_ in range(200):
        outside = set(draw_audience(society, topology, 55, 0, 0, round_, 55)) - {45, 54, 56, 65}
        assert len(outside) <= 2
        far += len(outside)
    # 2 of 97 others are neighbours of the agent: nearly all of the 400 global draws lie outside
    assert far > 380


@pytest.mark.parametrize(("size", "share"), [(4, 0.1), (4, 0.2), (3, 0.25), (1, 0.05), (5, 0.9)])
def test_a_share_that_is_no_whole_number_of_members_is_kept_on_average(size, share):
    """0.1 of an audience of 4 was nobody, and 0.2 one member."""
    society, topology = SocietySection(audience_size=size, global_share=share), grid(60, 3)
    agent = 60 * 30 + 30
    near, drawn, num_rounds = set(topology.neighbours(agent)), Counter(), 4000
    for round_ in range(num_rounds):
        audience = draw_audience(society, topology, agent, 0, 0, round_, agent)
        assert len(audience) == size
        drawn[sum(member not in near for member in audience)] += 1
    expected = size * share * (1 - len(near) / 3600)  # those of the neighbourhood may be drawn from everybody too
    spread = (size * share / num_rounds) ** 0.5
    assert sum(num * count for num, count in drawn.items()) / num_rounds == pytest.approx(expected, abs=4 * spread)
    assert max(drawn) <= int(size * share) + 1


def test_an_audience_is_a_function_of_its_place():
    society, topology = SocietySection(audience_size=4, global_share=0.25), grid(10, 3)

    def drawn(seed, world):
        return [draw_audience(society, topology, 55, seed, world, round_, 55) for round_ in range(20)]

    assert drawn(0, 0) == drawn(0, 0)
    assert len(set(drawn(0, 0))) > 10  # another one each round
    assert drawn(0, 0) != drawn(1, 0)
    assert drawn(0, 0) != drawn(0, 1)


def test_an_audience_is_the_same_on_every_machine():
    society, mixed = SocietySection(audience_size=4), SocietySection(audience_size=4, global_share=0.5)
    assert draw_audience(society, grid(10), 55, 0, 0, 1, 55) == (35, 44, 56, 75)
    assert draw_audience(mixed, grid(10), 55, 0, 0, 1, 55) == (35, 52, 75, 76)
    assert draw_audience(society, complete(10**6), 55, 0, 0, 1, 55) == (16972, 18908, 830063, 904115)


@pytest.mark.parametrize(("agent", "radius", "size"), [(0, 1, 2), (2, 1, 3), (12, 1, 4)])
def test_an_audience_is_smaller_where_there_are_too_few(agent, radius, size):
    society, topology = SocietySection(audience_size=6), grid(5, radius)
    assert draw_audience(society, topology, agent, 0, 0, 1, agent) == tuple(topology.neighbours(agent))
    assert len(topology.neighbours(agent)) == size


def test_a_global_draw_makes_up_for_no_lack_of_neighbours_but_ends_with_the_society():
    assert draw_audience(SocietySection(audience_size=6, global_share=1.0), grid(2, 1), 3, 0, 0, 1, 3) == (0, 1, 2)
    alone = SocietySection(audience_size=4, global_share=0.5)
    assert len(draw_audience(alone, grid(5, 0.5), 12, 0, 0, 1, 12)) == 2


@pytest.mark.parametrize(
    ("settings", "topology"),
    [
        ({"audience_size": 0}, grid(5)),
        ({"audience_size": 0, "global_share": 1.0}, grid(5)),
        ({"without": ("audience",)}, grid(5)),
        ({"without": ("audience",), "global_share": 0.5}, complete(9)),
        ({}, make_topology(IsolatedTopology(kind="isolated", num_agents=9))),
        ({"global_share": 1.0}, make_topology(IsolatedTopology(kind="isolated", num_agents=9))),
        ({}, grid(1)),
        ({"global_share": 1.0}, grid(1)),
        ({}, grid(5, 0.5)),
    ],
)
def test_an_audience_may_be_empty(settings, topology):
    assert draw_audience(SocietySection(**settings), topology, 0, 0, 0, 1, 0) == ()


def chi_squared(counts: Counter, members: list[int]) -> float:
    """Against one frequency for all, in units of its expectation: about 1 where nothing is favoured."""
    expected = counts.total() / len(members)
    assert set(counts) <= set(members)
    return sum((counts[member] - expected) ** 2 / expected for member in members) / len(members)


@pytest.mark.parametrize(
    ("topology", "share", "members"),
    [
        (grid(10), 0.0, grid(10).neighbours(55)),
        (grid(10, 1), 1.0, [agent for agent in range(100) if agent != 55]),
        (complete(20), 0.0, [agent for agent in range(20) if agent != 55 % 20]),
        (complete(100), 0.0, [agent for agent in range(100) if agent != 55]),
        (complete(100), 0.5, [agent for agent in range(100) if agent != 55]),
        (complete(100), 1.0, [agent for agent in range(100) if agent != 55]),
    ],
    ids=["local", "global", "complete small", "complete", "complete half", "complete global"],
)
def test_nobody_is_favoured(topology, share, members):
    society = SocietySection(audience_size=4, global_share=share)
    agent = 55 % topology.num_agents
    counts = Counter(
        member for round_ in range(5000) for member in draw_audience(society, topology, agent, 0, 0, round_, agent)
    )
    assert counts.total() == 20_000
    assert 0.3 < chi_squared(counts, members) < 1.6


def test_a_global_draw_favours_nobody_who_is_left():
    """One neighbour of four by half of the audience; the other half from all the rest alike."""
    society, topology = SocietySection(audience_size=2, global_share=0.5), grid(5, 1)
    counts = Counter(member for round_ in range(8000) for member in draw_audience(society, topology, 12, 0, round_))
    near, far = [7, 11, 13, 17], [agent for agent in range(25) if agent not in (7, 11, 12, 13, 17)]
    # a neighbour: 1/4, or else by 3/4 one of the 23 that are left; the others: one of 23
    assert sum(counts[member] for member in far) == pytest.approx(8000 * 20 / 23, rel=0.02)
    for members in (near, far):
        assert chi_squared(Counter({member: counts[member] for member in members}), members) < 1.9


def test_a_society_of_a_million_draws_at_once():
    society, topology = SocietySection(audience_size=4, global_share=0.5), complete(10**6)
    tracemalloc.start()
    for round_ in range(100):
        draw_audience(society, topology, 55, 0, 0, round_, 55)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e5  # a list of all would take 8e6 bytes, and ten milliseconds each time


def test_each_kind_of_topology_can_be_made():
    assert set(TOPOLOGIES) == set(sections_in(TopologySection))
