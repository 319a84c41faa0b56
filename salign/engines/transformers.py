"""A model in this process. Calls of many agents share a batch that each joins and leaves independently.

The continuous batching of transformers samples every request from one global seed and shows no probabilities but those
of the tokens it said, so it can neither seed a call nor rate: the batch is ours.
"""

import asyncio
import contextlib
import functools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from salign import architecture, models
from salign.chat import chat_template
from salign.config import SCALE, Sampling, Scale
from salign.config import TransformersEngine as TransformersSection
from salign.digests import name_of
from salign.engines import sentences, thinking
from salign.engines.base import (
    RATING_PREFIX,
    Finish,
    Prompt,
    RatingReply,
    Reply,
    Thinking,
    normalise,
)
from salign.engines.batching import Batch, prefill
from salign.engines.capabilities import Capabilities, Ratings, measure_ways
from salign.engines.modes import find_mode, speak
from salign.errors import CallRejectedError, ConfigError, EngineError

# How long an idle engine waits for more calls to begin together with the first one.
_GATHER_S = 0.005

# Of how many prompt tokens the calls that begin together have at most: so long do the replies under way wait for them.
_BEGIN_TOKENS = 2048

# In how many of a reply's last tokens a sentence's end is looked for: a word, its full stop, and what follows.
_SEEN_TOKENS = 8


@dataclass(eq=False)
class _Call:
    """One call; `sampling` is None for a rating on `scale`. `new` is what a reply says so far.

    `thinks`: the prompt ends with an opened thought.
    """

    ids: list[int]
    sampling: Sampling | None
    random: random.Random
    thinks: bool = False
    scale: Scale = SCALE
    future: "Future[Any]" = field(default_factory=Future)
    new: list[int] = field(default_factory=list)

    def finish(self, answer: Reply | RatingReply | BaseException) -> None:
        """Gives the caller the answer or the error, unless the call was given up."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if isinstance(answer, BaseException):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class TransformersEngine:
    """Batched generation and rating on one device, in a thread of its own.

    Between two steps of the replies under way, finished and given-up calls leave the batch, and waiting ones begin
    together: ratings are answered at once, replies join. What prompts share from their start on is computed once. All
    that as far as the model's family allows it, which is tried when the model is opened (see `find_mode`).

    Each reply samples with numbers of its own (inverse transform from its seed), so it depends on the rest of its batch
    through the rounding of the model's arithmetic alone: the same logits give the same reply. (The embedded model in
    float32 on a CPU gave the same reply alone and among up to 16 to 47 of 48 prompts, with up to 48 tokens each.)

    Attributes:
        identity: The model's name, the digest of its files, and the number format.
        capabilities: What was measured of it.
        model: In evaluation mode, on its device.
        tokenizer: The model's.
        end_ids: The tokens with which a reply ends.
        digit_tokens: What a rating begins with, and its digits; None if a digit is no single token.
        num_prompt_tokens: Tokens of all prompts that have begun.
        num_prefilled_tokens: How many of them were computed; the others were shared.
    """

    def __init__(self, section: TransformersSection, model: str) -> None:
        device = section.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = models.load_tokenizer(model)
        self.model = models.load_model(model, getattr(torch, section.dtype)).eval()
        self.identity = f"{name_of(model)} ({section.dtype})"
        try:
            self.model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"engine.device {section.device!r} cannot be used here: {error}") from error
        self._max_batch = section.max_batch
        config = self.model.config.get_text_config()
        self._max_length = architecture.max_positions(config) or 1 << 30
        self.end_ids = end_ids(self.model, self.tokenizer)
        self.digit_tokens = _digit_tokens(self.tokenizer)
        self._thinking = _Thinking(self.tokenizer)
        self._opens_thinking = chat_template(self.tokenizer).opens_thinking
        self.capabilities = Capabilities(rating_way="begun")
        self._mode = find_mode(self.model, alone=section.batch_invariant)
        self._begin_tokens = _BEGIN_TOKENS if self._mode == "shared" else 0
        # A longer text would change the positions of the others in its batch.
        self._max_together = 0 if self._mode == "alone" else architecture.longrope_switch(config) or 1 << 30
        self._batch = Batch(self.model)
        self._running: list[_Call] = []  # one a row of the batch
        self.num_prompt_tokens = 0
        self.num_prefilled_tokens = 0
        self._waiting: list[_Call] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="transformers-engine", daemon=True)
        self._thread.start()

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        ids = models.render(self.tokenizer, prompt.user, prompt.system)
        call = _Call(ids, sampling, random.Random(seed), thinks=self._opens_thinking)
        reply: Reply = await self._submit(call, sampling.max_tokens)
        return reply

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        if self.digit_tokens is None:
            raise ConfigError(
                f"the tokenizer of {self.identity} has no single token for each digit, which "
                "society.rating=logprob needs; set society.rating=parse."
            )
        ids = models.render(self.tokenizer, prompt.user, prompt.system, answer=True) + self.digit_tokens.prefix
        reply: RatingReply = await self._submit(_Call(ids, None, random.Random(seed), scale=prompt.scale), 1)
        return reply

    async def probe(self, ratings: Ratings | None) -> Capabilities:
        """Measures what the model can do; see `Measurable`."""
        opened = self._opens_thinking
        if ratings not in ("logprob", "both"):
            return Capabilities(opens_thinking=opened)
        way, ways = await measure_ways(self.identity, {"begun": functools.partial(self.rate, seed=0)})
        return Capabilities(opens_thinking=opened, rating_way=way, ways=ways)

    def facts(self) -> dict[str, Any]:
        return {**self.capabilities.facts(), "calls": self._mode}

    async def close(self) -> None:
        with self._wake:
            self._closed = True
            for call in self._waiting:
                call.future.cancel()
            self._waiting.clear()
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Lets calls wait while the block runs, so that they begin together afterwards."""
        with self._wake:
            yield

    @property
    def num_waiting(self) -> int:
        """Calls that have not begun."""
        return len(self._waiting)

    @property
    def lengths(self) -> list[int]:
        """How many tokens there are of each reply under way."""
        return [len(call.new) for call in self._running if not call.future.done()]

    async def _submit(self, call: _Call, new_tokens: int) -> Any:
        if len(call.ids) + new_tokens > self._max_length:
            raise CallRejectedError(
                f"a prompt of {len(call.ids)} tokens and {new_tokens} new ones exceed the model's {self._max_length}"
            )
        with self._wake:
            if self._closed:
                raise EngineError(f"the engine {self.identity} is closed")
            self._waiting.append(call)
            self._wake.notify()
        return await asyncio.wrap_future(call.future)

    def _serve(self) -> None:
        while (calls := self._next_calls()) is not None:
            if calls:
                try:
                    self._generate(calls)
                except BaseException as error:  # noqa: BLE001 (this thread must outlive it; the callers get it)
                    self._fail(calls, error)
            if self._running:
                try:
                    self._continue()
                except BaseException as error:  # noqa: BLE001
                    self._fail(self._running, error)
                    self._running, self._batch = [], Batch(self.model)

    def _fail(self, calls: list[_Call], error: BaseException) -> None:
        for call in calls:
            call.finish(self._explain(error, len(calls)))

    def _explain(self, error: BaseException, size: int) -> BaseException:
        if not isinstance(error, RuntimeError):
            return error
        # out of memory, or a kernel that failed
        return EngineError(f"the model failed on a batch of {size}: {error}. Lower engine.max_batch.")

    def _next_calls(self) -> list[_Call] | None:
        """Those of the waiting calls that begin now, oldest first; None when the engine is closed and all is done."""
        with self._wake:
            while True:
                if not self._running and not self._waiting and not self._closed:
                    self._wake.wait_for(lambda: self._waiting or self._closed)
                    self._wake.wait_for(lambda: len(self._waiting) >= self._max_batch, timeout=_GATHER_S)
                self._waiting = [call for call in self._waiting if not call.future.cancelled()]
                if self._waiting or self._running:
                    break
                if self._closed:
                    return None
            calls: list[_Call] = []
            free = self._max_batch - len(self._running)
            tokens = 0
            for call in self._waiting:
                generates = call.sampling is not None
                if generates and free == 0:
                    continue  # while a rating is gone before the next step, and needs no place in the batch
                tokens += len(call.ids)
                if calls and (len(calls) == self._max_batch or tokens > self._begin_tokens):
                    break
                calls.append(call)
                free -= generates
            begun = set(calls)
            self._waiting = [call for call in self._waiting if call not in begun]
            return calls

    @torch.inference_mode()
    def _generate(self, calls: list[_Call]) -> None:
        """The first token of each call: all of a rating, and the beginning of a reply, which then joins the batch."""
        self.num_prompt_tokens += sum(len(call.ids) for call in calls)
        together, alone = list[_Call](), list[_Call]()
        for call in calls:
            num_tokens = len(call.ids) + (call.sampling.max_tokens if call.sampling is not None else 0)
            (together if num_tokens <= self._max_together else alone).append(call)
        for call in alone:
            self.num_prefilled_tokens += len(call.ids)
            self._answer_alone(call)
        if together:
            self._begin_together(together)

    def _answer_alone(self, call: _Call) -> None:
        """All of a call, while the others wait."""
        if call.sampling is None:
            ids = torch.tensor([call.ids], device=self.model.device)
            self._rate([call], self.model(input_ids=ids, use_cache=False).logits[:, -1].float())
            return
        over = False

        def choose(logits: torch.Tensor) -> int:
            nonlocal over
            over = not self._say([call], logits[None])
            return call.new[-1] if call.new else 0  # given up before its first token

        speak(self.model, call.ids, choose, call.sampling.max_tokens, lambda: over)

    def _rate(self, calls: list[_Call], logits: torch.Tensor) -> None:
        assert self.digit_tokens is not None
        shares = torch.softmax(logits, -1)[:, self.digit_tokens.digits].tolist()
        for call, of_all in zip(calls, shares, strict=True):
            low, high = call.scale
            share = of_all[low : high + 1]
            call.finish(RatingReply(normalise(share), sum(share), len(call.ids), 0, lowest=low))

    def _begin_together(self, calls: list[_Call]) -> None:
        computed = prefill(self.model, [call.ids for call in calls])
        self.num_prefilled_tokens += computed.num_tokens
        rated = [row for row, call in enumerate(calls) if call.sampling is None]
        if rated:
            self._rate([calls[row] for row in rated], computed.logits[rated])
        begun = [row for row, call in enumerate(calls) if call.sampling is not None]
        joining = [begun[row] for row in self._say([calls[row] for row in begun], computed.logits[begun])]
        if joining:
            self._batch.join(computed, joining)
            self._running += [calls[row] for row in joining]

    @torch.inference_mode()
    def _continue(self) -> None:
        """One more token for each reply under way."""
        logits = self._batch.step([call.new[-1] for call in self._running])
        rows = self._say(self._running, logits)
        if len(rows) < len(self._running):
            self._running = [self._running[row] for row in rows]
            self._batch.keep(rows)

    def _say(self, calls: list[_Call], logits: torch.Tensor) -> list[int]:
        """Samples a token for each call; returns the rows of those that go on."""
        rows = []
        for row, call in enumerate(calls):
            assert call.sampling is not None
            if call.future.cancelled():
                continue
            call.new.append(sample(logits[row], call))
            goes_on = call.new[-1] not in self.end_ids and len(call.new) < call.sampling.max_tokens
            if goes_on and not self._has_its_sentences(call, call.sampling):
                rows.append(row)
            else:
                call.finish(self._reply(call))
        return rows

    def _has_its_sentences(self, call: _Call, sampling: Sampling) -> bool:
        if sampling.max_sentences is None or not sentences.is_over(self._decode(call.new[-_SEEN_TOKENS:]), 1):
            return False  # a sentence's end costs a look at all of the reply, and few tokens are one
        text, _ = self._thinking.split(call.new, opened=call.thinks)
        return sentences.is_over(text, sampling.max_sentences)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    def _reply(self, call: _Call) -> Reply:
        finish: Finish = "stop" if call.new[-1] in self.end_ids else "length"
        said = call.new[:-1] if finish == "stop" else call.new
        text, thought = self._thinking.split(said, opened=call.thinks)
        return Reply(text, len(call.ids), len(call.new), finish=finish, thinking=thought)


class _Thinking:
    """Takes a model's thinking off its replies, by their tokens where its tags are tokens, and by their text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._opens = {vocabulary[tag] for tag in thinking.OPENS if tag in vocabulary}
        self._closes = {vocabulary[tag] for tag in thinking.CLOSES if tag in vocabulary}

    def split(self, ids: list[int], *, opened: bool) -> tuple[str, Thinking]:
        """The text of a reply without its thinking, and what was there of it."""
        closed = next((index for index in reversed(range(len(ids))) if ids[index] in self._closes), None)
        rest = ids if closed is None else ids[closed + 1 :]
        if not self._opens.isdisjoint(rest):
            return "", "cut"
        # A control token that ends no reply is shown: whoever reads it sees what was said.
        text, thought = thinking.split(str(self._tokenizer.decode(rest)), opened=opened and closed is None)
        return text, "whole" if thought == "none" and closed is not None else thought


def sample(logits: torch.Tensor, call: _Call) -> int:
    """One token from logits [vocabulary], by temperature, nucleus (top-p) and the call's own random number."""
    sampling = call.sampling
    assert sampling is not None
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double() / sampling.temperature, -1)
    order = None
    if sampling.top_p < 1:
        probabilities, order = probabilities.sort(descending=True, stable=True)
        size = int((probabilities.cumsum(-1) < sampling.top_p).sum()) + 1
        probabilities = probabilities[:size]
    cumulative = probabilities.cumsum(-1)
    chosen = int(torch.searchsorted(cumulative, call.random.random() * float(cumulative[-1]), right=True))
    chosen = min(chosen, len(cumulative) - 1)
    return chosen if order is None else int(order[chosen])


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Those that the model's generation config names, and those with which its template ends a turn."""
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return {*(token for token in ids if token is not None), *chat_template(tokenizer).ends}


@dataclass(frozen=True)
class _DigitTokens:
    """What a reply begins with before a rating's digit, and the token of each digit 0..9 there."""

    prefix: list[int]
    digits: list[int]


def _digit_tokens(tokenizer: Any) -> _DigitTokens | None:
    """None where two digits share their first token."""
    variants = [tokenizer.encode(f"{RATING_PREFIX}{digit}", add_special_tokens=False) for digit in range(10)]
    shared = 0
    while all(len(ids) > shared + 1 and ids[shared] == variants[0][shared] for ids in variants):
        shared += 1
    digits = [ids[shared] for ids in variants]
    return _DigitTokens(variants[0][:shared], digits) if len(set(digits)) == len(digits) else None
