"""The building blocks of every section."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    # pydantic would take True for 1; a YAML `on` instead of a number is a mistake.
    if isinstance(value, bool):
        raise ValueError("expected a number, not true/false")  # noqa: TRY004 (pydantic wants ValueError)
    return value


def at_most(most: int, why: str) -> AfterValidator:
    """A bound on a number, with what more of it would cost."""

    def check(value: int) -> int:
        if value > most:
            raise ValueError(f"more than {most:,}: {why}")
        return value

    return AfterValidator(check)


NotBool = BeforeValidator(_number)
# Of nothing that is counted here are there more, and every library takes such a number.
_MOST = 1_000_000_000
Count = Annotated[int, NotBool, Field(ge=1, le=_MOST)]
CountOrZero = Annotated[int, NotBool, Field(ge=0, le=_MOST)]
Tokens = Annotated[Count, at_most(10_000_000, "no model reads or writes so many tokens at a time")]
Share = Annotated[float, NotBool, Field(ge=0, le=1)]
Positive = Annotated[float, NotBool, Field(gt=0, le=_MOST)]
NotNegative = Annotated[float, NotBool, Field(ge=0, le=_MOST)]


def _absolute(path: Path) -> Path:
    try:
        return Path(os.path.abspath(path.expanduser()))
    except RuntimeError as error:  # ~somebody who does not exist
        raise ValueError(str(error)) from None


def _absolute_if_folder(name: str) -> str:
    path = _absolute(Path(name))
    return str(path) if path.is_dir() else name


# A local folder, which may be named relative to the working folder, or a hub id.
FolderOrHub = Annotated[str, AfterValidator(_absolute_if_folder)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Section(BaseModel):
    """A frozen section that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


def kind_unless_said(kind: str) -> Callable[[Any], Any]:
    """Before a section is told by its `kind`: which it has where none is said."""
    return lambda value: {"kind": kind, **value} if isinstance(value, dict) else value


def unless(section: SectionT, mistakes: Sequence[str]) -> SectionT:
    """The section, unless there are mistakes in it; all of them are reported."""
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return section


class Sampling(Section):
    """How one reply is sampled. `max_tokens` counts new tokens."""

    temperature: NotNegative = 1.0
    """0 takes the likeliest token."""
    top_p: Annotated[float, NotBool, Field(gt=0, le=1)] = 1.0
    """Samples from the likeliest tokens that together have this share of the probability."""
    max_tokens: Tokens = 256
    """Longest reply, in new tokens."""
    max_sentences: Count | None = None
    """A reply keeps at most this many sentences, and one that `max_tokens` cuts ends with its last whole sentence."""
