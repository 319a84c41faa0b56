"""The model as training sees it: a row of groups in, each response's mean negative log-likelihood out."""

import inspect
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from salign.config import Attention, Objective
from salign.errors import ConfigError
from salign.training import settings
from salign.training.attention import mask_of, prepare
from salign.training.losses import Likelihoods, objective_metrics, objective_sum
from salign.training.objectives import preference_metrics
from salign.training.packing import Lengths, Row, lay_out
from salign.training.tokens import TokenGroup

# Tokens of the responses that the layout is checked with: they begin that long before the end of the longest text.
_RESPONSE = 16
# Of these a model's logits are more than its states times its output weights.
_OWN_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def token_nll(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = F.linear(states, weight, bias)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")


def _chunked_nll(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    """[tokens] out of states [tokens, width]: many logits are made a chunk at a time, and again for the gradient."""
    head = model.get_output_embeddings()
    # The weight is taken out of its module: under ZeRO-3, ranks may then have different numbers of chunks.
    weight, bias = head.weight, getattr(head, "bias", None)
    size = max(64, settings.MAX_LOGITS // model.config.get_text_config().vocab_size)
    if len(states) <= size:
        return token_nll(states, weight, bias, targets)
    chunks = [
        checkpoint(token_nll, part, weight, bias, wanted, use_reentrant=False)
        for part, wanted in zip(states.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(chunks)


def response_nll(model: PreTrainedModel, row: Row) -> Tensor:
    """Computes each response's mean of -log p(token | query, earlier tokens), in float32 or better.

    Logits exist only where a response's token is predicted.

    Args:
        model: A causal language model that takes a 4-D mask (see `check_layout`).
        row: Groups laid out on the model's device.

    Returns:
        [groups, K], NaN where a group has fewer responses.
    """
    inputs = {
        "input_ids": row.input_ids,
        **mask_of(model, row),
        "position_ids": row.position_ids,
        "use_cache": False,
    }
    decoder = model.get_decoder()
    if decoder is model or any(getattr(model.config, name, None) for name in _OWN_LOGITS):
        logits = model(**inputs, logits_to_keep=row.predictors).logits[0]
        wide = torch.promote_types(logits.dtype, torch.float32)
        token_nll = F.cross_entropy(logits.to(wide), row.targets, reduction="none")
    else:
        states = decoder(**inputs).last_hidden_state[0]
        token_nll = _chunked_nll(model, states[row.predictors], row.targets)
    num_responses = row.cell_of.numel()
    sums = token_nll.new_zeros(num_responses).index_add(0, row.response_of, token_nll)
    nll = sums / torch.bincount(row.response_of, minlength=num_responses)
    cells = nll.new_full((row.scores.numel(),), torch.nan).index_put((row.cell_of,), nll)
    return cells.view_as(row.scores)


def decayed_apart(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups the trained parameters for the optimizer: weight decay is for matrices alone.

    Norms and biases, which are vectors, are left out, as by transformers' Trainer: they set a scale or an offset, which
    has no reason to be near 0. So is what is named a bias and has more axes (one for each expert). The embedding is
    decayed, as it is there: where it is tied, it is the output's matrix as well.

    Args:
        model: Whose weights may be sharded by ZeRO-3.
        weight_decay: Of the matrices. At 0 there is one group, whose checkpoints DeepSpeed converts for other numbers
            of ranks under ZeRO-3 too.
    """
    if not weight_decay:
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
    matrices, vectors = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (vectors if len(shape) < 2 or name.endswith("bias") else matrices).append(parameter)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class GroupLoss(nn.Module):
    """Computes the whole loss inside one `forward`, as ZeRO-3 needs it, with the attention for rows."""

    def __init__(self, model: PreTrainedModel, objective: Objective, attention: Attention = "sdpa") -> None:
        super().__init__()
        prepare(model, attention)
        self.model = model
        self._objective = objective

    def forward(self, row: Row) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the objective's sum over the row's groups that count, the nll [groups, K], and what is logged."""
        nll = response_nll(self.model, row)
        reference = row.reference_nll if self._objective.needs_reference else None
        total, _ = objective_sum(self._objective, nll, row.scores, row.num_tokens, reference, ages=row.ages)
        found = Likelihoods(nll.detach(), row.scores, row.num_tokens, row.reference_nll, row.ages)
        logged = preference_metrics(found.nll, row.scores) | objective_metrics(self._objective, found)
        return total, found.nll, logged


def recompute(model: PreTrainedModel) -> None:
    """Makes layers compute again for the gradient, so that a forward pass keeps only their inputs."""
    # Named so since transformers 5.2x; the older name warns.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


# How far nll may be from that alone: a share of it and nats a token. Another text's is farther.
_TOLERANCES = {torch.float32: (1e-3, 1e-3), torch.float64: (1e-3, 1e-3)}
_ROUGH_TOLERANCES = (0.02, 0.1)


@torch.no_grad()
def check_layout(engine: nn.Module, model: PreTrainedModel, lengths: Lengths, device: torch.device) -> None:
    """Checks that responses in one row see what they would see alone, and that no logits are lost.

    It costs the forward pass of one row as long as there will be, and of the longest text twice. Under ZeRO-3 all ranks
    call it.

    Args:
        engine: What a `GroupLoss` is trained by.
        model: The model in it.
        lengths: That there will be: what windows, positions and buffers make of a text shows at its length.
        device: The model's.

    Raises:
        ConfigError: They do not: the model's family cannot be trained so, or not at that length.
    """
    groups = _examples(lengths, model.config.get_text_config().vocab_size)
    family = model.config.model_type
    was_training = model.training
    engine.eval()
    row = lay_out(groups).to(device)
    size = f"a row of {row.input_ids.shape[1]} tokens, its longest text {row.num_positions}"
    try:
        _, found, _ = engine(row)
        alone = [[_nll_alone(model, group.query, response, device) for response in group.responses] for group in groups]
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"not enough memory for {size}, even without gradients: {error}. Lower the stage's max_tokens, "
            "num_responses or row_tokens."
        ) from error
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"models of the family {family!r} cannot be trained here: a row of several responses ({size}) ends in "
            f"{type(error).__name__}: {error}"
        ) from error
    share, nats = _TOLERANCES.get(model.dtype, _ROUGH_TOLERANCES)
    for packed, expected in zip(found, alone, strict=True):
        for one, other in zip(packed, expected, strict=False):  # a cell without a response has none
            if not torch.isclose(one.float(), other, rtol=share, atol=nats):
                raise ConfigError(
                    f"models of the family {family!r} cannot be trained here: a response in a row with others gets a "
                    f"negative log-likelihood of {one:.4f} per token, but {other:.4f} alone ({size}). Its attention "
                    "takes no 4-D mask or counts positions along the whole row, or it computes logits in its own way."
                )
    engine.train(was_training)


def _nll_alone(model: PreTrainedModel, query: list[int], response: list[int], device: torch.device) -> Tensor:
    ids = torch.tensor([[*query, *response]], device=device)
    some = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits = model(input_ids=ids, use_cache=False, **({"logits_to_keep": len(response) + 1} if some else {})).logits
    return F.cross_entropy(logits[0, -len(response) - 1 : -1].float(), ids[0, len(query) :])


def _examples(lengths: Lengths, vocabulary: int) -> list[TokenGroup]:
    """A short group, others that fill the row, and a group of the longest texts at its end."""
    drawn = itertools.count(1)

    def words(count: int) -> list[int]:
        return [3 + (next(drawn) * 7919) % (min(vocabulary, 10_000) - 3) for _ in range(count)]

    def group(query: int, responses: int, size: int) -> TokenGroup:
        graded = [float(number) for number in range(responses)]
        return TokenGroup(words(query), [words(size) for _ in graded], graded, [0.0] * responses)

    groups = [group(4, 2, 3)]
    size = min(_RESPONSE, max(3, lengths.text // 3))
    longest = group(max(1, lengths.text - size), 2, size)
    left = lengths.row - groups[0].num_tokens - longest.num_tokens
    while left > 1:
        fill = min(left, lengths.text)
        groups.append(group(fill - 1, 1, 1))
        left -= fill
    return [*groups, longest]
