"""Groups as rows of tokens: the query once, then its responses, each seeing the query and itself alone.

Positions restart after the query for each response, so that every response stands where it would stand by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from salign.architecture import EVERYTHING, Reach
from salign.seeds import rng
from salign.training.tokens import TokenGroup


def sample_responses(group: TokenGroup, num_responses: int, *place: int | str) -> TokenGroup:
    """Draws responses: the best (the first of equals) and others at random, in their order.

    Args:
        group: What to draw from.
        num_responses: The most responses of a group; the paper's K is 4.
        *place: What makes the draw this one: seed, stage, epoch, group.
    """
    if len(group.responses) <= num_responses:
        return group
    best = group.scores.index(max(group.scores))
    others = [position for position in range(len(group.responses)) if position != best]
    return group.subset(sorted([best, *rng(*place, "responses").sample(others, num_responses - 1)]))


@dataclass(frozen=True)
class Lengths:
    """The longest text (a query with one response) and the longest row, in tokens."""

    text: int
    row: int

    @staticmethod
    def of(groups: Sequence[TokenGroup]) -> "Lengths":
        """Returns the lengths of groups that each have a row of their own."""
        text = max(len(group.query) + max(map(len, group.responses)) for group in groups)
        return Lengths(text, max(group.num_tokens for group in groups))


@dataclass(frozen=True)
class Row:
    """Groups laid out as one row of T tokens, with R response tokens of S responses in all.

    Attributes:
        input_ids, position_ids: int64 [1, T].
        group_of: int64 [T], which group each token is of.
        segment_of: int64 [T], 0 in a query, k in the k-th response of its group.
        spans: Where each group begins, where its responses do, and where it ends.
        num_positions: Tokens of the longest text.
        predictors: int64 [R], from which place each response token is predicted.
        targets: int64 [R], the response tokens.
        response_of: int64 [R], which of the S responses each belongs to.
        cell_of: int64 [S], where each response stands in the flattened [groups, K].
        scores: float32 [groups, K], NaN where a group has fewer responses.
        num_tokens: int64 [groups, K], of each response; 0 where a group has fewer.
        reference_nll: float32 [groups, K], NaN where there is none.
        ages: int64 [groups], how many generations ago each group was made.
    """

    input_ids: Tensor
    position_ids: Tensor
    group_of: Tensor
    segment_of: Tensor
    spans: tuple[tuple[int, int, int], ...]
    num_positions: int
    predictors: Tensor
    targets: Tensor
    response_of: Tensor
    cell_of: Tensor
    scores: Tensor
    num_tokens: Tensor
    reference_nll: Tensor
    ages: Tensor

    def to(self, device: torch.device) -> "Row":
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def sees(self, token: Tensor, other: Tensor, reach: Reach = EVERYTHING) -> Tensor:
        """Returns whether tokens at some places see those at others: bool, in the shape to which both broadcast.

        A reach is counted in positions, so that a response sees as much of its query as it would by itself.
        """
        query, same = self.segment_of[other] == 0, self.segment_of[token] == self.segment_of[other]
        seen = (token >= other) & (self.group_of[token] == self.group_of[other]) & (query | same)
        at, back = self.position_ids[0][token], self.position_ids[0][other]
        if reach.window is not None:
            seen = seen & (at - back < reach.window)
        if reach.chunk is not None:
            seen = seen & (at // reach.chunk == back // reach.chunk)
        return seen

    def attention_mask(self, reach: Reach = EVERYTHING) -> Tensor:
        """Returns bool [1, 1, T, T]: whether a token (second last axis) sees the other in layers of that reach."""
        places = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return self.sees(places[:, None], places[None, :], reach)[None, None]


def lay_out(groups: Sequence[TokenGroup]) -> Row:
    """Lays out groups as one row: a response's first token is predicted from its query's last place."""
    ids: list[int] = []
    positions: list[int] = []
    group_of: list[int] = []
    segment_of: list[int] = []
    spans: list[tuple[int, int, int]] = []
    predictors: list[int] = []
    targets: list[int] = []
    response_of: list[int] = []
    cell_of: list[int] = []
    width = max(len(group.responses) for group in groups)
    scores = torch.full((len(groups), width), torch.nan)
    references = scores.clone()
    num_tokens = torch.zeros((len(groups), width), dtype=torch.long)
    for number, group in enumerate(groups):
        spans.append((len(ids), len(ids) + len(group.query), len(ids) + group.num_tokens))
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
    return Row(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        group_of=torch.tensor(group_of),
        segment_of=torch.tensor(segment_of),
        spans=tuple(spans),
        num_positions=max(positions) + 1,
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        response_of=torch.tensor(response_of),
        cell_of=torch.tensor(cell_of),
        scores=scores,
        num_tokens=num_tokens,
        reference_nll=references,
        ages=torch.tensor([group.age for group in groups]),
    )
