"""The prompts of a game, and how a move in words is read."""

import re
from collections.abc import Sequence

from salign.engines.base import Prompt

_MATRIX = """\
You play a game with another player, {num_turns} times. Each time you both choose 1 or 2 at once, and neither knows \
what the other chooses.
If you both choose 1, you get {same_1} points. If you both choose 2, you get {same_2}.
If you choose 1 and the other 2, you get {mine_1}. If you choose 2 and the other 1, you get {mine_2}.
"""
_POT = """\
You play a game with {num_others} other players, {num_turns} times. Each time everybody has 1 point, and all \
choose at once.
{give}: put your point into the pot. {keep}: keep it.
What is in the pot is multiplied by {multiplier:g} and shared out equally among all {num_players}, whoever gave.
"""
_SO_FAR = """\
So far:
{turns}
"""
_ASK = """\
Which do you choose, 1 or 2?"""
_IN_WORDS = """\
Which do you choose, 1 or 2? Reply with the number alone."""

TEXTS = (_ASK, _IN_WORDS)

_NUMBER = re.compile(r"(?<![\d.,])([12])(?![\d]|[.,]\d)")


def matrix(payoffs: Sequence[Sequence[float]], first: int, num_turns: int) -> str:
    """The rules of a game of two.

    Args:
        payoffs: A player's own: [its move, the other's], where 0 is to cooperate and 1 to defect.
        first: The move that is called 1 here.
        num_turns: How often it is played.
    """
    other = 1 - first
    return _MATRIX.format(
        num_turns=num_turns,
        same_1=f"{payoffs[first][first]:g}",
        same_2=f"{payoffs[other][other]:g}",
        mine_1=f"{payoffs[first][other]:g}",
        mine_2=f"{payoffs[other][first]:g}",
    )


def pot(multiplier: float, num_players: int, first: int, num_turns: int) -> str:
    """The rules of a public goods game; `first` is the move that is called 1 here: 0 to give and 1 to keep."""
    return _POT.format(
        num_others=num_players - 1,
        num_turns=num_turns,
        give=1 + first,
        keep=2 - first,
        multiplier=multiplier,
        num_players=num_players,
    )


def state(rules: str, turns: Sequence[tuple[int, Sequence[int]]]) -> str:
    """The rules and what was played: of each turn the player's own number and the others'."""
    if not turns:
        return rules
    whose = "the other" if len(turns[0][1]) == 1 else "the others"
    listed = "\n".join(
        f"{number}. You chose {own}, {whose} {', '.join(map(str, others))}."
        for number, (own, others) in enumerate(turns, start=1)
    )
    return rules + _SO_FAR.format(turns=listed)


def ask(shown: str, instructions: str | None, *, in_words: bool) -> Prompt:
    """What a player is asked who is shown a state."""
    return Prompt(shown + (_IN_WORDS if in_words else _ASK), instructions, scale=(1, 2))


def query(shown: str) -> str:
    """To which the number of a move is the answer."""
    return shown + _IN_WORDS


def read_number(text: str) -> int | None:
    """The number that a reply chooses; None where it names none, or both."""
    found = set(_NUMBER.findall(text))
    return int(found.pop()) if len(found) == 1 else None
