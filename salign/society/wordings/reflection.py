"""What an agent that describes itself is asked, and by what its description is judged."""

from salign.config import Criterion
from salign.engines.base import Prompt
from salign.records import Recalled
from salign.society.frames import frame
from salign.society.prompts import remembered

_KNOWING = """\
You have described yourself; what you said stands between the marks {key}, and you go by it.
{text}"""
_DESCRIBE = """\
People ask you questions such as: {question}
Describe yourself in one to three sentences: what you stand for, how you differ, and what you do for others \
who ask you."""

CRITERIA = tuple(
    Criterion(name=name, wording=wording)
    for name, wording in (
        (
            "clarity",
            "How clear is this description of somebody? Rate it from 1 (it says nothing) to 7 (one knows who this is).",
        ),
        (
            "distinctness",
            "How far does this description tell somebody from others? Rate it from 1 (it fits anybody) to 7 (it fits "
            "nobody else).",
        ),
        (
            "fitness",
            "How well would somebody of this description answer people's questions? Rate it from 1 (badly) to 7 (very "
            "well).",
        ),
    )
)
"""By the mean of these a description must be better than the one before: MorphAgent's three, in other words."""

TEXTS = (_DESCRIBE, *(criterion.wording for criterion in CRITERIA))


def knowing(instructions: str | None, text: str, key: str) -> str:
    """The system text of somebody who has described itself."""
    told = _KNOWING.format(key=key, text=frame(text, key))
    return f"{instructions}\n\n{told}" if instructions else told


def describe(question: str, recalled: Recalled | None, instructions: str | None, key: str) -> Prompt:
    """Asks an agent to describe itself, after what it remembers."""
    memory = "" if recalled is None else remembered(recalled, key)
    return Prompt(memory + _DESCRIBE.format(question=question), instructions)
