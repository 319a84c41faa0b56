"""What the log-likelihoods of a question's choices say, beside which of them is the likeliest."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from salign.calibration import calibration_error


def preference(first: tuple[float, int], second: tuple[float, int]) -> dict[str, float]:
    """Compares two answers by their log-likelihoods a token, so that length by itself decides nothing.

    Args:
        first: Log-likelihood in nats, and number of tokens, of the answer that is wanted to be the likelier.
        second: Of the other.

    Returns:
        `margin`, by how many nats a token the first is the likelier, and `likelier`: 1 if it is, 0.5 for a tie.
    """
    margin = first[0] / first[1] - second[0] / second[1]
    return {"likelier": 0.5 if margin == 0 else float(margin > 0), "margin": margin}


def probabilities(loglikelihoods: Sequence[float]) -> list[float]:
    """Returns each choice's share of the choices' total probability; the highest is the choice by lm_eval's `acc`."""
    highest = max(loglikelihoods)
    weights = [math.exp(value - highest) for value in loglikelihoods]
    total = sum(weights)
    return [weight / total for weight in weights]


def brier(shares: Sequence[float], right: int) -> float:
    """Computes the squared error of the choices' probabilities, summed over them: 0 is best, 2 worst (Brier 1950)."""
    return sum((share - (number == right)) ** 2 for number, share in enumerate(shares))


def calibration(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Computes the expected calibration error of each benchmark whose rows have `choices`.

    Args:
        rows: Lines of `samples.jsonl`; `choices` has the `shares`, and which of them is of the `right` one.
    """
    sure: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if given := row.get("choices"):
            shares = given["shares"]
            is_right = shares.index(max(shares)) == given["right"]
            sure.setdefault(row["benchmark"], []).append((max(shares), float(is_right)))
    return {benchmark: calibration_error(pairs) for benchmark, pairs in sure.items()}
