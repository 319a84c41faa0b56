"""Objectives on the policy that sampled a group: its gradient, and the optimal policy near it.

Pure functions on tensors as in `salign.training.objectives`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from salign.records import MAX_SCORE, MIN_SCORE
from salign.training.objectives import best_responses, check_shapes, rated_above

# Scores that differ by less are taken for equal: TRL's and the authors' constant.
_LEAST_DEVIATION = 1e-4
_FARTHEST = 20.0


def group_advantages(nll: Tensor, scores: Tensor, *, normalise: Literal["std", "leave_one_out", "none"]) -> Tensor:
    """Computes how much better each response is than its group: [groups, K], NaN where there is no response.

    Args:
        nll: [groups, K], NaN where a group has fewer responses.
        scores: [groups, K], ratings; NaN where there is none.
        normalise: `none`: score - mean over the group. `std`: that over the group's standard deviation, with n - 1 as
            in TRL (GRPO, arXiv 2402.03300, section 4.1.2). `leave_one_out`: score - mean of the others (RLOO, arXiv
            2402.14740, section 2.3).
    """
    there, _ = best_responses(nll, scores)
    count = there.sum(dim=1, keepdim=True)
    scores = scores.masked_fill(~there, 0.0).to(nll.dtype)
    centred = (scores - scores.sum(dim=1, keepdim=True) / count.clamp(min=1)).masked_fill(~there, 0.0)
    others = (count - 1).clamp(min=1)
    if normalise == "leave_one_out":
        centred = centred * count / others
    elif normalise == "std":
        deviation = (centred.square().sum(dim=1, keepdim=True) / others).sqrt()
        centred = centred / (deviation + _LEAST_DEVIATION)
    return centred.masked_fill(~there, torch.nan)


def policy_gradient_losses(nll: Tensor, sampler_nll: Tensor, advantages: Tensor, *, clip: float, beta: float) -> Tensor:
    """Computes the clipped surrogate of a policy gradient of each group (GRPO, arXiv 2402.03300, equation 3).

    The mean over its responses of

        -min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A) + beta * (exp(d) - d - 1)

    with d = nll - sampler_nll and ratio = exp(-d), the geometric mean of the tokens' ratios as in GSPO (arXiv
    2507.18071, equation 7). At the sampler's own weights its gradient is that of the token-wise form.

    Args:
        nll: [groups, K], mean over a response's tokens; NaN where a group has fewer responses.
        sampler_nll: The same under the model that sampled the responses. No gradient goes there.
        advantages: [groups, K], of `group_advantages`.
        clip: How far a ratio may go in the direction of its advantage.
        beta: Weight of the divergence from the sampler, estimated without bias and never negative (equation 4 there).

    Raises:
        ValueError: The shapes differ, or a response of the model has no sampler_nll.
    """
    there, advantages, drift = _policy(nll, sampler_nll, advantages)
    ratio = (-drift).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    losses = (beta * _divergence(drift) - surrogate).masked_fill(~there, 0.0)
    return losses.sum(dim=1) / there.sum(dim=1).clamp(min=1)


@torch.no_grad()
def policy_gradient_metrics(nll: Tensor, sampler_nll: Tensor, advantages: Tensor, *, clip: float) -> dict[str, Tensor]:
    """Computes what is logged of a policy gradient, as sums over responses that ranks can add up.

    Args are those of `policy_gradient_losses`.

    Returns:
        Scalars. `responses`: how many there are; `clipped`: from how many the clip takes the gradient; `divergence`:
        the sum of exp(d) - d - 1, in nats a token; `advantage`: the sum of the advantages' sizes.
    """
    there, advantages, drift = _policy(nll, sampler_nll, advantages)
    ratio = (-drift).exp()
    held = ((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip))
    return {
        "responses": there.sum(),
        "clipped": held.sum(),
        "divergence": _divergence(drift).masked_fill(~there, 0.0).sum(),
        "advantage": advantages.abs().sum(),
    }


def _policy(nll: Tensor, sampler_nll: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which responses there are, their advantages and their nll less the sampler's, both 0 where there is none."""
    check_shapes(nll=nll, sampler_nll=sampler_nll, advantages=advantages)
    there = ~(nll.isnan() | advantages.isnan())
    if bool((there & sampler_nll.isnan()).any()):
        raise ValueError("a response has an nll, but its sampler_nll is NaN")
    drift = nll.masked_fill(~there, 0.0) - sampler_nll.detach().to(nll.dtype).masked_fill(~there, 0.0)
    return there, advantages.masked_fill(~there, 0.0), drift


def _divergence(drift: Tensor) -> Tensor:
    """exp(d) - d - 1, and beyond what a float32 can hold its tangent."""
    near = drift.clamp(max=_FARTHEST)
    return near.exp() - near - 1 + (drift - near) * (math.exp(_FARTHEST) - 1)


def rank_advantages(scores: Tensor, there: Tensor) -> Tensor:
    """Computes advantages that are linear in an answer's rank: [groups, K], 0 where there is no response.

    With rank j of n, from 1 for the lowest score, (2j - n - 1) / (n + 1); equal scores share the mean of their ranks.
    That is COPR's moderate reward (arXiv 2402.14228) with the mean of its random scale, which is Beta(n - 1, 2).

    Args:
        scores: [groups, K], ratings; anything where there is no response.
        there: Bool [groups, K], where there is one.
    """
    above = rated_above(there, scores).to(scores.dtype)
    # Twice the rank less n + 1: how many have a lower score, less how many have a higher one.
    return (above.sum(dim=2) - above.sum(dim=1)) / (there.sum(dim=1, keepdim=True) + 1)


def target_policies(
    reference_nll: Tensor, scores: Tensor, num_tokens: Tensor, *, beta: float, advantage: Literal["rank", "score"]
) -> Tensor:
    """Computes log P*, the optimal policy among each group's responses: [groups, K], NaN where there is none.

    The policy that is best for a reward less beta times its divergence from pi is pi * exp(reward / beta) / Z. Among
    the responses of a group, Z cancels (COPR, arXiv 2402.14228):

        P*(i) = softmax over the group of (log pi(i) + A_i / beta)

    Args:
        reference_nll: [groups, K], mean over a response's tokens under pi; NaN where a group has fewer responses.
        scores: [groups, K], ratings; NaN where there is none.
        num_tokens: [groups, K], tokens of each response.
        beta: In nats of a whole response.
        advantage: A: `rank_advantages`, or `score`: the score less the group's mean, over half the scale's length.

    Raises:
        ValueError: The shapes differ, or a response with a score has no reference_nll.
    """
    check_shapes(reference_nll=reference_nll, scores=scores, num_tokens=num_tokens)
    there = ~scores.isnan()
    if bool((there & reference_nll.isnan()).any()):
        raise ValueError("a response has a score, but its reference_nll is NaN")
    if advantage == "rank":
        gains = rank_advantages(scores.to(reference_nll.dtype), there)
    else:
        gains = group_advantages(reference_nll, scores, normalise="none") / ((MAX_SCORE - MIN_SCORE) / 2)
    return _policies(gains / beta - reference_nll * num_tokens, there)


def _policies(logits: Tensor, there: Tensor) -> Tensor:
    """Log-softmax over each group's responses, NaN where there is none; its gradient is finite everywhere."""
    # A group without a response keeps a 0, as a softmax of nothing has no gradient.
    empty = ~there.any(dim=1, keepdim=True)
    logits = torch.where(there, logits, 0.0).masked_fill(~(there | empty), -torch.inf)
    return logits.log_softmax(dim=1).masked_fill(~there, torch.nan)


def fitted_policies(nll: Tensor, num_tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log P of the model and log P* of `target_policies` among each group's responses, and which there are.

    Both are 0 where there is no response.

    Args:
        nll: [groups, K], mean over a response's tokens; NaN where a group has fewer responses.
        num_tokens: [groups, K], tokens of each response.
        targets: [groups, K], NaN where there is no response with a score.

    Raises:
        ValueError: The shapes differ, or a target is not of the responses that the model has.
    """
    check_shapes(nll=nll, num_tokens=num_tokens, targets=targets)
    there = ~targets.isnan()
    if bool((there & nll.isnan()).any()):
        raise ValueError("a response has a target, but its nll is NaN")
    logps = _policies(-nll * num_tokens, there)
    return logps.masked_fill(~there, 0.0), targets.detach().to(nll.dtype).masked_fill(~there, 0.0), there


def copr_losses(
    nll: Tensor, num_tokens: Tensor, targets: Tensor, *, fit: Literal["squares", "divergence"] = "squares"
) -> Tensor:
    """Computes COPR's loss of each group (Zhang et al. 2024, arXiv 2402.14228): how far P is from P*.

    With P(i) = softmax over the group of log pi(i), the model's policy among a group's responses,

        squares: mean over i of (log P(i) - log P*(i))^2
        divergence: sum over i of P*(i) * (log P*(i) - log P(i))

    Both are 0, as is their gradient, where P is P*. For equal scores P* is the policy at the start, to which the loss
    pulls back.

    Args:
        nll: [groups, K], mean over a response's tokens; NaN where a group has fewer responses.
        num_tokens: [groups, K], tokens of each response.
        targets: [groups, K], of `target_policies`. No gradient goes there.
        fit: Which of the two; the paper's are squares.

    Raises:
        ValueError: As `fitted_policies`.
    """
    logps, target_logps, there = fitted_policies(nll, num_tokens, targets)
    gap = logps - target_logps
    if fit == "divergence":
        return -(target_logps.exp() * gap * there).sum(dim=1)
    return gap.square().sum(dim=1) / there.sum(dim=1).clamp(min=1)


@torch.no_grad()
def copr_metrics(nll: Tensor, num_tokens: Tensor, targets: Tensor, counted: Tensor, ages: Tensor) -> dict[str, Tensor]:
    """Computes what is logged of COPR, as sums over groups that ranks can add up.

    Args:
        nll: As for `copr_losses`, as are `num_tokens` and `targets`.
        num_tokens: [groups, K].
        targets: [groups, K].
        counted: Bool [groups], which groups count.
        ages: [groups], how many generations ago each was made.

    Returns:
        Scalars. Over the generation's own groups, of which there are `fitted`: `target_divergence`, the divergence of
        P from P* in nats, and `target_entropy`, of P*, in nats. Over `replayed` ones: `replayed_divergence`.
    """
    logps, target_logps, there = fitted_policies(nll, num_tokens, targets)
    share = target_logps.exp() * there
    divergence, entropy = (share * (target_logps - logps)).sum(dim=1), -(share * target_logps).sum(dim=1)
    own, replayed = counted & (ages == 0), counted & (ages > 0)
    return {
        "fitted": own.sum(),
        "target_divergence": (divergence * own).sum(),
        "target_entropy": (entropy * own).sum(),
        "replayed": replayed.sum(),
        "replayed_divergence": (divergence * replayed).sum(),
    }
