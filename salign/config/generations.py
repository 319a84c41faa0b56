"""The loop closed: a society that speaks through what was trained on the one before."""

from typing import Annotated, Literal

from salign.config.base import Count, Name, Section, at_most
from salign.config.effects import Effect


class Generations(Section):
    """How often society, training and evaluation are repeated, each time with the model that was trained last.

    What rates does not change: observers and judges stay those of the first generation.
    """

    num: Annotated[Count, at_most(1000, "each is a whole run"), Effect.FREE] = 1
    """Generations; 1 is the paper's way. It may be raised later, and the run goes on."""
    stage: Name | None = None
    """The training stage through whose model the next generation speaks; None: the last."""
    start: Literal["previous", "base"] = "previous"
    """Where the training of a later generation starts: from the model that its society speaks through, or from the
    run's `model` again."""
