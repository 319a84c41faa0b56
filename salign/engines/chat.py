"""Reads chat completions of OpenAI-compatible servers."""

import json
import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, Field

from salign.config import SCALE, Scale
from salign.engines.base import RATING_PREFIX, Finish

# TGI has words of its own for the first.
_FINISHES: dict[str, Finish] = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}
# What stands around a digit in its token: `5`, ` 5`, `5}`.
_AROUND = " \t\r\n\"',:}"


def rating_schema(scale: Scale, *, reasoned: bool) -> dict[str, Any]:
    """The JSON schema of a rating on a scale, alone or with its reason after it."""
    low, high = scale
    properties: dict[str, Any] = {"rating": {"type": "integer", "enum": list(range(low, high + 1))}}
    if reasoned:
        properties["reason"] = {"type": "string"}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_CUT_FORM = re.compile(r'\s*\{\s*"rating"\s*:\s*(\d+)\s*(?:,\s*(?:"reason"\s*:\s*"(.*))?)?', re.DOTALL)


class Candidate(BaseModel):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: Annotated[float, Field(le=1)]  # a hair above 0 by rounding; beyond it is none


class Token(BaseModel):
    """A token that was said, and what might have been said there."""

    token: str = ""
    top_logprobs: list[Candidate] | None = None


class _Logprobs(BaseModel):
    content: list[Token] | None = None


class _Part(BaseModel):
    type: str
    text: str | None = None


class Message(BaseModel):
    """What was said, in one of the ways in which servers give it."""

    content: str | list[_Part] | None = None
    # Where servers put what was thought: vLLM and most others, OpenRouter and newer vLLM.
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: Any = None

    @property
    def text(self) -> str | None:
        """What was said, of parts those of text."""
        if not isinstance(self.content, list):
            return self.content
        return "".join(part.text or "" for part in self.content if part.type == "text")

    @property
    def has_reasoning(self) -> bool:
        """Whether thinking comes beside what was said."""
        parts = self.content if isinstance(self.content, list) else ()
        return bool(self.reasoning_content or self.reasoning) or any(part.type != "text" for part in parts)


class Choice(BaseModel):
    """The reply."""

    message: Message
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    error: Any = None  # OpenRouter's, of the provider behind it

    @property
    def why_refused(self) -> str | None:
        """Why there is no reply, where the server or its model refused one; None where there may be one."""
        if self.message.refusal:
            return self.message.refusal
        if self.finish_reason == "content_filter":
            return "its content filter ended the reply"
        if self.finish_reason == "error":
            return f"the reply ended with an error: {json.dumps(self.error, ensure_ascii=False)}"
        if self.message.tool_calls and not self.message.text:
            return f"the model called a tool instead of replying: {json.dumps(self.message.tool_calls)}"
        return None

    @property
    def finish(self) -> Finish | None:
        """How the reply ended, of the two ways that matter here."""
        return _FINISHES.get(self.finish_reason or "")


class _TokenDetails(BaseModel):
    reasoning_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _TokenDetails | None = None


class Completion(BaseModel):
    """An answer of `chat/completions`."""

    choices: list[Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: Any = None

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens of prompt and reply; 0 where the server does not say."""
        usage = self.usage or _Usage()
        return usage.prompt_tokens or 0, usage.completion_tokens or 0

    @property
    def has_reasoning(self) -> bool:
        """Whether the model thought outside its text; hosted ones give no more than the number of tokens."""
        details = self.usage.completion_tokens_details if self.usage else None
        return self.choices[0].message.has_reasoning or bool(details and details.reasoning_tokens)

    @property
    def served(self) -> str | None:
        """The name that the server gives its model."""
        return self.model if isinstance(self.model, str) and self.model else None

    def candidates(self, scale: Scale, *, in_json: bool) -> list[Candidate] | None:
        """The likeliest tokens where the rating's digit belongs; None where the server shows none.

        Args:
            scale: Of the rating.
            in_json: The digit is the first of an object, which the reply need not be; otherwise it is the first token.
        """
        logprobs = self.choices[0].logprobs
        tokens = (logprobs.content if logprobs else None) or []
        if not tokens:
            return None
        if not in_json:
            return tokens[0].top_logprobs or None
        said = ""
        for token in tokens:
            if "{" in said and _digit(token.token, scale) is not None:
                return token.top_logprobs or None
            said += token.token
        return []


def _digit(token: str, scale: Scale) -> int | None:
    """The digit of a scale that a token says, if it says one and nothing else."""
    said = token.strip(_AROUND)
    if len(said) != 1 or not (said.isascii() and said.isdigit()):
        return None
    return int(said) if scale[0] <= int(said) <= scale[1] else None


def weights(candidates: list[Candidate], scale: Scale) -> list[float]:
    """The probability of each digit of a scale among some tokens."""
    low, high = scale
    found = [0.0] * (high - low + 1)
    for candidate in candidates:
        digit = _digit(candidate.token, scale)
        if digit is not None:
            found[digit - low] += math.exp(candidate.logprob)
    return found


def in_words(text: str, scale: Scale = SCALE) -> str | None:
    """A rating by `rating_schema`, cut off or not, as "Rating: N Reason: ..."; None for a text that is none."""
    low, high = scale
    try:
        form = json.loads(text)
    except ValueError:
        cut = _CUT_FORM.match(text)
        if cut is None or (cut.end(1) == len(text) and 0 < int(cut[1]) * 10 <= high):  # a 1 that may begin 10
            return None
        form = {"rating": int(cut[1]), "reason": (cut[2] or "").replace('\\"', '"').replace("\\n", " ")}
    rating = form.get("rating") if isinstance(form, dict) else None
    if not isinstance(rating, int) or isinstance(rating, bool) or not low <= rating <= high:
        return None
    return f"{RATING_PREFIX}{rating} Reason: {form.get('reason') or ''}".strip()
