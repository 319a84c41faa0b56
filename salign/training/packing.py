"""Groups as rows of tokens: the query once, then its responses, each seeing the query and itself alone.

Positions restart after the query for each response, so that every response stands where it would stand by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salign.seeds import rng
from salign.training.tokens import TokenGroup


def sample_responses(group: TokenGroup, num_responses: int, *place: int | str) -> TokenGroup:
    """The best response (of equal ones the first) and others drawn at random, in their order.

    Args:
        group: What to draw from.
        num_responses: At most so many; the paper's K is 4.
        *place: What makes the draw this one: seed, stage, epoch, group.
    """
    if len(group.responses) <= num_responses:
        return group
    best = group.scores.index(max(group.scores))
    others = [position for position in range(len(group.responses)) if position != best]
    return group.subset(sorted([best, *rng(*place, "responses").sample(others, num_responses - 1)]))


@dataclass(frozen=True)
class Row:
    """Groups laid out as one row of T tokens; R response tokens of S responses in all.

    Attributes:
        input_ids, position_ids: int64 [1, T].
        attention_mask: bool [1, 1, T, T], true where the row's token (second last axis) sees the other.
        predictors: int64 [R], from which place each response token is predicted.
        targets: int64 [R], the response tokens.
        response_of: int64 [R], which of the S responses each belongs to.
        cell_of: int64 [S], where each response stands in the flattened [groups, K].
        scores: float32 [groups, K], NaN where a group has fewer responses.
        num_tokens: int64 [groups, K], of each response; 0 where a group has fewer.
        reference_nll: float32 [groups, K], NaN where there is none.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    predictors: Tensor
    targets: Tensor
    response_of: Tensor
    cell_of: Tensor
    scores: Tensor
    num_tokens: Tensor
    reference_nll: Tensor

    def to(self, device: torch.device) -> "Row":
        return Row(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def lay_out(groups: Sequence[TokenGroup]) -> Row:
    """One row out of groups: the first token of a response is predicted from its query's last place."""
    ids: list[int] = []
    positions: list[int] = []
    group_of: list[int] = []  # of each token
    segment_of: list[int] = []  # of each token: 0 the query, k the k-th response of its group
    predictors: list[int] = []
    targets: list[int] = []
    response_of: list[int] = []
    cell_of: list[int] = []
    width = max(len(group.responses) for group in groups)
    scores = torch.full((len(groups), width), torch.nan)
    references = scores.clone()
    num_tokens = torch.zeros((len(groups), width), dtype=torch.long)
    for number, group in enumerate(groups):
        ids += group.query
        positions += range(len(group.query))
        group_of += [number] * len(group.query)
        segment_of += [0] * len(group.query)
        last_of_query = len(ids) - 1
        for k, response in enumerate(group.responses):
            start = len(ids)
            ids += response
            positions += range(len(group.query), len(group.query) + len(response))
            group_of += [number] * len(response)
            segment_of += [k + 1] * len(response)
            predictors += [last_of_query, *range(start, len(ids) - 1)]
            targets += response
            response_of += [len(cell_of)] * len(response)
            cell_of.append(number * width + k)
            scores[number, k] = group.scores[k]
            num_tokens[number, k] = len(response)
            if group.references is not None:
                references[number, k] = group.references[k]
    group_ids, segments = torch.tensor(group_of), torch.tensor(segment_of)
    order = torch.arange(len(ids))
    sees = (
        (order[:, None] >= order[None, :])
        & (group_ids[:, None] == group_ids[None, :])
        & ((segments[None, :] == 0) | (segments[:, None] == segments[None, :]))
    )
    return Row(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        attention_mask=sees[None, None],
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        response_of=torch.tensor(response_of),
        cell_of=torch.tensor(cell_of),
        scores=scores,
        num_tokens=num_tokens,
        reference_nll=references,
    )
