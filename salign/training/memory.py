"""How much memory a rank of a training stage needs, from the model's config.json alone. Imports no torch.

What is counted is what stays: weights, gradients, the optimizer, what a forward pass keeps for the backward pass, and
the buffers that DeepSpeed sets aside. Libraries, CUDA's context and fragmentation come on top (1 to 2 GiB on a GPU).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from salign import models
from salign.config import Config, TrainStage
from salign.documents import read_json
from salign.errors import DataError
from salign.training.settings import MAX_LOGITS, deepspeed_config

GIB = 1 << 30
# Families whose layers are Llama's: normed, gated, without biases unless the config says so.
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "granite")
# Of models that are not in a folder here: their config.json, as far as it matters.
_KNOWN: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "huggyllama/llama-7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
}
_BUCKET = 500_000_000  # DeepSpeed's own, in values
_MAX_LIVE = 1_000_000_000  # values that ZeRO-3 may have gathered at a time


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory depends on. `linear` has a layer's linear maps: inputs and outputs."""

    num_layers: int
    width: int
    attention_width: int
    inner_width: int
    vocab_size: int
    linear: Mapping[str, tuple[int, int]]
    num_parameters: int


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """Reads the sizes of a model from its config.json; None for an unknown family."""
    family = config.get("model_type")
    if family not in _FAMILIES:
        return None
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    num_layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or width // heads
    linear = {
        "q_proj": (width, heads * head),
        "k_proj": (width, key_heads * head),
        "v_proj": (width, key_heads * head),
        "o_proj": (heads * head, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }
    biased: set[str] = {"q_proj", "k_proj", "v_proj"} if family == "qwen2" else set()
    if config.get("attention_bias"):
        biased |= {"q_proj", "k_proj", "v_proj", "o_proj"}
    if config.get("mlp_bias"):
        biased |= {"gate_proj", "up_proj", "down_proj"}
    layer = sum(i * o for i, o in linear.values()) + sum(linear[name][1] for name in biased) + 2 * width
    layer += 2 * head if family == "qwen3" else 0
    tied = config.get("tie_word_embeddings", family == "gemma")
    num_parameters = num_layers * layer + width + vocab * width * (1 if tied else 2)
    return Shape(num_layers, width, heads * head, inner, vocab, linear, num_parameters)


def find_shape(model: str) -> Shape | None:
    """Finds a model's sizes by its name; None if it is not here, or of an unknown family."""
    path = Path(model).expanduser() / "config.json"
    if model not in models.EMBEDDED and not path.is_file() and model not in _KNOWN:
        cached = models.cached_config(model)
        if cached is None:
            return None
        path = cached
    if not path.is_file():
        return shape_of(_KNOWN[model])
    try:
        return shape_of(read_json(path, str(path), dict[str, Any]))
    except (
        DataError,
        OSError,
        ArithmeticError,
        KeyError,
        TypeError,
    ):  # damaged, as loading it will say
        return None


@dataclass(frozen=True)
class Estimate:
    """The bytes of one rank: on its device and, if offloaded, in the machine's memory.

    `buffers` and `activations` are there in a backward pass, `step` while the optimizer steps: gradients in float32 and
    what it works out of them.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    step: float
    offloaded: float
    num_trained: int
    row_tokens: int

    @property
    def in_backward(self) -> float:
        """The bytes on the device at the end of a forward pass, when gradients are there."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buffers

    @property
    def in_step(self) -> float:
        """The bytes on the device while the optimizer steps."""
        return self.parameters + self.optimizer + self.step

    @property
    def peak(self) -> float:
        """The most bytes on the device."""
        return max(self.in_backward, self.in_step)


def most_row_tokens(stage: TrainStage) -> int:
    """Returns the tokens of the longest row of a stage: a group of whole responses with a minimal query."""
    return max(stage.row_tokens or 0, stage.max_responses * stage.max_tokens)


def num_trained(stage: TrainStage, shape: Shape) -> int:
    """Counts the parameters that get a gradient: all, or the adapters'."""
    if stage.lora is None:
        return shape.num_parameters
    return shape.num_layers * stage.lora.rank * sum(i + o for i, o in _adapted(stage, shape).values())


def _adapted(stage: TrainStage, shape: Shape) -> dict[str, tuple[int, int]]:
    """The linear maps of a layer that have an adapter."""
    assert stage.lora is not None
    wanted = stage.lora.target_modules
    return {name: sizes for name, sizes in shape.linear.items() if not wanted or name in wanted}


def layer_bytes(stage: TrainStage, shape: Shape) -> int:
    """Returns the bytes for each token that a layer's forward pass keeps for the backward pass.

    That is both norms' input (in float32), result and scaled result; query, key, value (repeated for all heads) and
    what attention gives; and four times the inner width. Beside a frozen map that has an adapter, the adapter's parts.
    """
    size = 2 if stage.dtype == "bfloat16" else 4
    norms = 2 * shape.width * (4 + 2 * size)
    maps = size * (4 * shape.attention_width + 4 * shape.inner_width)
    if stage.lora is not None:
        norms -= 2 * shape.width * size  # frozen, it does not keep its result
        adapted = _adapted(stage, shape)
        maps += size * stage.lora.rank * len(adapted)
        if stage.lora.dropout:  # what is dropped of each adapter's input and what is left, instead of the input
            maps += size * (2 * sum(i for i, _ in adapted.values()) - 2 * shape.width - shape.inner_width)
    return norms + maps


def activation_bytes(stage: TrainStage, shape: Shape, row_tokens: int) -> float:
    """Returns the bytes that a row's forward pass keeps for the backward pass, with the logits at their peak.

    With gradient checkpointing a layer keeps its input, and the rest for one layer at a time.
    """
    size = 2 if stage.dtype == "bfloat16" else 4
    kept = shape.num_layers * layer_bytes(stage, shape)
    if stage.gradient_checkpointing:
        kept = shape.num_layers * shape.width * size + layer_bytes(stage, shape)
    last_norm = shape.width * (4 + 3 * size)
    # Logits and their softmax, which are float32; as many for the gradient. In bfloat16 the logits themselves too.
    at_a_time = min(row_tokens, max(64, MAX_LOGITS // shape.vocab_size))
    logits = at_a_time * shape.vocab_size * (8 if size == 4 else 10)
    return float(row_tokens * (kept + last_norm) + logits)


def estimate(
    stage: TrainStage, settings: Mapping[str, Any], shape: Shape, num_ranks: int, row_tokens: int | None = None
) -> Estimate:
    """Estimates the memory of one rank.

    Args:
        stage: Objective, precision, layout.
        settings: Of DeepSpeed, as `deepspeed_config` has them.
        shape: The model's.
        num_ranks: Among how many ZeRO shares.
        row_tokens: Tokens of a row; None: `most_row_tokens`.
    """
    zero = settings.get("zero_optimization", {})
    level = zero.get("stage", 0)
    size = 2 if stage.dtype == "bfloat16" else 4
    rows = row_tokens or most_row_tokens(stage)
    trained = num_trained(stage, shape)

    def share(level_of_sharing: int) -> int:
        return num_ranks if level >= level_of_sharing else 1

    parameters = size * shape.num_parameters / share(3)
    gradients = 4 * trained / share(2)  # added up in float32, whatever they come in
    # Two moments in float32, and under ZeRO or in bfloat16 float32 weights of the optimizer's own.
    optimizer = (8 if level == 0 and size == 4 else 12) * trained / share(1)
    if level == 1 and size == 2:
        gradients += 2 * trained  # and kept as they come
    bucket = min(float(zero.get("reduce_bucket_size", _BUCKET)), float(trained)) if level else 0.0
    overlapped = 2 if zero.get("overlap_comm", level == 3) else 1
    buffers = size * bucket * overlapped
    if level == 3:
        live = min(float(zero.get("stage3_max_live_parameters", _MAX_LIVE)), float(shape.num_parameters))
        buffers += size * live * (1 - 1 / num_ranks)
    # The gradient of the embedding, whole before it is added up.
    if stage.lora is None:
        buffers += size * shape.vocab_size * shape.width
    # Without ZeRO each weight is stepped by itself. Under ZeRO-3 gradients have a buffer that stays.
    step = 12 * trained / share(1) + (gradients if level == 3 else 0) if level else gradients
    offloaded = 0.0
    if _offloads(zero, "offload_optimizer"):
        offloaded, optimizer, step = optimizer + 12 * trained / share(1), 0.0, gradients
    if _offloads(zero, "offload_param"):
        offloaded, parameters = offloaded + parameters, 0.0
    activations = activation_bytes(stage, shape, rows)
    return Estimate(parameters, gradients, optimizer, activations, buffers, step, offloaded, trained, rows)


def _offloads(zero: Mapping[str, Any], what: str) -> bool:
    return bool((zero.get(what) or {}).get("device", "none") != "none")


def print_memory(config: Config, console: Console) -> None:
    """Prints what each stage's rank needs, in the launcher's dry run."""
    if not config.train.stages:
        return
    shape = find_shape(config.model)
    if shape is None:
        console.print(
            f"memory of training: unknown, because the config.json of {config.model} is not on this machine or its "
            "family is not one of "
            f"{', '.join(_FAMILIES)}",
            highlight=False,
        )
        return
    num_ranks = config.cluster.num_ranks
    say = functools.partial(console.print, highlight=False, soft_wrap=True, markup=False)
    say(f"memory per training rank, of {num_ranks}, at most ({shape.num_parameters / 1e9:,.3f} billion parameters):")
    for stage in config.train.stages:
        settings = deepspeed_config(stage, num_ranks)
        found = estimate(stage, settings, shape, num_ranks)
        what = [stage.dtype, f"ZeRO {settings.get('zero_optimization', {}).get('stage', 0)}"]
        what.append(f"rows of up to {found.row_tokens} tokens")
        what += ["gradient checkpointing"] if stage.gradient_checkpointing else []
        what += [f"LoRA: {found.num_trained / 1e6:,.1f} million trained"] if stage.lora else []
        names = ("parameters", "gradients", "optimizer", "activations", "buffers")
        parts = " + ".join(f"{name} {getattr(found, name) / GIB:,.2f}" for name in names)
        away = f"; offloaded {found.offloaded / GIB:,.2f} GiB" if found.offloaded else ""
        say(f"  {stage.name} ({', '.join(what)}): {found.peak / GIB:,.2f} GiB")
        say(f"    backward pass {found.in_backward / GIB:,.2f} = {parts}")
        say(f"    the optimizer's step {found.in_step / GIB:,.2f}{away}")
    say("  Libraries need memory in addition; with CUDA's context 1 to 2 GiB.")
