"""Where a reply's sentences end, so that a shortened reply does not end in mid-word."""

import re

from salign.engines.base import Reply

# A full stop ends a sentence after a word of two letters or a digit that is not a list's number: not "e.g." or "2. ".
_END = re.compile(r"""(?:(?<=[^\W\d_]{2})|(?<=\w\d)|(?<=[)\]"'%’”]))[.!?…]+["')\]’”*]*(?=\s|$)""")


def end_of(text: str, num: int) -> int | None:
    """Where the text's sentence number `num`, counted from 1, ends; None where the text has fewer whole ones."""
    for count, match in enumerate(_END.finditer(text), start=1):
        if count == num:
            return match.end()
    return None


def is_over(text: str, num: int) -> bool:
    """Whether a reply under way has its last sentence: more follows its end, so it is none of an abbreviation."""
    end = end_of(text, num)
    return end is not None and end < len(text)


def shorten(reply: Reply, max_sentences: int | None) -> Reply:
    """A reply of at most this many sentences.

    One that `max_tokens` cut in mid-sentence is shortened to its whole sentences, where it has one, and then counts as
    ended by itself.
    """
    if max_sentences is None:
        return reply
    end = end_of(reply.text, max_sentences)
    if end is None and reply.finish == "length":
        ends = [match.end() for match in _END.finditer(reply.text)]
        end = ends[-1] if ends else None
    if end is None:
        return reply
    return reply._replace(text=reply.text[:end], finish="stop")
