"""Sample: several answers of one agent to its question, rated by the observers alone."""

from collections.abc import Iterator

from salign.config import SampleProtocol
from salign.records import Interaction
from salign.society import frames, prompts
from salign.society.calls import spoken, together
from salign.society.protocols.base import Conversation, Protocol
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Update

ANSWER = "answer"


class Sample(Protocol[SampleProtocol]):
    """The leader answers several times; what it remembers is the first answer that says something.

    It asks nobody: audience, feedback and revision of the society's settings are without effect.
    """

    observed = (ANSWER,)
    reminded = (ANSWER,)
    rates_silence = True

    @property
    def max_calls(self) -> int:
        return self.section.num_answers * (1 + len(self.asked))

    async def interact(self, conversation: Conversation) -> list[Update]:
        seat, agent = conversation.seat, conversation.agent
        asked = prompts.draft(seat.question, seat.recalled, agent.instructions, agent.key(frames.DRAFTING))
        names = [f"{ANSWER}:{number}" for number in range(self.section.num_answers)]
        replies = await together(*(agent.generate(asked, self.society.draft, name) for name in names))
        for name, reply in zip(names, replies, strict=True):
            whole = reply if reply.text.strip() else reply._replace(text="")
            conversation.say(ANSWER, whole, seat.recalled, name)
        # The interaction fails where all are empty: then nothing can be told from another.
        said = [reply.text for reply in replies if reply.text.strip()] or [spoken(replies[0], ANSWER).text]
        return [Update(said[0])]

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        answers = learning.kept(interaction.turns_of(ANSWER))
        yield Row("imitation", interaction.topic, tuple((turn, learning.score(turn)) for turn in answers))
