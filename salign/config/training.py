"""The alignment data, and training on it."""

import typing
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from salign.config.base import (
    AbsolutePath,
    Count,
    CountOrZero,
    Name,
    NotBool,
    NotNegative,
    Positive,
    Section,
    Share,
    unless,
)
from salign.config.sources import EverydaySource, Source

Kind = Literal["imitation", "self_critic", "realignment"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)


class Ratio(Section):
    """Shares of the kinds in the data, as the released sample's 5:1:1."""

    imitation: NotNegative = 5
    self_critic: NotNegative = 1
    realignment: NotNegative = 1


class DatasetSection(Section):
    kinds: tuple[Kind, ...] = KINDS
    ratio: Ratio | None = None
    """None keeps all groups."""
    min_realignment_score: Annotated[float, NotBool, Field(ge=1, le=7)] = 4.0
    """A revision enters the realignment data only where it is rated above this, and above its draft."""
    leak_check: tuple[AbsolutePath, ...] = ()
    """Further evaluation files (text, JSON, JSON Lines, CSV) whose prompts must not be in the training data."""

    @model_validator(mode="after")
    def _possible(self) -> "DatasetSection":
        mistakes = []
        if not self.kinds:
            mistakes.append(f"kinds is empty: name at least one of {', '.join(KINDS)}")
        if self.ratio is not None and not any(getattr(self.ratio, kind) > 0 for kind in self.kinds):
            mistakes.append("ratio leaves no data: at least one of the named kinds needs a share above 0")
        return unless(self, mistakes)


class SFTObjective(Section):
    """The likelihood of each group's best response."""

    kind: Literal["sft"]


class StableObjective(Section):
    """Stable Alignment: the best response's likelihood, and a margin over the others (method: section 3)."""

    kind: Literal["stable"]
    ratio: NotNegative = 0.2
    margin: NotNegative = 1.0
    scale: Positive = 7.0
    hinge: Literal["mean", "each"] = "mean"
    max_flow: bool = False


Objective = Annotated[SFTObjective | StableObjective, Field(discriminator="kind")]


class RunData(Section):
    """The alignment data that this run's society made."""

    kind: Literal["run"]


class GroupsData(Section):
    """A file of groups: `groups.jsonl`, or the released `sandbox_v1.json` shape."""

    kind: Literal["groups"]
    path: AbsolutePath


class AnswersData(Section):
    """The good answers of a source, one response a group."""

    kind: Literal["answers"]
    source: Source = EverydaySource()


TrainingData = Annotated[RunData | GroupsData | AnswersData, Field(discriminator="kind")]


class TrainStage(Section):
    name: Name
    objective: Objective
    data: TrainingData
    num_epochs: Positive = 1.0
    max_steps: Count | None = None
    learning_rate: Positive = 2e-5
    warmup_share: Share = 0.03
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    groups_per_step: Count = 8
    """Groups in one optimizer step, over all ranks and accumulation."""
    groups_per_row: Count = 1
    """Groups in one forward pass of one rank."""
    num_responses: Count = 4
    """Responses of a group in one step: the best, and others drawn at random."""
    max_tokens: Count = 480
    """Longest query + response; a longer response is left out whole, and counted."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    deepspeed: AbsolutePath
    checkpoint_every_steps: Count = 100
    keep_checkpoints: CountOrZero = 2
    """Checkpoints left when the stage is done (while it runs, at least the newest stays)."""

    @field_validator("name")
    @classmethod
    def _not_base(cls, value: str) -> str:
        if value == "base":
            raise ValueError("'base' names the model that training starts from; choose another name")
        return value


class TrainSection(Section):
    template: Literal["chat", "alpaca"] = "chat"
    """The model's own chat template (Alpaca's where it has none), or Alpaca's."""
    stages: tuple[TrainStage, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> "TrainSection":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        return self
