"""Objectives: pure functions of each response's mean negative log-likelihood and its score.

What all of them share: tensors are [groups, K]. A response whose nll or score is NaN is not there, and takes no part. A
group's best response has the highest score, of equal ones it is the first. `*_losses` give each group's loss, [groups],
and 0 where a group has nothing that the objective is about; `salign.training.losses.counted_groups` says which have.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def check_shapes(**tensors: Tensor) -> None:
    """Refuses tensors that are not all of one shape [groups, K].

    Raises:
        ValueError: With the shapes.
    """
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) > 1 or len(shapes.pop()) != 2:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{found} must all be [groups, K]")


def best_responses(nll: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which responses exist, and each group's best: the highest score, the first of equals.

    Args:
        nll: [groups, K], NaN where a group has fewer responses.
        scores: [groups, K], NaN where a response has no rating.

    Returns:
        `there`, bool [groups, K], and `best`, int64 [groups] (0 in a group where nothing is there).
    """
    check_shapes(nll=nll, scores=scores)
    there = ~(nll.isnan() | scores.isnan())
    return there, scores.masked_fill(~there, -torch.inf).argmax(dim=1)


def rated_above(there: Tensor, scores: Tensor) -> Tensor:
    """Returns bool [groups, K, K]: both are there, and the first (second last axis) has the higher score."""
    return (scores[:, :, None] > scores[:, None, :]) & there[:, :, None] & there[:, None, :]


def sft_losses(nll: Tensor, scores: Tensor) -> Tensor:
    """Computes supervised fine-tuning's loss: the nll of each group's best response.

    Args:
        nll: [groups, K], as for `stable_losses`.
        scores: [groups, K].
    """
    there, best = best_responses(nll, scores)
    return nll.masked_fill(~there, 0.0).gather(1, best[:, None]).squeeze(1)


def stable_losses(
    nll: Tensor,
    scores: Tensor,
    *,
    ratio: float,
    margin: float,
    scale: float,
    hinge: Literal["mean", "each"] = "mean",
    max_flow: bool = False,
) -> Tensor:
    """Computes the Stable Alignment loss of each group (Liu et al. 2023, arXiv 2305.16960, section 3.3).

    With best = argmax of the scores

        nll_best + ratio * max(0, mean over i != best of [nll_best - nll_i + margin * (r_best - r_i) / scale])

    A group of one response has no second part.

    Args:
        nll: [groups, K], mean over a response's tokens of -log p(token | query, earlier tokens); NaN where a group has
            fewer responses.
        scores: [groups, K], ratings; NaN where there is none.
        ratio: Weight of the second part.
        margin: How far apart, in nats a token, responses at the ends of the scale should be.
        scale: The scale's length.
        hinge: Whether max(0, .) is taken of the mean (the released code) or of each response (the paper's formula).
        max_flow: Takes the largest over the responses instead of the mean.
    """
    there, best = best_responses(nll, scores)
    # Zeros in place of what is missing, before any arithmetic: NaN x 0 would make the gradient NaN.
    nll = nll.masked_fill(~there, 0.0)
    scores = scores.masked_fill(~there, 0.0).to(nll.dtype)
    index = best[:, None]
    best_nll = nll.gather(1, index)
    flow = best_nll - nll + margin * (scores.gather(1, index) - scores) / scale
    others = there.scatter(1, index, value=False)
    if hinge == "each":
        flow = flow.clamp(min=0)
    if max_flow:
        merged = flow.masked_fill(~others, -torch.inf).amax(dim=1)
        merged = merged.masked_fill(~others.any(dim=1), 0.0)
    else:
        merged = (flow * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)
    return best_nll.squeeze(1) + ratio * merged.clamp(min=0)


def rrhf_losses(nll: Tensor, scores: Tensor, num_tokens: Tensor, *, sft_weight: float) -> Tensor:
    """Computes the RRHF loss of each group (Yuan et al. 2023, arXiv 2304.05302, section 3.1).

    With p_i = -nll_i, a response's log-probability over its length,

        sum over r_i < r_j of max(0, p_i - p_j) + sft_weight * num_tokens_best * nll_best

    The paper adds the two up with weight 1. (The authors' released code averages the second part over tokens, padding
    included, and gives the first a weight.) A group of one response has the second part alone.

    Args:
        nll: [groups, K], as for `stable_losses`.
        scores: [groups, K].
        num_tokens: [groups, K], tokens of each response; 0 where a group has fewer.
        sft_weight: Weight of the second part.
    """
    check_shapes(nll=nll, scores=scores, num_tokens=num_tokens)
    there, best = best_responses(nll, scores)
    nll = nll.masked_fill(~there, 0.0)
    excess = (nll[:, :, None] - nll[:, None, :]).clamp(min=0)
    ranking = (excess * rated_above(there, scores)).sum(dim=(1, 2))
    best_nll = (nll * num_tokens.to(nll.dtype)).gather(1, best[:, None]).squeeze(1)
    return ranking + sft_weight * best_nll


def implicit_rewards(nll: Tensor, reference_nll: Tensor, num_tokens: Tensor, *, beta: float) -> Tensor:
    """Computes DPO's reward of each response: beta * (log p - log p of the reference), summed over its tokens.

    Args:
        nll: [groups, K], mean over a response's tokens; NaN where a group has fewer responses.
        reference_nll: The same under the reference model. No gradient goes there.
        num_tokens: [groups, K], tokens of each response; 0 where a group has fewer.
        beta: How strongly the model is held to the reference.

    Returns:
        [groups, K] of nll's dtype, NaN where nll is.

    Raises:
        ValueError: The shapes differ, or a response of the model has no reference or no tokens: that would leave it out
            without a word.
    """
    check_shapes(nll=nll, reference_nll=reference_nll, num_tokens=num_tokens)
    if bool((~nll.isnan() & (reference_nll.isnan() | (num_tokens <= 0))).any()):
        raise ValueError("a response has an nll, but its reference_nll is NaN or its num_tokens 0")
    return beta * (reference_nll.detach().to(nll.dtype) - nll) * num_tokens.to(nll.dtype)


def dpo_losses(
    rewards: Tensor, scores: Tensor, *, pairs: Literal["all", "best"] = "all", label_smoothing: float = 0.0
) -> Tensor:
    """Computes the DPO loss of each group (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

    The mean over a group's pairs of a better response w and a worse one l of

        -(1 - label_smoothing) * log sigmoid(reward_w - reward_l) - label_smoothing * log sigmoid(reward_l - reward_w)

    Responses of equal score are no pair.

    Args:
        rewards: [groups, K], of `implicit_rewards`; NaN where a group has fewer responses.
        scores: [groups, K], ratings; NaN where there is none.
        pairs: All pairs of a group, or those of its best response alone.
        label_smoothing: The share of pairs taken to be the wrong way round (Mitchell 2023, "A note on DPO with noisy
            preferences", conservative DPO).
    """
    there, best = best_responses(rewards, scores)
    rewards = rewards.masked_fill(~there, 0.0)
    chosen = rated_above(there, scores)
    if pairs == "best":
        chosen = chosen & F.one_hot(best, rewards.shape[1]).bool()[:, :, None]
    gain = rewards[:, :, None] - rewards[:, None, :]
    losses = -(1 - label_smoothing) * F.logsigmoid(gain) - label_smoothing * F.logsigmoid(-gain)
    return (losses * chosen).sum(dim=(1, 2)) / chosen.sum(dim=(1, 2)).clamp(min=1)


def listwise_dpo_losses(rewards: Tensor, scores: Tensor) -> Tensor:
    """Computes DPO under Plackett and Luce's model for each group (Rafailov et al. 2023, arXiv 2305.18290, A.3).

    The negative log-likelihood of the ranking by scores: a sum over its responses i of

        log(exp(reward_i) + sum over r_j < r_i of exp(reward_j)) - reward_i

    Without ties this is the paper's: each response is drawn from itself and all that come after it. Responses of equal
    score are not drawn from each other: each is compared with those rated strictly lower alone, so their order does not
    matter. For two responses it equals `dpo_losses`.

    Args:
        rewards: [groups, K], of `implicit_rewards`; NaN where a group has fewer responses.
        scores: [groups, K], ratings; NaN where there is none.
    """
    there, _ = best_responses(rewards, scores)
    rewards = rewards.masked_fill(~there, 0.0)
    # Each response is among its own alternatives, also where it is not there: an empty logsumexp has no gradient.
    itself = torch.eye(rewards.shape[1], dtype=torch.bool, device=rewards.device)
    alternatives = rated_above(there, scores) | itself
    total = rewards[:, None, :].masked_fill(~alternatives, -torch.inf).logsumexp(dim=2)
    return (total - rewards).sum(dim=1)


@torch.no_grad()
def preference_metrics(nll: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """Computes what is logged of the groups, as sums with counts that ranks can add up.

    Returns:
        Scalars. `best`: the sum of -nll of the best responses, over `groups` of them; `others`: the sum, over the
        `contrasted` groups that have other responses, of the others' mean -nll; `margin`: the sum over those of best -
        others; `likeliest`: in how many of those the best response is the likeliest.
    """
    there, best = best_responses(nll, scores)
    logps = -nll.masked_fill(~there, 0.0)
    index = best[:, None]
    others = there.scatter(1, index, value=False)
    contrasted = others.any(dim=1)
    best_logps = logps.gather(1, index).squeeze(1)
    other_logps = (logps * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)
    top_other = logps.masked_fill(~others, -torch.inf).amax(dim=1)
    return {
        "groups": there.any(dim=1).sum(),
        "contrasted": contrasted.sum(),
        "best": best_logps.sum(),
        "others": (other_logps * contrasted).sum(),
        "margin": ((best_logps - other_logps) * contrasted).sum(),
        "likeliest": ((best_logps > top_other) & contrasted).sum(),
    }
