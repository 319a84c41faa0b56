"""Ratings by models that say a number and no word."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from salign.config.base import Count, FolderOrHub, Section
from salign.config.effects import Effect
from salign.config.sources import EverydaySource, Source


class _Scorer(Section):
    """A model whose score of an answer is mapped onto the scale by pairs of a good and a bad answer (Platt 1999).

    The share of the scale is the probability that an answer of this score is a good one.
    """

    max_in_flight: ClassVar[int] = 64
    """Calls that wait for the model, which reads one answer at a time."""

    pairs: Source = EverydaySource()
    """Answers labelled good and bad, by which scores are mapped onto the scale."""
    num_pairs: Count = 100
    """How many of the pairs are used. The two numbers of the map are then known to about a tenth of a point of 7."""
    device: Annotated[str, Effect.FREE] = "auto"
    """As of an engine."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the weights."""


class RewardModel(_Scorer):
    """A sequence-classification model with one output, in Hugging Face format with safetensors weights."""

    kind: Literal["reward_model"]
    model: Annotated[FolderOrHub, Effect.INPUT]
    """A local folder or hub id."""


class ImplicitReward(_Scorer):
    """The reward that a model has learnt: how much likelier an answer has become than under the model before it.

    log p(answer) - log p(answer) of the reference, which DPO's reward is beta times (Rafailov et al. 2023, arXiv
    2305.18290, equation 5); the map onto the scale takes up beta.
    """

    kind: Literal["implicit"]
    model: Annotated[FolderOrHub, Effect.INPUT]
    """The folder of a stage that was trained, such as by `stable` or `dpo`."""
    reference: Annotated[FolderOrHub, Effect.INPUT]
    """What that stage started from."""


Scorer = Annotated[RewardModel | ImplicitReward, Field(discriminator="kind")]
