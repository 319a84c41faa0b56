"""Rules that are functions of the user's own: imported only where the user says so, and known by their source."""

import functools
import importlib
import inspect
import math
import os
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path

from salign.config import Criterion, FunctionRule
from salign.errors import ConfigError
from salign.storage import sha256

ALLOWED = "SALIGN_RULES"
"""The environment variable with the functions that may be imported, separated by commas."""

# Of a question and an answer: an empty one, one that repeats the question, and one of several lines.
_TRIED = (
    ("How do I tell a friend no?", ""),
    ("How do I tell a friend no?", "How do I tell a friend no?"),
    ("May I?", "Ask them first.\n\n1. Say why it matters to you.\n2. Thank them."),
)


def share_by_function(rule: FunctionRule, question: str, answer: str) -> float:
    """How much of the scale an answer to a question earns by the user's function, from 0 to 1.

    Raises:
        ConfigError: The function is not allowed or cannot be imported, it fails, or what it gives is no such number.
    """
    function = _allowed(rule.function)
    try:
        share = function(question, answer)
    except Exception as error:
        raise ConfigError(
            f"the rule's function {rule.function} fails on an answer of {len(answer):,} characters "
            f"({type(error).__name__}: {error}): it must have a value for every question and answer."
        ) from error
    number = float(share) if isinstance(share, Real) else math.nan
    if not 0 <= number <= 1:
        raise ConfigError(
            f"the rule's function {rule.function} gives {share!r} for an answer of {len(answer):,} characters: it must "
            "give a number from 0 (the lowest rating) to 1 (the highest)."
        )
    return number


def check_functions(criteria: Iterable[Criterion]) -> list[Path]:
    """Tries the functions by which answers are rated, each twice on the same texts.

    Returns:
        The files that they are in; what those import is not among them.

    Raises:
        ConfigError: As `share_by_function`, or one says something else the second time.
    """
    rules = list(dict.fromkeys(one.rule for one in criteria if isinstance(one.rule, FunctionRule)))
    for rule in rules:
        first = [share_by_function(rule, *texts) for texts in _TRIED]
        again = [share_by_function(rule, *texts) for texts in reversed(_TRIED)][::-1]
        for (_, answer), before, after in zip(_TRIED, first, again, strict=True):
            if before != after:
                raise ConfigError(
                    f"the rule's function {rule.function} gives {before:g} for the answer {answer!r}, and {after:g} "
                    "when asked again: it must depend on the two texts alone, not on chance, time or earlier calls."
                )
    return list(dict.fromkeys(_source_of(rule.function) for rule in rules))


def digests_of(criteria: Iterable[Criterion]) -> dict[str, str]:
    """The sha256 of the file of each function by which answers are rated, by its name."""
    names = {one.rule.function for one in criteria if isinstance(one.rule, FunctionRule)}
    return {name: sha256(_source_of(name)) for name in sorted(names)}


def _allowed(name: str) -> Callable[[str, str], object]:
    named = {one.strip() for one in os.environ.get(ALLOWED, "").split(",")}
    if name not in named:
        also = ",".join(sorted({*named, name} - {""}))
        raise ConfigError(
            f"the config asks for the function {name} as a rule, and to import it runs the code of its module. If you "
            f"know and trust it: export {ALLOWED}={also}"
        )
    return _imported(name)


@functools.cache
def _imported(name: str) -> Callable[[str, str], object]:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ConfigError(
            f"the rule's function {name} cannot be imported ({type(error).__name__}: {error}). Install its package "
            "where salign is installed, or name its folder in PYTHONPATH."
        ) from error
    if not inspect.isfunction(found) or not Path(inspect.getfile(found)).is_file():
        raise ConfigError(f"the rule's function {name} is {type(found).__name__}, and no function of a file of Python.")
    return found


def _source_of(name: str) -> Path:
    return Path(inspect.getfile(_allowed(name)))
