"""salign COMMAND ...: the same as `python jobs/COMMAND.py ...`. `salign COMMAND --help` lists its options."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from salign.errors import ConfigError, run_main

COMMANDS = (
    *("init", "config", "launch", "simulate", "collect", "train", "evaluate", "report"),
    *("status", "rate", "value", "attack", "export", "audit", "dashboard", "bench", "completion"),
)
"""A module each, in the order in which a run goes."""


def _help() -> str:
    lines = [__doc__ or "", ""]
    for name in COMMANDS:
        about = (importlib.import_module(f"salign.commands.{name}").__doc__ or "").split("\n")[0]
        lines.append(f"  {name:<10} {about}")
    return "\n".join(lines)


def run(words: Sequence[str]) -> None:
    """Does what the words of a command line say.

    Raises:
        SalignError: As the command, or there is no such command.
    """
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"no command {name!r}{meant} Commands: {', '.join(COMMANDS)}.")
    sys.argv = [f"salign {name}", *words[1:]]
    importlib.import_module(f"salign.commands.{name}").main()


def main() -> None:
    """The command that the command line names."""
    run_main(lambda: run(sys.argv[1:]))
