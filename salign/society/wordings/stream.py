"""By what agents rate what they have lived through (`society.memory`)."""

from salign.config import Criterion

MATTERS = Criterion(
    name="importance",
    wording="""\
How much will this matter to you later? Rate it from 1 (everyday, soon forgotten) to 7 (it changes what you think).""",
)

TEXTS = (MATTERS.wording,)
