"""What an agent speaks through: two calls, `generate` and `rate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from salign.config import SCALE, Sampling, Scale

RATING_PREFIX = "Rating: "

SHARES: Scale = (0, 1)
"""The scale on which scorers rate: the share of a criterion's own."""

Form = Literal["text", "rating"]
Finish = Literal["stop", "length"]
Thinking = Literal["none", "whole", "cut"]


class Prompt(NamedTuple):
    """One turn: what the user says, under an optional system text. The engine puts its model's template around it.

    `num_shared` characters at the start of `user` are those of other prompts of the same interaction too; an engine
    with a prefix cache computes them once.

    `form` "rating" asks for "Rating: N Reason: ...": an engine that can hold its model to a form (a JSON schema) does,
    and gives the reply in these words. `scale` is the lowest and the highest rating, where one is asked for.

    `scored` is an answer to `user`, for an engine that scores answers and says nothing.
    """

    user: str
    system: str | None = None
    num_shared: int = 0
    form: Form = "text"
    scale: Scale = SCALE
    scored: str | None = None


class Reply(NamedTuple):
    """What a model says.

    Attributes:
        text: Without what the model thought first. Empty where it said nothing, or was cut off while it thought.
        prompt_tokens: 0 where the engine does not say.
        completion_tokens: Those of thinking included; 0 where the engine does not say.
        served: The model's name as the server gave it with this reply, if it gave one.
        finish: Whether the model ended ("stop") or `max_tokens` ended it ("length"); None where nobody says.
        thinking: Whether some was taken off, and whether its end was there.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    served: str | None = None
    finish: Finish | None = None
    thinking: Thinking = "none"


@dataclass(frozen=True, slots=True)
class RatingReply:
    """The probabilities of a scale's digits as the next token, made to sum to 1.

    `probabilities` is None where the engine named no digit; `mass` is what the digits had before they were made to
    sum to 1 (as far as the engine shows it); `lowest` is the first of the digits.
    """

    probabilities: tuple[float, ...] | None
    mass: float
    prompt_tokens: int
    completion_tokens: int
    served: str | None = None
    lowest: int = SCALE[0]

    @property
    def expectation(self) -> float | None:
        """The mean rating under the probabilities."""
        if self.probabilities is None:
            return None
        mean = sum(digit * p for digit, p in enumerate(self.probabilities, start=self.lowest))
        highest = self.lowest + len(self.probabilities) - 1
        return min(max(mean, float(self.lowest)), float(highest))  # rounding may lead a hair outside


class Engine(Protocol):
    """A model that answers. Calls may be made concurrently; `seed` makes a call's randomness its own.

    Calls raise CallRejectedError where only this call is at fault, and EngineError where the engine is.
    """

    @property
    def identity(self) -> str:
        """Which model answers, as it is written into results and hashed for the journal: not where it is served."""

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        """Samples one reply."""

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        """Asks for one digit of the prompt's scale, which must be of single ones; the probabilities of all of them."""

    def facts(self) -> dict[str, Any]:
        """What the engine measured of itself when it opened, as JSON can say it; empty where it measured nothing."""


@runtime_checkable
class PushesBack(Protocol):
    """An engine that may refuse calls for their number alone, as servers do; its gate then follows what it takes."""

    def on_push_back(self, report: Callable[[], None]) -> None:
        """Has `report` called for each try of a call that is refused for load or not answered in time.

        It is called once, before the first call, by whoever opens the engine. A call that the engine tries again is
        reported each time, also where it is answered in the end.
        """

    @property
    def waiting_since(self) -> float | None:
        """Since when it has answered nobody and is waited for (s since the epoch); None where it answers."""


# --- around an engine ------------------------------------------------------------------------------


class Priority(NamedTuple):
    """Whose turn comes first among the calls that wait for the engine: the lowest, by round and then by urgency."""

    round: int = 0  # of a world: the oldest goes first
    urgency: int = 0  # within the round: 0 where others wait for the answer


FIRST = Priority()


@dataclass(slots=True)
class Call:
    """A call on its way through the handlers around an engine, and what they note of it.

    Attributes:
        prompt: What is said.
        sampling: How a reply is sampled; None asks for a rating by the probabilities of the digits.
        seed: Of this call's randomness.
        priority: When its turn comes, if calls wait.
        seconds: How long the engine took, without the wait for a turn; 0 where it was not asked.
        is_journaled: The answer is the journal's.
        reused_from: The other run whose journal had it; None: this run's, or none.
    """

    prompt: Prompt
    sampling: Sampling | None
    seed: int
    priority: Priority = FIRST
    seconds: float = 0.0
    is_journaled: bool = False
    reused_from: str | None = None


class Handler(Protocol):
    """One concern around an engine, such as its journal or its gate: handlers stand one before the other."""

    async def handle(self, call: Call) -> Reply | RatingReply:
        """The answer to a call: of the engine, or of what was noted before.

        Raises:
            CallRejectedError: The engine refused the call.
            EngineError: It is at fault itself.
        """


def normalise(weights: Sequence[float]) -> tuple[float, ...] | None:
    """Weights of the digits as probabilities; None where they are all 0."""
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total > 0 else None
