"""Counter-based seeds: every random choice is a function of where it is made, never of when."""

import hashlib
import random


def derive(*parts: int | str) -> int:
    """Derives a seed of 31 bits (what every engine takes) for a place such as (run, world, round, agent, call)."""
    text = ("%s\x1f" * len(parts))[:-1] % parts
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 33


def rng(*parts: int | str) -> random.Random:
    """Returns a random generator for one place."""
    return random.Random(derive(*parts))
