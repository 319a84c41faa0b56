"""How the opinions of several become one."""

from typing import Annotated, Literal

from pydantic import Field

from salign.config.base import NotBool, Section

BallotRule = Literal["plurality", "borda", "instant_runoff", "minimax", "ranked_pairs", "range"]


class Aggregation(Section):
    """How the ratings of an audience become one, and the ballots of a panel one order."""

    ratings: Literal["mean", "median", "trimmed", "confidence"] = "mean"
    """`trimmed`: the mean without `trimmed_share` at each end; `confidence`: the mean weighted by how sure each is."""
    trimmed_share: Annotated[float, NotBool, Field(ge=0, lt=0.5)] = 0.25
    """Share of the ratings left out at each end, rounded down: of four, the lowest and the highest."""
    ballots: BallotRule = "ranked_pairs"
    """The voting rule of a protocol that votes. The default elects whoever beats each other in pairs, also where some
    answers are nearly the same, and loses less to one corrupt voter than `borda` and `range` do (docs/protocols.md)."""
