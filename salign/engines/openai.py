"""Any OpenAI-compatible server (vLLM, llama.cpp, a hosted one), over plain HTTP.

One process makes hundreds of calls a second, of which the `openai` client manages some 400; the two requests that are
needed here need little of it.
"""

import json
import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from salign.config import OpenAIEngine as OpenAISection
from salign.config import Sampling
from salign.engines import thinking
from salign.engines.base import NUM_RATINGS, RATING_PREFIX, Finish, Prompt, RatingReply, Reply, normalise
from salign.engines.http import Server
from salign.errors import CallRejectedError, ConfigError, EngineError

# Where nobody may begin the reply for the model, the model is told.
_ONE_DIGIT = f"Reply with one digit from 1 to {NUM_RATINGS} and nothing else."


# TGI has words of its own for the first.
_FINISHES: dict[str, Finish] = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}


# What is read of an answer.
class _Candidate(BaseModel):
    token: str
    logprob: Annotated[float, Field(le=1)]  # a hair above 0 by rounding; beyond it is none


class _Token(BaseModel):
    top_logprobs: list[_Candidate] | None = None


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Part(BaseModel):
    type: str
    text: str | None = None


class _Message(BaseModel):
    content: str | list[_Part] | None = None
    # Where servers put what was thought: vLLM and most others, OpenRouter and newer vLLM.
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: str | None = None

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


class _Choice(BaseModel):
    message: _Message
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None

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


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
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


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class OpenAIEngine:
    """A client of one server and model. It is made inside the event loop that it is used in."""

    def __init__(
        self,
        section: OpenAISection,
        model: str,
        *,
        identity: str | None = None,
        api_key: str | None = None,
        pushed_back: Callable[[], None] | None = None,
    ) -> None:
        """Makes the client; nothing is asked yet.

        Args:
            section: The server and how it is called.
            model: The served name.
            identity: Which model answers, for results and the journal; None is `model`.
            api_key: The key of a server of our own; None reads the section's environment variable.
            pushed_back: Called for each answer 429 or 503 and for each time-out, tried again or not.
        """
        self._section = section
        self._model = model
        self._identity = identity or model
        self._name = f"{model} at {section.base_url}"
        self._server = Server(section, self._name, api_key, pushed_back)

    @property
    def identity(self) -> str:
        return self._identity

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        completion = await self._complete(
            prompt,
            seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
        )
        return self._reply(completion)

    def _reply(self, completion: _Completion) -> Reply:
        choice = completion.choices[0]
        text, aside = choice.message.text, completion.has_reasoning
        if choice.message.refusal or choice.finish_reason == "content_filter":
            why = choice.message.refusal or "its content filter ended the reply"
            raise CallRejectedError(f"{self._name} refused a call: {self._server.short(why)}")
        if text is None and not aside and choice.finish != "length":
            raise CallRejectedError(f"{self._name} gave a reply without text")
        text, thought = thinking.split(_writable(text or "").decode())
        if aside and thought == "none":
            thought = "whole" if text else "cut"
        return Reply(text, *completion.counts, completion.served, choice.finish, thought)

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        asked, begun = prompt, RATING_PREFIX if self._section.begins_replies else None
        if begun is None:
            asked = Prompt(f"{prompt.user}\n\n{_ONE_DIGIT}", prompt.system)
        completion = await self._complete(
            asked,
            seed,
            begun,
            temperature=0.0,
            max_tokens=1,
            logprobs=True,
            top_logprobs=self._section.num_top_logprobs,
        )
        logprobs = completion.choices[0].logprobs
        candidates = logprobs.content[0].top_logprobs if logprobs and logprobs.content else None
        if not candidates:
            raise EngineError(
                f"{self._name} returned no log-probabilities, which society.rating=logprob needs. Set "
                "society.rating=parse, or use a server that supports `logprobs` in chat completions."
            )
        weights = [0.0] * NUM_RATINGS
        for candidate in candidates:
            token = candidate.token.strip()
            if token.isascii() and token.isdigit() and len(token) == 1 and 1 <= int(token) <= NUM_RATINGS:
                weights[int(token) - 1] += math.exp(candidate.logprob)
        return RatingReply(normalise(weights), sum(weights), *completion.counts, completion.served)

    def facts(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        await self._server.close()

    async def _complete(self, prompt: Prompt, seed: int, begun: str | None = None, **parameters: Any) -> _Completion:
        messages = [{"role": "user", "content": prompt.user}]
        if prompt.system:
            messages.insert(0, {"role": "system", "content": prompt.system})
        if begun:
            messages.append({"role": "assistant", "content": begun})
            # vLLM's words for it; llama.cpp does so of itself
            parameters |= {"add_generation_prompt": False, "continue_final_message": True}
        request = {"model": self._model, "messages": messages, "seed": seed, **parameters}
        answer = await self._server.ask("POST", "chat/completions", _writable(json.dumps(request, ensure_ascii=False)))
        try:
            return _Completion.model_validate(json.loads(answer))
        except ValueError:  # no JSON, or (pydantic's ValidationError) not of this form
            raise EngineError(
                f"{self._name} answered with something that is no chat completion: {self._server.short(answer)!r}. "
                "Is engine.base_url the root of an OpenAI-compatible API (it mostly ends in /v1)?"
            ) from None


def _writable(text: str) -> bytes:
    """UTF-8. Half of a cut emoji, which JSON can say and UTF-8 cannot, becomes a question mark."""
    return text.encode("utf-8", "replace")


async def connect(
    section: OpenAISection,
    *,
    pushed_back: Callable[[], None] | None = None,
    api_key: str | None = None,
    identity: str | None = None,
) -> OpenAIEngine:
    """Opens the engine: the server answers, and serves the asked-for model.

    Args:
        section: The server and how it is called.
        pushed_back: Called for each answer 429 or 503 and each time-out of the engine's calls.
        api_key: The key of a server of our own; None reads the section's environment variable.
        identity: Which model answers, for results and the journal; None is its served name.

    Raises:
        ConfigError: The model is not served, or none is named and several are.
        EngineError: The server is unreachable or is no such server.
    """
    server = Server(section, api_key=api_key)  # a server that is still loading (503) does not lower the gate
    try:
        answer = await server.ask("GET", "models")
        served = [model.id for model in _Models.model_validate_json(answer).data if model.id]
    except ValidationError:
        raise EngineError(
            f"the engine at {section.base_url} answered /models with something that is no list of models. Is "
            "engine.base_url the root of an OpenAI-compatible API (it mostly ends in /v1)?"
        ) from None
    finally:
        await server.close()
    model = section.model or (served[0] if len(served) == 1 else None)
    if model is None or model not in served:
        asked = "no engine.model is named" if section.model is None else f"engine.model {section.model!r} is not served"
        raise ConfigError(f"{asked}; {section.base_url} serves: {', '.join(served) or 'nothing'}.")
    return OpenAIEngine(section, model, identity=identity, api_key=api_key, pushed_back=pushed_back)
