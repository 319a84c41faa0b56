"""How much of prompts a server's prefix cache would have, in an order in which they come, by an exact count.

Counted one prompt after the other, as vLLM counts: in whole blocks of tokens, each known by all that stands before it;
the last token of a prompt is always computed. What replies leave in the cache does not count, nor does it that prompts
in flight hold their blocks.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence

from salign.bench.figures import Figure
from salign.chat import chat_template
from salign.models import load_tokenizer

BLOCK = 16
"""Tokens of a block, as in vLLM."""
_MODEL = "smollm2-135m"
# Bounds of the cache, in blocks. What 8e9 parameters leave of a GPU of 80 GB holds some 400,000 tokens.
_BOUNDS = (None, 16_384, 4_096)
_TO_REACH = ">= 0.9"

Tokens = Sequence[int]


def num_hit(prompts: Sequence[Tokens], block: int = BLOCK, most_blocks: int | None = None) -> int:
    """How many tokens of prompts are in the cache when they come.

    Args:
        prompts: As tokens, in the order in which they come.
        block: Tokens of a block; with 1, the cache is a trie of tokens.
        most_blocks: That the cache holds; the one used longest ago goes first, and of one prompt the last. None: all.
    """
    # A block's key is the number of the one before it, and its tokens. Whoever uses a block uses those before it later,
    # so that none goes before one that follows it.
    numbers: OrderedDict[tuple[int, tuple[int, ...]], int] = OrderedDict()
    num_made = hit = 0
    for tokens in prompts:
        before, keys, is_known = 0, [], True
        for start in range(0, len(tokens) - block + 1, block):
            key = before, tuple(tokens[start : start + block])
            number = numbers.get(key)
            if number is None:
                is_known = False
                num_made += 1
                number = numbers[key] = num_made
            hit += block if is_known and start + block < len(tokens) else 0
            keys.append(key)
            before = number
        for key in reversed(keys):
            numbers.move_to_end(key)
        while most_blocks is not None and len(numbers) > most_blocks:
            numbers.popitem(last=False)
    return hit


def figures_of(prompts: Sequence[Tokens]) -> list[Figure]:
    """Tokens that hit in the order of the prompts, over those that hit in the best order.

    The best is that of a dictionary: what has a beginning in common stands together, so that a cache with room for one
    prompt misses nothing that the largest would find. With no bound every order hits the same.

    Args:
        prompts: As tokens, in the order in which they were sent.
    """
    total, figures = sum(map(len, prompts)), []
    best_order = sorted(prompts, key=tuple)
    for most in _BOUNDS:
        hit, best = (num_hit(order, BLOCK, most) for order in (prompts, best_order))
        size = "no bound" if most is None else f"{most * BLOCK:,} tokens"
        name = f"prefix cache of {size}: tokens that hit in the society's order, over the best order's"
        note = f"{hit / total:.3f} and {best / total:.3f} of {total:,} tokens in {len(prompts):,} prompts"
        if most is None:
            note += f"; counted by single tokens {num_hit(prompts, 1) / total:.3f}"
        figures.append(Figure(name, hit / best if best else None, "", _TO_REACH, note=note))
    return figures


def prompts_of(bodies: Sequence[bytes]) -> list[list[int]]:
    """The prompts of requests as tokens of the embedded model, in its chat template.

    Raises:
        ConfigError: The embedded model cannot be had here.
    """
    template = chat_template(load_tokenizer(_MODEL))
    return template.encode(template.prompts([json.loads(body)["messages"] for body in bodies]))
