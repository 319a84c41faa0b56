"""How a row's tokens see each other, in the form that a model's attention takes it."""

import contextlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from salign.architecture import EVERYTHING, Reach, reaches
from salign.config import Attention
from salign.errors import ConfigError
from salign.training.packing import Row

_BY_GROUP = "salign_by_group"
# What some families' attention adds or changes, which the function below knows nothing of.
_EXTRAS = ("position_bias", "s_aux", "softcap")
# CUDA's kernels read this many elements of a mask at once.
_ALIGNMENT = 16
# cuDNN's kernel ends some groups of ordinary rows in an error (H200, bfloat16, PyTorch 2.11).
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


# Responses are folded where those of a group, as one sequence, would look at so many times as many pairs of tokens.
_FOLDS_ABOVE = 2.0


@dataclass(frozen=True)
class _Fold:
    """A group's K responses beside each other, each of the length L of the longest: its last token stands in for more.

    No token of a response sees what stands in, which is behind it.

    Attributes:
        places: int64 [K, L], of the tokens in the row.
        real: int64 [responses' tokens], which of the K * L are tokens and no stand-ins.
        longest: Which response is the longest.
    """

    places: Tensor
    real: Tensor
    longest: int

    @staticmethod
    def of(row: Row, span: tuple[int, int, int]) -> "_Fold | None":
        """The fold of a group; None where it would not save much."""
        start, middle, end = span
        lengths = torch.bincount(row.segment_of[middle:end])[1:]
        longest = int(lengths.argmax())
        length = int(lengths[longest])
        if (end - middle) * (end - start) < _FOLDS_ABOVE * len(lengths) * length * (middle - start + length):
            return None
        offsets = torch.arange(length)
        starts = middle + lengths.cumsum(0) - lengths
        places = starts[:, None] + torch.minimum(offsets, lengths[:, None] - 1)
        real = (offsets < lengths[:, None]).flatten().nonzero().flatten()
        return _Fold(places, real, longest)

    def fold(self, row: Tensor) -> Tensor:
        """[K, heads, L, width] of [1, heads, tokens of the row, width]."""
        taken = row[0].index_select(1, self.places.flatten())
        return taken.view(len(taken), *self.places.shape, -1).transpose(0, 1)

    def unfold(self, folded: Tensor) -> Tensor:
        """[1, heads, responses' tokens, width] of [K, heads, L, width]."""
        return folded.transpose(0, 1).flatten(1, 2).index_select(1, self.real)[None]


class _Groups:
    """A row's groups, and what each sees: parts of the row's masks, cut out once for all layers.

    CUDA's kernels check the strides of a mask and not where it begins: a part of a larger one ends them in "misaligned
    address". What is cut begins where memory does, its rows at multiples of 16 elements.
    """

    def __init__(self, row: Row, *, reaches: bool) -> None:
        self.spans = row.spans
        self.reaches = reaches
        # On CUDA, what it saves has not been measured.
        on_cpu = row.input_ids.device.type == "cpu"
        self.folds = [_Fold.of(row, span) if on_cpu else None for span in row.spans]
        self._cut: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def cut(self, mask: Tensor, tokens: slice, seen: slice) -> Tensor:
        """The mask [1, 1, tokens, seen] within that of the row."""
        place = (id(mask), tokens.start, seen.start)
        if place not in self._cut:
            part = mask[:, :, tokens, seen]
            width = part.shape[-1]
            whole = part.new_zeros((*part.shape[:-1], -(-width // _ALIGNMENT) * _ALIGNMENT))
            whole[..., :width] = part
            self._cut[place] = mask, whole[..., :width]
        return self._cut[place][1]

    def folded(self, mask: Tensor, query: slice, fold: _Fold) -> Tensor:
        """The mask [1, 1, L, query and L] of each response of a fold: that of the longest, which begins as all do."""
        tokens = fold.places[fold.longest]
        place = (id(mask), query.start, -1)
        if place not in self._cut:
            seen = torch.cat([torch.arange(query.start, query.stop), tokens])
            self._cut[place] = mask, mask[:, :, tokens[:, None], seen]
        return self._cut[place][1]


def _attend_by_group(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_groups: _Groups | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot product attention of each group by itself, its query (which sees no response) and then its responses.

    So a row of several groups costs what they cost in rows of their own. As transformers' own where no row is given.
    A query's tokens see all before them, unless some layers' do not: then by the mask. Responses are one sequence, most
    of which the mask hides, or where that costs too much beside each other, with the query's keys before each.
    """
    if row_groups is None or any(kwargs.get(name) is not None for name in _EXTRAS):
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    assert attention_mask is not None
    times = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, times), repeat_kv(value, times)

    def attend(tokens: slice, seen: slice, *, causal: bool = False) -> Tensor:
        mask = None if causal else row_groups.cut(attention_mask, tokens, seen)
        asked, keys, values = query[:, :, tokens], key[:, :, seen], value[:, :, seen]
        return F.scaled_dot_product_attention(asked, keys, values, mask, dropout, causal, scale=scaling)

    def attend_beside(asking: slice, fold: _Fold) -> Tensor:
        mask = row_groups.folded(attention_mask, asking, fold)

        def seen(row: Tensor) -> Tensor:
            return torch.cat([row[:, :, asking].expand(len(fold.places), -1, -1, -1), fold.fold(row)], dim=2)

        folded = F.scaled_dot_product_attention(fold.fold(query), seen(key), seen(value), mask, dropout, scale=scaling)
        return fold.unfold(folded)

    found = []
    with sdpa_kernel(_KERNELS):
        for (start, middle, end), fold in zip(row_groups.spans, row_groups.folds, strict=True):
            asking = slice(start, middle)
            found.append(attend(asking, asking, causal=not row_groups.reaches))
            if fold is None:
                found.append(attend(slice(middle, end), slice(start, end)))
            else:
                found.append(attend_beside(asking, fold))
    return torch.cat([part.transpose(1, 2) for part in found], dim=1), None


AttentionInterface.register(_BY_GROUP, _attend_by_group)
AttentionMaskInterface.register(_BY_GROUP, sdpa_mask)


def require(attention: Attention, device: torch.device) -> None:
    """Checks that the device has the attention, before the model is loaded.

    Raises:
        ConfigError: It has not.
    """
    if attention == "flex" and device.type != "cuda":
        raise ConfigError(
            f"attention flex needs a CUDA device (FlexAttention has no gradient on others), and this is {device.type}. "
            "Set the stage's attention to sdpa."
        )


def prepare(model: PreTrainedModel, attention: Attention) -> None:
    """Gives a model the attention for rows; a family without scaled dot product attention keeps its own.

    Raises:
        ConfigError: The family has no FlexAttention.
    """
    if attention == "flex":
        with contextlib.suppress(ValueError, ImportError):  # of some families; others keep what they had
            model.set_attn_implementation("flex_attention")
        if model.config._attn_implementation != "flex_attention":
            raise ConfigError(
                f"models of the family {model.config.model_type!r} have no FlexAttention; set attention to sdpa"
            )
    elif model.config._attn_implementation == "sdpa" and _takes_more(model):
        model.set_attn_implementation(_BY_GROUP)


def _takes_more(model: PreTrainedModel) -> bool:
    """Whether the family hands arguments on to its attention."""
    parameters = inspect.signature(model.get_decoder().forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def mask_of(model: PreTrainedModel, row: Row) -> dict[str, Any]:
    """Returns the row's mask as arguments of the model's forward pass, one for each kind of layer if they differ."""
    kind = model.config._attn_implementation
    found = {
        layers: reach.within(row.num_positions) for layers, reach in reaches(model.config.get_text_config()).items()
    }
    masks = {reach: _mask(model, row, reach, kind) for reach in found.values()}
    by_layers = {layers: masks[reach] for layers, reach in found.items()}
    given: dict[str, Any] = {"attention_mask": by_layers if len(masks) > 1 else next(iter(masks.values()))}
    if kind == _BY_GROUP:
        given["row_groups"] = _Groups(row, reaches=set(masks) != {EVERYTHING})
    elif kind == "flex_attention":
        # A row under 128 tokens would be taken for a step of decoding, whose kernel cannot be made for all lengths.
        given["kernel_options"] = {"FORCE_USE_FLEX_ATTENTION": True}
    return given


def _mask(model: PreTrainedModel, row: Row, reach: Reach, kind: str) -> Any:
    if kind == "flex_attention":
        return block_mask(row, reach)
    hidden = ~row.attention_mask(reach)
    # Added up, in one tensor for all layers: of a bool mask each would make, and keep, its own.
    lowest = torch.finfo(model.dtype).min if kind == "eager" else -torch.inf
    return torch.zeros_like(hidden, dtype=model.dtype).masked_fill(hidden, lowest)


def block_mask(row: Row, reach: Reach = EVERYTHING) -> Any:
    """Returns the row's mask for FlexAttention: which blocks are hidden whole, and the rule within the others."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(_batch: Tensor, _head: Tensor, token: Tensor, other: Tensor) -> Tensor:
        return row.sees(token, other, reach)

    length = row.input_ids.shape[1]
    return create_block_mask(sees, None, None, length, length, device=str(row.input_ids.device))
