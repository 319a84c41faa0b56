"""The alignment data, and training on it."""

import re
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

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
    Tokens,
    at_most,
    unless,
)
from salign.config.effects import Effect
from salign.config.objectives import Objective
from salign.config.sources import EverydaySource, HubRows, Rows, Source

Budget = Annotated[int, NotBool, Field(ge=1, le=10**15)]
Kind = Literal["imitation", "self_critic", "realignment"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)

Flag = Literal[
    "cut",
    "thinking",
    "thinking_cut",
    "imitates_form",
    "imitates_frame",
    "control_tokens",
    "repeats_prompt",
]
"""What makes a text of the society doubtful: `max_tokens` ended it; a model's thinking was taken off, or was all there
was; it gives itself a rating; it imitates the marks around it; it spells what a template alone writes; it says again
what it was asked to do."""
FLAGS: tuple[Flag, ...] = typing.get_args(Flag)


class Ratio(Section):
    """Proportions of the kinds in the data; the released sample has 5:1:1."""

    imitation: NotNegative = 5
    self_critic: NotNegative = 1
    realignment: NotNegative = 1


class DatasetSection(Section):
    kinds: tuple[Kind, ...] = KINDS
    ratio: Ratio | None = None
    """None: all groups are kept."""
    criteria: tuple[str, ...] | dict[str, Positive] | None = None
    """By which of the society's criteria answers are scored, several by their mean, with weights where they are given
    (`{alignment: 2, short: 1}`); ratings on other scales than 1 to 7 are mapped onto it. None: by the first, which is
    alignment unless `society.criteria` says otherwise."""
    min_realignment_score: Annotated[float, NotBool, Field(ge=1, le=7)] = 4.0
    """A revision enters the realignment data only if it is rated above this score and above its draft."""
    keep_flagged: tuple[Flag, ...] = ()
    """Flags of texts that are learnt from nevertheless. By default, a `cut` text is never the best response (a group
    whose best it is is left out), and a text with any other flag except `thinking` is in no group, nor is any
    feedback on it."""
    leak_check: Annotated[tuple[AbsolutePath, ...], Effect.INPUT] = ()
    """Further evaluation files (text, JSON, CSV, Parquet) whose prompts must not be in the training data."""

    @model_validator(mode="after")
    def _possible(self) -> "DatasetSection":
        mistakes = []
        if self.criteria is not None and not self.criteria:
            mistakes.append("criteria is empty: name at least one, or set it to null for the first")
        if not self.kinds:
            mistakes.append(f"kinds is empty: name at least one of {', '.join(KINDS)}")
        if self.ratio is not None and not any(getattr(self.ratio, kind) > 0 for kind in self.kinds):
            mistakes.append("ratio leaves no data: at least one of the named kinds needs a share above 0")
        return unless(self, mistakes)


class RunData(Section):
    """The alignment data that this run's society made."""

    kind: Literal["run"]
    kinds: tuple[Kind, ...] = KINDS
    """The kinds that are trained on; leaving one out shows what it contributes."""
    replay: tuple[Share, ...] = ()
    """With several generations: which shares of the groups of earlier ones are trained on again, drawn at random; the
    first of the generation before, the next of the one before that, and so on."""

    @field_validator("kinds")
    @classmethod
    def _some(cls, value: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if not value:
            raise ValueError(f"no kind is named: name at least one of {', '.join(KINDS)}")
        return value


class RatedData(Rows):
    """Rated responses from elsewhere, in one of the shapes of docs/data.md; the first row decides which."""

    score_range: tuple[Annotated[float, NotBool], Annotated[float, NotBool]] | None = None
    """Lowest and highest score of the file's scale, which is mapped onto 1..7; None: the scale of its shape."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Maps a shape's column name to the file's: `{prompt: text}` reads the prompt from the column `text`."""
    attribute_weights: dict[str, Annotated[float, NotBool]] = Field(default_factory=dict)
    """Weight of each graded attribute, where rows have several; empty: the shape's default (docs/data.md)."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @field_validator("score_range")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"[{value[0]:g}, {value[1]:g}] is not a scale; give [lowest, highest]")
        return value

    @field_validator("columns")
    @classmethod
    def _one_each(cls, value: dict[str, str]) -> dict[str, str]:
        if len(set(value.values())) < len(value):
            raise ValueError("two names are mapped to the same column")
        return value

    @field_validator("attribute_weights")
    @classmethod
    def _weighs(cls, value: dict[str, float]) -> dict[str, float]:
        if value and not any(value.values()):
            raise ValueError("all weights are 0; at least one attribute must count")
        return value


class GroupsData(RatedData):
    """A file of rows: a JSON array, JSON Lines, CSV or TSV (also .gz), or Parquet."""

    kind: Literal["groups"]
    path: Annotated[AbsolutePath, Effect.INPUT]
    """The file."""


class DatasetData(RatedData, HubRows):
    """A Hugging Face dataset."""

    kind: Literal["dataset"]


class AnswersData(Section):
    """The good answers of a source, one response per group; or its answers of both labels."""

    kind: Literal["answers"]
    source: Source = EverydaySource()
    """Questions with labelled answers."""
    both_labels: bool = False
    """True: a question's bad answers are in its group too, with the lowest score, for objectives that compare; a
    question without answers of both labels is left out."""


DataPart = RunData | GroupsData | DatasetData | AnswersData


class SeveralData(Section):
    """All groups of several data sets, together."""

    kind: Literal["several"]
    parts: Annotated[tuple[Annotated[DataPart, Field(discriminator="kind")], ...], Field(min_length=1)]
    """Data sets of the other kinds."""


TrainingData = Annotated[DataPart | SeveralData, Field(discriminator="kind")]


Attention = Literal["sdpa", "flex"]


class LoRA(Section):
    """Low-rank adapters: the model's own weights are frozen, and the adapters are merged into them at the end.

    Hu et al. 2021, arXiv 2106.09685.
    """

    rank: Count = 16
    """Rank of the adapters' matrices."""
    alpha: Positive = 32.0
    """An adapter's output is scaled by alpha / rank."""
    dropout: Annotated[float, NotBool, Field(ge=0, lt=1)] = 0.0
    """Dropout on an adapter's input, in training."""
    target_modules: tuple[str, ...] = ()
    """Names of linear layers, such as `q_proj`; empty: all but the output layer."""


class TrainStage(Section):
    name: Name
    """The trained model is written to `train/NAME/model`."""
    objective: Objective
    """What is learnt from a group."""
    data: Annotated[TrainingData, Effect.INPUT]
    """What is learnt from."""
    start: Annotated[Name | None, Effect.INPUT] = None
    """The model to start from: `base` or an earlier stage. None: the previous stage; for the first, `base`."""
    num_epochs: Positive = 1.0
    """Passes over the data, at most."""
    num_tokens: Budget | None = None
    """A budget that replaces `num_epochs`: steps until this many tokens (queries and responses) have been trained
    on."""
    max_steps: Count | None = None
    """Most steps, whatever `num_epochs` is."""
    learning_rate: Positive = 2e-5
    """Peak learning rate; it decays to 0 along a cosine."""
    warmup_share: Share = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay, for matrices only: norms and biases are not decayed."""
    max_grad_norm: Positive = 1.0
    """Gradient clipping."""
    groups_per_step: Count = 8
    """Groups in one optimizer step, over all ranks and accumulation."""
    row_tokens: Annotated[Tokens | None, Effect.FREE] = None
    """Groups share a row (one forward pass of one rank) up to this many tokens; None: each has its own row."""
    num_responses: Count = 4
    """Responses of a group used in one step: the best one, and others drawn at random."""
    score_noise: NotNegative = 0.0
    """Standard deviation of normal noise on each score of the data, in points of 1 to 7: what a poor judge would cost.
    It is drawn once for each response by seed and stage; a score that would leave the scale is at its end."""
    max_tokens: Tokens = 480
    """Longest query plus response; a longer response is left out whole, and counted."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the model; master weights and gradient sums are float32."""
    attention: Annotated[Attention, Effect.FREE] = "sdpa"
    """PyTorch's scaled dot product, or FlexAttention, which skips what a row's mask hides and needs CUDA."""
    lora: LoRA | None = None
    """None: all weights are trained."""
    gradient_checkpointing: Annotated[bool, Effect.FREE] = False
    """Less memory for about a third more time: activations are recomputed for the gradient."""
    held_out_share: Share = 0.0
    """Share of the groups that is not trained on; the loss on it is measured every `evaluate_every_steps`."""
    evaluate_every_steps: Annotated[Count, Effect.FREE] = 50
    """Steps between measurements on the held-out groups."""
    deepspeed: Annotated[AbsolutePath, Effect.INPUT]
    """DeepSpeed's own config, without batch sizes and precision, which salign sets."""
    checkpoint_every_steps: Annotated[Count, Effect.FREE] = 100
    """Steps between checkpoints; there is also one at the end, and when the stage is asked to stop."""
    keep_checkpoints: Annotated[CountOrZero, Effect.FREE] = 2
    """Checkpoints kept when the stage is done (while it runs, at least the newest is kept)."""

    @field_validator("name")
    @classmethod
    def _not_base(cls, value: str) -> str:
        if value == "base":
            raise ValueError("'base' names the model that training starts from; choose another name")
        return value

    @model_validator(mode="after")
    def _has_pairs(self) -> "TrainStage":
        if self.objective.compares and self.max_responses < 2:
            raise ValueError(
                f"the objective {self.objective.kind} compares responses: num_responses must be at least 2, and data "
                "of kind answers has only one per group unless its both_labels is true"
            )
        return self

    @property
    def parts(self) -> tuple[DataPart, ...]:
        """What its data is made of; nothing else looks into `data`, which may hold several."""
        return self.data.parts if isinstance(self.data, SeveralData) else (self.data,)

    def with_parts(self, parts: Sequence[DataPart]) -> "TrainStage":
        """The stage with other parts in the same order."""
        several = isinstance(self.data, SeveralData)
        data = self.data.model_copy(update={"parts": tuple(parts)}) if several else parts[0]
        return self.model_copy(update={"data": data})

    @property
    def uses_society(self) -> bool:
        """Whether this run's society made any of its data."""
        return any(part.kind == "run" for part in self.parts)

    @property
    def num_replayed(self) -> int:
        """How many generations before its own a stage trains on, at most."""
        return max((len(part.replay) for part in self.parts if part.kind == "run"), default=0)

    @property
    def max_responses(self) -> int:
        """The most responses that a group has in one step: one where hindsight puts them into one text."""
        single = self.objective.in_one_text or all(
            part.kind == "answers" and not part.both_labels for part in self.parts
        )
        return 1 if single else self.num_responses


# A stage's copy for another seed.
_COPY = re.compile(r"(.+)-seed([1-9][0-9]*)")
_MOST_SEEDS = 100  # as its field says


class TrainSection(Section):
    """The stages; `train.defaults` in a file gives settings to each stage that does not set them itself."""

    seeds: Annotated[Count, at_most(100, "each trains every stage once more")] = 1
    """How often every stage is trained, on the same data in another order and with other draws. A stage's copies are
    called `NAME-seed1`, `NAME-seed2` ...; they are evaluated with it, and figures are means over all of them."""
    template: Literal["chat", "alpaca"] = "chat"
    """The model's own chat template (Alpaca's if it has none), or Alpaca's."""
    stages: tuple[TrainStage, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or "defaults" not in tree:
            return _with_copies(tree)
        defaults, stages = tree["defaults"], tree.get("stages", ())
        if not isinstance(defaults, dict) or "name" in defaults:
            raise ValueError("defaults must hold `name: value` settings of a stage, but not its name")
        if not isinstance(stages, list | tuple):
            raise ValueError("stages must be a list of sections, each with a name")  # noqa: TRY004 (pydantic's)
        full = [{**defaults, **stage} if isinstance(stage, dict) else stage for stage in stages]
        return _with_copies({**{name: value for name, value in tree.items() if name != "defaults"}, "stages": full})

    def copies(self, name: str) -> tuple[str, ...]:
        """The stage of that name and its copies for other seeds."""
        return (name, *(one.name for one in self.stages if one.name != name and self.origin(one.name) == name))

    def origin(self, name: str) -> str:
        """The stage that one of that name is a copy of; itself, if it is none."""
        found = _COPY.fullmatch(name)
        return found[1] if found and found[1] in {stage.name for stage in self.stages} else name

    @property
    def last(self) -> TrainStage:
        """The last stage, of the first seed."""
        return next(stage for stage in reversed(self.stages) if self.origin(stage.name) == stage.name)

    def ancestry(self, name: str) -> tuple[str, ...]:
        """Whose models led to a stage's, the oldest first: `base`, then the stages that it builds on."""
        position = [stage.name for stage in self.stages].index(name)
        start = self.stages[position].start or (self.stages[position - 1].name if position else "base")
        return ("base",) if start == "base" else (*self.ancestry(start), start)

    def start_of(self, name: str) -> str:
        """Whose model a stage starts from: `base`, or an earlier stage's name."""
        return self.ancestry(name)[-1]

    @model_validator(mode="after")
    def _distinct(self) -> "TrainSection":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name: {', '.join(names)}")
        mistakes = [
            f"stages.{name} has the name of a copy of {self.origin(name)}, and train.seeds is {self.seeds}: remove it, "
            "choose another name, or raise train.seeds"
            for name in names
            if self.origin(name) != name and not _is_copy(name, set(names), self.seeds)
        ]
        for position, stage in enumerate(self.stages):
            known = ("base", *names[:position])
            if stage.start is not None and stage.start not in known:
                mistakes.append(f"stages.{stage.name}.start is {stage.start!r}; it may be: {', '.join(known)}")
        return unless(self, mistakes)


def _with_copies(tree: Any) -> Any:
    """The section with a copy of each stage for each further seed; those that a file has already are made anew."""
    if not isinstance(tree, dict) or not isinstance(tree.get("stages"), list | tuple):
        return tree
    seeds, stages = tree.get("seeds", 1), list(tree["stages"])
    if not isinstance(seeds, int) or not 1 < seeds <= _MOST_SEEDS or not all(isinstance(one, dict) for one in stages):
        return tree
    names = {stage.get("name") for stage in stages}
    stages = [stage for stage in stages if not _is_copy(stage.get("name"), names, seeds)]
    before: Any = "base"
    for number, stage in enumerate(stages):
        stages[number] = {**stage, "start": stage.get("start") or before}
        before = stage.get("name")
    copies = [
        {
            **stage,
            "name": f"{stage.get('name')}-seed{seed}",
            "start": stage["start"] if stage["start"] == "base" else f"{stage['start']}-seed{seed}",
        }
        for seed in range(1, seeds)
        for stage in stages
    ]
    return {**tree, "stages": [*stages, *copies]}


def _is_copy(name: Any, names: set[Any], seeds: int) -> bool:
    found = _COPY.fullmatch(name) if isinstance(name, str) else None
    return found is not None and found[1] in names and int(found[2]) < seeds
