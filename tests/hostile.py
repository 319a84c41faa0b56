"""What somebody hostile or careless may write: values for settings, contents of files, and things that are no files."""

import gzip
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# As YAML, which here is JSON but for what JSON cannot say.
NUMBERS = (
    *("0", "-1", "1.5", "true", ".nan", ".inf", "-.inf", "1e308", "5e-324", "2147483648", "9223372036854775808"),
    *("1" + 30 * "0", "9" * 5000, "-" + "9" * 5000, "010", "1:30:00", "1_000", "0x10", "2026-02-31"),
)
TEXTS = (
    *("", " ", "x" * 10_000, "\0", "a\0b", "\ud800", "\x1b]0;title\x07\x1b[2J", "[/x]", "[red]x", "\u202etxt.exe"),
    *("../../../x", "~nobody_is_called_so/x", "~", "a/b/c", "{x}", "%s%n", "$(false)", "a\nb", "--help", ".", "/"),
    *(
        "host:99999",
        "http://[::1",
        "http://a:b@c/v1",
        "http://x:99999/v1",
        "http:///v1",
        "http://\0/v1",
        "http://x y/v1",
    ),
    *("http://" + "x" * 5000 + "/v1", "http://xn--\u0130/v1", "http://x/v1#k", "https://..", "file:///etc/passwd"),
)
STRUCTURES = ("null", "[]", "{}", "[[[]]]", "{kind: []}", "{kind: {}}", "{kind: null}", "{kind: nothing}", "[null]")
DEEP = ("[" * 45 + "]" * 45, "[" * 100 + "]" * 100, "[" * 20_000, "{a: " * 2000 + "}" * 2000)


def values() -> list[str]:
    """Every hostile value, as YAML."""
    return [*NUMBERS, *map(json.dumps, TEXTS), *STRUCTURES, *DEEP]


def places(folder: Path) -> list[Path]:
    """What is no ordinary file with text in it, made in a folder."""
    folder.mkdir()
    made = {
        "empty": b"",
        "newline": b"\n",
        "nul": b"\0" * 100,
        "latin": "caf\xe9\n".encode("latin-1"),
        "bom": b"\xff\xfe",
        "random": random.Random(0).randbytes(4096),
        "bomb.gz": gzip.compress(b"[" + b"\0" * 50_000_000),
        "cut.gz": gzip.compress(b'{"question": "a"}\n' * 1000)[:-40],
        "fake.parquet": b"PAR1" + b"\xff" * 200 + b"PAR1",
        "long-line.jsonl": b'{"question": "' + b"x" * 10_000_000 + b'"}\n',
        "deep.jsonl": b'{"question": ' + b"[" * 100_000,
        "deep-array.json": b"[" + b'{"a":' * 100_000,
        "digits.jsonl": b'{"question": "a", "answer": "b", "label": ' + b"9" * 10_000 + b"}\n",
        "surrogate.jsonl": b'{"question": "\\ud800 is what?", "answer": "\\udfff"}\n',
        "escapes.jsonl": b'{"\\u001b]0;x\\u0007": 1}\n',
        "nan.jsonl": b'{"question": NaN, "answer": Infinity}\n',
        "twice.csv": b"question,question\na,b\n",
        "quote.csv": b'question,answer\n"a,b\n' * 1000,
        "wide.csv": b",".join(b"c%d" % n for n in range(50_000)) + b"\n",
    }
    paths = []
    for name, content in made.items():
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nothing")
    paths += [
        folder / name for name in ("folder", "fifo", "loop", "dangling", "absent", "empty/x", "a" * 300, "a/" * 3000)
    ]
    return [*paths, Path("/dev/zero"), Path("/dev/null"), Path("/dev/full"), Path("/proc/self/mem")]


def leaves(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every value in a tree, sections and lists too."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def with_value(tree: Any, path: tuple[str | int, ...], value: str) -> str:
    """The tree as YAML, with another value, itself YAML, in one place."""
    marker = "@the value@"

    def changed(tree: Any, path: tuple[str | int, ...]) -> Any:
        if not path:
            return marker
        copy = dict(tree) if isinstance(tree, dict) else list(tree)
        copy[path[0]] = changed(tree[path[0]], path[1:])
        return copy

    return json.dumps(changed(tree, path)).replace(json.dumps(marker), value)
