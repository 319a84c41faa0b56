"""Whether a text says again what its author was asked to do, instead of doing it."""

import importlib
import pkgutil
import re

from salign.society import prompts, wordings

_MODULES = [
    prompts,
    *(
        importlib.import_module(f"{wordings.__name__}.{found.name}")
        for found in pkgutil.iter_modules(wordings.__path__)
    ),
]
# So many words in a row are no chance.
_NUM_TELLING_WORDS = 6

# The sentences of all prompts that hold no text of others.
_SENTENCES = frozenset(
    sentence
    for module in _MODULES
    for text in module.TEXTS
    for part in text.split("\n")
    for sentence in re.split(r"(?<=[.?:])\s", part)
    if "{" not in sentence and len(sentence.split()) >= _NUM_TELLING_WORDS
)
# All at once: a scan skips to the capitals with which they begin.
_REPEATED = re.compile("|".join(map(re.escape, sorted(_SENTENCES))))


def repeats_prompt(text: str) -> bool:
    """Whether a text has a whole sentence of a prompt in it, of six words or more."""
    return _REPEATED.search(text) is not None
