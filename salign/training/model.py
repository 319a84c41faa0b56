"""The model as training sees it: a row of groups in, each response's mean negative log-likelihood out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from salign.config import Objective
from salign.errors import ConfigError
from salign.training.objectives import needs_reference, objective_sum, preference_metrics
from salign.training.packing import Row, lay_out
from salign.training.tokens import TokenGroup

# Logits that exist at a time, at most: 128 MiB in float32.
_MAX_LOGITS = 1 << 25
# Of these a model's logits are more than its states times its output weights.
_OWN_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def _token_nll(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = F.linear(states, weight, bias)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")


def _chunked_nll(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    """[tokens] out of states [tokens, width]: many logits are made a chunk at a time, and again for the gradient."""
    head = model.get_output_embeddings()
    # The weight is taken out of its module: under ZeRO-3, ranks may then have different numbers of chunks.
    weight, bias = head.weight, getattr(head, "bias", None)
    size = max(64, _MAX_LOGITS // model.config.get_text_config().vocab_size)
    if len(states) <= size:
        return _token_nll(states, weight, bias, targets)
    chunks = [
        checkpoint(_token_nll, part, weight, bias, wanted, use_reentrant=False)
        for part, wanted in zip(states.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(chunks)


def mask_of(model: PreTrainedModel, row: Row) -> Tensor:
    """The row's mask as the model takes it: plain attention, all that some families have, adds it to its scores."""
    if model.config._attn_implementation != "eager":
        return row.attention_mask
    hidden = ~row.attention_mask
    return torch.zeros_like(hidden, dtype=model.dtype).masked_fill(hidden, torch.finfo(model.dtype).min)


def response_nll(model: PreTrainedModel, row: Row) -> Tensor:
    """Mean over each response's tokens of -log p(token | query, earlier tokens), in float32 or better.

    Logits exist only where a response's token is predicted.

    Args:
        model: A causal language model that takes a 4-D mask (see `check_layout`).
        row: Groups laid out on the model's device.

    Returns:
        [groups, K], NaN where a group has fewer responses.
    """
    inputs = {
        "input_ids": row.input_ids,
        "attention_mask": mask_of(model, row),
        "position_ids": row.position_ids,
        "use_cache": False,
    }
    if any(getattr(model.config, name, None) for name in _OWN_LOGITS):
        logits = model(**inputs, logits_to_keep=row.predictors).logits[0]
        wide = torch.promote_types(logits.dtype, torch.float32)
        token_nll = F.cross_entropy(logits.to(wide), row.targets, reduction="none")
    else:
        states = model.get_decoder()(**inputs).last_hidden_state[0]
        token_nll = _chunked_nll(model, states[row.predictors], row.targets)
    num_responses = row.cell_of.numel()
    sums = token_nll.new_zeros(num_responses).index_add(0, row.response_of, token_nll)
    nll = sums / torch.bincount(row.response_of, minlength=num_responses)
    cells = nll.new_full((row.scores.numel(),), torch.nan).index_put((row.cell_of,), nll)
    return cells.view_as(row.scores)


class GroupLoss(nn.Module):
    """The whole loss inside one `forward`, as ZeRO-3 needs it."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, row: Row) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The objective's sum over the row's groups that count, the nll [groups, K], and what is logged of them."""
        nll = response_nll(self.model, row)
        reference = row.reference_nll if needs_reference(self._objective) else None
        total, _ = objective_sum(self._objective, nll, row.scores, row.num_tokens, reference)
        return total, nll.detach(), preference_metrics(nll, row.scores)


@torch.no_grad()
def check_layout(engine: nn.Module, model: PreTrainedModel, words: Sequence[int], device: torch.device) -> None:
    """Makes sure that responses in one row see what they would see alone, and that nothing of their logits is lost.

    Under ZeRO-3 all ranks call it.

    Args:
        engine: What a `GroupLoss` is trained by.
        model: The model in it.
        words: 17 tokens of the model's vocabulary.
        device: The model's.

    Raises:
        ConfigError: They do not: the model's family cannot be trained so.
    """
    query, responses = list(words[:4]), [list(words[4:7]), list(words[7:10])]
    other = TokenGroup(list(words[10:14]), [list(words[14:17])], [1.0], [0.0])
    was_training = model.training
    engine.eval()
    row = lay_out([other, TokenGroup(query, responses, [1.0, 2.0], [0.0, 0.0])]).to(device)
    try:
        _, found, _ = engine(row)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"models of the family {model.config.model_type!r} cannot be trained here: a row of several responses ends "
            f"in {type(error).__name__}: {error}"
        ) from error
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1
    for packed, response in zip(found[1], responses, strict=True):
        ids = torch.tensor([[*query, *response]], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        alone = F.cross_entropy(logits[len(query) - 1 : -1], ids[0, len(query) :])
        if not torch.isclose(packed.float(), alone, rtol=tolerance, atol=tolerance):
            raise ConfigError(
                f"models of the family {model.config.model_type!r} cannot be trained here: a response in a row with "
                f"others gets a negative log-likelihood of {packed:.4f} a token, alone {alone:.4f}. Its attention "
                "takes no 4-D mask, or its logits are made in a way of their own."
            )
    engine.train(was_training)
