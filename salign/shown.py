"""Text of models, servers and files as it may be shown: with nothing in it that a terminal or a format would obey."""

import base64
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from rich.console import Console

# Control characters but for tab and line feed, which terminals obey; those that turn lines around, hide or join text
# (Boucher and Anderson 2021, arXiv 2111.00169); halves of characters, which no file takes.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
# Within a word an underscore marks nothing (CommonMark 0.31, section 6.2).
_MARKS_OF_MARKDOWN = re.compile(r"[\\`*\[\]<>|~#&$!@]|(?<!\w)_|_(?!\w)")
_TEX = {character: f"\\{character}" for character in "_%&#${}"}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u2193": r"$\downarrow$"}
_LONG_WORD = re.compile(r"\S{1001,}")
# Of a long secret, so many letters at its beginning or end are known by.
_LEAST_OF_CUT = 12
_PASSWORD_OF_URL = re.compile(r"://[^/@\s]*:([^/@\s]+)@")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|DATABASE_URL|_(PASS|PAT|AUTH)$", re.IGNORECASE)

Form = Literal["terminal", "markdown", "markdown code", "latex", "mathtext"]
"""Where a text is shown: a terminal, a log or a plain file; a line of Markdown, or code in one; LaTeX; a label that
matplotlib draws."""


def neutral(text: str, form: Form = "terminal") -> str:
    r"""A text of somebody else's that stays text where it is shown.

    Control characters become escapes that can be read (`\x1b`), and so do those that turn text around or hide it. But
    for a terminal it becomes one line.
    """
    text = _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))
    if form == "terminal":
        return text
    text = " ".join(text.split())
    if form == "markdown":
        return _MARKS_OF_MARKDOWN.sub(lambda found: f"\\{found[0]}", text)
    if form == "markdown code":
        fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
        space = " " if text.startswith("`") or text.endswith("`") else ""
        return f"{fence}{space}{text}{space}{fence}".replace("|", r"\|")
    if form == "latex":
        return "".join(_TEX.get(character, character) for character in text)
    return text.replace("$", r"\$")


def shortened(text: str) -> str:
    """A text in which no word is longer than most paths: a quoted value of megabytes does not bury a message."""
    return _LONG_WORD.sub(lambda found: f"{found[0][:200]}...({len(found[0]):,} characters)...{found[0][-50:]}", text)


def is_secret(name: str) -> bool:
    """Whether a variable is named like a secret."""
    return _SECRET_NAME.search(name) is not None


def secrets_of_environment() -> dict[str, str]:
    """The secrets of at least 6 characters that the environment holds, with the names of their variables.

    They are the values of variables that are named like a secret, and the passwords of proxies.
    """
    found = {}
    for name, value in os.environ.items():
        if is_secret(name):
            found[value.strip()] = name
        elif name.lower().endswith("_proxy") and (password := _PASSWORD_OF_URL.search(value)) is not None:
            found[password[1]] = name
    return {secret: name for secret, name in found.items() if len(secret) >= 6}


def _copies(secret: str) -> list[str]:
    """How a secret may stand in a text: as it is, in a URL, in Base64 at any place of it, and cut."""
    copies = [secret, quote(secret, safe=""), quote_plus(secret)]
    for offset in range(3):  # what stands before it moves its letters; the first and last ones depend on neighbours
        encoded = base64.b64encode(b"\0" * offset + secret.encode("utf-8", "replace")).decode()
        copies.append(encoded[4 if offset else 0 : len(encoded) - 4])
    copies += [copy.replace("+", "-").replace("/", "_") for copy in copies[3:]]
    if len(secret) >= 2 * _LEAST_OF_CUT:
        copies += [secret[:_LEAST_OF_CUT], secret[-_LEAST_OF_CUT:]]
    return [copy for copy in copies if len(copy) >= 6]


def redact(text: str) -> str:
    """Replaces the secrets of the environment, also copies of them in a URL, in Base64 or cut short.

    Args:
        text: What is about to be shown or written.

    Returns:
        The text, with each secret of at least 6 characters replaced by `<NAME>`.
    """
    copies = {copy: name for secret, name in secrets_of_environment().items() for copy in _copies(secret)}
    for copy in sorted(copies, key=len, reverse=True):  # one may begin with another
        text = text.replace(copy, f"<{copies[copy]}>")
    return text


class NeutralFormatter(logging.Formatter):
    """Log lines that quote others, neutral and without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return neutral(redact(super().format(record)))


def say(text: str) -> None:
    """Prints what a command has to say, neutral."""
    print(neutral(text), flush=True)


def plain_console(**how: Any) -> "Console":
    """A console on standard output that shows every text as it is: no markup, and neutral."""
    import rich.console
    from rich.text import Text

    class Neutral(rich.console.Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(neutral(text), **how)

    return Neutral(markup=False, emoji=False, **how)


def as_called(text: str) -> str:
    """A text in which our commands have the names that the user called this one by: `salign launch`, if it was so."""
    if not sys.argv[0].startswith("salign "):  # so `salign.commands.main` leaves it
        return text
    return re.sub(r"python jobs/(\w+)\.py", r"salign \1", text)
