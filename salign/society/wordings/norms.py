"""What agents who hold norms are told and asked."""

from collections.abc import Sequence

from salign.config import Criterion
from salign.engines.base import Prompt
from salign.society.frames import frame

_HOLD = """\
You hold to these norms, each between the marks {key}, and go by them:
{norms}"""
_ARGUE = """\
What you are shown breaks the norm with the number {number}: say so."""
_CITE = """\
Which of your norms does this answer break? Give the norm's number, from 1 to {num}, or 0 if it breaks none."""
_MERGE = """\
Put your norms together: say once what several of them say, and leave out what you no longer hold. List at most {num} \
norms, one a line, in a short sentence each."""

FIT = Criterion(
    name="fit",
    wording="""\
How well does this norm fit what you hold to be right? Rate it from 1 (it contradicts it) to 7 (it fits it well).""",
)

TEXTS = (_ARGUE, _CITE, _MERGE, FIT.wording)


def holding(instructions: str | None, norms: Sequence[str], key: str) -> str | None:
    """The system text of somebody who holds norms; each stands between marks, since agents wrote some of them."""
    if not norms:
        return instructions
    listed = "\n".join(f"{number}. {key} {norm} {key}" for number, norm in enumerate(norms, start=1))
    told = _HOLD.format(key=key, norms=listed)
    return f"{instructions}\n\n{told}" if instructions else told


def arguing(instructions: str, number: int) -> str:
    """The system text of somebody who cites the norm of a number."""
    return f"{instructions}\n\n{_ARGUE.format(number=number)}"


def cite(num: int) -> Criterion:
    """The choice of a norm that an answer breaks; 0 for none."""
    return Criterion(name="cite", scale=(0, num), wording=_CITE.format(num=num))


def shown(norm: str, key: str) -> str:
    """A norm that is to be judged."""
    return frame(f"Norm: {norm}", key)


def merge(num: int, instructions: str | None) -> Prompt:
    """Puts the norms of the system text together."""
    return Prompt(_MERGE.format(num=num), instructions)
