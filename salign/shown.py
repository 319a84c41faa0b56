"""Text of models, servers and files as it may be shown: with nothing in it that a terminal or a format would obey."""

import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Literal

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


def redact(text: str) -> str:
    """Replaces the value of every environment variable that is named like a secret.

    Args:
        text: What is about to be shown or written.

    Returns:
        The text, with each secret of at least 6 characters replaced by `<NAME>`.
    """
    named = {name: value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    secrets = {value: name for name, value in named.items() if len(value) >= 6}
    for value in sorted(secrets, key=len, reverse=True):  # one may begin with another
        text = text.replace(value, f"<{secrets[value]}>")
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
