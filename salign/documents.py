"""Small files, YAML and JSON, that somebody else may have written: read within bounds, and no pipe or device.

YAML is read without the surprises of YAML 1.1.
"""

import json
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec
import yaml

from salign.errors import ConfigError, DataError

T = TypeVar("T")

_MAX_YAML_BYTES = 1 << 20
# A manifest or a marker has a line for each file; of 100,000 files some 15 MB.
_MAX_JSON_BYTES = 1 << 26
# Values in a document, each alias counted as often as it is used; the longest shipped config has some 200.
_MAX_VALUES = 100_000
_MAX_DEPTH = 50
# What YAML 1.1 reads as a number of base 60 or 8, and YAML 1.2 does not.
_SURPRISING = re.compile(r"[-+]?(\d+(:\d+)+(\.\d*)?|0[\d_]+)")


# libyaml reads several times as fast as Python does; the wheels of PyYAML have it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """A SafeLoader that refuses a key said twice, and numbers that do not mean what they look like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping",
                    node.start_mark,
                    f"the key {key!r} appears twice",
                    key_node.start_mark,
                )
            seen.append(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping

    def text(self, node: yaml.ScalarNode) -> str:
        return str(self.construct_scalar(node))

    def number(self, node: yaml.ScalarNode) -> Any:
        if _SURPRISING.fullmatch(node.value):
            problem = f"{node.value} would be read as a number of another base; write it in base 10, or quote it"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        try:
            is_whole = node.tag.endswith(":int")
            return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)
        except ValueError as error:  # of thousands of digits, or none
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)
# A date is the text that was written: YAML 1.2 has no others, and some are impossible.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.text)


def parse_yaml(text: str, what: str) -> Any:
    """The value of one YAML document.

    Args:
        text: The document.
        what: As an error names it.

    Raises:
        ConfigError: It is not valid, or larger or deeper than any config.
    """
    try:
        _check_depth(text, what)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node, what)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # half a character
        raise ConfigError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error


def _check_depth(text: str, what: str) -> None:
    """Refuses what libyaml, which composes by recursion and does not count, would end the process at."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _too_deep(what)


def _too_deep(what: str) -> ConfigError:
    return ConfigError(f"{what} is nested too deeply; a config has at most {_MAX_DEPTH} levels")


def _check_size(node: yaml.Node, what: str) -> None:
    """Refuses what would grow or deepen without end when its aliases are followed."""
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node, depth: int) -> int:
        if depth > _MAX_DEPTH:
            raise _too_deep(what)
        known = sizes.get(id(node))
        if known is None:
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            inner = (part for each in parts for part in (each if isinstance(each, tuple) else (each,)))
            known = sizes[id(node)] = 1 + sum(size_of(part, depth + 1) for part in inner)
        return known

    if size_of(node, 0) > _MAX_VALUES:
        raise ConfigError(f"{what} has more than {_MAX_VALUES:,} values, which no config has")


def read_yaml(path: Path, what: str) -> Any:
    """The value of a YAML file.

    Raises:
        ConfigError: As `parse_yaml`; or it is no ordinary file, too large, or no text.
        OSError: It cannot be read.
    """
    try:
        text = read_bounded(path, what, _MAX_YAML_BYTES).decode()
    except DataError as error:
        raise ConfigError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} cannot be read: {error}") from error
    return parse_yaml(text, what)


@overload
def read_json(path: Path, what: str) -> Any: ...
@overload
def read_json(path: Path, what: str, kind: type[T]) -> T: ...
def read_json(path: Path, what: str, kind: Any = Any) -> Any:
    """The value of a JSON file.

    Args:
        path: The file.
        what: As an error names it.
        kind: What it must be, as msgspec takes it.

    Raises:
        DataError: It is no ordinary file, too large, no JSON, or something else than `kind`.
        OSError: It cannot be read.
    """
    content = read_bounded(path, what, _MAX_JSON_BYTES)
    try:
        value = json.loads(content)
        if b"\\ud" in content.lower():  # half a character, which no file and no terminal takes
            json.dumps(value, ensure_ascii=False).encode()
        return msgspec.convert(value, kind)
    except RecursionError:
        raise DataError(f"{what} is damaged: it is nested too deeply") from None
    except ValueError as error:  # also those of msgspec and of Unicode
        raise DataError(f"{what} is damaged: {error}") from None


def read_bounded(path: Path, what: str, most: int) -> bytes:
    """The bytes of an ordinary file; neither a pipe, which would be waited for, nor a device, which has no end.

    Raises:
        DataError: It is another kind of file, or has more bytes.
        OSError: It cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{what} is not an ordinary file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{what} has {path.stat().st_size:,} bytes; it should have at most {most:,}")
    return content
