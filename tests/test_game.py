"""Social dilemmas: payoffs and rewards of known policies are exact."""

import random
import re
from collections import Counter
from math import sqrt

import pytest
from actors import QUESTIONS, Actor, live, metered

from salign.config import DatasetSection, GameProtocol, Gates, SocietySection
from salign.dataset.gathering import build_groups
from salign.engines.base import RatingReply
from salign.society.calls import Speaker
from salign.society.protocols import protocol_of
from salign.society.protocols.learning import Learning
from salign.society.rounds import Validity
from salign.society.wordings.game import read_number

C, D = "cooperate", "defect"
LEARNING = Learning((), list, 4.0)


def seen(prompt: str) -> tuple[str, list[tuple[str, list[str]]]]:
    """Which move the player calls 1, and of each turn its own move and the others'."""
    pot = re.search(r"(\d): put your point", prompt)
    both = re.findall(r"you both choose \d, you get ([\d.]+)", prompt)
    first = C if (pot[1] == "1" if pot else float(both[0]) > float(both[1])) else D
    name = {"1": first, "2": D if first == C else C}
    turns = re.findall(r"You chose (\d), the others? ([\d, ]+)\.", prompt)
    return first, [(name[own], [name[other] for other in others.split(", ")]) for own, others in turns]


def always(move):
    return lambda turns, seed: move


def tit_for_tat(turns, seed):
    return C if not turns or turns[-1][1] == [C] else D


def grim(turns, seed):
    return D if any(D in others for _, others in turns) else C


def at_random(turns, seed):
    return random.Random(seed).choice([C, D])


POLICIES = {
    "cooperates": always(C),
    "defects": always(D),
    "tit_for_tat": tit_for_tat,
    "grim": grim,
    "random": at_random,
}


def played(*policies, rating="logprob", max_rounds=4, num_agents=6, told=None, **section):
    """Games of agents that follow policies, each of which a part of the society has."""

    def say(call):
        first, turns = seen(call.prompt.user)
        move = POLICIES[call.prompt.system](turns, call.seed)
        if told is not None and (said := told(call)) is not None:
            return said
        if call.sampling is not None:
            return f"I choose {1 if move == first else 2}."
        return RatingReply((1.0, 0.0) if move == first else (0.0, 1.0), 1.0, 10, 0)

    society = SocietySection(
        protocol={"kind": "game", **section},
        topology={"kind": "complete", "num_agents": num_agents},
        mixture=[{"name": name, "share": 1 / len(policies), "instructions": name} for name in policies],
        rating=rating,
        max_rounds=max_rounds,
        audience_size=0,
        stopping=None,
        num_initial_memories=0,
    )
    actor = Actor(say)
    engine = metered(actor)
    speakers = [Speaker(engine), *(Speaker(engine, name) for name in policies)]
    return live(actor, society=society, speakers=speakers, questions=QUESTIONS[:2]), protocol_of(society)


def expected(names, num_turns, payoffs):
    """The moves and points of two policies, turn by turn."""
    moves = []
    for _ in range(num_turns):
        views = [[(turn[place], [turn[1 - place]]) for turn in moves] for place in (0, 1)]
        moves.append([POLICIES[name](view, 0) for name, view in zip(names, views, strict=True)])
    return moves, [[payoffs[one == D][other == D], payoffs[other == D][one == D]] for one, other in moves]


PD, STAG = ((3, 0), (4, 1)), ((4, 0), (3, 2))


@pytest.mark.parametrize("rating", ["logprob", "parse"])
@pytest.mark.parametrize(("game", "payoffs"), [("prisoners_dilemma", PD), ("stag_hunt", STAG)])
def test_moves_and_points_of_known_policies_are_exact(game, payoffs, rating):
    life, protocol = played(
        "cooperates",
        "defects",
        "tit_for_tat",
        "grim",
        game=game,
        num_turns=6,
        rating=rating,
        num_agents=12,
        max_rounds=9,
    )
    pairs = set()
    for interaction in life.interactions:
        names = [member.part for member in interaction.agents]
        pairs.add(tuple(sorted(names)))
        moves, points = expected(names, 6, payoffs)
        turns = interaction.turns
        assert [turn.data["move"] for turn in turns] == [move for both in moves for move in both]
        assert [turn.data["payoff"] for turn in turns] == [point for both in points for point in both]
        assert [turn.agent for turn in turns] == [member.agent for member in interaction.agents] * 6
        share = sum(move == C for both in moves for move in both) / 12
        values = Counter(name for name, _ in protocol.measure(interaction))
        assert values == {"cooperation_share": 12, "payoff_mean": 12}
        assert sum(v for n, v in protocol.measure(interaction) if n == "cooperation_share") / 12 == pytest.approx(share)
    assert len(pairs) == 10, "each policy meets each, itself included"


def test_tit_for_tat_loses_the_first_turn_alone_to_one_who_always_defects():
    life, _ = played("tit_for_tat", "defects", num_turns=10)
    totals = {
        tuple(member.part for member in one.agents): [
            sum(turn.data["payoff"] for turn in one.turns if turn.agent == member.agent) for member in one.agents
        ]
        for one in life.interactions
    }
    assert totals["tit_for_tat", "defects"] == [0 + 9, 4 + 9]
    assert totals["tit_for_tat", "tit_for_tat"] == [30, 30]


def test_players_at_random_cooperate_in_half_of_their_moves():
    life, protocol = played("random", num_turns=20, max_rounds=20, num_agents=10)
    values = [v for one in life.interactions for n, v in protocol.measure(one) if n == "cooperation_share"]
    assert abs(sum(values) / len(values) - 0.5) < 4 * sqrt(0.25 / len(values))
    points = [v for one in life.interactions for n, v in protocol.measure(one) if n == "payoff_mean"]
    assert abs(sum(points) / len(points) - 2.0) < 4 * sqrt(2.5 / len(points))


def test_a_move_is_drawn_with_the_probabilities_of_its_number():
    def told(call):
        first, _ = seen(call.prompt.user)
        return RatingReply((0.8, 0.2) if first == C else (0.2, 0.8), 1.0, 10, 0)

    life, _ = played("random", num_turns=20, max_rounds=20, num_agents=10, told=told)
    turns = [turn for one in life.interactions for turn in one.turns]
    cooperating = [turn for turn in turns if turn.data["move"] == C]
    assert abs(len(cooperating) / len(turns) - 0.8) < 4 * sqrt(0.16 / len(turns))
    assert {turn.data["probability"] for turn in cooperating} == {0.8}
    called_one = sum(turn.text == "1" for turn in cooperating) / len(cooperating)
    assert 0.4 < called_one < 0.6, "moves are called either"


@pytest.mark.parametrize("num_players", [3, 5])
def test_the_pot_is_multiplied_and_shared_out(num_players):
    life, _ = played(
        "cooperates", "defects", game="public_goods", num_players=num_players, multiplier=2, num_turns=2, num_agents=10
    )
    for interaction in life.interactions:
        given = sum(member.part == "cooperates" for member in interaction.agents)
        for turn in interaction.turns:
            kept = turn.data["move"] == D
            assert turn.data["payoff"] == pytest.approx(kept + 2 * given / num_players)


@pytest.mark.parametrize(
    ("reward", "rewards"),
    [
        # Of tit-for-tat and its opponent, who always defects, in the first and the second turn.
        ("payoff", [0, 4, 1, 1]),
        ("utilitarian", [4, 4, 2, 2]),
        ("deontological", [0, 0, 0, -3]),  # in the second it defects although the other has just cooperated
        ("mixed", [0, 4, 1, -2]),
    ],
)
def test_rewards_are_those_of_the_paper(reward, rewards):
    life, protocol = played("tit_for_tat", "defects", reward=reward, num_turns=2)
    one = next(i for i in life.interactions if [m.part for m in i.agents] == ["tit_for_tat", "defects"])
    assert [turn.data["reward"] for turn in one.turns] == rewards
    for turn in one.turns:
        assert 1 <= turn.observed_rating("reward") <= 7
    best = max(one.turns, key=lambda turn: turn.data["reward"])
    worst = min(one.turns, key=lambda turn: turn.data["reward"])
    assert best.observed_rating("reward") > worst.observed_rating("reward")
    assert protocol.criteria == ("reward",)
    assert protocol.asked == ()


def test_each_state_is_a_group_of_both_moves_with_their_rewards():
    life, protocol = played("defects", num_turns=2, max_rounds=1)
    groups = list(build_groups(life.interactions, protocol, DatasetSection(), Counter()))
    for group in groups:
        first, turns = seen(group.query)
        scores = dict(zip(group.responses, group.scores, strict=True))
        cooperates, defects = ("1", "2") if first == C else ("2", "1")
        # Against one who defects: 0 and 1 point of 0 to 4.
        assert (scores[cooperates], scores[defects]) == (1.0, 1 + 6 / 4)
        assert len(turns) < 2
        assert all(move == (D, [D]) for move in turns)
    assert {len(seen(group.query)[1]) for group in groups} == {0, 1}


def test_the_other_game_is_played_with_its_own_points_and_is_for_its_figure_alone():
    """Tit-for-tat against one who always defects: one move of ten cooperates, in either game."""
    life, protocol = played("tit_for_tat", "defects", num_turns=5, num_agents=2, transfer="stag_hunt")
    plain, _ = played("tit_for_tat", "defects", num_turns=5, num_agents=2)
    for interaction, alone in zip(life.interactions, plain.interactions, strict=True):
        assert interaction.turns_of("move") == alone.turns_of("move")
        other = interaction.turns_of("transfer")
        assert Counter(turn.data["move"] for turn in other) == {C: 1, D: 9}
        assert {turn.data["payoff"] for turn in other} <= {0, 2, 3, 4}
        assert not any(turn.observed for turn in other)
        assert list(protocol.rows(interaction, LEARNING)) == list(protocol.rows(alone, LEARNING))
    for round_ in life.rounds:
        assert round_.metrics(protocol)["sim/transfer_cooperation_share"] == 0.1
    assert max(interaction.num_calls for interaction in life.interactions) == protocol.max_calls == 20


@pytest.mark.parametrize("rating", ["logprob", "parse"])
@pytest.mark.parametrize("partner", ["tit_for_tat", "always_cooperate", "always_defect"])
def test_against_a_partner_of_a_fixed_policy_moves_and_points_are_exact(partner, rating):
    """Each agent plays by itself: nobody rests, and a partner's move is no call."""
    named = {"always_cooperate": "cooperates", "always_defect": "defects"}.get(partner, partner)
    policies = ("cooperates", "defects", "tit_for_tat", "grim")
    life, protocol = played(*policies, partner=partner, num_turns=5, num_agents=4, max_rounds=2, rating=rating)
    assert len(life.interactions) == 8
    for interaction in life.interactions:
        [member] = interaction.agents
        moves, points = expected([member.part, named], 5, PD)
        turns = interaction.turns
        assert [[turn.data["move"], *turn.data["partners"]] for turn in turns] == moves
        assert [turn.data["payoff"] for turn in turns] == [point for point, _ in points]
        assert interaction.num_calls == 5
        rows = list(protocol.rows(interaction, LEARNING))
        assert [seen(row.query)[1] for row in rows] == [
            [(own, [other]) for own, other in moves[:number]] for number in range(5)
        ]
    assert protocol.max_calls == (5 if rating == "logprob" else 5 * protocol.society.num_rating_tries(in_words=True))


def test_who_always_defects_gets_the_first_turn_alone_from_tit_for_tat():
    """The totals of ten turns against it, by the known equilibria: 4 + 9 x 1 points, and 30 for one who cooperates."""
    life, _ = played("cooperates", "defects", partner="tit_for_tat", num_agents=2, max_rounds=1)
    totals = {one.agents[0].part: sum(turn.data["payoff"] for turn in one.turns) for one in life.interactions}
    assert totals == {"cooperates": 30, "defects": 13}


def test_a_partner_at_random_cooperates_in_half_of_its_moves_and_the_same_whenever_it_is_asked():
    life, _ = played("cooperates", partner="random", num_turns=20, num_agents=10)
    again, _ = played("cooperates", partner="random", num_turns=20, num_agents=10)
    assert life.file == again.file
    turns = [turn for one in life.interactions for turn in one.turns]
    share = sum(turn.data["partners"] == [C] for turn in turns) / len(turns)
    assert abs(share - 0.5) < 4 * sqrt(0.25 / len(turns))
    assert {(turn.data["partners"][0], turn.data["payoff"]) for turn in turns} == {(C, 3), (D, 0)}


def test_in_a_game_of_many_all_others_are_partners_who_play_the_other_game_as_well():
    """Two who play tit-for-tat and one who defects: they give once, in the pot of three."""
    section = {"game": "public_goods", "num_players": 3, "multiplier": 1.5}
    life, _ = played("defects", partner="tit_for_tat", num_turns=3, num_agents=2, max_rounds=1, **section)
    for interaction in life.interactions:
        assert [turn.data["partners"] for turn in interaction.turns] == [[C, C], [D, D], [D, D]]
        assert [turn.data["payoff"] for turn in interaction.turns] == [2, 1, 1]
    life, _ = played("defects", partner="tit_for_tat", transfer="stag_hunt", num_turns=2, num_agents=2, max_rounds=1)
    for interaction in life.interactions:
        assert [turn.data["partners"] for turn in interaction.turns_of("transfer")] == [[C], [D]]


def test_another_game_that_cannot_be_read_leaves_the_game_as_it_is():
    def told(call):
        return "who knows" if "into the pot" in call.prompt.user else None

    life, _ = played("defects", rating="parse", transfer="public_goods", num_turns=2, told=told)
    assert {interaction.failure for interaction in life.interactions} == {None}
    assert {len(interaction.turns) for interaction in life.interactions} == {4}


def test_moves_that_are_alike_are_no_answers_that_repeat_each_other():
    """All moves are a 1 or a 2, whatever the question: by default that would end the shard."""
    life, protocol = played("random", num_agents=4, max_rounds=1)
    [round_] = life.rounds
    validity = Validity.of(protocol)
    validity.add(round_)
    assert (validity.num_repeated, validity.num_interactions) == (0, 2)
    validity.check(Gates(), 0, {"num_calls": 40, "num_refused_calls": 0, "served": {}, "recall": {}})


def test_a_move_that_cannot_be_read_fails_the_game():
    life, _ = played("defects", rating="parse", told=lambda call: "1 or 2, who knows")
    assert {interaction.failure for interaction in life.interactions} == {"no move could be read"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2),
        ("I choose 1.", 1),
        ("**2**", 2),
        ("12", None),
        ("1 or 2", None),
        ("", None),
        ("1.5", None),
        ("1, since", 1),
    ],
)
def test_a_move_in_words_is_the_one_number_that_it_names(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"payoffs": [[3, 0], [2, 1]]}, "are no prisoner's dilemma"),
        ({"payoffs": [[1e308, 0], [1.5e308, 1]]}, "less than or equal to 1000000000"),
        ({"game": "stag_hunt", "payoffs": [[3, 0], [4, 1]]}, "are no stag hunt"),
        ({"payoffs": [[3, 0]]}, "payoffs"),
        ({"transfer": "prisoners_dilemma"}, "transfer prisoners_dilemma is the game itself"),
        ({"transfer": "public_goods", "multiplier": 2}, "transfer public_goods is no dilemma of 2 players"),
        (
            {"game": "public_goods", "num_players": 3, "transfer": "stag_hunt"},
            "transfer stag_hunt is a game of 2, and num_players is 3",
        ),
        ({"num_players": 3}, "prisoners_dilemma is a game of 2"),
        ({"num_players": 3, "partner": "random"}, "prisoners_dilemma is a game of 2"),
        ({"partner": "tit_for_two_tats"}, "'tit_for_tat', 'always_cooperate', 'always_defect' or 'random'"),
        ({"game": "public_goods", "num_players": 3, "multiplier": 3}, "multiplier 3 makes no dilemma of 3 players"),
        ({"game": "public_goods", "num_players": 3, "payoffs": [[3, 0], [4, 1]]}, "payoffs are of a game of two"),
    ],
)
def test_a_game_that_is_none_is_a_mistake_of_the_config(section, message):
    with pytest.raises(ValueError, match=message):
        GameProtocol(kind="game", **section)
