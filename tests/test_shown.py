"""What models, servers and files say stays text wherever it is shown."""

import io
import json
import logging
import re

import pytest
from rich.table import Table

from salign.errors import DataError, exit_code_of, presentable
from salign.shown import NeutralFormatter, neutral, plain_console

HOSTILE = "\x1b]0;title\x07\x1b[2J\u202etxt.exe\u2066\ud800\x9b1m\r\x00 end"


def has_control(text: str) -> bool:
    return re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text) is not None


def test_what_a_terminal_would_obey_is_shown_as_escapes():
    shown = neutral(HOSTILE)
    assert not has_control(shown)
    assert shown.startswith(r"\x1b]0;title\x07\x1b[2J\u202etxt.exe")
    shown.encode()


def test_ordinary_text_of_any_script_is_not_touched():
    text = "two lines,\n\ta tab, naïve, 日本語, עברית, العربية, 👩\u200d🔬 and [brackets] $5"
    assert neutral(text) == text


@pytest.mark.parametrize(
    ("form", "text", "shown"),
    [
        ("markdown", "over_refusal _x_", r"over_refusal \_x\_"),
        ("markdown", "a|b\n# *c* [d](e) <f> `g`", r"a\|b \# \*c\* \[d\](e) \<f\> \`g\`"),
        ("markdown code", "a `b` | c", r"``a `b` \| c``"),
        ("markdown code", "`a", "`` `a ``"),
        (
            "latex",
            r"\input{x} 5% a_b ~^ $x$ #&",
            r"\textbackslash{}input\{x\} 5\% a\_b \textasciitilde{}\textasciicircum{} \$x\$ \#\&",
        ),
        ("mathtext", r"$\frac{1}{2}$", r"\$\frac{1}{2}\$"),
    ],
)
def test_each_form_has_its_own_marks(form, text, shown):
    assert neutral(text, form) == shown


def test_a_console_shows_strings_and_tables_without_obeying_them():
    out = io.StringIO()
    console = plain_console(file=out, width=200)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(f"[red]{HOSTILE}[/x]")
    console.print(table)
    console.print(f"[bold]{HOSTILE}")
    console.rule(HOSTILE)
    shown = out.getvalue()
    assert not has_control(shown.replace("\n", ""))
    assert "[red]" in shown
    assert "[bold]" in shown


def test_log_lines_and_errors_are_neutral_and_bounded():
    record = logging.LogRecord("salign", logging.WARNING, "", 0, "the server says %s", (HOSTILE,), None)
    assert not has_control(NeutralFormatter("%(message)s").format(record))
    assert not has_control(presentable(HOSTILE))
    assert len(presentable("the value " + "x" * 10_000_000)) < 500


def test_an_error_that_quotes_a_file_is_one_neutral_paragraph(capsys):
    def fails() -> None:
        raise DataError(f"the file says {HOSTILE}{json.dumps('y' * 50_000)}")

    assert exit_code_of(fails) == 2
    said = capsys.readouterr().err
    assert not has_control(said.removesuffix("\n"))
    assert len(said) < 1000
