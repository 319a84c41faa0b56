"""What an agent speaks through."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from salign.config.base import Count, CountOrZero, FolderOrHub, NotBool, Positive, Section, unless
from salign.config.effects import Effect

RatingWay = Literal["begun", "told", "schema", "choices"]
"""How a model is brought to answer with a digit: by the beginning of its reply ("Rating: "), by being told, by a JSON
schema, or by a choice of digits."""


class ScriptedEngine(Section):
    """Deterministic and instant; for tests and measurements of what surrounds a model."""

    kind: Literal["scripted"]
    max_in_flight: Annotated[Count, Effect.FREE] = 256
    """Calls at a time."""


class TransformersEngine(Section):
    """A model in this process."""

    kind: Literal["transformers"] = "transformers"
    model: Annotated[FolderOrHub | None, Effect.INPUT] = None
    """A local folder, hub id or embedded name; None is the run's `model`."""
    device: Annotated[str, Effect.FREE] = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights. In bfloat16 replies depend on what else is in their batch."""
    max_batch: Annotated[Count, Effect.FREE] = 16
    """Replies made together."""
    max_in_flight: Annotated[Count, Effect.FREE] = 256
    """Calls at a time, of which batches are made."""


class ServerAddress(Section):
    """Where an OpenAI-compatible server is, and which environment variable holds its key."""

    base_url: Annotated[str, Effect.FREE]
    """Up to `/v1`. It carries no key."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), Effect.FREE] = "OPENAI_API_KEY"
    """The environment variable that holds the key. The key itself is never in a config."""

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("expected a URL such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("a URL carries no user, password or query; keys come from the environment (api_key_env)")
        return value


class _ServerCalls(Section):
    """How calls to a server are made. `max_in_flight` is the most; pushed back (429, rising latency), fewer are."""

    timeout_s: Annotated[Positive, Effect.FREE] = 600.0
    """For one call, the time that it waits in the server's queue included."""
    num_retries: Annotated[CountOrZero, Effect.FREE] = 5
    """Of a call that fails in a way that may pass (5xx, 429, a broken connection), with growing pauses."""
    max_in_flight: Annotated[Count, Effect.FREE] = 256
    """Calls at a time, at most."""
    num_top_logprobs: Annotated[int, NotBool, Field(ge=7, le=100)] = 20
    """Of how many of the likeliest tokens the server is asked for probabilities, to find the digits among them."""
    rating_way: Literal["auto"] | RatingWay = "auto"
    """How a rating by the digits' probabilities is asked for. `auto`: the way that puts most of the probability on
    digits, measured when the engine opens. A way that is named is measured alone."""


class OpenAIEngine(_ServerCalls, ServerAddress):
    """Any OpenAI-compatible server."""

    kind: Literal["openai"]
    model: Annotated[str | None, Effect.INPUT] = None
    """The served name; None takes the only model that the server serves."""


class ServerEngine(_ServerCalls):
    """Servers of our own, started and ended with the shard, on loopback ports and with keys of their own."""

    kind: Literal["server"]
    program: Literal["llama_cpp", "vllm"]
    """`llama_cpp` (PyPI's xllamacpp) or `vllm` (installed beside salign)."""
    model: Annotated[FolderOrHub | None, Effect.INPUT] = None
    """A GGUF file or embedded name (llama_cpp), a folder or hub id (vllm); None is the run's `model`."""
    num_servers: Annotated[Count, Effect.FREE] = 1
    """Several share the calls, least loaded first, and the visible GPUs: each sees its part of them, or one in turn."""
    context_length: Count = 4096
    """Tokens of prompt and reply together."""
    num_slots: Annotated[Count, Effect.FREE] = 16
    """Replies that one server makes at a time."""
    arguments: tuple[str, ...] = ()
    """Further words on the command line of `vllm serve`."""
    start_timeout_s: Annotated[Positive, Effect.FREE] = 900.0
    """For the model to be loaded."""

    @model_validator(mode="after")
    def _arguments_that_are_free(self) -> "ServerEngine":
        words = {word.split("=")[0].replace("_", "-") for word in self.arguments}
        mistakes = [f"arguments: {word} is set by salign" for word in sorted(words & _OF_OUR_OWN)]
        if self.arguments and self.program != "vllm":
            mistakes.append(f"arguments are for `vllm serve`; {self.program} takes none")
        return unless(self, mistakes)


# Where a server is reached, and by whom, is for salign to say; a key has no place in a config.
_OF_OUR_OWN = {"--host", "--port", "--uds", "--api-key", "--served-model-name", "--ssl-keyfile", "--ssl-certfile"}


EngineSection = Annotated[
    ScriptedEngine | TransformersEngine | OpenAIEngine | ServerEngine, Field(discriminator="kind")
]
