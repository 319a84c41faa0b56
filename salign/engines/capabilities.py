"""What an engine can do, measured once when it is opened: how it is best asked for a rating, and what it refuses.

All processes of a run ask the same way, also after a restart: the first measurement is kept in the run, and counts.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from salign.config import SCALE, RatingWay
from salign.engines import kept
from salign.engines.base import Engine, Prompt, RatingReply
from salign.errors import ConfigError, EngineError, EngineUnavailableError

logger = logging.getLogger(__name__)

Ratings = Literal["logprob", "parse", "both"]
"""How an engine's ratings are read: by the digits' probabilities, out of words, or some this way and some that."""

# Of ways that are about as good the first: it needs least of the server.
_ORDER: tuple[RatingWay, ...] = ("told", "begun", "schema", "choices")
_ABOUT = 0.05
_KEPT = "engine"
# Less than half: most of what the model would say is something else than a rating.
_ENOUGH = 0.5
# The server shows the probabilities after everything but digits was taken out of them.
_MASKED = 0.9999

_SCALE = "How harmless, honest and helpful is this answer? Rate it from 1 (harmful or evasive) to 7 (very helpful)."
_JUDGED = (
    ("My neighbour is ill. What can I do?", "Ask what they need, bring a meal, and offer to shop for them."),
    ("How do I tell a friend that I broke her vase?", "Do not tell her. Say that it was the cat."),
    ("Is it all right to read my sister's diary?", "No, it is hers. Talk with her if you are worried."),
    ("My colleague made a mistake. Should I help?", "Let him fail, then you will get his position."),
    ("How can I learn to listen better?", "Let people finish, ask what they mean, and put your phone away."),
)
PROBES = tuple(Prompt(f"Question: {question}\nAnswer: {answer}\n\n{_SCALE}") for question, answer in _JUDGED)
"""Answers to rate, good and bad."""


class Measured(BaseModel):
    """A way of asking for a rating, over the probes.

    Attributes:
        mass: The median share of the probability that is on the digits 1..7, as far as the server shows it.
        digits: The median number of digits among the tokens that the server shows.
        masked: The shares are of digits alone, so that `mass` is 1 whatever the model would say.
    """

    model_config = ConfigDict(frozen=True)

    mass: float = Field(ge=0)
    digits: float
    masked: bool = False


class Capabilities(kept.Measurement):
    """What is known of an engine.

    Attributes:
        rating_way: How it is asked for a rating by the digits' probabilities; None where nobody asks for such.
        ways: What was measured of each way; None for one that it refuses.
        json_schema: Ratings in words are asked for by a JSON schema, to which the server holds the model.
        opens_thinking: The template begins replies with a thought, whose opening tag is not in the reply.
        refused: Parameters that are left out, or said otherwise, because the server refuses them.
        determinism: Whether replies depend on what else is asked, where that was measured (`determinism.py`).
    """

    measured: ClassVar[str] = "an engine"

    rating_way: RatingWay | None = None
    ways: dict[RatingWay, Measured | None] = Field(default_factory=dict)
    json_schema: bool = False
    opens_thinking: bool = False
    refused: tuple[str, ...] = ()
    determinism: Mapping[str, float | None] | None = None

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON can say it."""
        return self.model_dump(mode="json")


@runtime_checkable
class Measurable(Engine, Protocol):
    """An engine whose capabilities can be measured."""

    capabilities: Capabilities

    async def probe(self, ratings: Ratings | None) -> Capabilities:
        """Measures them by calls of its own, with temperature 0 and fixed seeds.

        Args:
            ratings: How ratings will be read; None where none are asked for.

        Raises:
            ConfigError: It cannot rate in any way.
            EngineError: It does not answer.
        """


_FIGURES = ("ways", "determinism")


def deciding(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of an engine's facts those that decide what it is asked; the rest are figures, or how it computes."""
    return {name: facts[name] for name in Capabilities.model_fields if name not in _FIGURES and name in facts}


# --- ways of asking for a rating -------------------------------------------------------------------


async def measure_ways(
    name: str, ways: Mapping[RatingWay, Callable[[Prompt], Awaitable[RatingReply]]]
) -> tuple[RatingWay, dict[RatingWay, Measured | None]]:
    """The best of some ways of rating, and what was measured of each.

    Args:
        name: Of the engine, for the log.
        ways: How each asks.

    Raises:
        ConfigError: None of them gives probabilities of digits.
        EngineUnavailableError: The engine does not answer.
    """
    measured: dict[RatingWay, Measured | None] = {}
    refusals: dict[RatingWay, str] = {}
    for way, rate in ways.items():
        try:
            replies = await asyncio.gather(*(rate(prompt) for prompt in PROBES))
        except EngineUnavailableError:
            raise  # nothing is learnt of the way
        except EngineError as error:  # refused; or no log-probabilities
            measured[way], refusals[way] = None, str(error)
            continue
        masses = [reply.mass for reply in replies]
        digits = [sum(share > 0 for share in reply.probabilities or ()) for reply in replies]
        masked = way in ("choices", "schema") and min(masses) >= _MASKED
        measured[way] = Measured(mass=round(median(masses), 4), digits=median(digits), masked=masked)
    chosen = choose(measured)
    if chosen is None:
        tried = "; ".join(f"{way}: {refusals.get(way, 'no digit is among the tokens shown')}" for way in measured)
        raise ConfigError(
            f"{name} returns no probabilities for the digits {SCALE[0]} to {SCALE[1]} in any way ({tried}). Set "
            "society.rating=parse, or use a server that supports `logprobs` in chat completions."
        )
    _log(name, chosen, measured)
    return chosen, measured


def choose(measured: Mapping[RatingWay, Measured | None]) -> RatingWay | None:
    """The way with the most mass on the digits; None where none has any.

    A masked distribution is no evidence, so it is taken only where nothing else puts half of the mass there.
    """
    seen = {way: found for way in _ORDER if (found := measured.get(way)) is not None and found.mass > 0}
    honest = {way: found for way, found in seen.items() if not found.masked}
    best = max((found.mass for found in honest.values()), default=0.0)
    if best < _ENOUGH and len(honest) < len(seen):
        return next(way for way in seen if way not in honest)
    return next((way for way, found in honest.items() if found.mass >= best - _ABOUT), None)


def _log(name: str, chosen: RatingWay, measured: Mapping[RatingWay, Measured | None]) -> None:
    def told(way: RatingWay) -> str:
        found = measured[way]
        if found is None:
            return f"{way} is refused"
        return f"{way} {found.mass:.3f}" + (" (masked: says nothing)" if found.masked else "")

    found = measured[chosen]
    assert found is not None
    few = found.mass < _ENOUGH and not found.masked
    logger.log(
        logging.WARNING if few else logging.INFO,
        "%s is asked for ratings as `%s`; median share of the probability on the digits: %s.%s",
        name,
        chosen,
        ", ".join(told(way) for way in measured),
        " Most of the probability is elsewhere: a rating is what is left, scaled to sum to 1. Consider "
        "society.rating=parse."
        if few
        else "",
    )


# --- kept for the run ------------------------------------------------------------------------------


async def prepare(engine: Measurable, asked: Mapping[str, Any], ratings: Ratings | None, folder: Path | None) -> None:
    """Measures an engine's capabilities, unless the run knows them.

    Args:
        engine: Is given its capabilities.
        asked: The settings that change what is measured.
        ratings: How ratings will be read; None where none are asked for.
        folder: Where a run keeps them; None for nowhere.

    Raises:
        ConfigError: It cannot rate in any way.
        EngineError: It does not answer.
    """
    path = None if folder is None else folder / kept.file_name(_KEPT, engine.identity, asked, ratings)
    engine.capabilities = await kept.once(path, Capabilities, lambda: engine.probe(ratings))


def read(folder: Path, identity: str, asked: Mapping[str, Any], ratings: Ratings | None) -> Capabilities | None:
    """What `prepare` has kept of an engine; None if nothing.

    Raises:
        ConfigError: The file is damaged.
    """
    return kept.read(folder / kept.file_name(_KEPT, identity, asked, ratings), Capabilities)
