"""Separates what a model thinks before it answers from the answer: no draft, memory or rating may contain it."""

from salign.chat import THOUGHTS
from salign.engines.base import RATING_PREFIX, Thinking

OPENS, CLOSES = tuple(THOUGHTS), tuple(THOUGHTS.values())


def split(text: str, *, opened: bool = False) -> tuple[str, Thinking]:
    """A reply without its thinking, and what was there of it.

    All up to the last closing tag is thinking, with an opening tag or without (many templates write that themselves): a
    thought may quote the tag, and rather the head of an answer is lost than a thought kept. But a judge that has given
    its rating has begun its answer: a tag behind that is one that it quotes.

    Args:
        text: What the model said.
        opened: The model was made to begin with thinking: without a closing tag all of the reply is thinking.
    """
    if not opened and text.lstrip().startswith(RATING_PREFIX):
        return text.strip(), "none"
    end = max(text.rfind(tag) + len(tag) if tag in text else 0 for tag in CLOSES)
    answer = text[end:].strip()
    if answer.startswith(OPENS) or (opened and not end):
        return "", "cut"
    return answer, "whole" if end else "none"


def closes_what_it_did_not_open(text: str) -> bool:
    """Whether a reply ends a thought whose opening tag is not there: the template wrote it."""
    return any(tag in text for tag in CLOSES) and not text.lstrip().startswith(OPENS)
