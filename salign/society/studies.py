"""What a study does with one world: whom it asks for their opinions, and what it changes for whom from a round on.

All of it is a function of the config, the seed and the world's number, so that every rank knows the same.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from salign.config import Intervention, SocietySection, StreamMemory
from salign.records import Recalled
from salign.seeds import rng
from salign.society.calls import Speaker
from salign.society.memory import QuestionTable
from salign.society.sources import Label
from salign.society.stream import within
from salign.society.topology import Topology, make_topology

SURVEY = "survey"
"""The role of an answer to a question of the survey."""


def questions_of(society: SocietySection) -> list[str]:
    """What a survey asks and broadcasts are about: agents compare it with what they remember, and never ask it."""
    asked = [] if society.survey is None else [question.subject for question in society.survey.questions]
    return [*asked, *(one.broadcast.question for one in society.interventions if one.broadcast is not None)]


class _Change(NamedTuple):
    """An intervention in one world: `on` has a byte for each agent, 1 for those whom it is on."""

    wanted: Intervention
    on: bytes
    part: int | None
    topology: Topology | None


class Studies:
    """A world's panel and interventions.

    Args:
        society: What is studied.
        labels: Of each agent.
        speakers: The run's, then one for each part of the mixture.
        seed: Of the run.
        number: Of the world.
    """

    def __init__(
        self, society: SocietySection, labels: Sequence[Label], speakers: Sequence[Speaker], seed: int, number: int
    ) -> None:
        self._speakers = speakers
        self._stream = society.stream
        self._told: dict[tuple[int, str], Speaker] = {}
        num_agents = len(labels)
        self._panel = b""
        if society.survey is not None:
            drawn = rng(seed, number, "survey").sample(range(num_agents), society.survey.num_asked(num_agents))
            self._panel = _mask(drawn, num_agents)
        self._every = 0 if society.survey is None else society.survey.every
        parts = {part.name: place for place, part in enumerate(society.mixture, start=1)}
        self._changes = [
            _Change(
                one,
                _mask(_chosen(one, labels, seed, number), num_agents),
                None if one.part is None else parts[one.part],
                None if one.links is None else make_topology(one.links, seed, number, one.name),
            )
            for one in society.interventions
        ]

    def is_asked(self, agent: int, after_round: int) -> bool:
        """Whether the survey asks an agent after a round."""
        return self._every > 0 and after_round % self._every == 0 and self._panel[agent] == 1

    def num_on(self) -> dict[str, int]:
        """On how many agents each intervention is."""
        return {change.wanted.name: sum(change.on) for change in self._changes}

    def _of(self, agent: int, round_: int) -> Iterator[_Change]:
        return (one for one in self._changes if one.wanted.from_round <= round_ and one.on[agent])

    def part(self, agent: int, round_: int, part: int) -> int:
        """The part of the mixture in which an agent is in a round, who began in another."""
        for change in self._of(agent, round_):
            part = part if change.part is None else change.part
        return part

    def speaker(self, agent: int, round_: int, part: int) -> Speaker:
        """What an agent speaks through in a round, and under which instructions."""
        instructions = None
        for change in self._of(agent, round_):
            if change.part is not None:
                part, instructions = change.part, None
            instructions = change.wanted.instructions or instructions
        if instructions is None:
            return self._speakers[part]
        told = self._told.get((part, instructions))
        if told is None:
            told = self._told[part, instructions] = Speaker(self._speakers[part].engine, instructions)
        return told

    def topology(self, agent: int, round_: int, topology: Topology) -> Topology:
        """Among whom an agent's audience is drawn in a round."""
        for change in self._of(agent, round_):
            topology = change.topology or topology
        return topology

    def recall(
        self, agent: int, table: QuestionTable, question: int, round_: int, remembered: Recalled | None
    ) -> Recalled | None:
        """What an agent remembers of a question in a round: what it was told, if that is nearer than its own.

        Of what is equally near, its own answer counts most and what it began with least. Where several things come to
        its mind, it is the first that this is compared with, and the last for which there is no more room.
        """
        for change in self._of(agent, round_):
            told = change.wanted.broadcast
            if told is None:
                continue
            [distance] = table.distances(question, np.asarray([table.number[told.question]], np.int32)).tolist()
            near = remembered is None or distance < remembered.distance
            hides = remembered is not None and distance == remembered.distance and remembered.source != "own"
            if distance < table.max_distance and (near or hides):
                remembered = _beside(
                    Recalled(told.question, told.answer, "broadcast", distance), remembered, self._stream
                )
        return remembered


def _beside(told: Recalled, remembered: Recalled | None, section: StreamMemory | None) -> Recalled:
    """What was broadcast, before all else that comes to mind."""
    if section is None or remembered is None:
        return told
    first = replace(remembered, more=(), num_left_out=0)
    return within((told, first, *remembered.more)[: section.num_recalled], section.max_tokens)


def _chosen(one: Intervention, labels: Sequence[Label], seed: int, number: int) -> Sequence[int]:
    """Whom an intervention is on."""
    if one.agents:
        return one.agents
    there = [agent for agent, label in enumerate(labels) if one.label in (None, label)]
    if one.share is None or not there:
        return there
    return rng(seed, number, "intervention", one.name).sample(there, max(1, round(one.share * len(there))))


def _mask(agents: Sequence[int], num_agents: int) -> bytes:
    mask = bytearray(num_agents)
    for agent in agents:
        mask[agent] = 1
    return bytes(mask)
