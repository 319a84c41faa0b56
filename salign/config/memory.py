"""What agents remember, and what of it comes to their minds."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from salign.config.base import Count, NotBool, NotNegative, Section, Tokens, at_most, unless


class AnswersMemory(Section):
    """An agent's own latest answer to each question, and those that it starts with; the nearest one is recalled."""

    kind: Literal["answers"] = "answers"
    max_tokens: Tokens | None = None
    """Where what is recalled is cut, as in `stream`; None: nowhere, for only answers of `prior` may be long."""


class StreamMemory(Section):
    """Also all that was said to an agent, recalled by recency, importance and relevance (arXiv 2304.03442).

    A memory's score is the weighted sum of the three, each scaled to 0..1 over the memories that are near enough.
    """

    kind: Literal["stream"]
    num_recalled: Annotated[Count, at_most(100, "a prompt would consist of memories")] = 3
    """Memories that are recalled at once, at most."""
    max_tokens: Tokens = 300
    """What is recalled at once, at most. Three bytes count as a token, which is more than an English text has (by the
    embedded model's tokenizer 1.5 times as many); what is longer is cut, and the record says how much."""
    max_kept: Annotated[Count, at_most(10_000, "all of them are compared before each turn")] = 100
    """What an agent lived through and keeps, beside what it starts with; the oldest is forgotten first."""
    recency_weight: NotNegative = 1.0
    """Of how lately it was said: `decay` to the power of the rounds since."""
    importance_weight: NotNegative = 1.0
    """Of how much it matters (`importance`)."""
    relevance_weight: NotNegative = 1.0
    """Of how near the question is about which it was said."""
    decay: Annotated[float, NotBool, Field(gt=0, lt=1)] = 0.995
    """The paper's, where it is for an hour."""
    importance: Literal["ratings", "asked"] = "ratings"
    """`ratings`: how far the rating that came with it is from the middle of its scale, and halfway where none did;
    `asked`: the agent rates after each interaction how much that will matter to it, with one more call."""

    @model_validator(mode="after")
    def _possible(self) -> "StreamMemory":
        weighs = self.recency_weight or self.importance_weight or self.relevance_weight
        return unless(self, [] if weighs else ["all weights are 0: no memory would come before another; raise one"])


MemorySection = Annotated[AnswersMemory | StreamMemory, Field(discriminator="kind")]
