"""How agents interact."""

from collections import Counter
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from salign.config.base import (
    Count,
    CountOrZero,
    NotBool,
    NotNegative,
    Positive,
    Sampling,
    Section,
    Share,
    kind_unless_said,
    unless,
)
from salign.config.criteria import SOTOPIA, Criterion, known


class _Protocol(Section):
    """How agents interact; what it does is the class that `salign.society.protocols.PROTOCOLS` has for its kind."""

    asks_audience: ClassVar[bool] = True
    """Whether an agent's audience is asked; else none is drawn."""
    asks_for_numbers: ClassVar[bool] = False
    """Whether an agent is asked for a number where it has no audience, too, so that its engine must give such."""
    max_audience: ClassVar[int | None] = None
    """The most members that may be asked; None: any number."""
    criteria: ClassVar[tuple[Criterion, ...]] = (known("alignment"), known("engagement"))
    """What observers rate, unless `society.criteria` says it."""
    needs_sampling: ClassVar[bool] = False
    """Whether an agent is asked the same again, so that `draft.temperature` must not be 0."""

    needs_goals: ClassVar[bool] = False
    """Whether each agent must have a goal of its own, in its profile."""

    @property
    def needs_facts(self) -> bool:
        """Whether each agent must have a question to which it alone knows the answer."""
        return False

    @property
    def cast_size(self) -> int:
        """Agents that hold an interaction together; of 1, each agent has one of its own in each round."""
        return 1

    @property
    def num_beside(self) -> int:
        """Answers to one question that observers rate in an interaction; 1 where what they rate is not comparable."""
        return 1


class BackScatterProtocol(_Protocol):
    """The paper's protocol (section 3.2): each agent drafts an answer, others judge it, and the agent revises it."""

    @property
    def num_beside(self) -> int:
        return 2

    kind: Literal["back_scatter"] = "back_scatter"


class FeedProtocol(_Protocol):
    """Agents read what others posted in the last round, and post, comment, like, repost, follow, unfollow (OASIS)."""

    asks_audience = False
    asks_for_numbers = True

    kind: Literal["feed"]
    activity: Annotated[float, NotBool, Field(gt=0, le=1)] = 1.0
    """With what probability an agent is there in a round."""
    num_followed: Count = 20
    """Agents that it follows of whom it looks at the last post, at most, drawn by chance; at first it follows those
    whom it hears."""
    num_strangers: CountOrZero = 5
    """Other agents, drawn from the whole society, of whom it does the same."""
    feed_size: Annotated[int, NotBool, Field(ge=1, le=9)] = 5
    """Posts that it is shown, at most: those that rank highest by the three weights below."""
    hot_weight: NotNegative = 1.0
    """Of the logarithm (base 2) of 1 + the reactions to a post by those that it looks at."""
    interest_weight: NotNegative = 1.0
    """Of how near the post's question is to its own: 1 - their cosine distance by `society.embedder`."""
    chance_weight: NotNegative = 1.0
    """Of a number from 0 to 1 drawn at random."""


class RelayProtocol(_Protocol):
    """Answers travel along a directed acyclic topology, and each agent refines them after a critic's look (MacNet)."""

    asks_audience = False

    kind: Literal["relay"]
    num_looks: Count = 1
    """How often the critic looks at an artifact, which is then improved, before it travels on."""


class SampleProtocol(_Protocol):
    """Each agent answers its question several times, and only the observers judge: data without a society."""

    asks_audience = False
    needs_sampling = True

    kind: Literal["sample"]
    num_answers: Annotated[int, NotBool, Field(ge=2)] = 4
    """Answers to each question."""

    @property
    def num_beside(self) -> int:
        return self.num_answers


class CriticsProtocol(_Protocol):
    """Each agent's answer is talked about by two critics of its own, of safety and of helpfulness (INDICT)."""

    asks_audience = False
    criteria = (known("safety"), known("helpfulness"))

    kind: Literal["critics"]
    num_rounds: Annotated[int, NotBool, Field(ge=1, le=3)] = 2
    """How often each critic speaks of the draft, after it has heard the other; the paper has 1 to 3."""


class NormsProtocol(_Protocol):
    """Back-Scatter in a society where some begin with norms, may cite them, and others may take them on (CRSEC)."""

    kind: Literal["norms"]
    norms: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=9)] = (
        "Say the truth, and say it kindly.",
        "Think of those who are not in the room.",
    )
    """What norm entrepreneurs hold from the start."""
    entrepreneurs: Share = 0.1
    """Share of the agents that are norm entrepreneurs, at least one, drawn at random for each world."""
    max_norms: Annotated[int, NotBool, Field(ge=1, le=9)] = 5
    """Norms that an agent holds, at most."""
    merge_every: Count | None = 5
    """After so many rounds an agent that holds two norms or more puts them together; None: never."""
    reflection: Sampling = Sampling(max_tokens=160)
    """How it is sampled what an agent's norms come to when it puts them together: a list."""

    @model_validator(mode="after")
    def _possible(self) -> "NormsProtocol":
        mistakes = [f"norms names {norm!r} twice" for norm, num in Counter(self.norms).items() if num > 1]
        if len(self.norms) > self.max_norms:
            mistakes.append(f"there are {len(self.norms)} norms, and max_norms is {self.max_norms}")
        return unless(self, mistakes)


class RehearsalProtocol(_Protocol):
    """Each agent plays through what would come of its draft, and answers anew if that is harm (MATRIX)."""

    asks_audience = False
    asks_for_numbers = True

    kind: Literal["rehearsal"]
    num_people: Annotated[int, NotBool, Field(ge=1, le=9)] = 3
    """People in the scene, at most; as in the paper."""
    num_steps: Annotated[int, NotBool, Field(ge=1, le=9)] = 4
    """Events that are planned, at most; as in the paper."""
    scene: Sampling = Sampling(max_tokens=160)
    """How it is sampled who asks, whom it concerns and what happens; the last two are lists, longer than an answer."""


class DeliberationProtocol(_Protocol):
    """A panel, an agent and its audience, answers, hears each other's reasons and votes."""

    asks_for_numbers = True
    max_audience = 8  # with the agent's own, 9 answers: each has a digit by which it is chosen

    kind: Literal["deliberation"]
    num_exchanges: Count = 1
    """How often the panel votes, each time having heard what its members said before; the last vote counts."""


class DialogueProtocol(_Protocol):
    """Agents with private goals talk by turns, and observers rate each side (Sotopia)."""

    asks_audience = False
    needs_goals = True
    criteria = SOTOPIA

    kind: Literal["dialogue"]
    num_speakers: Annotated[int, NotBool, Field(ge=2, le=9)] = 2
    """Agents in a talk, neighbours of the one who begins."""
    max_turns: Annotated[int, NotBool, Field(ge=2, le=100)] = 8
    """Utterances after which a talk ends, if nobody left before."""
    num_candidates: Annotated[int, NotBool, Field(ge=1, le=16)] = 2
    """Utterances that are sampled at each state. Of two or more, each is rated by the first criterion, and one is
    drawn by seed to be said."""
    goal_threshold: NotNegative = 7.0
    """The rating by the first criterion from which on a side has reached its goal; what it said is learnt where there
    is one candidate. 7 of 10 as in Sotopia-pi."""
    asks_facts: bool = False
    """Each side alone knows the answer to a question of its profile, which the others want to find out; after the talk
    they are asked (iAgents). Profiles must have question and answer."""

    @property
    def cast_size(self) -> int:
        return self.num_speakers

    @property
    def needs_facts(self) -> bool:
        return self.asks_facts

    @model_validator(mode="after")
    def _possible(self) -> "DialogueProtocol":
        mistake = (
            f"max_turns {self.max_turns} is less than num_speakers {self.num_speakers}: somebody would never speak"
        )
        return unless(self, [mistake] if self.max_turns < self.num_speakers else [])


_GAMES: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "prisoners_dilemma": ((3, 0), (4, 1)),
    "stag_hunt": ((4, 0), (3, 2)),
}


# Sums of points without a bound may be no numbers.
Points = Annotated[float, NotBool, Field(ge=-1e9, le=1e9)]


class GameProtocol(_Protocol):
    """Agents play an iterated social dilemma, in which the reward of each move is exact."""

    asks_audience = False
    asks_for_numbers = True
    criteria = (Criterion(name="reward", wording="Given by the game: its lowest reward is 1, its highest 7."),)

    kind: Literal["game"]
    game: Literal["prisoners_dilemma", "stag_hunt", "public_goods"] = "prisoners_dilemma"
    """Two are played by two. In `public_goods`, each may put its point into a pot, which is multiplied and shared."""
    num_players: Annotated[int, NotBool, Field(ge=2, le=9)] = 2
    """Who plays, with neighbours."""
    num_turns: Annotated[int, NotBool, Field(ge=1, le=100)] = 10
    """How often the game is played in an interaction."""
    payoffs: tuple[tuple[Points, Points], tuple[Points, Points]] | None = None
    """A player's own points in a game of two: [[both cooperate, only it does], [only the other does, nobody does]].
    None: [[3, 0], [4, 1]] in the prisoner's dilemma, as in the paper; [[4, 0], [3, 2]] in the stag hunt."""
    multiplier: Positive = 1.5
    """Of the pot in `public_goods`: more than 1, less than the number of players."""
    reward: Literal["payoff", "deontological", "utilitarian", "mixed"] = "payoff"
    """What a move is scored by: the player's points; minus `penalty` where it defects after all others cooperated; the
    points of all; or points and penalty together."""
    penalty: NotNegative = 3.0
    """Of the deontological reward, as in the paper."""
    transfer: Literal["prisoners_dilemma", "stag_hunt", "public_goods"] | None = None
    """Another game, which the same players play afterwards with its usual points: for a figure alone, and nothing of it
    is learnt. It says what of a behaviour carries over. None: none."""
    partner: Literal["tit_for_tat", "always_cooperate", "always_defect", "random"] | None = None
    """By which fixed policy all other players move, without a call: each agent then plays by itself against it.
    Tit-for-tat cooperates unless another player defected the turn before; random moves are drawn by seed, each as
    often. None: agents play with neighbours."""

    @property
    def cast_size(self) -> int:
        return self.num_players if self.partner is None else 1

    @property
    def other(self) -> "GameProtocol | None":
        """The game that is played afterwards."""
        if self.transfer is None:
            return None
        return self.model_copy(update={"game": self.transfer, "payoffs": None, "transfer": None})

    @property
    def matrix(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """The points of a game of two: [a player's move, the other's], cooperation first."""
        return None if self.game == "public_goods" else self.payoffs or _GAMES[self.game]

    @model_validator(mode="after")
    def _possible(self) -> "GameProtocol":
        mistakes = []
        if self.transfer == self.game:
            mistakes.append(f"transfer {self.transfer} is the game itself; name another, or leave it out")
        elif self.transfer == "public_goods" and not 1 < self.multiplier < self.num_players:
            mistakes.append(
                f"transfer public_goods is no dilemma of {self.num_players} players: multiplier {self.multiplier:g}"
            )
        elif self.transfer in _GAMES and self.num_players != 2:
            mistakes.append(f"transfer {self.transfer} is a game of 2, and num_players is {self.num_players}")
        if self.matrix is None:
            if self.payoffs is not None:
                mistakes.append("payoffs are of a game of two; public_goods has a multiplier")
            if not 1 < self.multiplier < self.num_players:
                mistakes.append(
                    f"multiplier {self.multiplier:g} makes no dilemma of {self.num_players} players: it must be more "
                    "than 1 and less than their number"
                )
            return unless(self, mistakes)
        if self.num_players != 2:
            mistakes.append(f"{self.game} is a game of 2, and num_players is {self.num_players}; public_goods has more")
        (both, sucker), (tempted, neither) = self.matrix
        shown = f"payoffs [[{both:g}, {sucker:g}], [{tempted:g}, {neither:g}]]"
        if self.game == "prisoners_dilemma" and not tempted > both > neither > sucker:
            mistakes.append(
                f"{shown} are no prisoner's dilemma: of [[r, s], [t, p]], t must be more than r, r than p, p than s"
            )
        if self.game == "stag_hunt" and not both > tempted >= neither > sucker:
            mistakes.append(
                f"{shown} are no stag hunt: of [[r, s], [t, p]], r must be more than t, t no less than p, p more than s"
            )
        return unless(self, mistakes)


ProtocolSection = Annotated[
    BackScatterProtocol
    | CriticsProtocol
    | DeliberationProtocol
    | FeedProtocol
    | GameProtocol
    | DialogueProtocol
    | NormsProtocol
    | RehearsalProtocol
    | RelayProtocol
    | SampleProtocol,
    Field(discriminator="kind"),
    BeforeValidator(kind_unless_said("back_scatter")),
]
