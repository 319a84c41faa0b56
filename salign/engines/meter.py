"""An engine as societies and judges call it: through its handlers, with counts of what was answered."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from salign.config import Sampling
from salign.engines.base import FIRST, Call, Engine, Handler, Priority, Prompt, PushesBack, RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.sentences import shorten
from salign.errors import CallRejectedError, EngineError

# Of different words with which calls are refused, so many are kept.
_MOST_WORDS = 20


@dataclass(slots=True)
class Tally:
    """Calls that were answered, and their tokens."""

    num_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add(self, other: "Tally") -> None:
        """Adds another's calls and tokens."""
        self.num_calls += other.num_calls
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens

    def count(self, reply: Reply | RatingReply) -> None:
        """Adds one call."""
        self.num_calls += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens


def merge_by_kind(parts: Iterable[Mapping[str, Tally]]) -> dict[str, Tally]:
    """Calls by what they were for, of several engines, ranks or shards, in the order of the kinds' names."""
    total = defaultdict[str, Tally](Tally)
    for part in parts:
        for kind, tally in part.items():
            total[kind].add(tally)
    return dict(sorted(total.items()))


class MeteredEngine:
    """Counts what an engine answers, through its journal and its gate; replies have `max_sentences` at most.

    Attributes:
        gate: Its gate, for what it counts.
        num_calls: Calls that were answered or refused.
        num_journaled: Those of them that the journal answered.
        reused: Those of them that another run's journal answered, by its folder.
        num_refused: Those of them that were refused.
        refusals: In whose words, how often; the first so many different ones.
        num_cut: Replies that `max_tokens` ended, as far as the engine says it.
        num_thinking: Replies from which thinking was taken off.
        num_thinking_cut: Those of them that were cut off while the model thought, which leaves them without text.
        by_kind: Calls that were answered, by what they were for.
    """

    def __init__(self, handler: Handler, engine: Engine, gate: Gate) -> None:
        """Begins to count; `salign.engines.opening.metered` puts the handlers before the engine.

        Args:
            handler: Answers the calls.
            engine: Whose identity and facts these are.
            gate: Through which its calls go.
        """
        self._handler = handler
        self._engine = engine
        self.gate = gate
        self._start = time.monotonic()
        self.num_calls = 0
        self.num_journaled = 0
        self.reused: Counter[str] = Counter()
        self.num_refused = 0
        self.refusals: Counter[str] = Counter()
        self.num_cut = 0
        self.num_thinking = 0
        self.num_thinking_cut = 0
        self.prompt_characters = 0
        self.shared_characters = 0
        self.served: Counter[str] = Counter()
        self.by_kind = defaultdict[str, Tally](Tally)

    @property
    def identity(self) -> str:
        return self._engine.identity

    @property
    def prompt_tokens(self) -> int:
        return sum(tally.prompt_tokens for tally in self.by_kind.values())

    @property
    def completion_tokens(self) -> int:
        return sum(tally.completion_tokens for tally in self.by_kind.values())

    @property
    def waiting_since(self) -> float | None:
        """Since when the engine answers nobody (s since the epoch); None where it answers, or never keeps silent."""
        return self._engine.waiting_since if isinstance(self._engine, PushesBack) else None

    @property
    def calls_per_s(self) -> float:
        """What the engine itself has answered; what the journal did costs nothing, and says nothing of the rest."""
        return (self.num_calls - self.num_journaled) / max(time.monotonic() - self._start, 1e-9)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, seed: int, priority: Priority = FIRST, kind: str = ""
    ) -> Reply:
        """Samples one reply; of the calls that wait for their turn, the lowest priority goes first."""
        call = Call(prompt, sampling, seed, priority)
        try:
            reply = await self._handler.handle(call)
        except CallRejectedError as error:
            self._count_refusal(call, error)
            raise
        assert isinstance(reply, Reply)
        reply = shorten(reply, sampling.max_sentences)
        self._count(call, reply, kind)
        self.num_cut += reply.finish == "length"
        self.num_thinking += reply.thinking != "none"
        self.num_thinking_cut += reply.thinking == "cut"
        return reply

    async def rate(self, prompt: Prompt, seed: int, priority: Priority = FIRST, kind: str = "") -> RatingReply:
        """Asks for one digit of the prompt's scale."""
        call = Call(prompt, None, seed, priority)
        try:
            reply = await self._handler.handle(call)
        except CallRejectedError as error:
            self._count_refusal(call, error)
            raise
        assert isinstance(reply, RatingReply)
        self._count(call, reply, kind)
        return reply

    def said_of_refusals(self) -> str:
        """What was said with most refusals; "" where there are none."""
        return next((words for words, _ in self.refusals.most_common(1)), "")

    def _count_refusal(self, call: Call, error: CallRejectedError) -> None:
        if (words := str(error)) in self.refusals or len(self.refusals) < _MOST_WORDS:
            self.refusals[words] += 1
        self.num_calls += 1
        self.num_journaled += call.is_journaled
        self.num_refused += 1

    def _count(self, call: Call, reply: Reply | RatingReply, kind: str) -> None:
        self.num_calls += 1
        self.by_kind[kind].count(reply)
        self.num_journaled += call.is_journaled
        if call.reused_from is not None:
            self.reused[call.reused_from] += 1
        self.prompt_characters += len(call.prompt.user)
        self.shared_characters += call.prompt.num_shared
        if reply.served is not None:
            self.served[reply.served] += 1
            if len(self.served) > 1:
                raise self._other_model(reply.served)

    def _other_model(self, name: str) -> EngineError:
        first, num = next(iter(self.served.items()))
        if self.reused:
            return EngineError(
                f"the answers of {self.identity} came as {first!r} and as {name!r}, and "
                f"{sum(self.reused.values())} of {self.num_calls} are reused from {', '.join(self.reused)}: the "
                "server serves another model than theirs. Serve that one, or take the run out of reuse, and choose "
                "another run.name."
            )
        return EngineError(
            f"the answers of {self.identity} came as {first!r} ({num} of them), and that to call {self.num_calls} as "
            f"{name!r}: the server must serve a single model. All are in the journal. Serve {first!r} again and "
            f"launch with --drop-answers-of={name}, which makes the calls again that {name!r} answered; or the reverse."
        )

    def facts(self) -> dict[str, Any]:
        """What the engine measured of itself when it opened."""
        return self._engine.facts()
