"""The arithmetic of a row of groups, and its share of a GPU's peak: the model FLOPs utilisation (MFU).

As counted by Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B): the matrix products that the mathematics
needs. What is computed again for the gradient does not count, nor what a mask hides.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from salign.training.tokens import TokenGroup

# TFLOP/s of one device by NVIDIA's data sheets, without sparsity: bfloat16 on tensor cores, and float32 (not TF32). The
# first name that stands in a device's decides.
_PEAKS: dict[str, tuple[float, float]] = {
    "B200": (2250.0, 75.0),
    "H200": (989.4, 66.9),
    "H100 PCIe": (756.0, 51.2),
    "H100 NVL": (835.5, 60.0),
    "H100": (989.4, 66.9),
    "A100": (312.0, 19.5),
    "A40": (149.7, 37.4),
    "A30": (165.0, 10.3),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}


def peak_flops(device: str, dtype: str) -> float | None:
    """Returns the FLOP/s that a device is built for; None if it is not known.

    Args:
        device: As `torch.cuda.get_device_name` has it, such as "NVIDIA H100 80GB HBM3".
        dtype: `bfloat16` or `float32`.
    """
    for name, (half, single) in _PEAKS.items():
        if re.search(rf"\b{name}\b", device):
            return 1e12 * (half if dtype == "bfloat16" else single)
    return None


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
