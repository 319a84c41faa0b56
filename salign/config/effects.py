"""What a field of the config decides, declared on the field itself: `Annotated[Count, Effect.FREE]`.

An unmarked field takes the mark of the field that holds its section; where none is marked, it decides.
"""

import enum
import types
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Effect(enum.Enum):
    """What depends on a field, and so whether it may change inside a run."""

    DECIDES = "decides"
    """What a model says, what is learnt or what is measured. Work that was begun under another value is refused."""
    EXTENT = "extent"
    """How much is computed and what counts as done, but not what is computed: a journal can be continued. It may
    not change once something of the run is complete."""
    INPUT = "input"
    """Names a model, a file or an earlier stage: what decides is its content, for which a digest stands."""
    FREE = "free"
    """Where and how a run is executed and shown; no result depends on it beyond the rounding of floating-point sums.
    It may change between launches."""


NOT_FREE = (Effect.DECIDES, Effect.EXTENT, Effect.INPUT)


def mark_of(field: FieldInfo) -> Effect | None:
    """The mark on a field itself."""
    marks = [mark for mark in field.metadata if isinstance(mark, Effect)]
    assert len(marks) <= 1, marks
    return marks[0] if marks else None


def selected(section: BaseModel, *effects: Effect, holder: Effect = Effect.DECIDES) -> dict[str, Any]:
    """The fields of a section that have one of the effects, as plain values, nested as in a config file.

    Args:
        section: Of the config.
        effects: Which fields; sections without any are left out.
        holder: The mark of the field that holds the section.
    """
    return _selected(section, section.model_dump(mode="json"), effects, holder)


def _selected(section: BaseModel, plain: Any, effects: Collection[Effect], holder: Effect) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        effect, value = mark_of(field) or holder, getattr(section, name)
        if isinstance(value, BaseModel):
            inner: Any = _selected(value, plain[name], effects, effect)
            is_wanted = bool(inner)
        elif isinstance(value, tuple) and value and all(isinstance(item, BaseModel) for item in value):
            inner = [_selected(item, of, effects, effect) for item, of in zip(value, plain[name], strict=True)]
            is_wanted = any(inner)
        else:
            inner, is_wanted = plain[name], effect in effects
        if is_wanted:
            found[name] = inner
    return found


def given(section: BaseModel, *effects: Effect) -> dict[str, Any]:
    """As `selected`, but only what is not as by default: a setting that a later version adds changes nothing here."""
    found: dict[str, Any] = _in_both(
        selected(section, *effects), section.model_dump(mode="json", exclude_defaults=True)
    )
    return found


def _in_both(chosen: Any, there: Any) -> Any:
    if isinstance(chosen, dict) and isinstance(there, dict):
        return {name: _in_both(chosen[name], there[name]) for name in chosen if name in there}
    if isinstance(chosen, list) and isinstance(there, list) and len(chosen) == len(there):
        return [_in_both(*both) for both in zip(chosen, there, strict=True)]
    return chosen


# --- of the types alone --------------------------------------------------------------------------


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """All sections that an annotation may hold."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return sections_in(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType) or origin is tuple:
        return [model for part in typing.get_args(annotation) for model in sections_in(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


@dataclass(frozen=True)
class Setting:
    """A field that a config may have, at one of its places.

    Attributes:
        path: Such as `society.mixture.*.engine.max_batch`; `*` stands for an item of a list.
        section: The type of the section that it is in.
        name: The field's.
        effect: Its own mark, or that of what holds it.
    """

    path: str
    section: type[BaseModel]
    name: str
    effect: Effect


def settings_of(section: type[BaseModel], path: str = "", holder: Effect = Effect.DECIDES) -> Iterator[Setting]:
    """Every field of a section and of the sections in it, of all their kinds."""
    for name, field in section.model_fields.items():
        effect, own = mark_of(field) or holder, f"{path}.{name}".lstrip(".")
        inner = sections_in(field.annotation)
        if not inner or mark_of(field) is not None:
            yield Setting(own, section, name, effect)
        for model in inner:
            is_list = typing.get_origin(field.annotation) is tuple
            yield from settings_of(model, f"{own}.*" if is_list else own, effect)
