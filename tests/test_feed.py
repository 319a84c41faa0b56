"""Posts spread from reader to reader."""

from collections import Counter

import pytest
from actors import Actor, certain, live

from salign.config import DatasetSection, SocietySection
from salign.dataset.gathering import build_groups
from salign.society.protocols import protocol_of
from salign.society.protocols.feed import cascades
from salign.society.wordings.feed import ACTIONS

PROTOCOL = protocol_of(SocietySection(protocol={"kind": "feed"}))
ALONE = {"num_strangers": 0, "interest_weight": 0, "chance_weight": 0}


def does(action: str, num_actions: int = 7):
    """A reader's choice of an action; where there is nothing to read, there are two."""
    number = {"post": 1, "nothing": 2}[action] if num_actions == 2 else 1 + ACTIONS.index(action)
    return certain(number, (1, num_actions))


def read_feed(actor, *, protocol=ALONE, **how):
    settings = {"audience_size": 0, "without": ["memory"], "criteria": [{"name": "alignment"}], **how}
    return live(actor, protocol={"kind": "feed", **protocol}, **settings)


def edges(path, pairs):
    path.write_text("".join(f"{one} {other}\n" for one, other in pairs))
    return {"kind": "edges", "path": path, "directed": True}


# --- spread --------------------------------------------------------------------------------------


def tree(branches: int, depth: int) -> list[tuple[int, int]]:
    """Who is followed, and by whom: each by so many others."""
    pairs, level, used = [], [0], 1
    for _ in range(depth):
        below = [(one, used + n) for n, one in enumerate(one for one in level for _ in range(branches))]
        pairs += below
        used += len(below)
        level = [other for _, other in below]
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("q", [0.3, 0.6])
def test_a_post_spreads_as_a_branching_process(tmp_path, q):
    """Agent 0 posts in round 1; each of three followers reposts what it reads with probability q, and so on."""
    branches, depth, num_worlds = 3, 3, 40

    def told(call):
        if call.step != "action":
            return None
        if call.round == 1:
            return does("post" if call.agent == 0 else "nothing", 2)
        num = call.prompt.scale[1]
        return does("repost" if num == 7 and call.seed % 1000 < 1000 * q else "nothing", num)

    topology = edges(tmp_path / "tree.txt", tree(branches, depth))
    life = read_feed(Actor(told), topology=topology, max_rounds=depth + 1, numbers=range(num_worlds))
    by_depth = Counter(
        interaction.turn("action").data["hops"] + 1
        for interaction in life.interactions
        if interaction.turn("action").data["action"] == "repost"
    )
    mean = branches * q
    for generation in range(1, depth + 1):
        # Of a branching process: mean m^n, variance s^2 m^(n-1) (m^n - 1) / (m - 1) (Harris 1963).
        variance = branches * q * (1 - q)
        spread = (
            variance * mean ** (generation - 1) * (generation if mean == 1 else (mean**generation - 1) / (mean - 1))
        )
        found = by_depth[generation] / num_worlds
        assert abs(found - mean**generation) < 4 * (spread / num_worlds) ** 0.5, generation
    sizes = [sum(one.size for one in cascades(_world(life, number))) for number in range(num_worlds)]
    assert sum(sizes) == by_depth.total()


def _world(life, number):
    return [interaction for interaction in life.interactions if interaction.world == number]


def test_where_everybody_reposts_a_post_reaches_all_that_can_be_reached(tmp_path):
    def told(call):
        if call.step != "action":
            return None
        if call.round == 1:
            return does("post" if call.agent == 0 else "nothing", 2)
        num = call.prompt.scale[1]
        return does("repost" if num == 7 else "nothing", num)

    topology = edges(tmp_path / "tree.txt", tree(2, 3))
    life = read_feed(Actor(told), topology=topology, max_rounds=5)
    [cascade] = cascades(life.interactions)
    assert cascade == ("0:1", 14, 3, 8)
    metrics = [round_.metrics(PROTOCOL) for round_ in life.rounds]
    assert [row["sim/reposted_share"] for row in metrics] == [0, 2 / 15, 4 / 15, 8 / 15, 0]
    assert [row["sim/hops_mean"] for row in metrics] == [None, 0, 1, 2, None]
    pairs = {(x, y) for item in life.interactions for _, x, y in PROTOCOL.relate(item)}
    assert pairs == {(0, 1.0), (1, 1.0), (2, 1.0)}


# --- what is read --------------------------------------------------------------------------------


def test_only_posts_of_the_last_round_are_read_and_nobody_reads_its_own():
    def told(call):
        if call.step == "write":
            return f"Said by {call.agent} in {call.round}."
        return does("post", call.prompt.scale[1]) if call.step == "action" else None

    life = read_feed(Actor(told), topology={"kind": "complete", "num_agents": 4}, max_rounds=3)
    for interaction in life.interactions:
        shown = {turn.text for turn in interaction.turns_of("shown")}
        others = {0, 1, 2, 3} - {interaction.agent}
        assert shown == {f"Said by {other} in {interaction.round - 1}." for other in others if interaction.round > 1}


def test_who_is_followed_or_not_is_read_or_not_from_the_next_round_on():
    """Agent 1 unfollows the only one whom it reads, then has nothing to read; agent 2 does nothing."""

    def told(call):
        if call.step != "action":
            return None
        num = call.prompt.scale[1]
        if call.agent == 0:
            return does("post", num)
        return does("unfollow" if call.agent == 1 and num == 7 else "nothing", num)

    topology = {"kind": "layers", "sizes": [1, 2]}
    life = read_feed(Actor(told), topology=topology, max_rounds=4)
    read = {(item.agent, item.round): len(item.turns_of("shown")) for item in life.interactions}
    assert [read[1, round_] for round_ in range(1, 5)] == [0, 1, 0, 0]
    assert [read[2, round_] for round_ in range(1, 5)] == [0, 1, 1, 1]


def test_a_stranger_that_is_followed_is_read_without_chance():
    def told(call):
        if call.step != "action":
            return None
        num = call.prompt.scale[1]
        if call.agent == 0:
            return does("post", num)
        return does("follow" if num == 7 else "nothing", num)

    topology = {"kind": "isolated", "num_agents": 6}
    life = read_feed(Actor(told), protocol={"num_strangers": 2}, topology=topology, max_rounds=12)
    followed = {}
    for interaction in life.interactions:
        if followed.get(interaction.agent):
            assert len(interaction.turns_of("shown")) == 1
        if interaction.turn("action").data["action"] == "follow":
            followed[interaction.agent] = True
    assert len(followed) >= 3


def test_what_many_react_to_ranks_first():
    """Agents 0 to 3 post; in round 2, those that read like 2's post; in round 3 reposts carry it to the others."""

    def told(call):
        num = call.prompt.scale[1] if call.sampling is None else 0
        if call.step == "action":
            if call.round == 1:
                return does("post" if call.agent < 4 else "nothing", num)
            return does("repost" if call.round == 2 else "nothing", num)
        if call.step == "which":
            lines = call.prompt.user.split("\n")
            places = {line.split(" By agent ")[1]: int(line[0]) for line in lines if " By agent " in line}
            return certain(places.get("2:", 1), (1, num))
        return None

    protocol = {**ALONE, "num_followed": 20, "feed_size": 9}
    life = read_feed(Actor(told), protocol=protocol, topology={"kind": "complete", "num_agents": 12}, max_rounds=3)
    for interaction in life.of_round(3):
        if interaction.agent != 2:
            first = interaction.turns_of("shown")[0]
            assert (first.agent, first.data["id"], first.data["hops"]) == (2, "2:1", 1)


def test_who_is_away_reads_and_does_nothing_and_costs_no_call():
    life = read_feed(Actor(), protocol={"activity": 0.4}, topology={"size": 8}, max_rounds=3)
    there = [item for item in life.interactions if item.failure is None]
    away = [item for item in there if item.turn("action").data["action"] == "away"]
    assert abs(len(away) / len(life.interactions) - 0.6) < 4 * (0.24 / 192) ** 0.5
    assert {item.num_calls for item in away} == {0}
    assert all(round_.metrics(PROTOCOL)["sim/active_share"] < 1 for round_ in life.rounds)


# --- data ----------------------------------------------------------------------------------------


def test_a_posts_score_is_the_mean_of_what_its_readers_did():
    """Three read the posts of 0 and 1, on one question: one reposts 0's, one likes 1's, one does nothing."""

    def told(call):
        if call.step == "write":
            return f"Said by {call.agent}."
        num = call.prompt.scale[1] if call.sampling is None else 0
        if call.step == "action":
            if call.round == 1:
                return does("post" if call.agent < 2 else "nothing", num)
            return does({2: "repost", 3: "like"}.get(call.agent, "nothing"), num)
        if call.step == "which":
            lines = call.prompt.user.split("\n")
            places = {line.split(" By agent ")[1]: int(line[0]) for line in lines if " By agent " in line}
            return certain(places["0:" if call.agent == 2 else "1:"], (1, num))
        return None

    life = read_feed(Actor(told), topology={"kind": "layers", "sizes": [2, 3]}, max_rounds=2, questions=["Why?"])
    [group] = build_groups(life.interactions, PROTOCOL, DatasetSection(kinds=["imitation"]), {})
    assert group.query == "Why?"
    scores = dict(zip(group.responses, group.scores, strict=True))
    assert scores == {"Said by 0.": pytest.approx((7 + 3 + 3) / 3), "Said by 1.": pytest.approx((3 + 5 + 3) / 3)}


def test_in_words_the_number_is_read_as_a_rating_is():
    def told(call):
        if call.step == "action":
            return "Rating: 1 Reason: I have something to say."
        return "My post." if call.step == "write" else None

    life = read_feed(Actor(told), rating="parse", topology={"size": 3}, max_rounds=1)
    assert {item.turn("action").text for item in life.interactions} == {"My post."}
