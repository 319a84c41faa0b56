"""Prints the script by which a shell completes the commands, options and files of `salign`.

source <(salign completion bash)          in ~/.bashrc
"""

import importlib
from pathlib import Path

import shtab

from salign.command_line import Parser
from salign.commands.main import COMMANDS


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def main() -> None:
    args = make_parser().parse_args()
    root = Parser(prog="salign")
    commands = root.add_subparsers()
    for name in COMMANDS:
        parser = importlib.import_module(f"salign.commands.{name}").make_parser()
        parser = commands.add_parser(name, help=parser.description.split("\n")[0], parents=[parser], add_help=False)
        for action in parser._actions:
            if action.type is Path or name == "launch":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(root, args.shell))
