"""What OpenAI-compatible servers take of a request, where they differ."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from salign.config.base import CountOrZero, Section


class Dialect(Section):
    """A server's dialect: what of a request it takes, and how. What a field does not say is found out by asking."""

    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name of the most new tokens."""
    leaves_out: tuple[Literal["temperature", "top_p", "seed", "system"], ...] = ()
    """What is not sent. Without `temperature` and `top_p` the server samples as it chooses, without `seed` a repeated
    call may get another reply; without `system` that text goes before the user's."""
    full_top_p: bool = True
    """Whether `top_p` may be 1, which samples from everything; otherwise it is then left out, which means the same."""
    content: Literal["text", "parts"] = "text"
    """How a message's text is given: as it is, or as a list of parts."""
    max_top_logprobs: CountOrZero = 100
    """How many of the likeliest tokens are shown at most; 0: no log-probabilities at all, so that ratings can only be
    read from words (`society.rating=parse`)."""
    begins_replies: bool = True
    """Whether the server continues a reply that was begun for the model."""
    json_schema: Literal["json_schema", "value", "none"] = "json_schema"
    """Where `response_format` has a JSON schema: in `json_schema` as OpenAI's, in `value`, or nowhere."""


DIALECTS: dict[str, Dialect] = {
    "auto": Dialect(),
    "vllm": Dialect(max_top_logprobs=20),
    "llama_cpp": Dialect(),
    "sglang": Dialect(),
    "tgi": Dialect(full_top_p=False, max_top_logprobs=5, json_schema="value"),
    "litellm": Dialect(),
    "ollama": Dialect(max_top_logprobs=20),
    "openai": Dialect(max_tokens="max_completion_tokens", max_top_logprobs=20, begins_replies=False),
    "openai_reasoning": Dialect(
        max_tokens="max_completion_tokens",
        leaves_out=("temperature", "top_p"),
        max_top_logprobs=0,
        begins_replies=False,
    ),
    "openrouter": Dialect(max_top_logprobs=20),
    "transformers": Dialect(max_top_logprobs=0, json_schema="none"),
}
"""By name; docs/engines.md has where each is from."""

DialectName = Literal[
    "auto",
    "vllm",
    "llama_cpp",
    "sglang",
    "tgi",
    "litellm",
    "ollama",
    "openai",
    "openai_reasoning",
    "openrouter",
    "transformers",
]

# What a request has by other settings, or what would change the form of its answer.
_OF_OUR_OWN = frozenset({"model", "messages", "stream", "n", "seed", "temperature", "top_p", "max_tokens"})
_OF_OUR_OWN |= {"max_completion_tokens", "logprobs", "top_logprobs", "response_format", "continue_final_message"}
_OF_OUR_OWN |= {"add_generation_prompt", "tools", "tool_choice"}


class _Body(dict[str, Any]):
    """A mapping in a section: equal ones have one hash."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


def _free(body: dict[str, Any]) -> dict[str, Any]:
    taken = sorted(_OF_OUR_OWN & body.keys())
    if taken:
        raise ValueError(f"{', '.join(taken)}: set by salign, by settings of its own (society.draft, engine.dialect)")
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be sent as JSON: {error}") from None
    return _Body(body)


ExtraBody = Annotated[dict[str, Any], AfterValidator(_free)]
