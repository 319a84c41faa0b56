"""Lists every setting of a config with its type, default and meaning, as Markdown.

salign config [SECTION]         such as: salign config society.stopping
"""

import ast
import functools
import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from salign.command_line import Parser
from salign.config import Config, Effect
from salign.config.effects import mark_of, sections_in
from salign.errors import ConfigError

_TITLE = """\
# The configuration

Every setting of a config; `salign config` prints this page, `salign config society.stopping` a part of it. What
a setting decides, and so whether it may change between launches of one run ([what identifies a
run](reproducibility.md)):

- *decides*: what a model says, what is learnt or what is measured. Work that was started with another value is refused;
- *extent*: how much is computed and what counts as done. It may not change once a part of the run is complete;
- *input*: names a model, a file or an earlier stage, whose content decides;
- *free*: where and how a run is executed and shown. It may change between launches.

`Count` is a whole number from 1 to 1,000,000,000, `CountOrZero` from 0; `Agents` and `Tokens` are counts to 10,000,000,
`Processes` to 4,096, and a `Budget` to 10^15; `Share` is a number from 0 to 1; `Positive` and `NotNegative` are numbers
to 1,000,000,000; `Name` has letters, digits, `_`, `.` and `-`; `AbsolutePath` may be written relative to the working
folder, or with `./` relative to the config file; `FolderOrHub` is a local folder or a hub id.
"""


@functools.cache
def _said(section: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Of a section's own and inherited fields, the type as the code has it and what the code says of it."""
    found: dict[str, tuple[str, str]] = {}
    for parent in reversed(section.__mro__):
        if not issubclass(parent, BaseModel) or not parent.__module__.startswith("salign."):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, [*body.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if is_text else ""  # type: ignore[union-attr]
            found[node.target.id] = _type(node.annotation), " ".join(text.split())
    return found


def _type(annotation: ast.expr) -> str:
    """An annotation without what is for the machine."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        inner = annotation.slice.elts[0] if isinstance(annotation.slice, ast.Tuple) else annotation.slice
        bounds = [
            f"{word.arg} {ast.unparse(word.value)}" for call in _calls(annotation, "Field") for word in call.keywords
        ]
        bounds += [f"le {ast.literal_eval(call.args[0]):,}" for call in _calls(annotation, "at_most")]
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        said = [f"{signs[bound.split()[0]]} {bound.split()[1]}" for bound in bounds if bound.split()[0] in signs]
        return ", ".join([_type(inner), *said])
    return ast.unparse(annotation).replace("'", "").replace('"', "")


def _calls(annotation: ast.Subscript, name: str) -> list[ast.Call]:
    nodes = ast.walk(annotation.slice)
    return [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        said = value.model_dump(mode="json", exclude_defaults=True)
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        said = {**kind, **said}
        return _plain(said) if said else "see below"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in value]
    return _plain(value)


def _relative(value: Any) -> Any:
    """A path as it is written, whatever the working folder."""
    here = f"{Path.cwd()}/"
    return value.removeprefix(here) if isinstance(value, str) else value


def _plain(value: Any) -> str:
    """As a config file may have it."""
    value = {name: _relative(item) for name, item in value.items()} if isinstance(value, dict) else _relative(value)
    return "`" + re.sub(r'"([\w.\-/]+)"', r"\1", json.dumps(value)) + "`"


def _table(section: type[BaseModel], holder: Effect) -> list[str]:
    said = _said(section)
    lines = ["| name | type | default | decides | what |", "|---|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if name == "kind":
            continue
        kind, text = said.get(name, ("", ""))
        effect = (mark_of(field) or holder).value
        cells = (f"`{name}`", f"`{kind}`", _default(field.get_default(call_default_factory=True)), effect, text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines if len(lines) > 2 else ["It has no settings."]


def _places(
    section: type[BaseModel], place: str, holder: Effect, found: dict[type[BaseModel], list[tuple[str, Effect]]]
) -> None:
    """Where in a config each section may stand, and what it decides there."""
    for name, field in section.model_fields.items():
        effect = mark_of(field) or holder
        below = f"{place}.{name}" if place else name
        for part in sections_in(field.annotation):
            is_new = part not in found
            found.setdefault(part, []).append((below, effect))
            if is_new:
                _places(part, below, effect, found)


def _parts() -> list[str]:
    """Each section's table, under its places in a config."""
    found: dict[type[BaseModel], list[tuple[str, Effect]]] = {}
    _places(Config, "", Effect.DECIDES, found)
    lines = []
    for part, places in sorted(found.items(), key=lambda item: _ORDER[item[1][0][0].split(".")[0]]):
        (first, effect), *others = sorted(places, key=lambda at: at[0].count("."))  # the shallowest, then in order
        kind = part.model_fields.get("kind")
        of_kind = "" if kind is None else f", kind `{_kind_of(kind.annotation)}`"
        lines += [f"## `{first}`{of_kind}", ""]
        if elsewhere := dict.fromkeys(place for place, _ in others if place != first):
            lines += [f"Also {', '.join(f'`{place}`' for place in elsewhere)}.", ""]
        about = inspect.getdoc(part) if part.__doc__ and part.__doc__ != BaseModel.__doc__ else ""
        lines += [*([about, ""] if about else []), *_table(part, effect), ""]
    return lines


# As in a config; within a section the order is that of the code.
_ORDER = {name: place for place, name in enumerate(Config.model_fields)}


def _kind_of(annotation: Any) -> str:
    return ", ".join(str(arg) for arg in getattr(annotation, "__args__", ()))


def reference() -> str:
    """The whole page."""
    top = ["## At the top", "", *_table(Config, Effect.DECIDES), ""]
    return "\n".join([_TITLE, *top, *_parts()]).rstrip() + "\n"


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("section", nargs="?", help="a section of the config; all of them if omitted")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    page = reference()
    if args.section is None:
        print(page, end="")
        return
    parts = [part for part in re.split(r"(?m)^(?=## )", page) if part.startswith(f"## `{args.section}`")]
    if not parts:
        raise ConfigError(f"the config has no section {args.section!r}; `salign config` shows all of them")
    print("".join(parts), end="")
