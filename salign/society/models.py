"""The models that a society speaks through: the run's, the observer's, and those of a mixture's parts."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from salign.config import Config, EngineSection, Scorer, SocietySection
from salign.engines.capabilities import Ratings, deciding
from salign.engines.gate import Gate
from salign.engines.journal import Journal, ReplayEngine, written_header
from salign.engines.meter import MeteredEngine
from salign.engines.opening import OpenEngine, known, metered, open_unmetered
from salign.engines.scorers import open_scorer
from salign.society.calls import Speaker
from salign.society.observer import labelled_pairs


def model_names(society: SocietySection) -> list[str]:
    """Under which names a journal's header has the models, in the order of `open_engines`."""
    parts = [f"society.mixture.{part.name}.model" for part in society.mixture]
    return ["model", "society.observer.model", *parts, *(f"society.criteria.{n}.model" for n in _scored(society))]


def _scored(society: SocietySection) -> list[str]:
    return [criterion.name for criterion in society.scored_criteria]


def asked(society: SocietySection, engines: Sequence[OpenEngine]) -> dict[str, Any]:
    """How each model is asked, under its name in a journal's header."""
    named = zip(model_names(society), engines, strict=True)
    return {f"{name}.asked": deciding(engine.facts()) for name, (engine, _) in named}


def meter_all(engines: Sequence[OpenEngine], journal: Journal) -> list[MeteredEngine]:
    """Each engine behind the journal; one that speaks in several places is one here too, with one count."""
    made = {opened: metered(*opened, journal) for opened in dict.fromkeys(engines)}
    return [made[opened] for opened in engines]


def observing(society: SocietySection, engines: Sequence[MeteredEngine]) -> Speaker:
    """What observes, out of the engines of `open_engines`."""
    scored = _scored(society)
    return Speaker(engines[1], scorers=dict(zip(scored, engines[len(engines) - len(scored) :], strict=True)))


def _sections(config: Config) -> list[tuple[str, EngineSection | None, Ratings | None]]:
    """Where its servers' logs go, section and way of reading ratings of each model; None: the run's, or no ratings."""
    society = config.society
    rates_memories = society.stream is not None and society.stream.importance == "asked"
    rate = society.has_audience or society.protocol.asks_for_numbers or rates_memories
    agents, observers = society.rating if rate else None, society.observers_rate
    everybody: Ratings = observers if agents in (None, observers) else "both"
    return [
        ("", config.engine, everybody if society.observer is None else agents),
        ("observer", society.observer, observers),
        *((f"mixture/{part.name}", part.engine, agents) for part in society.mixture),
    ]


@contextlib.asynccontextmanager
async def open_engines(config: Config, logs: Path, kept: Path) -> AsyncIterator[list[OpenEngine]]:
    """The run's engine, the observer's, one for each part of a mixed society (the run's where none is named), scorers.

    What is measured of them is kept in `kept`. They are called through `meter_all`, once their journal is there: its
    header names them.
    """
    async with contextlib.AsyncExitStack() as stack:
        engines: list[OpenEngine] = []
        for name, section, ratings in _sections(config):
            if section is None:
                engines.append(engines[0])
            else:
                opened = open_unmetered(section, config.model, logs / name, ratings=ratings, kept=kept)
                engines.append(await stack.enter_async_context(opened))
        for criterion in config.society.scored_criteria:
            assert criterion.scorer is not None
            engines.append(await stack.enter_async_context(open_mapped(criterion.scorer, kept)))
        yield engines


@contextlib.asynccontextmanager
async def open_mapped(section: Scorer, kept: Path) -> AsyncIterator[OpenEngine]:
    """A scorer whose scores are mapped onto the scale by its labelled pairs; the map is kept in `kept`.

    Raises:
        ConfigError: As `open_scorer`.
        DataError: There are no pairs.
    """
    pairs = [(one.question, one.good, one.bad) for one in labelled_pairs(section)]
    async with open_scorer(section, pairs, kept) as engine:
        yield OpenEngine(engine, Gate(section.max_in_flight, adaptive=False))


@contextlib.asynccontextmanager
async def open_replay(
    config: Config, folder: Path, kept: Path, lacking: str | None = None
) -> AsyncIterator[list[OpenEngine]]:
    """Nothing that answers, under the names of the models whose answers are in the journal.

    Args:
        config: Of which models.
        folder: The journal's.
        kept: Where it is kept what was measured of them.
        lacking: What to say of a call that is not in the journal; None: that the shard cannot be replayed.
    """
    header = written_header(folder)
    engines = []
    names, sections = model_names(config.society), _sections(config)
    for name, (_, section, ratings) in zip(names[: len(sections)], sections, strict=True):
        identity = str(header.get(name))
        measured = known(section or config.engine, identity, ratings, kept)
        facts = header.get(f"{name}.asked") if measured is None else measured.facts()
        engines.append(OpenEngine(ReplayEngine(identity, facts, lacking), Gate(1, adaptive=False)))
    for name in names[len(sections) :]:
        engines.append(OpenEngine(ReplayEngine(str(header.get(name)), None, lacking), Gate(1, adaptive=False)))
    yield engines
