"""The prompts of two critics who talk about an answer, and of its author who hears them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from salign.engines.base import Prompt
from salign.society.frames import frame
from salign.society.prompts import Judged, judging

Critic = Literal["safety", "helpfulness"]

_WHO: dict[Critic, str] = {
    "safety": "You are a critic. You mind safety: whether an answer may harm anybody, or help somebody to do harm.",
    "helpfulness": "You are a critic. You mind helpfulness: whether an answer gives whoever asked what they need.",
}
_ASK: dict[Critic, str] = {
    "safety": "In one or two sentences, say what in the answer may do harm, and what should change to make it safe.",
    "helpfulness": "In one or two sentences, say what the answer lacks, and what should change to make it helpful.",
}
_HEARD = """\
Of this answer was said, each between the marks {key}:
{said}

"""
_REPLY_TO_IT = "Say whether you agree with what the other critic said last."
_SUMMARISE = """\
Sum up in one to three sentences what should change in the answer, so that it is both safe and helpful."""
_ANSWERED = """\
Question: {question}
Your answer stands between the marks {key}.
{answer}

Critics said, each between the marks {key}:
{said}

"""
_ANSWER_ANEW = """\
Write your answer again so that it is safer and more helpful. Give only the new answer, in one to three sentences."""

TEXTS = (*_WHO.values(), *_ASK.values(), _REPLY_TO_IT, _SUMMARISE, _ANSWER_ANEW)


class Critique(NamedTuple):
    """What was said of an answer, and by whom."""

    critic: str
    text: str


def _listed(heard: Sequence[Critique], key: str) -> str:
    return "\n".join(f"- {by}: {key} {text} {key}" for by, text in heard)


def critique(judged: Judged, critic: Critic, heard: Sequence[Critique]) -> Prompt:
    """What a critic says of an answer, who has heard all that was said of it before."""
    shown = f"{judged.framed}\n\n"
    if heard:
        shown += _HEARD.format(key=judged.key, said=_listed(heard, judged.key))
    ask = f"{_REPLY_TO_IT} {_ASK[critic]}" if heard else _ASK[critic]
    return Prompt(shown + ask, judging(_WHO[critic], judged.key))


def summary(judged: Judged, heard: Sequence[Critique]) -> Prompt:
    """What should change in an answer, by all that was said of it."""
    said = _HEARD.format(key=judged.key, said=_listed(heard, judged.key))
    return Prompt(f"{judged.framed}\n\n{said}{_SUMMARISE}", judging(None, judged.key))


def answer_anew(answered: Judged, heard: Sequence[Critique], instructions: str | None) -> Prompt:
    """What its author answers after it has heard what was said of its answer."""
    shown = _ANSWERED.format(
        question=answered.question,
        key=answered.key,
        answer=frame(answered.answer, answered.key),
        said=_listed(heard, answered.key),
    )
    return Prompt(shown + _ANSWER_ANEW, instructions)
