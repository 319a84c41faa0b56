"""What is learnt from a group of responses."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from salign.config.base import NotBool, NotNegative, Positive, Section


class _Objective(Section):
    """What is learnt from a group; its loss is the one that `salign.training.losses.LOSSES` has for its kind."""

    compares: ClassVar[bool] = False
    """Whether a group counts only with two responses of different scores."""
    needs_reference: ClassVar[bool] = False
    """Whether the loss needs the likelihoods under the model that training started from."""
    needs_lengths: ClassVar[bool] = False
    """Whether the loss sums over the tokens of a response, and so needs to know how many there are."""
    in_one_text: ClassVar[bool] = False
    """Whether a group's responses are put into one text, by `salign.training.hindsight`."""
    on_policy: ClassVar[bool] = False
    """Whether the responses are taken for samples of the model that the stage starts from."""
    keeps_references: ClassVar[bool] = False
    """Whether a replayed group is measured from the model of its own generation, instead of the stage's."""


class SFTObjective(_Objective):
    """The likelihood of each group's best response."""

    kind: Literal["sft"]


class StableObjective(_Objective):
    """Stable Alignment (the paper's section 3.3): the best response's likelihood, and a margin over the others."""

    kind: Literal["stable"]
    ratio: NotNegative = 0.2
    """Weight of the contrastive term relative to the best response's negative log-likelihood."""
    margin: NotNegative = 1.0
    """How far apart, in nats per token, responses at the ends of the scale should be."""
    scale: Positive = 7.0
    """Length of the rating scale."""
    hinge: Literal["mean", "each"] = "mean"
    """Whether the hinge is applied to the mean over the other responses (the released code), or to each of them
    (the paper's formula)."""
    max_flow: bool = False
    """Uses the response that is farthest from its margin, instead of the mean over all."""


class DPOObjective(_Objective):
    """Direct preference optimization: the better of two responses gains on the worse, measured from the model at start.

    Rafailov et al. 2023, arXiv 2305.18290.
    """

    compares = True
    needs_reference = True
    needs_lengths = True

    kind: Literal["dpo"]
    beta: Positive = 0.1
    """How strongly the model is held to its starting point, in nats over a whole response."""
    pairs: Literal["all", "best"] = "all"
    """Pairs from a group: all with different scores, or the best response with each lower-rated one."""
    label_smoothing: Annotated[float, NotBool, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of pairs that are rated the wrong way round (conservative DPO)."""


class ListwiseDPOObjective(_Objective):
    """DPO over the whole ranking of a group at once, under Plackett and Luce's model (its paper's appendix A.3)."""

    compares = True
    needs_reference = True
    needs_lengths = True

    kind: Literal["listwise_dpo"]
    beta: Positive = 0.1


class RRHFObjective(_Objective):
    """RRHF: higher-rated responses should have a higher likelihood per token, and the best one is learnt.

    Yuan et al. 2023, arXiv 2304.05302.
    """

    needs_lengths = True

    kind: Literal["rrhf"]
    sft_weight: NotNegative = 1.0
    """Weight of the best response's likelihood, which is a sum over its tokens as in the paper."""


class _PolicyGradient(_Objective):
    """A policy gradient on answers that the model at the stage's start sampled, each against others of its group.

    The importance ratio is that of whole answers: the geometric mean of their tokens' (GSPO, Zheng et al. 2025, arXiv
    2507.18071), so that one number a response is enough.
    """

    compares = True
    needs_reference = True
    on_policy = True

    clip: Positive = 0.2
    """An answer counts no further once its ratio has gained or lost this share in the direction it is pushed to. Over
    nine steps at a learning rate of 1e-4 (SmolLM2-135M, all weights), 40 % of the answers were held back."""
    beta: NotNegative = 0.04
    """Weight of the divergence from the model at the start, in nats a token (the estimator of arXiv 2402.03300)."""


class GRPOObjective(_PolicyGradient):
    """GRPO: an answer's advantage is its score less its group's mean, over the group's standard deviation.

    Shao et al. 2024, arXiv 2402.03300.
    """

    kind: Literal["grpo"]
    normalise: Literal["std", "none"] = "std"
    """`none` leaves the deviation out: groups of nearly equal scores are not blown up (arXiv 2503.20783)."""


class RLOOObjective(_PolicyGradient):
    """RLOO: an answer's advantage is its score less the mean of the others of its group.

    Ahmadian et al. 2024, arXiv 2402.14740.
    """

    kind: Literal["rloo"]


class COPRObjective(_Objective):
    """COPR: fits the policy that is optimal for a group's scores near the model at the start, over the group's answers.

    Replayed groups are fitted to what was optimal for them in their own generation. Zhang et al. 2024, arXiv 2402.14228
    (at first COPF, arXiv 2310.15694).
    """

    compares = True
    needs_reference = True
    needs_lengths = True
    keeps_references = True

    kind: Literal["copr"]
    beta: Positive = 0.1
    """How strongly the optimal policy is held to the model at the start: an advantage of 1 is worth 1 / beta nats of a
    whole answer."""
    advantage: Literal["rank", "score"] = "rank"
    """`rank`: linear in an answer's rank in its group, between -1 and 1, as in the paper. `score`: its score less the
    group's mean, in half scales, so that groups of nearly equal scores change little."""
    fit: Literal["squares", "divergence"] = "squares"
    """What is made small: the mean square of log P - log P* (the paper), or the divergence of P from P*, in which an
    answer counts by its probability: of long answers nearly the most likely one alone."""
    replay_weight: NotNegative = 1.0
    """Weight of a replayed group, where one of the generation's own has 1. In the paper a Lagrange multiplier, which is
    learnt."""


class CoHObjective(_Objective):
    """Chain of Hindsight: learns a text of the best and the worst response, each after a phrase that says which it is.

    Liu et al. 2023, arXiv 2302.02676.
    """

    in_one_text = True

    kind: Literal["coh"]


Objective = Annotated[
    SFTObjective
    | StableObjective
    | DPOObjective
    | ListwiseDPOObjective
    | RRHFObjective
    | CoHObjective
    | GRPOObjective
    | RLOOObjective
    | COPRObjective,
    Field(discriminator="kind"),
]
