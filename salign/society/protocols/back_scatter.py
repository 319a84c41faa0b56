"""Back-Scatter, the paper's protocol (section 3.2): draft, feedback, revision, observation."""

from collections.abc import Iterator

from salign.records import Interaction, Turn
from salign.society import frames, prompts, queries
from salign.society.calls import Calls, UnansweredError, spoken, together
from salign.society.prompts import Judged
from salign.society.protocols.base import Conversation, Protocol, Section
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Query, State, Update
from salign.society.replies import flags_of

DRAFT, FEEDBACK, REVISION = "draft", "feedback", "revision"


def rated_or_fail(feedback: list[Turn]) -> list[Turn]:
    """What an audience says, if any of it has a rating; or if nobody was asked.

    Raises:
        UnansweredError: Nobody's rating could be read.
    """
    if feedback and all(turn.rating is None for turn in feedback):
        raise UnansweredError("no rating of the audience could be read")
    return feedback


class BackScatter(Protocol[Section]):
    """The leader drafts, its audience rates the draft and says why, the leader revises."""

    observed = (DRAFT, REVISION)
    reminded = (DRAFT, FEEDBACK)
    heard = (FEEDBACK,)

    @property
    def max_calls(self) -> int:
        society = self.society
        per_member = 2 if society.rating == "logprob" and "feedback_text" not in society.without else 1
        members = society.audience_size if society.has_audience else 0
        return 1 + per_member * members + 1 + len(self.observed) * len(self.asked)

    async def interact(self, conversation: Conversation) -> list[Update]:
        seat, agent = conversation.seat, conversation.agent
        asked = prompts.draft(seat.question, seat.recalled, agent.instructions, agent.key(frames.DRAFTING))
        drafted = spoken(await agent.generate(asked, self.society.draft, DRAFT), DRAFT)
        draft = conversation.say(DRAFT, drafted, seat.recalled)
        feedback = rated_or_fail(await conversation.ask(seat.audience, draft))
        shown = agent.judged(seat.question, draft, frames.REVISING)
        asked = agent.wording.revision(shown, feedback, agent.instructions)
        revised = spoken(await agent.generate(asked, self.society.revision, REVISION), REVISION)
        return [Update(conversation.say(REVISION, revised))]

    async def answer(self, calls: Calls, state: State, question: str, query: Query) -> Turn:
        return await self.judge(calls, state, calls.judged(question, query.text, DRAFT), query, calls.instructions)

    async def judge(self, calls: Calls, state: State, judged: Judged, query: Query, instructions: str | None) -> Turn:
        """What a member says of a draft under some instructions: a rating, and why."""
        member, recalled = state.agent, state.recalled
        about = (judged, recalled, instructions)
        wanted = "feedback_text" not in self.society.without
        if self.society.rating == "logprob" and wanted:
            (given, _), reply = await together(
                calls.rating(calls.wording.feedback_rating(*about), query.text, f"rating:{member}"),
                calls.reason(calls.wording.feedback_reason(*about), f"reason:{member}"),
            )
            reason = reply.text
        else:
            given, reply = await calls.rating(calls.wording.feedback_rating(*about), query.text, f"feedback:{member}")
            reason = given.text
        return Turn(
            member,
            FEEDBACK,
            reason if wanted else "",
            about=query.about,
            rating=given.rating,
            mass=given.mass,
            recalled=recalled,
            flags=flags_of(reply, reason) if wanted else (),
        )

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """The three kinds of the paper (section 3.3): imitation, self-critic, realignment."""
        draft, revision = interaction.turn(DRAFT), interaction.turn(REVISION)
        if draft is None:
            return
        question = interaction.topic
        drafts = learning.kept([draft])
        revisions = [] if revision is None else learning.kept([revision])
        answers = [(turn, learning.score(turn)) for turn in (*drafts, *revisions)]
        yield Row("imitation", question, tuple(answers))
        if not drafts:
            return
        feedback = learning.kept(interaction.turns_of(FEEDBACK))
        yield Row("self_critic", queries.self_critic(question, draft.text), tuple([(t, t.rating) for t in feedback]))
        if revision is None or not revisions:
            return
        (_, before), (_, after) = answers
        if before is not None and after is not None and after > max(before, learning.min_score):
            reasons = [turn.text for turn in feedback if turn.rating is not None and turn.text.strip()]
            if reasons:  # without words there is nothing to learn to follow
                yield Row("realignment", queries.realignment(question, draft.text, reasons), ((revision, after),))
