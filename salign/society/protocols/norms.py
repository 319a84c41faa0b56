"""Norms (CRSEC, arXiv 2403.08251): Back-Scatter in a society where some begin with norms, and others take them on."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from salign.config import NormsProtocol, SocietySection
from salign.engines.base import Reply
from salign.records import Interaction, Turn
from salign.society import frames, prompts
from salign.society.calls import Calls, spoken, together
from salign.society.protocols.back_scatter import DRAFT, FEEDBACK, REVISION, BackScatter, rated_or_fail
from salign.society.protocols.base import Conversation
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Query, State, Update
from salign.society.replies import flags_of
from salign.society.wordings import norms as wordings
from salign.society.wordings.rehearsal import lines_of

NORM, MERGED = "norm", "merged"
NORMS = "norms"
# The middle of a scale from 1 to 7: from it on a norm fits.
_FITS = 4.0


class Norms(BackScatter[NormsProtocol]):
    """The leader drafts by its norms; who judges the draft may cite one of its own, which the leader may take on.

    Norms are a note of each agent. Norm entrepreneurs begin with those of the config.
    """

    def __init__(self, society: SocietySection, section: NormsProtocol) -> None:
        super().__init__(society, section)
        self._entrepreneurs: dict[int, frozenset[int]] = {}
        self.figures = {  # type: ignore[misc]  # these depend on the config
            "holding_share": "agents that hold a norm",
            **{f"norm_{number}_share": f"agents that hold: {text}" for number, text in enumerate(section.norms, 1)},
            "held_mean": "norms that an agent holds",
            "cited_share": "feedback that cites a norm",
            "conflicts_mean": "cited norms that conflict with what the leader holds",
        }

    @property
    def max_calls(self) -> int:
        members = self.society.audience_size if self.society.has_audience else 0
        # Each member may cite a norm, and each of these is tried; then the leader may put its norms together.
        return super().max_calls + 2 * members + 1

    def _held(self, calls: Calls, state: State, num_agents: int) -> list[str]:
        """The norms that an agent holds: of entrepreneurs those of the config, until it has others."""
        noted = state.notes.get(NORMS)
        if noted is not None:
            return list(noted)
        if calls.world not in self._entrepreneurs:
            size = max(1, round(self.section.entrepreneurs * num_agents))
            drawn = calls.draw_for_world("entrepreneurs").sample(range(num_agents), size)
            self._entrepreneurs[calls.world] = frozenset(drawn)
        return list(self.section.norms) if state.agent in self._entrepreneurs[calls.world] else []

    async def interact(self, conversation: Conversation) -> list[Update]:
        seat, agent = conversation.seat, conversation.agent
        state = seat.states[0]
        held = self._held(agent, state, seat.topology.num_agents)
        key = agent.key(frames.DRAFTING)
        asked = prompts.draft(seat.question, seat.recalled, wordings.holding(agent.instructions, held, key), key)
        drafted = spoken(await agent.generate(asked, self.society.draft, DRAFT), DRAFT)
        draft = conversation.say(DRAFT, drafted, seat.recalled)
        feedback = rated_or_fail(await conversation.ask(seat.audience, draft, {"num_agents": seat.topology.num_agents}))
        after = await self._merge(conversation, await self._take_on(conversation, held, feedback))
        shown = agent.judged(seat.question, draft, frames.REVISING)
        instructions = wordings.holding(agent.instructions, held, shown.key)
        asked = agent.wording.revision(shown, feedback, instructions)
        revised = await agent.generate(asked, self.society.revision, REVISION)
        text = conversation.say(REVISION, spoken(revised, REVISION), data={NORMS: after})
        return [Update(text, {NORMS: after} if after or NORMS in state.notes else {})]

    async def _take_on(self, conversation: Conversation, held: Sequence[str], feedback: Sequence[Turn]) -> list[str]:
        """The norms that the leader holds once it has tried those that were cited: new ones, as far as they fit."""
        agent = conversation.agent
        cited = {turn.data["norm"]: turn for turn in reversed(feedback) if turn.data.get("norm") not in (None, *held)}
        new = sorted(cited, key=lambda norm: feedback.index(cited[norm]))

        async def fit(norm: str, name: str) -> float | None:
            key = agent.key(name)
            system = prompts.judging(wordings.holding(agent.instructions, held, key), key)
            given, _ = await agent.rating(
                agent.wording.rate(wordings.shown(norm, key), system, wordings.FIT), norm, name
            )
            return given.rating

        fits = await together(*(fit(norm, f"fit:{number}") for number, norm in enumerate(new)))
        after = list(held)
        for norm, rating in zip(new, fits, strict=True):
            has_room = len(after) < self.section.max_norms
            adopted = rating is not None and rating >= _FITS and has_room
            data = {"by": cited[norm].agent, "fit": rating, "adopted": adopted}
            conversation.say(NORM, Reply(norm, 0, 0), data=data)
            if adopted:
                after.append(norm)
        return after

    async def _merge(self, conversation: Conversation, held: list[str]) -> list[str]:
        """From time to time the leader puts its norms together."""
        every, agent = self.section.merge_every, conversation.agent
        if every is None or conversation.seat.round % every or len(held) < 2:
            return held
        instructions = wordings.holding(agent.instructions, held, agent.key(MERGED))
        asked = wordings.merge(self.section.max_norms, instructions)
        reply = spoken(await agent.generate(asked, self.section.reflection, MERGED), MERGED)
        merged = lines_of(conversation.say(MERGED, reply), self.section.max_norms)
        if set(flags_of(reply)) - {"thinking"}:
            return held  # a list that was cut, or repeats its prompt, is none to go by
        return list(dict.fromkeys(merged)) or held

    async def answer(self, calls: Calls, state: State, question: str, query: Query) -> Turn:
        held = self._held(calls, state, query.data["num_agents"])
        if not held:
            return await super().answer(calls, state, question, query)
        judged = calls.judged(question, query.text, DRAFT)
        instructions = wordings.holding(calls.instructions or prompts.JUDGE, held, judged.key)
        assert instructions is not None
        system = prompts.judging(instructions, judged.key)
        asked = calls.wording.rate(judged.framed, system, wordings.cite(len(held)))
        number = await calls.chosen(asked, f"cite:{state.agent}") or 0
        if number:
            instructions = wordings.arguing(instructions, number)
        turn = await self.judge(calls, state, judged, query, instructions)
        turn.data["norm"] = held[number - 1] if number else None
        return turn

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """As of Back-Scatter, without what does not cite a norm where some feedback does."""
        for row in super().rows(interaction, learning):
            cites = tuple([(turn, score) for turn, score in row.responses if turn.data.get("norm") is not None])
            yield row._replace(responses=cites) if row.kind == "self_critic" and cites else row

    def measure(self, interaction: Interaction) -> Iterable[tuple[str, Any]]:
        revision, feedback = interaction.turn(REVISION), interaction.turns_of(FEEDBACK)
        for turn in feedback:
            yield "cited_share", float(turn.data.get("norm") is not None)
        if revision is None:
            return
        held = revision.data[NORMS]
        yield "holding_share", float(bool(held))
        for number, text in enumerate(self.section.norms, start=1):
            yield f"norm_{number}_share", float(text in held)
        yield "held_mean", float(len(held))
        tried = [turn.data["fit"] for turn in interaction.turns_of(NORM)]
        yield "conflicts_mean", float(sum(rating is not None and rating < _FITS for rating in tried))
