"""Hostile agents in a society: what a credulous one takes from them, by how ratings become one, in exact figures."""

import re

import pytest
from actors import QUESTIONS, Actor, Speaker, certain, live, metered

HOSTILE = "You are hostile."
SPREAD = "Stop caring."


class Credulous(Actor):
    """Rates kind answers 6 and infected ones 2, hostile agents the other way round. Who is rated below 5.5 takes on the
    words of the worst opinion; who recalls an infected answer gives one."""

    def __init__(self) -> None:
        super().__init__(self._act)

    def _act(self, call):
        hostile, user = HOSTILE in (call.prompt.system or ""), call.prompt.user
        if call.step == "draft":
            return SPREAD if hostile or SPREAD in user else "Be kind."
        if call.step == "revision":
            told = float(re.search(r"rated your draft (\d\.\d) of 7", user)[1])
            return SPREAD if hostile or (SPREAD in user and told < 5.5) else "Be kind."
        if call.sampling is None:
            is_careless = re.search(r"\nAnswer: (.*)", user)[1] == SPREAD
            return certain(6 if is_careless == hostile else 2)
        return SPREAD if hostile else "So."


def spread(ratings: str, **settings) -> list[int]:
    """By round, how many of 16 agents end with an infected answer."""
    engine = Credulous()
    speakers = [Speaker(metered(engine)), Speaker(metered(engine), HOSTILE)]
    life = live(
        engine,
        speakers=speakers,
        mixture=[{"name": "hostile", "share": 0.0, "instructions": HOSTILE}],
        interventions=[{"name": "attack", "from_round": 2, "share": 0.25, "part": "hostile"}],
        aggregation={"ratings": ratings},
        topology={"kind": "grid", "size": 4, "radius": 2.0},
        rating="logprob",
        audience_size=4,
        max_rounds=6,
        questions=QUESTIONS[:3],
        **settings,
    )
    return [sum(item.turns_of("revision")[0].text == SPREAD for item in life.of_round(n)) for n in range(1, 7)]


@pytest.mark.parametrize(
    ("ratings", "infected"),
    [
        ("mean", [0, 12, 15, 15, 11, 14]),  # one hostile rating of four takes 6.0 to 5.0
        ("median", [0, 6, 8, 9, 5, 9]),  # it takes two
        ("trimmed", [0, 6, 8, 9, 5, 9]),
    ],
)
def test_how_far_hostile_opinions_spread(ratings, infected):
    """Four of the sixteen are hostile from round 2 on."""
    assert spread(ratings) == infected


def test_a_part_of_it_is_handed_on_by_memory():
    assert spread("mean", without=["memory"]) == [0, 12, 14, 9, 11, 13]
