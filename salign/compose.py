"""Composes a configuration from YAML files and `key.sub=value` overrides, and reports every mistake at once.

A YAML file names its parents in `bases:`, relative to itself, or as they come with salign; later wins, the command line
wins over all. A string that starts with `./` or `../` is a path relative to the file that says it; any other relative
path is relative to the working directory.
"""

import difflib
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from salign.config import AnswersData, Config, DataPart, Effect, Rows, selected
from salign.config.base import SectionT
from salign.config.effects import sections_in
from salign.documents import parse_yaml, read_yaml
from salign.errors import ConfigError
from salign.shown import is_secret, secrets_of_environment

Tree = dict[str, Any]


def _merge(below: Tree, above: Tree) -> Tree:
    """Deep merge; `above` wins. A mapping that changes its `kind` replaces the one below."""
    if "kind" in above and "kind" in below and above["kind"] != below["kind"]:
        return above
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _anchor(value: Any, folder: Path) -> Any:
    """Makes `./x` and `../x` relative to the folder of the file that says it."""
    if isinstance(value, dict):
        return {key: _anchor(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_anchor(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        return os.path.abspath(folder / value)
    return value


def shipped(name: str) -> Path:
    """A config that comes with salign."""
    return (Path(__file__).parent / "configs" / name).resolve()  # in a checkout a link to configs/


def _base(name: str, folder: Path) -> Path:
    """A config's parent: relative to the config, else of those that come with salign."""
    path = Path(os.path.abspath(folder / name))
    return path if path.exists() or not shipped(name).is_file() else shipped(name)


def _read_yaml(path: Path, seen: tuple[Path, ...] = (), known: dict[Path, Tree] | None = None) -> Tree:
    """The tree of a file over those of its bases; a file that several name is read once."""
    known = {} if known is None else known
    if path in seen:
        raise ConfigError(f"{path} is its own base: {' -> '.join(map(str, (*seen, path)))}")
    if path in known:
        return known[path]
    try:
        tree = read_yaml(path, f"config file {path}")
    except FileNotFoundError:
        named = f", named in the bases of {seen[-1]}" if seen else ""
        raise ConfigError(f"no config file {path}{named}; the shipped ones are under configs/") from None
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {path} must hold a mapping at the top, not {type(tree).__name__}")
    bases = tree.pop("bases", [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"config file {path}: `bases` must be a list of file names")
    merged: Tree = {}
    for base in bases:
        merged = _merge(merged, _read_yaml(_base(base, path.parent), (*seen, path), known))
    known[path] = _merge(merged, _anchor(tree, path.parent))
    return known[path]


def _nest(keys: Sequence[str], value: Any) -> Tree:
    for key in reversed(keys):
        value = {key: value}
    return typing.cast(Tree, value)


def _override(tree: Tree, override: str) -> Tree:
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {name!r} must have the form key.sub=value, such as society.max_rounds=3")
    value = parse_yaml(text, f"the value of override {name!r}")
    return _set(tree, keys, _anchor(value, Path.cwd()), name)


def _set(tree: Tree, keys: Sequence[str], value: Any, name: str) -> Tree:
    """Sets `a.b.c`; a list of named mappings (train.stages) is entered by name."""
    key, rest = keys[0], keys[1:]
    below = tree.get(key)
    if not rest or not isinstance(below, dict | list):
        return _merge(tree, _nest(keys, value))
    if isinstance(below, dict):
        return {**tree, key: _set(below, rest, value, name)}
    names = [item.get("name") if isinstance(item, dict) else None for item in below]
    if rest[0] not in names or len(rest) < 2:
        known = ", ".join(str(item) for item in names)
        raise ConfigError(f"override {name!r}: {key} is a list whose items are addressed by name; it has: {known}")
    position = names.index(rest[0])
    changed = _set(below[position], rest[1:], value, name)
    return {**tree, key: [*below[:position], changed, *below[position + 1 :]]}


def _kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation) if field else ()


def _place(loc: Iterable[int | str], tree: Any) -> tuple[str, list[type[BaseModel]], list[type[BaseModel]]]:
    """A pydantic location as the user wrote it; the sections that hold its last name; what may stand there."""
    models: list[type[BaseModel]] = [Config]
    holders = models
    path: list[str] = []
    for part in loc:
        if isinstance(part, str) and len(models) > 1 and any(part in _kinds_of(model) for model in models):
            models = [model for model in models if part in _kinds_of(model)]  # a union's tag: not a name in the file
            continue
        if isinstance(part, int):
            tree = tree[part] if isinstance(tree, list) and part < len(tree) else None
            path.append(str(tree.get("name") or part) if isinstance(tree, dict) else str(part))
            continue
        holders = models
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [found for field in fields for found in sections_in(field.annotation)]
        tree = tree.get(part) if isinstance(tree, dict) else None
        path.append(part)
    return ".".join(path), holders, models


# Where somebody may have put a key by mistake, the value is not said.
_MAY_HOLD_A_KEY = ("base_url", "api_key_env")


def _describe(error: ErrorDetails, tree: Tree) -> str:
    path, holders, models = _place(error["loc"], tree)
    kinds = [kind for model in models for kind in _kinds_of(model)]
    if error["type"] == "extra_forbidden":
        names = sorted({name for model in holders for name in model.model_fields})
        near = difflib.get_close_matches(path.rpartition(".")[2], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known there: {', '.join(names)}"
        return f"{path}: unknown name; {hint}"
    if error["type"] == "union_tag_not_found":
        return f"{path}.kind: missing; it is one of {', '.join(kinds)}"
    if error["type"] == "union_tag_invalid":
        given = error["ctx"]["tag"]
        near = difflib.get_close_matches(given, kinds, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(kinds)}"
        return f"{path}.kind: unknown kind {given!r}; {hint}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{path}: expected a section, `name: value` lines, not {type(error['input']).__name__}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = error.get("input")
    hidden = isinstance(value, dict | list | BaseModel) or error["type"] == "missing" or path.endswith(_MAY_HOLD_A_KEY)
    shown = "" if hidden else f" (got {value!r})"
    return f"{path + ': ' if path else ''}{message}{shown}"


_MAX_TEXT = 20_000  # characters; what agents are told is the longest text of a config
_MAX_NUMBER = (1 << 63) - 1
_MAX_MISTAKES = 20  # that are listed
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_OF_LINES = ("instructions", "setup")
"""Names of texts that may have several lines; elsewhere a line break would get into file names and batch files."""


def _unfit(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """What no setting takes: control characters, texts without end, numbers of more than 64 bits."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _unfit(key, (*path, "(a name)")) if isinstance(key, str) else ()
        yield from _unfit(item, (*path, str(key)))
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        yield f"{'.'.join(path)}: the number has more than 64 bits"
    if not isinstance(value, str):
        return
    if len(value) > _MAX_TEXT:
        yield f"{'.'.join(path)}: {len(value):,} characters; a text of a config has at most {_MAX_TEXT:,}"
    elif found := _UNFIT.search(value):
        yield f"{'.'.join(path)}: contains the character {found[0]!a}, which no setting may have"
    elif "\n" in value and not any(name in path for name in _OF_LINES):
        yield f"{'.'.join(path)}: has several lines, and is one"


_ASSIGNED = re.compile(r"(?<![\w$])([A-Za-z_]\w*)=(?!\$|[\"']?\$|[\"']?\s|$)")


def _secrets_in(value: Any, secrets: Mapping[str, str], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Texts that hold a secret of the environment, or set a variable that is named like one: they would be written."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _secrets_in(item, secrets, (*path, str(key)))
    if not isinstance(value, str):
        return
    names = [name for secret, name in secrets.items() if secret in value]
    if "setup" in path:
        names += [name for name in _ASSIGNED.findall(value) if is_secret(name)]
    if names:
        yield (
            f"{'.'.join(path)}: holds the secret {names[0]}, and would be written into the run's folder. Set that "
            "variable where you launch; cluster.more_environment passes it on to jobs"
        )


def parse(tree: Mapping[str, Any], origin: str) -> Config:
    """Validates a tree of plain values.

    Args:
        tree: Section names to values.
        origin: Where it came from, for the error.

    Raises:
        ConfigError: With every mistake, its path and the nearest valid name.
    """
    mistakes = list(_unfit(tree)) or list(_secrets_in(tree, secrets_of_environment()))
    try:
        if not mistakes:
            return Config.model_validate(tree)
    except ValidationError as error:
        mistakes = _all_mistakes(dict(tree), error)
    noun = "mistake" if len(mistakes) == 1 else "mistakes"
    listed = "".join(f"\n  - {mistake}" for mistake in mistakes[:_MAX_MISTAKES])
    more = f"\n  - and {len(mistakes) - _MAX_MISTAKES:,} more" if mistakes[_MAX_MISTAKES:] else ""
    raise ConfigError(f"{len(mistakes)} {noun} in the config ({origin}):{listed}{more}") from None


def _all_mistakes(tree: Tree, error: ValidationError | None) -> list[str]:
    """Every mistake. A section with a wrong value is not checked as a whole: that is done again without the value."""
    mistakes: list[str] = []
    while error is not None:
        found = error.errors(include_url=False)
        # Later on, what is missing is missing because it was taken out.
        mistakes += [_describe(details, tree) for details in found if not mistakes or details["type"] == "value_error"]
        rest = tree
        for details in found:
            rest = _without(rest, _written(details["loc"], rest))
        if rest == tree:
            break
        tree, error = rest, None
        try:
            Config.model_validate(tree)
        except ValidationError as next_error:
            error = next_error
    return list(dict.fromkeys(mistakes))


def _written(loc: Sequence[int | str], tree: Any) -> list[int | str]:
    """A pydantic location without the tags of unions, as far as the tree has it."""
    path: list[int | str] = []
    for part in loc:
        there = range(len(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else ()
        if part in there:
            tree = tree[part]
            path.append(part)
    return path


def _without(tree: Any, path: Sequence[int | str]) -> Any:
    if not path:
        return tree
    key, rest = path[0], path[1:]
    if isinstance(tree, dict) and isinstance(key, str):
        below = {name: value for name, value in tree.items() if name != key}
        return {**tree, key: _without(tree[key], rest)} if rest else below
    if isinstance(tree, list) and isinstance(key, int) and rest:
        return [_without(item, rest) if place == key else item for place, item in enumerate(tree)]
    return tree


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Loads a config file with its bases and applies `key.sub=value` overrides.

    Raises:
        ConfigError: The file, an override or a value is wrong; all wrong values are named at once.
    """
    tree, mistakes = _read_yaml(Path(os.path.abspath(path))), []
    for override in overrides:
        try:
            tree = _override(tree, override)
        except ConfigError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return parse(tree, str(path))


def skipping_bad(config: Config) -> Config:
    """The config in which malformed rows of all sources and training data are skipped, and counted, not an error."""

    def from_source(section: SectionT, *names: str) -> SectionT:
        sources = {name: getattr(section, name) for name in names}
        skipping = {
            name: source.model_copy(update={"skip_bad": True})
            for name, source in sources.items()
            if isinstance(source, Rows)
        }
        return section.model_copy(update=skipping) if skipping else section

    def from_part(part: DataPart) -> DataPart:
        if isinstance(part, AnswersData):
            return from_source(part, "source")
        return part.model_copy(update={"skip_bad": True}) if isinstance(part, Rows) else part

    stages = tuple(stage.with_parts([from_part(part) for part in stage.parts]) for stage in config.train.stages)
    update = {
        "train": config.train.model_copy(update={"stages": stages}),
        "society": from_source(config.society, "questions", "prior"),
        "evaluate": from_source(config.evaluate, "questions"),
    }
    return config.model_copy(update=update)


def dump(config: Config) -> str:
    """The resolved config as YAML; `parse` of it gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def differences(old: Config, new: Config, *effects: Effect) -> list[str]:
    """The dotted names of the fields with one of the effects (none named: of all) whose values differ."""
    left, right = (leaves(selected(config, *(effects or Effect))) for config in (old, new))
    return [name for name in {**left, **right} if left.get(name, _ABSENT) != right.get(name, _ABSENT)]


_ABSENT = object()


def _names_of(items: list[Any]) -> list[str]:
    """The names of a list's items; none where not all have one of their own, as datasets need not."""
    named = (item.get("name") if isinstance(item, dict) else None for item in items)
    names = [name for name in named if isinstance(name, str)]
    return names if len(set(names)) == len(items) else []


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """A tree of plain values as dotted names; a list of named items is entered by their names."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
        found: dict[str, Any] = {}
    elif isinstance(value, list) and (names := _names_of(value)):
        items = list(zip(names, value, strict=True))
        found = {path: names}  # the order of named items counts too
    else:
        return {path: value}
    for key, item in items:
        found |= leaves(item, f"{path}.{key}".lstrip("."))
    return found
