"""The frame around what agents say: two marks with a key that no author knew when it wrote.

A text that cannot know the key cannot write the mark that ends its frame: what it says stays what it is, a text. The
marks are bare words, and stand around question and answer together: of the frames tried, tags and quotation marks made
the embedded model tell good answers from bad ones less often (docs/ratings.md).
"""

import functools
import re

from salign.seeds import derive

# Nobody is shown the key of a text before writing it: keys are drawn for the draft and the revision before their
# judges, and others for what their author is shown when it drafts and when it revises.
DRAFTING, REVISING = "drafting", "revising"

# Without vowels a key is no word, and without digits no rating.
_LETTERS = "bcdfghjklmnpqrstvwxz"
_NUM_LETTERS = 6
_POWERS = [len(_LETTERS) ** place for place in range(_NUM_LETTERS)]
_KEY = rf"(?<!\w)[{_LETTERS}]{{{_NUM_LETTERS}}}(?!\w)"
# A whole frame, of any key.
FRAME = rf"(?P<key>{_KEY}).*?(?<!\w)(?P=key)(?!\w)"
# What every letter of a key becomes, and so many of them in a row.
_ANY_LETTER = bytes.maketrans(_LETTERS.encode(), b"x" * len(_LETTERS))
_LIKE_A_KEY = b"x" * _NUM_LETTERS
_LIKE_A_MARK = re.compile(
    rf"{_KEY} | \b(?:end|begin(?:ning)?|start) \s of \s (?:the \s)? (?:answer|draft|text|frame|question)\b"
    r" | </?\s*(?:answer|draft|reason|text)\b[^<>\n]{0,40}> | ^-{3,}\s*$ | ^={3,}\s*$",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
# What a mark in words has, in lower case.
_WORDS_OF_MARKS = ("end of", "begin of", "beginning of", "start of")


def may_have_key(text: str) -> bool:
    """Whether a text has enough consonants in a row to be a key; hardly any word has."""
    # Half of what a pattern costs, which would try each letter.
    return _LIKE_A_KEY in text.lower().encode(errors="replace").translate(_ANY_LETTER)


@functools.lru_cache(maxsize=1024)  # all who judge a draft are shown one key
def draw_key(*parts: int | str) -> str:
    """The key of a frame, a function of where it stands; a guess is right once in 64 million times."""
    number = derive(*parts, "frame")
    return "".join([_LETTERS[number // power % len(_LETTERS)] for power in _POWERS])


def frame(text: str, key: str) -> str:
    """A text between its marks, on lines of their own."""
    return f"{key}\n{text}\n{key}"


def imitates_frame(text: str) -> bool:
    """Whether a text has something like a mark in it, or speaks of its end."""
    return _may_imitate_frame(text) and _LIKE_A_MARK.search(text) is not None


def _may_imitate_frame(text: str) -> bool:
    """Whether a text has anything of a mark; most have not, and need no closer look."""
    if "<" in text or "---" in text or "===" in text or may_have_key(text):
        return True
    lower = text.lower()
    if "of" not in lower or not ("end" in lower or "begin" in lower or "start" in lower):
        return False
    words = " ".join(lower.split())
    return any(part in words for part in _WORDS_OF_MARKS)
