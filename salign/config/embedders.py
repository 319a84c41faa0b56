"""What makes two questions similar."""

from typing import Annotated, Literal

from pydantic import Field

from salign.config.base import Count, CountOrZero, FolderOrHub, Positive, Section, at_most
from salign.config.effects import Effect
from salign.config.engines import ServerAddress


class HashingEmbedder(Section):
    """Hashed words and word pairs: no model, the same on every machine."""

    kind: Literal["hashing"] = "hashing"
    num_features: Annotated[Count, at_most(100_000_000, "more buckets keep no more words apart")] = 1 << 16
    """Buckets for hashed words and word pairs."""


class TransformersEmbedder(Section):
    """The mean of a local model's last hidden states."""

    kind: Literal["transformers"]
    model: Annotated[FolderOrHub, Effect.INPUT]
    """A folder, hub id or embedded name."""
    device: Annotated[str, Effect.FREE] = "auto"
    """As for the engine."""


class OpenAIEmbedder(ServerAddress):
    """An OpenAI-compatible server's `/v1/embeddings`."""

    kind: Literal["openai"]
    model: str
    """The served name."""
    timeout_s: Annotated[Positive, Effect.FREE] = 60.0
    """Time limit of one call."""
    num_retries: Annotated[CountOrZero, Effect.FREE] = 5
    """As for the engine."""


Embedder = Annotated[HashingEmbedder | TransformersEmbedder | OpenAIEmbedder, Field(discriminator="kind")]
