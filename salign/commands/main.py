"""salign COMMAND ...: what `python jobs/COMMAND.py ...` does. `salign COMMAND --help` says what it takes."""

import difflib
import importlib
import pkgutil
import sys

from salign import commands
from salign.errors import ConfigError, run_main

# In the order in which a run goes.
_ORDER = (
    *("init", "config", "launch", "simulate", "collect", "train", "evaluate", "report"),
    *("status", "export", "dashboard", "bench"),
)


def names() -> list[str]:
    """Of all commands."""
    return [module.name for module in pkgutil.iter_modules(commands.__path__) if module.name != "main"]


def _help() -> str:
    lines = [__doc__ or "", ""]
    for name in sorted(names(), key=_ORDER.index):
        about = (importlib.import_module(f"salign.commands.{name}").__doc__ or "").split("\n")[0]
        lines.append(f"  {name:<10} {about}")
    return "\n".join(lines)


def _main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        meant = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"no command {name!r}{meant} There are: {', '.join(sorted(names(), key=_ORDER.index))}.")
    sys.argv = [f"salign {name}", *sys.argv[2:]]
    importlib.import_module(f"salign.commands.{name}").main()


def main() -> None:
    """The command that the command line names."""
    run_main(_main)
