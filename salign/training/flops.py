"""The arithmetic of a row of groups, of which the share of a GPU's peak is the model FLOPs utilisation (MFU).

As counted by Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B): the matrix products that the mathematics
needs. What is computed again for the gradient does not count, nor what a mask hides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from salign.training.tokens import TokenGroup


@dataclass(frozen=True)
class Arithmetic:
    """The properties of a model that its FLOPs depend on.

    Attributes:
        layers: Values in the matrices that every token is multiplied by.
        frozen: Of those the ones that get no gradient.
        head: Values in the output's matrix, by which each response token is.
        attention: Layers times width of the queries.
    """

    layers: int
    frozen: int
    head: int
    attention: int

    @staticmethod
    def of(model: PreTrainedModel) -> "Arithmetic":
        """Reads these properties of a model; its weights may be sharded."""
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        matrices = [
            parameter
            for module in model.get_decoder().modules()
            if not isinstance(module, nn.Embedding)
            for parameter in module.parameters(recurse=False)
            if len(_shape(parameter)) == 2
        ]
        frozen = sum(_size(parameter) for parameter in matrices if not parameter.requires_grad)
        head = _size(model.get_output_embeddings().weight)
        return Arithmetic(sum(map(_size, matrices)), frozen, head, config.num_hidden_layers * width)

    def flops(self, groups: Sequence[TokenGroup], *, train: bool = True) -> float:
        """Counts the FLOPs of a forward and, in training, a backward pass over groups laid out in rows.

        A matrix product costs two per value in the forward pass, and the same for each of its two gradients.
        """
        tokens = sum(group.num_tokens for group in groups)
        predicted = sum(len(response) for group in groups for response in group.responses)
        pairs = sum(_pairs(group) for group in groups)
        forward = 2.0 * (tokens * self.layers + predicted * self.head) + 4.0 * pairs * self.attention
        if not train:
            return forward
        return 3 * forward - 2.0 * tokens * self.frozen - (2.0 * predicted * self.head if self.frozen else 0.0)


def _pairs(group: TokenGroup) -> int:
    """How many tokens the tokens of a group see, all together."""
    query = len(group.query)
    return query * (query + 1) // 2 + sum(
        len(response) * query + len(response) * (len(response) + 1) // 2 for response in group.responses
    )


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # under ZeRO-3 the whole one's


def _size(parameter: nn.Parameter) -> int:
    size = 1
    for length in _shape(parameter):
        size *= length
    return size
