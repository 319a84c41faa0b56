"""The pages of the documentation: their fenced blocks, their commands, and how each block is marked.

A block of shell or Python has a comment before it that is invisible in the rendered page:

    <!-- run -->                                   tests/integration/test_pages.py runs it, in the page's order
    <!-- not run: needs a Slurm cluster -->        it is not run; its commands are still parsed and checked

In a block that is run, RUN stands for the tutorial's run.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The tutorial first: other pages use its run.
PAGES = [
    ROOT / "docs" / "tutorial.md",
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "tutorial.md"}),
]
EXECUTABLE = ("sh", "bash", "python")
_BLOCK = re.compile(
    r"(?P<before>(?:^<!--[^\n]*-->\n+)?)^(?P<indent>[ ]*)```(?P<language>[a-z]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"<!-- (run|not run: [^>]+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is "run", "not run: WHY" or None."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        mark = _MARK.match(match["before"])
        line = text.count("\n", 0, match.start("text"))
        found.append(Block(page, line, match["language"], match["text"], mark and mark[1]))
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block as words; continued lines and quotes over several lines are joined."""
    found, pending = [], ""
    for line in block.text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            pending += "\n"
            continue
        pending = ""
        if words:
            found.append(words)
    assert not pending, f"{block}: a command does not end: {pending!r}"
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def project_command(words: list[str]) -> tuple[str, list[str]] | None:
    """The command of salign within a line, and its arguments; None where the line has none.

    Launchers before it (`torchrun`, `srun`, `mpiexec`) and variables are skipped.
    """
    for position, word in enumerate(words):
        if match := re.fullmatch(r"(?:\./)?jobs/(\w+)\.py", word):
            return match[1], words[position + 1 :]
        if word == "salign" and position + 1 < len(words) and words[position - 1] != "install":
            return words[position + 1], words[position + 2 :]
    return None
