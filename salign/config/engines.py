"""What an agent speaks through."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from salign.config.base import (
    Count,
    CountOrZero,
    FolderOrHub,
    NotBool,
    NotNegative,
    Positive,
    Section,
    Tokens,
    at_most,
    unless,
)
from salign.config.dialects import DIALECTS, Dialect, DialectName, ExtraBody
from salign.config.effects import Effect

RatingWay = Literal["begun", "told", "schema", "choices"]
"""How a model is brought to answer with a digit: by the beginning of its reply ("Rating: "), by being told, by a JSON
schema, or by a choice of digits."""


class ScriptedEngine(Section):
    """Deterministic and instant; for tests, and for measuring everything around a model."""

    kind: Literal["scripted"]
    max_in_flight: Annotated[Count, Effect.FREE] = 256
    """Most calls in flight."""


class TransformersEngine(Section):
    """A model in the process itself."""

    kind: Literal["transformers"] = "transformers"
    model: Annotated[FolderOrHub | None, Effect.INPUT] = None
    """A local folder, hub id or embedded name; None: the run's `model`."""
    device: Annotated[str, Effect.FREE] = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the weights. In bfloat16, replies depend on what else is in their batch."""
    max_batch: Annotated[Count, Effect.FREE] = 16
    """Most replies generated together."""
    batch_invariant: bool = False
    """True: each call is computed by itself, so that its reply depends on nothing else that is asked; a reply is then
    as slow as if it were alone. False: replies depend on their batch by rounding."""
    probe: Annotated[Literal["determinism"] | None, Effect.FREE] = None
    """`determinism`: measures at the opening whether replies depend on what else is asked at the time, by 48 short
    calls. None: they are not made, as they cost as much as a few interactions."""
    max_in_flight: Annotated[Count, Effect.FREE] = 256
    """Most calls in flight, from which batches are formed."""


class ServerAddress(Section):
    """Where an OpenAI-compatible server is, and which environment variable holds its key."""

    base_url: Annotated[str, Effect.FREE]
    """The address up to `/v1`, without a key."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), Effect.FREE] = "OPENAI_API_KEY"
    """The environment variable that holds the key. The key itself is never in a config."""
    patience_s: Annotated[NotNegative, Effect.FREE] = 600.0
    """How long calls wait for a server that answers nobody (broken connections, 502, 503, 504, a limit on the rate);
    such tries do not count as retries. vLLM takes 100 s to 7 minutes to start again."""

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("expected a URL such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "the URL must have no user, password, query or fragment; keys come from the environment (api_key_env)"
            )
        return value


class _ServerCalls(Section):
    """How calls to a server are made. Under back-pressure (429, rising latency) fewer than `max_in_flight` are made."""

    timeout_s: Annotated[Positive, Effect.FREE] = 600.0
    """For one call, including the time it waits in the server's queue."""
    num_retries: Annotated[CountOrZero, Effect.FREE] = 5
    """Retries of a call after a temporary failure (5xx, 429, a broken connection), with growing pauses."""
    max_in_flight: Annotated[Count, Effect.FREE] = 256
    """Most calls in flight."""
    num_top_logprobs: Annotated[int, NotBool, Field(ge=7, le=100)] = 20
    """How many of the likeliest tokens the server is asked for, to find the digits among them."""
    rating_way: Literal["auto"] | RatingWay = "auto"
    """How a rating from the digits' probabilities is requested. `auto`: the way that puts most of the probability on
    digits, measured when the engine opens. If a way is named, only that one is measured."""
    extra_body: ExtraBody = Field(default={}, validate_default=True)
    """More fields of each request, such as `top_k` or `chat_template_kwargs`. They are part of the model's name in
    results and of each call's key in the journal."""
    probe: Annotated[Literal["determinism"] | None, Effect.FREE] = None
    """`determinism`: measures at the opening whether replies depend on what else is asked at the time, by 48 short
    calls. None: they are not made, as they cost as much as a few interactions."""


class OpenAIEngine(_ServerCalls, ServerAddress):
    """Any OpenAI-compatible server."""

    kind: Literal["openai"]
    model: Annotated[str | None, Effect.INPUT] = None
    """The served name; None: the only model that the server offers."""
    dialect: DialectName | Dialect = "auto"
    """What the server takes, by its kind or field by field; docs/engines.md has the table. `auto`: as OpenAI's, and
    what it refuses is found out by the first calls."""

    @property
    def speaks(self) -> Dialect:
        """The dialect itself."""
        return DIALECTS[self.dialect] if isinstance(self.dialect, str) else self.dialect

    @model_validator(mode="after")
    def _way_of_the_dialect(self) -> "OpenAIEngine":
        unknown = {"begun": not self.speaks.begins_replies, "schema": self.speaks.json_schema == "none"}
        mistake = f"rating_way {self.rating_way}: the dialect does not have it"
        return unless(self, [mistake] if unknown.get(self.rating_way) else [])


class ServedEngine(_ServerCalls):
    """Servers that salign starts: of which program and model, and with what."""

    kind: str
    program: Literal["llama_cpp", "vllm"]
    """`llama_cpp` (PyPI's xllamacpp) or `vllm` (installed beside salign)."""
    model: Annotated[FolderOrHub | None, Effect.INPUT] = None
    """A GGUF file or embedded name (llama_cpp), a folder or hub id (vllm); None: the run's `model`."""
    num_servers: Annotated[
        Count, at_most(1024, "each server is a process with the model in its memory"), Effect.FREE
    ] = 1
    """Several servers share the calls (least loaded first) and the visible GPUs: each sees its part of them, or one
    in turn."""
    context_length: Tokens = 4096
    """Tokens of prompt and reply together."""
    num_slots: Annotated[Count, Effect.FREE] = 16
    """Replies that one server generates at the same time."""
    batch_invariant: bool = False
    """True: replies do not depend on what else is asked. vLLM switches to kernels with a fixed order of sums
    (VLLM_BATCH_INVARIANT; on some GPUs only), llama.cpp writes one reply at a time and keeps no prompts."""
    speculation: Literal["prompt_lookup"] | None = None
    """`prompt_lookup`: what follows the last words in the prompt is guessed and checked in one step; revisions repeat
    their drafts. Replies have the same distribution, and other words for the same seed. None: with many replies at a
    time there is no arithmetic left over for guesses."""
    arguments: tuple[str, ...] = ()
    """Further arguments for `vllm serve`."""
    start_timeout_s: Annotated[Positive, Effect.FREE] = 900.0
    """Time allowed for loading the model."""
    environment: Annotated[tuple[str, ...], Effect.FREE] = ()
    """Further variables that the server gets, by name; keys and all but the usual ones are kept from it
    (docs/security.md)."""

    @model_validator(mode="after")
    def _arguments_that_are_free(self) -> "ServedEngine":
        words = {word.split("=")[0].replace("_", "-") for word in self.arguments}
        mistakes = [f"arguments: {word} is set by salign" for word in sorted(words & _OF_OUR_OWN)]
        if self.arguments and self.program != "vllm":
            mistakes.append(f"arguments are for `vllm serve`; {self.program} takes none")
        return unless(self, mistakes)


class ServerEngine(ServedEngine):
    """Servers that start and stop with the shard, on loopback ports and with keys of their own."""

    kind: Literal["server"]


class FleetEngine(ServedEngine):
    """Servers that all shards of a run share: processes of their own, or jobs of the cluster (`cluster.serve`)."""

    kind: Literal["fleet"]
    patience_s: Annotated[NotNegative, Effect.FREE] = 3600.0
    """How long calls wait while no server is there, as where all were preempted and are in the queue again."""
    idle_min: Annotated[NotNegative, Effect.FREE] = 30.0
    """A server ends when no shard has been at work for so long, though some are left, as after a failure."""


# Where a server is reached, and by whom, is for salign to say; a key has no place in a config.
_OF_OUR_OWN = {"--host", "--port", "--uds", "--api-key", "--served-model-name", "--ssl-keyfile", "--ssl-certfile"}
_OF_OUR_OWN |= {"--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless"}  # cluster.serve.nodes


EngineSection = Annotated[
    ScriptedEngine | TransformersEngine | OpenAIEngine | ServerEngine | FleetEngine, Field(discriminator="kind")
]
