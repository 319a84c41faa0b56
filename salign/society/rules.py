"""Ratings that follow from the texts alone: exact, free, and the same on every machine."""

from collections.abc import Callable
from typing import Any

import regex

from salign.config import CopyRule, Criterion, FunctionRule, LengthRule, PatternRule, RefusalRule
from salign.errors import ConfigError
from salign.society.functions import share_by_function
from salign.society.refusals import refusal_position

RULES_VERSION = "2"
"""Of what the rules compute; stands in every result of an evaluation that uses one."""

_RUN = 3  # words
SEARCH_S = 10.0  # of the processor; a search that ends takes some milliseconds


def _length(rule: LengthRule, _: str, answer: str) -> float:
    num_words = len(answer.split())
    if num_words < rule.min_words:
        return num_words / rule.min_words
    return max(0.0, 1 - max(0, num_words - rule.max_words) / rule.max_words)


def _pattern(rule: PatternRule, _: str, answer: str) -> float:
    try:
        found = regex.search(rule.pattern, answer, timeout=SEARCH_S)  # compiled once
    except TimeoutError:
        raise ConfigError(
            f"the rule's pattern {rule.pattern!r} is not done with an answer of {len(answer):,} characters in "
            f"{SEARCH_S:g} s, and may never be: write it without a repetition in a repetition, such as (a+)+."
        ) from None
    return float((found is not None) == rule.wanted)


def _refusal(rule: RefusalRule, _: str, answer: str) -> float:
    return float((refusal_position(answer) is not None) == rule.wanted)


def _copy(_: CopyRule, question: str, answer: str) -> float:
    asked, said = question.lower().split(), answer.lower().split()
    runs = {tuple(asked[at : at + _RUN]) for at in range(len(asked) - _RUN + 1)}
    copied = [False] * len(said)
    for at in range(len(said) - _RUN + 1):
        if tuple(said[at : at + _RUN]) in runs:
            copied[at : at + _RUN] = [True] * _RUN
    return 1 - sum(copied) / len(said)


RULES: dict[type, Callable[[Any, str, str], float]] = {
    LengthRule: _length,
    PatternRule: _pattern,
    RefusalRule: _refusal,
    CopyRule: _copy,
    FunctionRule: share_by_function,
}
"""How much of the scale an answer to a question earns, from 0 to 1, by the section of the rule."""


def rating_by_rule(criterion: Criterion, question: str, answer: str) -> float:
    """The rating of an answer by a criterion that has a rule, on the criterion's scale.

    An empty answer has the lowest, though it holds no pattern and no refusal: else to say nothing would be learnt. A
    function of the user's says itself what it is worth.

    Args:
        criterion: With its rule.
        question: What was answered.
        answer: What is rated.

    Raises:
        ConfigError: A pattern's search does not end, or a function has no rating for it.
    """
    if not answer.strip() and not isinstance(criterion.rule, FunctionRule):
        return criterion.at_share(0.0)
    return criterion.at_share(RULES[type(criterion.rule)](criterion.rule, question, answer))
