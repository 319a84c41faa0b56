"""The loop closed: a society that speaks through what was trained on the one before."""

from typing import Annotated, Literal

from pydantic import Field

from salign.config.base import Count, Name, Section, at_most
from salign.config.effects import Effect


class Ending(Section):
    """The loop ends early where a figure of the evaluation no longer gets better."""

    figure: Annotated[str, Field(min_length=1)]
    """Of each generation's last evaluated model, as tables have it: `alignment`, a rule's name, `BENCHMARK/METRIC`."""
    patience: Count = 1
    """So many generations in a row without a better value than all before, and no other begins."""
    lower_is_better: bool = False
    """Whether a lower value is the better one, as of `over_refusal/refused`."""


class Generations(Section):
    """How often society, training and evaluation are repeated, each time with the model that was trained last.

    What rates does not change: observers and judges stay those of the first generation.
    """

    num: Annotated[Count, at_most(1000, "each is a whole run"), Effect.FREE] = 1
    """Generations; 1 is the paper's way. It may be raised later, and the run goes on."""
    stage: Name | None = None
    """The training stage through whose model the next generation speaks; None: the last."""
    stop: Annotated[Ending | None, Effect.FREE] = None
    """When no other generation begins although there are fewer than `num`; None: never. It costs that a society waits
    for the evaluation before it, and not for the training alone."""
    start: Literal["previous", "base"] = "previous"
    """Where the training of a later generation starts: from the model that its society speaks through, or from the
    run's `model` again."""
