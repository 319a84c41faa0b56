"""Relay (MacNet, arXiv 2406.07155): answers travel along a directed acyclic graph, and each agent refines them."""

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from salign.config import RelayProtocol
from salign.engines.base import Reply
from salign.records import Interaction
from salign.society import frames, prompts, queries
from salign.society.calls import spoken
from salign.society.protocols.base import Conversation, Protocol, Relation
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Update
from salign.society.topology import Topology
from salign.society.wordings import relay

START, CRITIQUE, ARTIFACT = "start", "critique", "artifact"
# As what an author is shown texts; their judges see them under other keys.
_JOINING, _IMPROVING = "joining", "improving"


class Relay(Protocol[RelayProtocol]):
    """An agent takes over the artifacts of those before it, has a critic look at them, and passes on a better one.

    On each task, first the agents work that have nobody before them, in the next round those behind them, and so on; in
    each round, every agent works on some task. Only the artifact travels, as a note. The critic is the agent itself in
    another role: audience and its size are without effect.
    """

    observed = (START, ARTIFACT)
    reminded = (START,)
    heard = (CRITIQUE,)
    figures: ClassVar[Mapping[str, str]] = {
        "taken_over_share": "agents that had something to take over",
        "first_rating_mean": "artifacts of agents with nobody before them, by the first criterion",
        "last_rating_mean": "artifacts of agents with nobody behind them, by the first criterion",
        "last_nodes_mean": "agents whose work is in an artifact of those with nobody behind them",
    }
    relations: ClassVar[Mapping[str, Relation]] = {
        "rating_by_nodes": Relation(
            "Artifacts by the agents behind them", "agents whose work is in it", "rating by the first criterion"
        ),
        "tokens_by_nodes": Relation("Tokens of an agent's work", "agents whose work is in it", "tokens"),
    }

    @property
    def max_calls(self) -> int:
        return 1 + 2 * self.section.num_looks + len(self.observed) * len(self.asked)

    def task(self, topology: Topology, agent: int, round_: int) -> tuple[int, int]:
        """All that work on one task are asked the same question: that of agent 0 in the round of the task's number."""
        return 0, _task(topology, agent, round_)

    async def interact(self, conversation: Conversation) -> Sequence[Update]:
        seat, agent = conversation.seat, conversation.agent
        topology, leader = seat.topology, seat.leader.agent
        task = _task(topology, leader, seat.round)
        # Of as many tasks as there are layers: who comes much later finds it still there.
        note = f"{ARTIFACT}:{task % topology.layers.num}"
        before = topology.neighbours(leader)
        found = zip(before, await conversation.read(before, note), strict=True)
        there = {one: written for one, written in found if written is not None and written["task"] == task}
        taken = {one: written["text"] for one, written in there.items()}
        makers = functools.reduce(operator.or_, (int(written["makers"], 16) for written in there.values()), 1 << leader)
        data = {"task": task, "from": sorted(taken), "nodes": makers.bit_count()}
        data["is_last"] = topology.layers.is_last(leader)
        text = await self._start(conversation, taken)
        for look in range(self.section.num_looks):
            # A key for each look: the text was written under another.
            judged = agent.judged(seat.question, text, f"{CRITIQUE}:{look}")
            asked = agent.wording.feedback_reason(judged, None, agent.instructions)
            reply = spoken(await agent.generate(asked, self.society.feedback, f"{CRITIQUE}:{look}"), CRITIQUE)
            said = conversation.say(CRITIQUE, reply, name=f"{CRITIQUE}:{look}")
            asked = relay.improve(agent.judged(seat.question, text, f"{_IMPROVING}:{look}"), said, agent.instructions)
            improved = spoken(await agent.generate(asked, self.society.revision, f"{ARTIFACT}:{look}"), ARTIFACT)
            text = conversation.say(ARTIFACT, improved, name=f"{ARTIFACT}:{look}", data=data)
        return [Update(text, {note: {"task": task, "text": text, "makers": f"{makers:x}"}})]

    async def _start(self, conversation: Conversation, taken: Mapping[int, str]) -> str:
        """What is refined: the only artifact that is there, several joined, or a draft where there is none."""
        seat, agent = conversation.seat, conversation.agent
        data = {"from": sorted(taken)}
        if len(taken) == 1:
            [text] = taken.values()
            return conversation.say(START, Reply(text, 0, 0), data=data)
        if taken:
            texts = [text for _, text in sorted(taken.items())]
            asked = relay.join(seat.question, texts, agent.key(_JOINING), agent.instructions)
            return conversation.say(
                START, spoken(await agent.generate(asked, self.society.revision, START), START), data=data
            )
        asked = prompts.draft(seat.question, seat.recalled, agent.instructions, agent.key(frames.DRAFTING))
        reply = spoken(await agent.generate(asked, self.society.draft, START), START)
        return conversation.say(START, reply, seat.recalled, data=data)

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """The versions of the artifact as one group, graded; an improvement as a revision after its critique."""
        versions = learning.kept([*interaction.turns_of(START), *interaction.turns_of(ARTIFACT)])
        yield Row("imitation", interaction.topic, tuple([(turn, learning.score(turn)) for turn in versions]))
        for position, turn in enumerate(interaction.turns):
            if turn.role != ARTIFACT:
                continue
            critique = interaction.turns[position - 1]
            before = [version for version in interaction.turns[: position - 1] if version.role != CRITIQUE][-1]
            old, new = learning.score(before), learning.score(turn)
            is_better = old is not None and new is not None and new > max(old, learning.min_score)
            if is_better and len(learning.kept([before, critique, turn])) == 3:
                query = queries.realignment(interaction.topic, before.text, [critique.text])
                yield Row("realignment", query, ((turn, new),))

    def measure(self, interaction: Interaction) -> Iterable[tuple[str, Any]]:
        start, artifact = interaction.turn(START), interaction.turn(ARTIFACT)
        if start is None or artifact is None:
            return
        yield "taken_over_share", float(bool(start.data["from"]))
        rating, nodes = artifact.observed_rating(self.criteria[0]), artifact.data["nodes"]
        if artifact.data["is_last"]:
            yield "last_nodes_mean", float(nodes)
        if rating is not None:
            if nodes == 1:
                yield "first_rating_mean", rating
            if artifact.data["is_last"]:
                yield "last_rating_mean", rating

    def relate(self, interaction: Interaction) -> Iterable[tuple[str, float, float]]:
        artifact = interaction.turn(ARTIFACT)
        if artifact is None:
            return
        nodes = artifact.data["nodes"]
        rating = artifact.observed_rating(self.criteria[0])
        if rating is not None:
            yield "rating_by_nodes", nodes, rating
        yield "tokens_by_nodes", nodes, interaction.prompt_tokens + interaction.completion_tokens


def _task(topology: Topology, agent: int, round_: int) -> int:
    """The number, from 1, of the task on which an agent works: begun as many rounds ago as its layer says."""
    return round_ + topology.layers.num - 1 - topology.layers.of(agent)
