"""An engine without a model: replies are a function of prompt and seed, and cost nothing."""

import hashlib
from typing import Any

from salign.config import Sampling
from salign.engines.base import RATING_PREFIX, Prompt, RatingReply, Reply, normalise

_WORDS = (
    "I would ask first listen then tell the truth kindly because people matter share what you can keep your word "
    "think of others be patient say sorry offer help and wait for their answer"
).split()
_ASKS_FOR_RATING = RATING_PREFIX.strip()
_WORD_OF_BYTE = [_WORDS[byte % len(_WORDS)] for byte in range(256)]


class ScriptedEngine:
    """Deterministic and instant, for tests and for measuring what surrounds a model."""

    identity = "scripted"

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        digest = _digest(prompt, seed)
        num_words = min(sampling.max_tokens, 8 + digest[0] % 24)
        words = [_WORD_OF_BYTE[byte] for byte in digest[1 : num_words + 1]]
        text = " ".join(words).capitalize() + f" ({digest[:3].hex()})."
        if _ASKS_FOR_RATING in prompt.user:
            low, high = prompt.scale
            text = f"{RATING_PREFIX}{low + digest[1] % (high - low + 1)} Reason: {text}"
        return Reply(text, len(prompt.user) // 4, num_words, finish="stop")

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        # A rating is one forward pass: the seed has no part in it.
        digest, (low, high) = _digest(prompt, 0), prompt.scale
        weights = normalise([1 + byte for byte in digest[: high - low + 1]])
        return RatingReply(weights, 1.0, len(prompt.user) // 4, 0, lowest=low)

    def facts(self) -> dict[str, Any]:
        return {}


def _digest(prompt: Prompt, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{prompt.system}\x1f{prompt.user}".encode(), digest_size=32).digest()
