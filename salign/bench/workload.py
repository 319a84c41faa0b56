"""The workload of the training benchmark: the model, and groups of equal lengths."""

import random
import re
from dataclasses import dataclass
from typing import Any

from salign.errors import ConfigError

MODEL = "smollm2-135m"
NUM_GROUPS, NUM_RESPONSES, QUERY, RESPONSE = 2, 4, 256, 64


@dataclass(frozen=True)
class Shape:
    """The lengths of a group: tokens of its query and of each response, and how many responses it has."""

    query: int
    response: int
    num_responses: int

    def __str__(self) -> str:
        return f"{self.query}x{self.response}x{self.num_responses}"

    @property
    def num_tokens(self) -> int:
        """Of a row that has the query once."""
        return self.query + self.num_responses * self.response

    @property
    def bound(self) -> float:
        """How many times as many tokens there are if each response has its own query: K (P + R) / (P + K R)."""
        return self.num_responses * (self.query + self.response) / self.num_tokens


def read_shape(text: str) -> Shape:
    """Reads a shape of groups from `QUERYxRESPONSExK`.

    Raises:
        ConfigError: It is none.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,2})", text)
    if found is None or int(found[3]) < 2:
        raise ConfigError(
            f"--shapes {text!r} is no shape: give tokens of the query, tokens of a response and at least 2 responses, "
            "such as 256x64x4"
        )
    return Shape(*map(int, found.groups()))


SHAPE = Shape(QUERY, RESPONSE, NUM_RESPONSES)
CURVE = tuple(
    Shape(query, response, num_responses)
    for query in (64, 256, 1024, 2048)
    for response in (32, 128, 512)
    for num_responses in (2, 4, 8)
)
"""From short conversations to long ones, and from pairs to what a policy gradient samples."""


def bench_groups(shape: Shape = SHAPE, num_groups: int = NUM_GROUPS) -> list[Any]:
    """Groups of one shape, in tokens that are drawn at random."""
    from salign.training.tokens import TokenGroup

    draw = random.Random(0)

    def words(count: int) -> list[int]:
        return [draw.randrange(100, 40_000) for _ in range(count)]

    scores = [7.0 - 6.0 * place / (shape.num_responses - 1) for place in range(shape.num_responses)]
    return [
        TokenGroup(words(shape.query), [words(shape.response) for _ in range(shape.num_responses)], scores)
        for _ in range(num_groups)
    ]
