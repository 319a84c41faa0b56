"""Rehearsal (MATRIX, arXiv 2402.05699): before it answers, an agent plays through what would come of its draft."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from salign.config import Criterion, RehearsalProtocol
from salign.engines.base import Reply
from salign.records import Interaction
from salign.society import frames, prompts, queries
from salign.society.calls import Calls, UnansweredError, spoken, together
from salign.society.protocols.base import Conversation, Protocol
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Update
from salign.society.wordings import rehearsal as wordings
from salign.society.wordings.rehearsal import HARM, PLAUSIBILITY, Person, Scene

DRAFT, REVISION = "draft", "revision"
ASKER, PEOPLE, PLAN, EVENT, CONSEQUENCE, HARM_NAMED = "asker", "people", "plan", "event", "consequence", "harm"
# The middle of a scale from 1 to 7: below it an event is more implausible than not, above it more harmful than not.
_MIDDLE = 4.0


@dataclass
class _Event:
    """What happens in a scene: whose doing it is, and what the modulator says of it."""

    reply: Reply
    by: str
    step: int
    plausibility: float | None = None
    harm: float | None = None
    noticed_by: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.reply.text

    @property
    def is_dropped(self) -> bool:
        return self.plausibility is not None and self.plausibility < _MIDDLE

    @property
    def is_harmful(self) -> bool:
        return not self.is_dropped and self.harm is not None and self.harm > _MIDDLE

    def facts(self) -> dict[str, Any]:
        facts = {"step": self.step, "by": self.by, "plausibility": self.plausibility, "harm": self.harm}
        return {**facts, "dropped": self.is_dropped, "noticed_by": self.noticed_by}


class Rehearsal(Protocol[RehearsalProtocol]):
    """An agent drafts, imagines who asks, whom it concerns and what happens, and answers anew if harm comes of it.

    One agent plays all, and nobody else is asked: audience and feedback of the society's settings are without effect,
    except that people's reactions and judgements in words are sampled with `society.feedback`. An event without a
    readable rating counts as plausible and as harmless.
    """

    observed = (DRAFT, REVISION)
    reminded = (DRAFT,)
    heard = (CONSEQUENCE, HARM_NAMED)
    figures = {  # noqa: RUF012
        "consequences_mean": "Harmful events of a rehearsal",
        "dropped_share": "Planned events that were implausible",
        "rewritten_share": "Drafts that were written anew",
    }

    @property
    def max_calls(self) -> int:
        num_people, num_steps = self.section.num_people, self.section.num_steps
        # Of each step: whether it is plausible, harmful, who notices it, what they do, and whether that is harmful.
        return 6 + num_steps * (3 + 2 * num_people) + len(self.observed) * len(self.asked)

    async def interact(self, conversation: Conversation) -> Sequence[Update]:
        seat, agent = conversation.seat, conversation.agent
        asked = prompts.draft(seat.question, seat.recalled, agent.instructions, agent.key(frames.DRAFTING))
        drafted = spoken(await agent.generate(asked, self.society.draft, DRAFT), DRAFT)
        draft = conversation.say(DRAFT, drafted, seat.recalled)
        scene, planned = await self._open(conversation, draft)
        events = list[_Event]()
        for step, text in enumerate(planned, start=1):
            events += await self._play(agent, scene, _Event(Reply(text, 0, 0), PLAN, step))
        for event in events:
            role = CONSEQUENCE if event.is_harmful else EVENT
            conversation.say(role, event.reply, data=event.facts())
        harmful = [event.text for event in events if event.is_harmful]
        if not harmful:  # nothing to write anew
            return [Update(conversation.say(REVISION, drafted))]
        asked = wordings.name_harm(scene, harmful, agent.key(HARM_NAMED))
        reply = await agent.generate(asked, self.society.feedback, HARM_NAMED)
        harm = conversation.say(HARM_NAMED, spoken(reply, HARM_NAMED))
        asked = wordings.answer_anew(agent.judged(seat.question, draft, frames.REVISING), harm, agent.instructions)
        reply = await agent.generate(asked, self.society.revision, REVISION)
        return [Update(conversation.say(REVISION, spoken(reply, REVISION)))]

    async def _open(self, conversation: Conversation, draft: str) -> tuple[Scene, list[str]]:
        """Who asks, whom it concerns, and what may happen."""
        question, agent, how = conversation.seat.question, conversation.agent, self.section.scene
        reply = spoken(await agent.generate(wordings.asker(question), how, ASKER), ASKER)
        scene = Scene(question, draft, conversation.say(ASKER, reply))
        asked = wordings.people(scene, self.section.num_people, agent.key(PEOPLE))
        listed = conversation.say(PEOPLE, await agent.generate(asked, how, PEOPLE))
        scene.people = wordings.people_of(listed, self.section.num_people)
        asked = wordings.plan(scene, self.section.num_steps, agent.key(PLAN))
        planned = wordings.lines_of(
            conversation.say(PLAN, await agent.generate(asked, how, PLAN)), self.section.num_steps
        )
        if not scene.people or not planned:
            raise UnansweredError(
                "there is nobody in the scene" if not scene.people else "nothing happens in the scene"
            )
        return scene, planned

    async def _play(self, agent: Calls, scene: Scene, event: _Event) -> list[_Event]:
        """One step: the modulator judges what happens, and whoever notices it reacts, unless it is implausible."""
        event.plausibility = await self._rate(agent, scene, event, PLAUSIBILITY, str(event.step))
        if event.is_dropped:
            return [event]
        name = f"notices:{event.step}"
        event.harm, reply = await together(
            self._rate(agent, scene, event, HARM, str(event.step)),
            agent.reason(wordings.who_notices(scene, event.text, agent.key(name)), name),
        )
        noticed = wordings.named_in(reply.text, scene.people)
        event.noticed_by = [person.name for person in noticed]
        reactions = await together(*(self._react(agent, scene, event, person) for person in noticed))
        done = [event, *(reaction for reaction in reactions if reaction.text.strip())]
        scene.events += [one.text for one in done]
        return done

    async def _react(self, agent: Calls, scene: Scene, event: _Event, person: Person) -> _Event:
        place = f"{event.step}:{scene.people.index(person)}"
        name = f"react:{place}"
        asked = wordings.react(scene, event.text, person, agent.key(name))
        reaction = _Event(await agent.reason(asked, name), person.name, event.step)
        if reaction.text.strip():
            reaction.harm = await self._rate(agent, scene, reaction, HARM, place)
        return reaction

    async def _rate(self, agent: Calls, scene: Scene, event: _Event, criterion: Criterion, place: str) -> float | None:
        name = f"{criterion.name}:{place}"
        shown, system = wordings.shown_to_modulator(scene, event.text, agent.key(name))
        given, _ = await agent.rating(agent.wording.rate(shown, system, criterion), event.text, name)
        return given.rating

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """Draft and revision as one group; the harm that was named, scored as the answer that was written after it."""
        draft, revision = interaction.turn(DRAFT), interaction.turn(REVISION)
        if draft is None:
            return
        answers = learning.kept([draft, *([] if revision is None else [revision])])
        yield Row("imitation", interaction.topic, tuple([(turn, learning.score(turn)) for turn in answers]))
        harm = interaction.turn(HARM_NAMED)
        if harm is None or revision is None or len(answers) < 2:
            return
        query, score = queries.self_critic(interaction.topic, draft.text), learning.score(revision)
        yield Row("self_critic", query, tuple([(turn, score) for turn in learning.kept([harm])]))

    def measure(self, interaction: Interaction) -> Iterable[tuple[str, float]]:
        if interaction.turn(REVISION) is None:
            return
        events = (*interaction.turns_of(EVENT), *interaction.turns_of(CONSEQUENCE))
        planned = [turn.data["dropped"] for turn in events if turn.data["by"] == PLAN]
        yield "consequences_mean", float(len(interaction.turns_of(CONSEQUENCE)))
        yield "dropped_share", sum(planned) / len(planned)
        yield "rewritten_share", float(interaction.turn(HARM_NAMED) is not None)
