"""The loss of a configured objective; the functions themselves are in `salign.training.objectives` and `policies`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salign.config import (
    CoHObjective,
    COPRObjective,
    DPOObjective,
    GRPOObjective,
    ListwiseDPOObjective,
    Objective,
    RLOOObjective,
    RRHFObjective,
    SFTObjective,
    StableObjective,
)
from salign.training.objectives import (
    dpo_losses,
    implicit_rewards,
    listwise_dpo_losses,
    rrhf_losses,
    sft_losses,
    stable_losses,
)
from salign.training.policies import (
    copr_losses,
    copr_metrics,
    group_advantages,
    policy_gradient_losses,
    policy_gradient_metrics,
    target_policies,
)


def counted_groups(objective: Objective, scores: Tensor) -> Tensor:
    """Returns which groups count in the objective's mean: known from the scores before the model has run.

    Args:
        objective: Which.
        scores: [groups, K]; NaN where a response is not there.

    Returns:
        Bool [groups]: groups with two responses of different scores for an objective that compares; else groups with
        a response.
    """
    there = ~scores.isnan()
    if objective.compares:
        highest = scores.masked_fill(~there, -torch.inf).amax(dim=1)
        return highest > scores.masked_fill(~there, torch.inf).amin(dim=1)
    return there.any(dim=1)


@dataclass(frozen=True)
class Likelihoods:
    """The tensors that losses are made from, those of `objective_losses`; empty where an objective needs none."""

    nll: Tensor
    scores: Tensor
    num_tokens: Tensor
    reference_nll: Tensor
    ages: Tensor

    def counted(self, objective: Objective) -> Tensor:
        """Returns which groups count, by the responses that there are; see `counted_groups`."""
        return counted_groups(objective, self.scores.masked_fill(self.nll.isnan(), torch.nan))

    def rewards(self, beta: float) -> Tensor:
        """Returns the implicit rewards; see `implicit_rewards`."""
        return implicit_rewards(self.nll, self.reference_nll, self.num_tokens, beta=beta)


def _sft(_: SFTObjective | CoHObjective, given: Likelihoods) -> Tensor:
    return sft_losses(given.nll, given.scores)


def _stable(objective: StableObjective, given: Likelihoods) -> Tensor:
    settings = objective.model_dump(include={"ratio", "margin", "scale", "hinge", "max_flow"})
    return stable_losses(given.nll, given.scores, **settings)


def _rrhf(objective: RRHFObjective, given: Likelihoods) -> Tensor:
    return rrhf_losses(given.nll, given.scores, given.num_tokens, sft_weight=objective.sft_weight)


def _dpo(objective: DPOObjective, given: Likelihoods) -> Tensor:
    rewards = given.rewards(objective.beta)
    return dpo_losses(rewards, given.scores, pairs=objective.pairs, label_smoothing=objective.label_smoothing)


def _listwise_dpo(objective: ListwiseDPOObjective, given: Likelihoods) -> Tensor:
    return listwise_dpo_losses(given.rewards(objective.beta), given.scores)


def _advantages(objective: GRPOObjective | RLOOObjective, given: Likelihoods) -> Tensor:
    normalise = objective.normalise if isinstance(objective, GRPOObjective) else "leave_one_out"
    return group_advantages(given.nll, given.scores, normalise=normalise)


def _policy_gradient(objective: GRPOObjective | RLOOObjective, given: Likelihoods) -> Tensor:
    advantages = _advantages(objective, given)
    losses = policy_gradient_losses(
        given.nll, given.reference_nll, advantages, clip=objective.clip, beta=objective.beta
    )
    # A group without two different scores has the divergence alone; it does not count.
    return losses * given.counted(objective)


def _targets(objective: COPRObjective, given: Likelihoods) -> Tensor:
    scores = given.scores.masked_fill(given.nll.isnan(), torch.nan)
    return target_policies(
        given.reference_nll, scores, given.num_tokens, beta=objective.beta, advantage=objective.advantage
    )


def _copr(objective: COPRObjective, given: Likelihoods) -> Tensor:
    losses = copr_losses(given.nll, given.num_tokens, _targets(objective, given), fit=objective.fit)
    weights = torch.where(given.ages > 0, objective.replay_weight, 1.0)
    # Nor does one of equal scores here: it would cost as much as another, and at the start its loss and gradient are 0.
    return losses * weights * given.counted(objective)


LOSSES: dict[type, Callable[[Any, Likelihoods], Tensor]] = {
    SFTObjective: _sft,
    CoHObjective: _sft,  # on the text that `training.hindsight` makes of a group
    StableObjective: _stable,
    RRHFObjective: _rrhf,
    DPOObjective: _dpo,
    ListwiseDPOObjective: _listwise_dpo,
    GRPOObjective: _policy_gradient,
    RLOOObjective: _policy_gradient,
    COPRObjective: _copr,
}
"""Each group's loss, [groups], by the section of its objective."""


def objective_losses(
    objective: Objective,
    nll: Tensor,
    scores: Tensor,
    num_tokens: Tensor | None = None,
    reference_nll: Tensor | None = None,
    *,
    ages: Tensor | None = None,
) -> Tensor:
    """Computes each group's loss under a configured objective, [groups]; 0 for groups that do not count.

    Args:
        objective: Which.
        nll: [groups, K], mean over a response's tokens of -log p(token | query, earlier tokens); NaN where a group has
            fewer responses.
        scores: [groups, K], ratings; NaN where there is none.
        num_tokens: [groups, K], tokens of each response, 0 where there is none; where the objective `needs_lengths`.
        reference_nll: nll under the model that training started from, or where it `keeps_references` for replayed
            groups under the one of their own generation; where it `needs_reference`.
        ages: [groups], how many generations ago each was made; None: all are the generation's own.

    Raises:
        ValueError: The shapes differ, or what the objective needs is not given.
    """
    if num_tokens is None and objective.needs_lengths:
        raise ValueError(f"objective {objective.kind} needs num_tokens")
    if reference_nll is None and objective.needs_reference:
        raise ValueError(f"objective {objective.kind} needs reference_nll")
    nothing = nll.new_empty(0)
    lengths = nothing if num_tokens is None else num_tokens
    reference = nothing if reference_nll is None else reference_nll
    ages = torch.zeros(len(nll), dtype=torch.long, device=nll.device) if ages is None else ages
    return LOSSES[type(objective)](objective, Likelihoods(nll, scores, lengths, reference, ages))


def objective_sum(
    objective: Objective,
    nll: Tensor,
    scores: Tensor,
    num_tokens: Tensor | None = None,
    reference_nll: Tensor | None = None,
    *,
    ages: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums the loss over the groups that count, and counts them: both can be added up over rows and ranks.

    Args and errors are those of `objective_losses`.

    Returns:
        A scalar of nll's dtype, which has a gradient (of 0) also where no group counts, and an int64 scalar.
    """
    losses = objective_losses(objective, nll, scores, num_tokens, reference_nll, ages=ages)
    counted = counted_groups(objective, scores.masked_fill(nll.isnan(), torch.nan))
    return losses.sum(), counted.sum()


def objective_loss(
    objective: Objective,
    nll: Tensor,
    scores: Tensor,
    num_tokens: Tensor | None = None,
    reference_nll: Tensor | None = None,
    *,
    ages: Tensor | None = None,
) -> Tensor:
    """Computes the loss of a configured objective: a scalar, the mean over the groups that count.

    Args are those of `objective_losses`.

    Raises:
        ValueError: As there; or no group counts.
    """
    total, count = objective_sum(objective, nll, scores, num_tokens, reference_nll, ages=ages)
    if not bool(count):
        what = "two responses of different scores" if objective.compares else "a rated response"
        raise ValueError(f"no group has {what}, which objective {objective.kind} needs")
    return total / count


def objective_metrics(objective: Objective, given: Likelihoods) -> dict[str, Tensor]:
    """Computes what an objective logs beyond `preference_metrics`, as sums that ranks can add up; most log nothing."""
    if isinstance(objective, COPRObjective):
        return copr_metrics(
            given.nll, given.num_tokens, _targets(objective, given), given.counted(objective), given.ages
        )
    if isinstance(objective, GRPOObjective | RLOOObjective):
        advantages = _advantages(objective, given)
        return policy_gradient_metrics(given.nll, given.reference_nll, advantages, clip=objective.clip)
    return {}
