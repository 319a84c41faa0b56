"""Any OpenAI-compatible server (vLLM, llama.cpp, a hosted one), over plain HTTP.

One process makes hundreds of calls a second, of which the `openai` client manages some 400; the two requests that are
needed here need little of it.
"""

import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from salign.chat import Message, break_up, conversation
from salign.config import SCALE, Dialect, RatingWay, Sampling, Scale, ServedEngine
from salign.config import OpenAIEngine as OpenAISection
from salign.engines import thinking
from salign.engines.base import RATING_PREFIX, Prompt, RatingReply, Reply, normalise
from salign.engines.capabilities import PROBES, Capabilities, Ratings, measure_ways
from salign.engines.chat import Completion, in_words, rating_schema, weights
from salign.engines.http import Server
from salign.engines.refusals import MAY_BE_REFUSED, refused_parameter
from salign.errors import CallRejectedError, ConfigError, EngineError, EngineUnavailableError

logger = logging.getLogger(__name__)

# Where nobody may begin the reply for the model, the model is told.
_ONE_DIGIT = "Reply with one digit from %d to %d and nothing else."
_ONE_OBJECT = 'Reply with a JSON object alone: {"rating": <%d to %d>}'
_REASONED_OBJECT = 'Give it as a JSON object: {"rating": <%d to %d>, "reason": "<one or two sentences>"}'
_REASONED = f'Reply in the form "{RATING_PREFIX}<%d to %d> Reason: <one or two sentences>".'
_OBJECT_TOKENS = 16
_NUM_FORM_PROBES, _FORM_TOKENS = 3, 120

# The first call, which shows what the server refuses, and how a model that thinks begins its reply.
_HELLO = Prompt("Is water wet? Reply with yes or no.", "Be brief.")
_HELLO_TOKENS = 512

# What some servers show at most of the likeliest tokens.
_FEW_LOGPROBS = 5
PLAIN = Dialect()
# With 20 likely ones, each as text, bytes and number, a token takes some 4 KB.
_MOST_BYTES_OF_TOKEN = 16 << 10


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
    ) -> None:
        """Makes the client; nothing is asked yet.

        Args:
            section: The server and how it is called.
            model: The served name.
            identity: Which model answers, for results and the journal; None is `model`.
            api_key: The key of a server of our own; None reads the section's environment variable.
        """
        self._section = section
        self._model = model
        self._dialect = section.speaks
        self._speaks_plainly = self._dialect == PLAIN  # comparing them at each call would take as long as writing it
        self._identity = identity or with_body(model, section)
        self._name = f"{model} at {section.base_url}"
        self._server = Server(section, self._name, api_key)
        way = None if section.rating_way == "auto" else section.rating_way
        self.capabilities = Capabilities(rating_way=way, refused=self._left_out())

    @property
    def identity(self) -> str:
        return self._identity

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        parameters: dict[str, Any] = {}
        in_form = prompt.form == "rating" and self.capabilities.json_schema
        if in_form:
            prompt = prompt._replace(user=f"{prompt.user}\n\n{_REASONED_OBJECT % prompt.scale}")
            parameters["response_format"] = _rating_format(prompt.scale, reasoned=True)
        completion = await self._complete(
            prompt,
            seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            **parameters,
        )
        reply = self._reply(completion, in_form=in_form)
        # What a server does not hold to the form stays as the model said it.
        return reply._replace(text=in_words(reply.text, prompt.scale) or reply.text) if in_form else reply

    def _reply(self, completion: Completion, *, in_form: bool = False) -> Reply:
        choice = completion.choices[0]
        text, aside = choice.message.text, completion.has_reasoning
        if (why := choice.why_refused) is not None:
            raise CallRejectedError(f"{self._name} refused a call: {self._server.short(why)}")
        if text is None and not aside and choice.finish != "length":
            raise CallRejectedError(f"{self._name} returned a reply without text")
        # what is held to a form, or comes beside its thought, has none before it
        opened = self.capabilities.opens_thinking and not (aside or in_form)
        text, thought = thinking.split(_writable(text or "").decode(), opened=opened)
        if aside and thought == "none":
            thought = "whole" if text else "cut"
        return Reply(text, *completion.counts, completion.served, choice.finish, thought)

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        return await self._rate(self.capabilities.rating_way or "told", prompt, seed)

    async def _rate(self, way: RatingWay, prompt: Prompt, seed: int) -> RatingReply:
        """Asks for a rating in one of the ways."""
        parameters: dict[str, Any] = {"max_tokens": 1, "logprobs": True}
        parameters["top_logprobs"] = min(self._section.num_top_logprobs, self._dialect.max_top_logprobs)
        begun = RATING_PREFIX if way == "begun" else None
        told = {"told": _ONE_DIGIT, "choices": _ONE_DIGIT, "schema": _ONE_OBJECT}.get(way)
        if told is not None:
            prompt = prompt._replace(user=f"{prompt.user}\n\n{told % prompt.scale}")
        if way == "choices":
            parameters |= _choices(prompt.scale)
        elif way == "schema":
            parameters |= {
                "response_format": _rating_format(prompt.scale, reasoned=False),
                "max_tokens": _OBJECT_TOKENS,
            }
        completion = await self._complete(prompt, seed, begun, temperature=0.0, **parameters)
        candidates = completion.candidates(prompt.scale, in_json=way == "schema")
        if candidates is None:
            raise EngineError(
                f"{self._name} returned no log-probabilities, which society.rating=logprob needs. Set "
                "society.rating=parse, or use a server that supports `logprobs` in chat completions."
            )
        found = weights(candidates, prompt.scale)
        return RatingReply(normalise(found), sum(found), *completion.counts, completion.served, prompt.scale[0])

    def on_push_back(self, report: Callable[[], None]) -> None:
        self._server.on_push_back(report)

    @property
    def waiting_since(self) -> float | None:
        return self._server.waiting_since

    def facts(self) -> dict[str, Any]:
        return self.capabilities.facts()

    async def close(self) -> None:
        await self._server.close()

    # --- what the server can do ---

    async def probe(self, ratings: Ratings | None) -> Capabilities:
        """Measures what the server can do; see `Measurable`."""
        await self._say_hello()
        if ratings in ("parse", "both"):
            holds = self._dialect.json_schema != "none" and await self._holds_to_schema()
            found = {"json_schema": holds}
            self.capabilities = self.capabilities.model_copy(update=found)
        if ratings not in ("logprob", "both"):
            return self.capabilities
        await self._ask_for_fewer_logprobs()
        asked = self._section.rating_way
        ways: tuple[RatingWay, ...] = _ways(self._dialect) if asked == "auto" else (asked,)
        rates = {way: functools.partial(self._rate, way, seed=0) for way in ways}
        chosen, measured = await measure_ways(self._name, rates)
        return self.capabilities.model_copy(update={"rating_way": chosen, "ways": measured})

    async def _say_hello(self) -> None:
        """Learns which parameters the server refuses, by its own words, and whether its template opens a thought."""
        self.capabilities = Capabilities(refused=self._left_out())
        for _ in range(len(MAY_BE_REFUSED) + 2):
            try:
                completion = await self._complete(_HELLO, 0, temperature=0.0, top_p=1.0, max_tokens=_HELLO_TOKENS)
            except EngineUnavailableError:
                raise
            except EngineError as error:  # refused; or a template that raises, which some servers call their own fault
                name = refused_parameter(str(error).removeprefix(self._name))
                if name is None or name in self.capabilities.refused:
                    if not isinstance(error, CallRejectedError):
                        raise
                    logger.warning("the first call: %s", error)
                    return
                logger.warning("%s refuses `%s`: %s.", self._name, name, _SAID_OTHERWISE.get(name, "it is left out"))
                refused = (*self.capabilities.refused, name)
                self.capabilities = self.capabilities.model_copy(update={"refused": refused})
            else:
                said = completion.choices[0].message.text or ""
                opened = thinking.closes_what_it_did_not_open(said)
                self.capabilities = self.capabilities.model_copy(update={"opens_thinking": opened})
                return

    def _left_out(self) -> tuple[str, ...]:
        """What the dialect is known not to take."""
        renamed = ("max_tokens",) if self._dialect.max_tokens == "max_completion_tokens" else ()
        return (*renamed, *self._dialect.leaves_out)

    async def _ask_for_fewer_logprobs(self) -> None:
        """Some servers show 5 of the likeliest tokens at most, and refuse whoever asks for more."""
        try:
            await self._rate("told", PROBES[0], 0)
        except CallRejectedError as error:
            if "logprobs" in str(error):
                refused = (*self.capabilities.refused, "top_logprobs")
                self.capabilities = self.capabilities.model_copy(update={"refused": refused})
        except EngineError:  # whatever else it is, each way says it for itself
            pass

    async def _holds_to_schema(self) -> bool:
        """Whether the server holds a rating in words to a JSON schema."""
        wanted = _rating_format(SCALE, reasoned=True)
        for prompt in PROBES[:_NUM_FORM_PROBES]:
            asked = Prompt(f"{prompt.user}\n\n{_REASONED % SCALE}\n\n{_REASONED_OBJECT % SCALE}")
            try:
                completion = await self._complete(
                    asked, 0, temperature=0.0, max_tokens=_FORM_TOKENS, response_format=wanted
                )
                text = self._reply(completion, in_form=True).text
            except CallRejectedError as error:
                logger.info("ratings in words are read from free text: %s", error)
                return False
            if in_words(text) is None:
                logger.info("%s does not enforce a JSON schema on ratings: they are read from free text.", self._name)
                return False
        logger.info("%s enforces a JSON schema on ratings in words.", self._name)
        return True

    async def _complete(self, prompt: Prompt, seed: int, begun: str | None = None, **parameters: Any) -> Completion:
        refused = self.capabilities.refused
        # The server would take for control what spells it in a text.
        user, system = break_up(prompt.user), break_up(prompt.system or "")
        if system and "system" in refused:
            user, system = f"{system}\n\n{user}", ""
        messages: list[Message] = conversation(user, system)
        if begun:
            messages.append({"role": "assistant", "content": begun})
            # vLLM's words for it; llama.cpp does so of itself
            parameters |= {"add_generation_prompt": False, "continue_final_message": True}
        request = {"model": self._model, "messages": messages, "seed": seed, **parameters, **self._section.extra_body}
        if refused:
            request = _without(request, refused)
        if not self._speaks_plainly:
            request = _in_dialect(request, self._dialect)
        body = _body(request)
        more_bytes = int(parameters.get("max_tokens", 0)) * _MOST_BYTES_OF_TOKEN
        answer = await self._server.ask("POST", "chat/completions", body, more_bytes)
        try:
            return _parsed(answer)
        except ValueError:  # no JSON, or (pydantic's ValidationError) not of this form
            raise EngineError(
                f"{self._name} answered with something other than a chat completion: {self._server.short(answer)!r}. "
                "Is engine.base_url the root of an OpenAI-compatible API (it usually ends in /v1)?"
            ) from None


# What is done about a refused parameter other than to leave it out.
_SAID_OTHERWISE = {
    "max_tokens": "max_completion_tokens is sent instead",
    "system": "the system text goes before the user's",
    "temperature": "it is left out, so replies are sampled as the server chooses and not as the config says",
    "top_p": "it is left out, so replies are sampled as the server chooses and not as the config says",
    "seed": "it is left out, so a repeated call may get another reply",
}


def _without(request: dict[str, Any], refused: Sequence[str]) -> dict[str, Any]:
    """A request without what the server refuses, or with it in other words."""
    kept = {name: value for name, value in request.items() if name not in refused or name == "top_logprobs"}
    if "max_tokens" in refused:
        kept["max_completion_tokens"] = request["max_tokens"]
    if "top_logprobs" in refused and "top_logprobs" in kept:
        kept["top_logprobs"] = _FEW_LOGPROBS
    return kept


def _in_dialect(request: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    """A request in the form that a server takes."""
    said = dict(request)
    if not dialect.full_top_p and said.get("top_p") == 1:
        del said["top_p"]
    if dialect.content == "parts":
        said["messages"] = [
            {**message, "content": [{"type": "text", "text": message["content"]}]} for message in said["messages"]
        ]
    if dialect.json_schema == "value" and "response_format" in said:
        said["response_format"] = {"type": "json_schema", "value": said["response_format"]["json_schema"]}
    return said


def _ways(dialect: Dialect) -> tuple[RatingWay, ...]:
    """The ways of asking for a rating that a dialect may have."""
    ways: tuple[RatingWay, ...] = ("begun", "told", "schema", "choices")
    missing = {"begun": not dialect.begins_replies, "schema": dialect.json_schema == "none"}
    return tuple(way for way in ways if not missing.get(way))


def with_body(identity: str, section: OpenAISection | ServedEngine) -> str:
    """A model's name with what its requests have beside the rest, by which it may answer otherwise."""
    extra = section.extra_body
    return f"{identity} with {json.dumps(extra, sort_keys=True, ensure_ascii=False)}" if extra else identity


def _choices(scale: Scale) -> dict[str, Any]:
    """One digit of a scale and nothing else, by three names: newer vLLM's, older vLLM's, llama.cpp's.

    What a server does not know it leaves alone, or refuses all.
    """
    low, high = scale
    digits = [str(digit) for digit in range(low, high + 1)]
    return {"structured_outputs": {"choice": digits}, "guided_choice": digits, "grammar": f"root ::= [{low}-{high}]"}


def _rating_format(scale: Scale, *, reasoned: bool) -> dict[str, Any]:
    schema = rating_schema(scale, reasoned=reasoned)
    return {"type": "json_schema", "json_schema": {"name": "rating", "strict": True, "schema": schema}}


def _body(request: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(request)
    except TypeError:  # half an emoji is in a text
        return _writable(json.dumps(request, ensure_ascii=False))


def _parsed(answer: bytes) -> Completion:
    try:
        return Completion.model_validate_json(answer)
    except ValidationError:  # half an emoji, as servers that cut replies send it; or no completion
        return Completion.model_validate(json.loads(answer))


def _writable(text: str) -> bytes:
    """UTF-8. Half of a cut emoji, which JSON can say and UTF-8 cannot, becomes a question mark."""
    return text.encode("utf-8", "replace")


async def connect(section: OpenAISection) -> OpenAIEngine:
    """Opens the engine: the server answers, and serves the asked-for model.

    Raises:
        ConfigError: The model is not served, or none is named and several are.
        EngineError: The server is unreachable or is no such server.
    """
    server = Server(section)
    try:
        answer = await server.ask("GET", "models")
        served = [model.id for model in _Models.model_validate_json(answer).data if model.id]
    except ValidationError:
        raise EngineError(
            f"the engine at {section.base_url} answered /models with something other than a list of models. Is "
            "engine.base_url the root of an OpenAI-compatible API (it usually ends in /v1)?"
        ) from None
    finally:
        await server.close()
    model = section.model or (served[0] if len(served) == 1 else None)
    if model is None or model not in served:
        asked = "no engine.model is named" if section.model is None else f"engine.model {section.model!r} is not served"
        raise ConfigError(f"{asked}; {section.base_url} serves: {', '.join(served) or 'nothing'}.")
    return OpenAIEngine(section, model)
