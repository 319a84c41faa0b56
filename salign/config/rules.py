"""Ratings that follow from the texts alone."""

from typing import Annotated, Literal

import regex
from pydantic import Field, field_validator, model_validator

from salign.config.base import Count, CountOrZero, Section


class LengthRule(Section):
    """Highest where an answer has a number of words in a range; less in proportion to how far it lies outside."""

    kind: Literal["length"]
    min_words: CountOrZero = 0
    """Fewest words."""
    max_words: Count
    """Most words; an answer of twice as many gets the lowest rating."""

    @model_validator(mode="after")
    def _possible(self) -> "LengthRule":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} exceeds max_words {self.max_words}")
        return self


class PatternRule(Section):
    """Highest where a regular expression is found in an answer, else lowest."""

    kind: Literal["pattern"]
    pattern: Annotated[str, Field(min_length=1, max_length=1000)]
    """In the syntax of Python's `regex`; searched for anywhere in the answer."""
    wanted: bool = True
    """False: highest where it is not found."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            regex.compile(value)
        except (regex.error, RecursionError) as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value


class RefusalRule(Section):
    """Lowest where an answer refuses, by the words that the evaluation counts as a refusal, else highest."""

    kind: Literal["refusal"]
    wanted: bool = False
    """True: highest where it refuses."""


class CopyRule(Section):
    """Lower the more of an answer's words stand in runs of three that the question has too."""

    kind: Literal["copy"]


class FunctionRule(Section):
    """What a function of your own says of a question and an answer, from 0 (lowest) to 1 (highest).

    It is imported only where the environment variable SALIGN_RULES of who launches names it.
    """

    kind: Literal["function"]
    function: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+$")]
    """`package.module.name`, as Python imports it; of the same texts it must always say the same."""


Rule = Annotated[LengthRule | PatternRule | RefusalRule | CopyRule | FunctionRule, Field(discriminator="kind")]
