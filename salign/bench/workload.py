"""The workload of the training benchmark: the model, and groups of equal lengths."""

import random
from typing import Any

MODEL = "smollm2-135m"
NUM_GROUPS, NUM_RESPONSES, QUERY, RESPONSE = 2, 4, 256, 64


def bench_groups() -> list[Any]:
    """The groups, in tokens that are drawn at random."""
    from salign.training.tokens import TokenGroup

    draw = random.Random(0)

    def words(count: int) -> list[int]:
        return [draw.randrange(100, 40_000) for _ in range(count)]

    scores = [float(score) for score in range(7, 7 - NUM_RESPONSES, -1)]
    return [
        TokenGroup(words(QUERY), [words(RESPONSE) for _ in range(NUM_RESPONSES)], scores) for _ in range(NUM_GROUPS)
    ]
