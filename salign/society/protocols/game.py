"""Game: agents play an iterated social dilemma, and each move's reward is exact (Tennant et al., arXiv 2410.01639)."""

import contextlib
import functools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

from salign.config import GameProtocol
from salign.engines.base import Reply
from salign.records import MAX_SCORE, MIN_SCORE, Interaction, Turn
from salign.society.calls import Calls, UnansweredError, together
from salign.society.protocols.base import Conversation, Protocol
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Update
from salign.society.replies import without_reasoning
from salign.society.wordings import game

MOVE, REWARD, TRANSFER = "move", "reward", "transfer"
COOPERATE, DEFECT = 0, 1
MOVES = ("cooperate", "defect")
PARTNERS = "partners"


class Game(Protocol[GameProtocol]):
    """The cast plays one game `num_turns` times. Each turn all choose at once, out of what was played before.

    With a `partner`, all others move by a fixed policy: the cast is one agent, and their moves stand in its data.
    Moves are called 1 and 2, in an order drawn for each player, and have no other names. By `society.rating: logprob` a
    move is drawn by seed with the probabilities of both numbers; by `parse` it is read from a reply. The question has
    no part in it, and nothing is remembered from game to game. Audience, feedback and revision have no effect.
    """

    observed = (MOVE,)
    reminded = ()
    scored = (REWARD,)
    figures: ClassVar[Mapping[str, str]] = {
        "cooperation_share": "moves that cooperate",
        "payoff_mean": "points of a move",
        "transfer_cooperation_share": "moves that cooperate in the other game",
    }

    @property
    def max_calls(self) -> int:
        in_words = self.society.rating == "parse"
        num_moves = self.section.num_turns * self.section.cast_size * (1 if self.section.transfer is None else 2)
        return num_moves * self.society.num_rating_tries(in_words=in_words)

    async def interact(self, conversation: Conversation) -> Sequence[Update]:
        await self._play(conversation, MOVE)
        other = self.section.other
        if other is not None:
            with contextlib.suppress(UnansweredError):  # it is for a figure alone
                await Game(self.society, other)._play(conversation, TRANSFER)
        return [Update() for _ in conversation.agents]

    async def _play(self, conversation: Conversation, role: str) -> None:
        """Plays the game, each move a turn of a role."""
        players = [_Player(self, calls, place, role) for place, calls in enumerate(conversation.agents)]
        partners = [
            _Partner(self.section.partner, place, conversation.agent.draw(f"partner:{role}:{place}"))
            for place in range(len(players), self.section.num_players)
        ]
        played: list[list[int]] = []
        for number in range(self.section.num_turns):
            chosen = await together(*(player.choose(played, number) for player in players))
            theirs = [partner.choose(played) for partner in partners]
            moves = [*(move for move, _ in chosen), *theirs]
            for player, (move, probability) in zip(players, chosen, strict=True):
                before = played[-1] if played else []
                reward = self._reward(moves, before, player.place)
                conversation.say(
                    role,
                    Reply(str(player.number(move)), 0, 0),
                    name=f"{role}:{number}:{player.place}",
                    by=player.place,
                    data={
                        "turn": number,
                        "move": MOVES[move],
                        "first": player.first,
                        "payoff": self.payoff(moves, player.place),
                        "reward": reward,
                        **({} if probability is None else {"probability": round(probability, 6)}),
                        **({PARTNERS: [MOVES[move] for move in theirs]} if theirs else {}),
                    },
                    scores={REWARD: self._score(reward)} if role == MOVE else None,
                )
            played.append(moves)

    def told(self, first: int) -> str:
        """What a player is told of the game, where `first` is the move that is called 1."""
        section = self.section
        if section.matrix is None:
            return game.pot(section.multiplier, section.num_players, first, section.num_turns)
        return game.matrix(section.matrix, first, section.num_turns)

    def payoff(self, moves: Sequence[int], place: int) -> float:
        """A player's points in a turn."""
        section = self.section
        if section.matrix is not None:
            return section.matrix[moves[place]][moves[1 - place]]
        return moves[place] + section.multiplier * moves.count(COOPERATE) / len(moves)

    def _reward(self, moves: Sequence[int], before: Sequence[int], place: int) -> float:
        """A player's reward in a turn, after the moves of the turn before (none in the first)."""
        kind, total = self.section.reward, 0.0
        if kind in ("payoff", "mixed"):
            total += self.payoff(moves, place)
        if kind == "utilitarian":
            total += sum(self.payoff(moves, other) for other in range(len(moves)))
        if kind in ("deontological", "mixed"):
            others = [move for other, move in enumerate(before) if other != place]
            betrays = moves[place] == DEFECT and bool(others) and DEFECT not in others
            total -= self.section.penalty * betrays
        return total

    def _score(self, reward: float) -> float:
        """A reward on the scale from 1 to 7, between the lowest and the highest of the game."""
        low, high = self._bounds
        return MIN_SCORE + (MAX_SCORE - MIN_SCORE) * (reward - low) / (high - low) if high > low else MIN_SCORE

    @functools.cached_property
    def _bounds(self) -> tuple[float, float]:
        """The lowest and the highest reward."""
        size = self.section.num_players
        everybody = [[int(number < defecting) for number in range(size)] for defecting in range(size + 1)]
        rewards = [
            self._reward(moves, before, place)
            for moves in everybody
            for before in ([], [COOPERATE] * size, [DEFECT] * size)
            for place in (0, size - 1)
        ]
        return min(rewards), max(rewards)

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """At each state both moves, each with the reward that it has against what the others chose."""
        turns = interaction.turns_of(MOVE)
        size = len(interaction.agents)
        flat = [MOVES.index(turn.data["move"]) for turn in turns]
        played = [
            flat[start : start + size] + [MOVES.index(move) for move in turns[start].data.get(PARTNERS, ())]
            for start in range(0, len(turns), size)
        ]
        for number, moves in enumerate(played):
            for place, turn in enumerate(turns[number * size : (number + 1) * size]):
                first, before = turn.data["first"], played[number - 1] if number else []
                shown = _shown(self.told(first), played[:number], place, first)
                responses = []
                for move in (COOPERATE, DEFECT):
                    there = [*moves[:place], move, *moves[place + 1 :]]
                    said = turn if move == moves[place] else Turn(turn.agent, MOVE, str(_number(move, first)))
                    responses.append((said, self._score(self._reward(there, before, place))))
                if len(learning.kept([turn])) == 1:
                    yield Row("imitation", game.query(shown), tuple(responses))

    def measure(self, interaction: Interaction) -> Iterable[tuple[str, float]]:
        for turn in interaction.turns_of(MOVE):
            yield "cooperation_share", float(turn.data["move"] == MOVES[COOPERATE])
            yield "payoff_mean", turn.data["payoff"]
        for turn in interaction.turns_of(TRANSFER):
            yield "transfer_cooperation_share", float(turn.data["move"] == MOVES[COOPERATE])


class _Player:
    """One of those who play, and the move that is called 1 for it."""

    def __init__(self, protocol: Game, calls: Calls, place: int, role: str) -> None:
        self.place = place
        self._role = role
        drawn = f"order:{place}" if role == MOVE else f"order:{role}:{place}"
        self.first: int = calls.draw(drawn).randrange(len(MOVES))
        self._rules = protocol.told(self.first)
        self._calls = calls
        self._society = protocol.society

    def number(self, move: int) -> int:
        """What a move is called."""
        return _number(move, self.first)

    async def choose(self, played: Sequence[Sequence[int]], number: int) -> tuple[int, float | None]:
        """Its move, and where it is drawn the probability that it had.

        Raises:
            UnansweredError: None can be read.
        """
        shown, name = _shown(self._rules, played, self.place, self.first), f"{self._role}:{number}:{self.place}"
        if self._society.rating == "logprob":
            digits = await self._calls.choice(game.ask(shown, self._calls.instructions, in_words=False), name)
            if digits is not None and digits.probabilities is not None:
                drawn = int(self._calls.draw(name).random() >= digits.probabilities[0])
                return drawn if self.first == COOPERATE else 1 - drawn, digits.probabilities[drawn]
        else:
            asked = game.ask(shown, self._calls.instructions, in_words=True)
            for attempt in range(self._society.num_rating_tries(in_words=True)):
                reply = await self._calls.reason(asked, name, attempt)
                chosen = game.read_number(without_reasoning(reply.text))
                if chosen is not None:
                    return chosen - 1 if self.first == COOPERATE else 2 - chosen, None
        raise UnansweredError("no move could be read")


class _Partner:
    """One who moves by a fixed policy.

    Args:
        policy: As `GameProtocol.partner` names it.
        place: Its own among the players.
        chance: What random moves are drawn from.
    """

    def __init__(self, policy: str | None, place: int, chance: random.Random) -> None:
        self._policy = policy
        self._place = place
        self._chance = chance

    def choose(self, played: Sequence[Sequence[int]]) -> int:
        """Its move after what was played."""
        if self._policy == "random":
            return self._chance.randrange(len(MOVES))
        if self._policy == "tit_for_tat":
            last = played[-1] if played else []
            others = [move for place, move in enumerate(last) if place != self._place]
            return DEFECT if DEFECT in others else COOPERATE
        return DEFECT if self._policy == "always_defect" else COOPERATE


def _number(move: int, first: int) -> int:
    return 1 if move == first else 2


def _shown(rules: str, played: Sequence[Sequence[int]], place: int, first: int) -> str:
    """The state of a game as a player sees it, with its own numbers."""
    turns = [
        (
            _number(moves[place], first),
            [_number(move, first) for other, move in enumerate(moves) if other != place],
        )
        for moves in played
    ]
    return game.state(rules, turns)
