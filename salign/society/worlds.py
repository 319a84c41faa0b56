"""The worlds of a shard: made from the config before the first round, and the graphs that they drew."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salign.config import Config, ScaleFreeTopology, SmallWorldTopology, SocietySection
from salign.engines.meter import MeteredEngine
from salign.records import to_line
from salign.society import sources
from salign.society.calls import Speaker
from salign.society.models import observing
from salign.society.phases import Setting
from salign.society.population import answers_by_label
from salign.society.profiles import load_profiles
from salign.society.recall import question_table
from salign.society.studies import questions_of
from salign.society.topology import Links, write_links
from salign.society.world import World
from salign.storage import write_atomic


def make_worlds(
    config: Config,
    numbers: Sequence[int],
    engines: Sequence[MeteredEngine],
    folder: Path,
    rank: tuple[int, int] = (0, 1),
    *,
    before: Sequence[tuple[SocietySection, Sequence[MeteredEngine], int]] = (),
) -> tuple[list[World], dict[str, Any]]:
    """Some worlds as they are before the first round, and what agents will recall as they start.

    Args:
        config: The run's.
        numbers: Of the worlds, in the run.
        engines: Of `open_engines`, metered.
        folder: Where a model's embeddings are kept, for all shards.
        rank: Which of the ranks this process is, and among how many the agents are divided.
        before: Under which societies, and through which engines, they begin, each up to a round; the latest first.

    Raises:
        DataError: Questions, prior or links cannot be read, or there are too few answers.
        EngineError: The embedder's server is at fault.
        ConfigError: The embedder's model cannot be had, or agents would hardly recall what they start with.
    """
    society = config.society
    asked, prior = sources.load(society.questions), sources.load(society.prior)
    questions = sources.distinct(asked)
    profiles = load_profiles(society)
    answers_by_label(society, prior, society.populations, {one.label for one in profiles if one.label is not None})
    compared = [question for one in (society, *(earlier for earlier, _, _ in before)) for question in questions_of(one)]
    table, recall = question_table(society, config.run.seed, questions, prior, folder, also=compared)
    if recall is not None:
        recall.check(society)
    setting, until = None, 0
    for its, voices, last in (*reversed(before), (society, engines, 0)):
        parts = zip(voices[2:], its.mixture, strict=False)  # the scorers come after them
        setting = Setting(
            society=its,
            seed=config.run.seed,
            table=table,
            num_questions=len(questions),
            prior=prior,
            speakers=[Speaker(voices[0]), *(Speaker(engine, part.instructions) for engine, part in parts)],
            observer=observing(its, voices),
            choices={one.question: one.choices for one in asked if one.choices is not None},
            profiles=profiles,
            before=None if setting is None else (setting, until),
        )
        until = last
    assert setting is not None
    return [World(setting, number, *rank) for number in numbers], {} if recall is None else dataclasses.asdict(recall)


def write_profiles(worlds: Sequence[World], folder: Path) -> list[str]:
    """Writes the profiles that agents of some worlds have, one a line; the file's name, nothing where there is none."""
    used = {one.number: one for world in worlds for one in world.used_profiles()}
    if not used:
        return []
    write_atomic(folder / "profiles.jsonl", "".join([to_line(used[number]) for number in sorted(used)]))
    return ["profiles.jsonl"]


def write_graphs(society: SocietySection, worlds: Sequence[World], folder: Path) -> list[str]:
    """Writes the links of each world that drew its own, as the topology `edges` reads them; the files' names."""
    if not isinstance(society.topology, SmallWorldTopology | ScaleFreeTopology):
        return []
    names = []
    for world in worlds:
        assert isinstance(world.topology, Links)
        names.append(f"graphs/world-{world.number:05d}.txt")
        about = f"the social graph of world {world.number} ({society.topology.kind}): two agent numbers per line"
        write_links(world.topology, folder / names[-1], about)
    return names
