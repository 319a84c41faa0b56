"""The command line of every command: its mistakes are errors like all others."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from salign.errors import ConfigError
from salign.shown import as_called


class Parser(argparse.ArgumentParser):
    """argparse's, with descriptions as they are written, but for the names of commands (`as_called`).

    Raises:
        ConfigError: An argument is wrong; also one that is no UTF-8, which no file of a run could name.
    """

    def __init__(self, **how: Any) -> None:
        about = as_called(how.pop("description", None) or "")
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "description": about, **how})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        for word in sys.argv[1:] if args is None else args:
            if "\0" in word or not _is_utf8(word):
                raise ConfigError(f"the argument {word!a} is not UTF-8 text")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. `{self.prog} --help` shows what there is.")


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
