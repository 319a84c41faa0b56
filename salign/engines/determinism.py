"""Whether an engine's replies depend on what else it is asked at the same time: measured, where `engine.probe` asks.

Sums of floating-point numbers depend on their order, and kernels choose it by the size of the batch. So two runs with
the same seeds may differ where calls met otherwise, and resuming, more servers or another `max_in_flight` are enough.
"""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from salign.config import Sampling
from salign.engines import kept
from salign.engines.base import Engine, Prompt
from salign.engines.capabilities import PROBES, Ratings
from salign.errors import CallRejectedError

logger = logging.getLogger(__name__)

NUM_CALLS = 16
_SAMPLING = Sampling(temperature=1.0, max_tokens=32)


class Determinism(kept.Measurement):
    """The same calls one after the other, and all at once.

    Attributes:
        num_texts: Replies of up to 32 tokens, sampled at temperature 1.
        num_other_texts: Those that came out otherwise together than alone.
        num_unrepeated_texts: Those that came out otherwise alone, a second time.
        rating_shift: The largest difference of a mean rating, in points; None where none is asked for by probabilities.
    """

    measured: ClassVar[str] = "determinism"

    num_texts: int
    num_other_texts: int
    num_unrepeated_texts: int
    rating_shift: float | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing differed."""
        return not (self.num_other_texts or self.num_unrepeated_texts or self.rating_shift)


async def measure(engine: Engine, ratings: Ratings | None) -> Determinism:
    """Asks 16 calls alone, together and alone again, and rates as many times as there are probes.

    Args:
        engine: Is asked directly: nothing bounds the calls, and no journal answers them.
        ratings: How its ratings are read; None where none are asked for.

    Raises:
        EngineError: It does not answer.
    """
    alone = [await _text(engine, number) for number in range(NUM_CALLS)]
    together = await asyncio.gather(*(_text(engine, number) for number in range(NUM_CALLS)))
    again = [await _text(engine, number) for number in range(NUM_CALLS)]
    shift = None
    if ratings in ("logprob", "both"):
        rated = [await _rating(engine, prompt) for prompt in PROBES]
        at_once = await asyncio.gather(*(_rating(engine, prompt) for prompt in PROBES))
        shift = max(abs(one - other) for one, other in zip(rated, at_once, strict=True))
    return Determinism(
        num_texts=NUM_CALLS,
        num_other_texts=sum(one != other for one, other in zip(alone, together, strict=True)),
        num_unrepeated_texts=sum(one != other for one, other in zip(alone, again, strict=True)),
        rating_shift=shift,
    )


async def _text(engine: Engine, number: int) -> str:
    judged = PROBES[number % len(PROBES)]
    try:
        # Not all begin alike, and none is as long as the one before.
        reply = await engine.generate(Prompt(f"{number}. {judged.user}"[: 60 + 20 * number]), _SAMPLING, number)
    except CallRejectedError as error:  # which is a reply, too
        return f"refused: {error}"
    return reply.text


async def _rating(engine: Engine, prompt: Prompt) -> float:
    return (await engine.rate(prompt, 0)).expectation or 0.0


async def determinism_of(
    engine: Engine, asked: Mapping[str, Any], ratings: Ratings | None, folder: Path | None
) -> Determinism:
    """What was measured of an engine in a run; measured now where that was never done.

    Args:
        engine: As for `measure`.
        asked: The settings that change what is measured.
        ratings: As for `measure`.
        folder: Where the run keeps it; None for nowhere.

    Raises:
        ConfigError: The file is damaged.
        EngineError: The engine does not answer.
    """
    path = None if folder is None else folder / kept.file_name("determinism", engine.identity, asked, ratings)
    found = await kept.once(path, Determinism, lambda: measure(engine, ratings))
    _log(engine.identity, found)
    return found


def _log(identity: str, found: Determinism) -> None:
    shift = "" if found.rating_shift is None else f"; ratings moved by {found.rating_shift:.2g} points at most"
    logger.log(
        logging.INFO if found.holds else logging.WARNING,
        "%s: of %d replies, %d came out otherwise among others than alone, and %d otherwise alone again%s.%s",
        *(identity, found.num_texts, found.num_other_texts, found.num_unrepeated_texts, shift),
        ""
        if found.holds
        else " A run that is repeated or resumed may differ where calls meet otherwise (engine.batch_invariant).",
    )
