"""Keys and values of prompts that start together, and of replies that are generated together."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from salign.architecture import EVERYTHING, reaches

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # the keys and values of each layer: [calls, heads, length, size]


@dataclass(frozen=True)
class Prefill:
    """Prompts computed together: next-token logits [prompts, vocabulary] in float32, and keys and values in one row.

    `columns` says for each prompt where in that row its tokens are.
    """

    logits: torch.Tensor
    layers: Layers
    columns: list[list[int]]
    num_tokens: int


def prefill(model: Any, prompts: list[list[int]]) -> Prefill:
    """Computes what comes after each prompt; what prompts share from their start on is computed once.

    The prompts lie in one row as a tree: a token that follows the same tokens in several prompts is one column, and
    attends to the columns on its way from the root alone.
    """
    ids: list[int] = []
    positions: list[int] = []
    columns: list[list[int]] = []
    num_shared: list[int] = []
    column_of: dict[tuple[int, int], int] = {}  # by the column before it and its token
    for prompt in prompts:
        path: list[int] = []
        begin = len(ids)
        for position, token in enumerate(prompt):
            key = (path[-1] if path else -1, token)
            if key not in column_of:
                column_of[key] = len(ids)
                ids.append(token)
                positions.append(position)
            path.append(column_of[key])
        columns.append(path)
        num_shared.append(len(prompt) - (len(ids) - begin))
    cache = DynamicCache()
    logits = model(
        input_ids=torch.tensor([ids], device=model.device),
        # one alone: the model's own mask
        attention_mask=_tree_mask(model, len(ids), columns, num_shared) if len(prompts) > 1 else None,
        position_ids=torch.tensor([positions], device=model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor([path[-1] for path in columns], device=model.device),
    ).logits[0]
    return Prefill(logits.float(), _layers(cache), columns, len(ids))


def _tree_mask(model: Any, size: int, columns: list[list[int]], num_shared: list[int]) -> torch.Tensor:
    """What is added to the attention of each column to each: 0 from the root to itself, the lowest number elsewhere."""
    mask = torch.full((size, size), torch.finfo(model.dtype).min, dtype=model.dtype)
    for path, shared in zip(columns, num_shared, strict=True):
        if shared < len(path):
            own = slice(path[shared], path[-1] + 1)
            mask[own, path[:shared]] = 0
            mask[own, own].triu_(1)
    return mask[None, None].to(model.device)


def can_share(model: Any) -> bool:
    """Whether every layer attends to everything before, by the model's config.

    A sliding window or a recurrence needs a mask or an order of the model's own: such prompts are computed one by one.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return set(kinds or ["full_attention"]) <= {"full_attention"} and set(reaches(config).values()) == {EVERYTHING}


class Batch:
    """The keys and values of the replies under way, one a row, padded on the left."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)

    def step(self, tokens: list[int]) -> torch.Tensor:
        """Next-token logits [rows, vocabulary] in float32, after a token more for each row."""
        self._mask = pad(self._mask, (0, 1), value=1)
        logits: torch.Tensor = self._model(
            input_ids=torch.tensor(tokens, device=self._model.device)[:, None],
            attention_mask=self._mask,
            position_ids=self._mask.sum(1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits.float()

    def keep(self, rows: list[int]) -> None:
        """The other rows leave, and with them the padding that only they needed."""
        index = torch.tensor(rows, dtype=torch.long, device=self._model.device)
        mask = self._mask[index]
        start = mask.shape[1] - int(mask.any(0).sum())
        self._cache = _cache(
            [(keys[index, :, start:], values[index, :, start:]) for keys, values in _layers(self._cache)]
        )
        self._mask = mask[:, start:]

    def join(self, computed: Prefill, prompts: list[int]) -> None:
        """Adds a row for each of these prompts."""
        paths = [computed.columns[prompt] for prompt in prompts]
        wider = max(0, max(map(len, paths)) - self._mask.shape[1])
        length = self._mask.shape[1] + wider
        index = torch.tensor([[0] * (length - len(path)) + path for path in paths], device=self._model.device)
        mask = torch.tensor([[0] * (length - len(path)) + [1] * len(path) for path in paths])
        layers = [
            (keys[0][:, index].transpose(0, 1), values[0][:, index].transpose(0, 1)) for keys, values in computed.layers
        ]
        if len(self._mask):
            layers = [
                (
                    torch.cat([pad(old_keys, (0, 0, wider, 0)), keys]),
                    torch.cat([pad(old_values, (0, 0, wider, 0)), values]),
                )
                for (old_keys, old_values), (keys, values) in zip(_layers(self._cache), layers, strict=True)
            ]
        self._cache = _cache(layers)
        self._mask = torch.cat([pad(self._mask, (wider, 0)), mask.to(self._mask)])


def _layers(cache: Any) -> Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache(layers: Layers) -> DynamicCache:
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # as they are; `update` would copy them
        cache.layers.append(layer)
    return cache
