"""Critics (INDICT, arXiv 2407.02518): an agent's own safety and helpfulness critics talk about its answer."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from salign.config import CriticsProtocol
from salign.records import Interaction, Turn
from salign.society import frames, prompts, queries
from salign.society.calls import UnansweredError, spoken
from salign.society.protocols.base import Conversation, Protocol
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Update
from salign.society.wordings.critics import Critic, Critique, answer_anew, critique, summary

DRAFT, CRITIQUE, SUMMARY, MIDDLE, FINAL = "draft", "critique", "summary", "middle", "final"
_CRITICS: tuple[Critic, ...] = get_args(Critic)


class Critics(Protocol[CriticsProtocol]):
    """An agent drafts; two critics talk about the draft by turns; it answers anew, is looked at again, and answers.

    One agent speaks all parts, and nobody else is asked: audience and feedback of the society's settings are without
    effect, except that critiques are sampled with `society.feedback`, and answers after the draft with `revision`.
    """

    observed = (DRAFT, MIDDLE, FINAL)
    reminded = (DRAFT,)
    heard = (CRITIQUE,)
    figures = {"risen_share": "Final answers that are rated above their draft by every criterion"}  # noqa: RUF012

    @property
    def max_calls(self) -> int:
        critiques = len(_CRITICS) * (self.section.num_rounds + 1)
        return len(self.observed) * (1 + len(self.asked)) + critiques + 1

    async def interact(self, conversation: Conversation) -> Sequence[Update]:
        seat, agent, how = conversation.seat, conversation.agent, self.society.revision
        asked = prompts.draft(seat.question, seat.recalled, agent.instructions, agent.key(frames.DRAFTING))
        draft = conversation.say(
            DRAFT, spoken(await agent.generate(asked, self.society.draft, DRAFT), DRAFT), seat.recalled
        )
        heard = await self._talk(conversation, draft, DRAFT, self.section.num_rounds)
        asked = summary(agent.judged(seat.question, draft, SUMMARY), heard)
        told = conversation.say(SUMMARY, spoken(await agent.generate(asked, self.society.feedback, SUMMARY), SUMMARY))
        asked = answer_anew(
            agent.judged(seat.question, draft, _shown_before(MIDDLE)), [Critique("both", told)], agent.instructions
        )
        middle = conversation.say(MIDDLE, spoken(await agent.generate(asked, how, MIDDLE), MIDDLE))
        heard = await self._talk(conversation, middle, MIDDLE, 1)
        asked = answer_anew(agent.judged(seat.question, middle, _shown_before(FINAL)), heard, agent.instructions)
        return [Update(conversation.say(FINAL, spoken(await agent.generate(asked, how, FINAL), FINAL)))]

    async def _talk(self, conversation: Conversation, answer: str, of: str, num_rounds: int) -> list[Critique]:
        """What the critics say of an answer by turns, each after it has heard all before."""
        agent, heard = conversation.agent, list[Critique]()
        for number in range(num_rounds):
            for critic in _CRITICS:
                name = f"{CRITIQUE}:{of}:{critic}:{number}"
                # A key of its own for each: what a critic said was written under another.
                judged = agent.judged(conversation.seat.question, answer, name)
                reply = await agent.reason(critique(judged, critic, heard), name)
                said = conversation.say(CRITIQUE, reply, name=name, data={"critic": critic, "of": of})
                if said.strip():
                    heard.append(Critique(critic, said))
        if not heard:
            raise UnansweredError(f"neither critic said anything of the {of}")
        return heard

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """Draft, middle and final answer as one group; each improvement as a revision after its critiques."""
        question = interaction.topic
        answers = [turn for role in self.observed for turn in learning.kept(interaction.turns_of(role))]
        yield Row("imitation", question, tuple([(turn, learning.score(turn)) for turn in answers]))
        for before, after in itertools.pairwise(answers):
            score, better = learning.score(before), learning.score(after)
            if score is None or better is None or better <= max(score, learning.min_score):
                continue
            said = [turn for turn in learning.kept(interaction.turns_of(CRITIQUE)) if turn.data["of"] == before.role]
            reasons = [turn.text for turn in said if turn.text.strip()]
            if reasons:
                yield Row("realignment", queries.realignment(question, before.text, reasons), ((after, better),))

    def measure(self, interaction: Interaction) -> Iterable[tuple[str, float]]:
        draft, final = interaction.turn(DRAFT), interaction.turn(FINAL)
        if draft is not None and final is not None:
            risen = [_rise(draft, final, criterion) for criterion in self.criteria]
            if None not in risen:
                yield "risen_share", float(all(rise is not None and rise > 0 for rise in risen))


def _shown_before(role: str) -> str:
    """As what the author is shown its answer before it answers anew; its judges are shown that under another key."""
    return f"{frames.REVISING}:{role}"


def _rise(before: Turn, after: Turn, criterion: str) -> float | None:
    rated, rated_after = before.observed_rating(criterion), after.observed_rating(criterion)
    return None if rated is None or rated_after is None else rated_after - rated
