"""The prompts of who takes over answers, has them criticised, and passes one on."""

from collections.abc import Sequence

from salign.engines.base import Prompt
from salign.society.frames import frame
from salign.society.prompts import Judged, judging

_TAKEN_OVER = """\
Question: {question}
These answers were given, each between the marks {key}:
{answers}

"""
_JOIN = """\
Join what is best in them into one answer. Give only the new answer, in one to three sentences."""
_CRITICISED = """\
Question: {question}
An answer stands between the marks {key}.
{answer}

A critic said, between the marks {key}:
{key} {said} {key}

"""
_IMPROVE = """\
Write the answer again so that it meets what the critic said. Give only the new answer, in one to three sentences."""

TEXTS = (_JOIN, _IMPROVE)


def join(question: str, answers: Sequence[str], key: str, instructions: str | None) -> Prompt:
    """One answer out of several, at least two."""
    listed = "\n".join(frame(answer, key) for answer in answers)
    shown = _TAKEN_OVER.format(question=question, key=key, answers=listed)
    return Prompt(shown + _JOIN, judging(instructions, key), len(shown))


def improve(judged: Judged, said: str, instructions: str | None) -> Prompt:
    """An answer after what its critic said."""
    shown = _CRITICISED.format(question=judged.question, answer=judged.answer, said=said, key=judged.key)
    return Prompt(shown + _IMPROVE, judging(instructions, judged.key), len(shown))
