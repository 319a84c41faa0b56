"""The frame around what agents say: two marks with a key that no author knew when it wrote.

A text that cannot know the key cannot write the mark that ends its frame: what it says stays what it is, a text.
"""

import re

from salign.seeds import derive

# Nobody is shown the key of a text before writing it: keys are drawn for the draft and the revision before their
# judges, and others for what their author is shown when it drafts and when it revises.
DRAFTING, REVISING = "drafting", "revising"

# A whole frame, of any key.
FRAME = r"<((?:answer|reason)-[0-9a-f]{8})>.*?</\1>"
_LIKE_A_MARK = re.compile(r"</?\s*(?:answer|reason)\b[^<>\n]{0,40}>", re.IGNORECASE)


def draw_key(*parts: int | str) -> str:
    """The key of a frame, a function of where it stands: 31 bits, so a guess is right once in 2e9 times."""
    return f"{derive(*parts, 'frame'):08x}"


def frame(text: str, key: str) -> str:
    """An answer between its marks, on lines of their own."""
    return f"<answer-{key}>\n{text}\n</answer-{key}>"


def frame_reason(text: str, key: str) -> str:
    """A reason between its marks, within a line."""
    return f"<reason-{key}>{text}</reason-{key}>"


def imitates_frame(text: str) -> bool:
    """Whether a text has something like a mark in it."""
    return "<" in text and _LIKE_A_MARK.search(text) is not None
