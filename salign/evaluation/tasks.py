"""Accuracy tasks: which of two answers the model finds likelier."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from salign.errors import DataError
from salign.records import MAX_SCORE, MIN_SCORE, AlignmentGroup
from salign.society.sources import moral_story, read_rows
from salign.training.model import response_nll
from salign.training.packing import lay_out
from salign.training.tokens import tokenize


def moral_stories(path: Path, limit: int | None) -> list[AlignmentGroup]:
    """Moral Stories (Emelin et al. 2021) as pairs of the moral and the immoral action, after situation and intention.

    Raises:
        DataError: The file is missing, empty or malformed, with file and row.
    """
    groups = []
    for number, row in read_rows(path)[:limit]:
        question, moral, immoral = moral_story(row, f"{path}, row {number}")
        groups.append(AlignmentGroup(question, (moral, immoral), (MAX_SCORE, MIN_SCORE)))
    if not groups:
        raise DataError(f"{path} holds no story")
    return groups


@torch.inference_mode()
def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, groups: list[AlignmentGroup], told: Callable[[], None]
) -> list[float]:
    """For each group, 1 where the first response has the lowest mean negative log-likelihood, else 0.

    Args:
        model: On the device where it is to run.
        tokenizer: With its chat template.
        groups: Of at least two responses, the right one first.
        told: Called after each group.
    """
    right = []
    limit = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
    data = tokenize(groups, tokenizer, limit)
    if data.num_long_responses:
        raise DataError(f"{data.num_long_responses} answers of the task exceed the model's {limit} tokens")
    for group in data.groups:
        nll = response_nll(model, lay_out([group]).to(model.device))[0]
        right.append(float(nll[0] < nll[1:].min()))
        told()
    return right
