"""Rates that nobody has measured yet, from what a GPU is built for: a roofline.

Reading a prompt and training are bound by arithmetic: 2 FLOPs a parameter and token, 6 with the gradients and 8 where
the forward pass is made twice. Writing is bound by memory: each step reads the weights once, and the keys and values of
every reply that is being written (Pope et al. 2022, arXiv 2211.05102). Of both some share is reached: the range is from
a low one to a high one.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from salign.config import Config, FleetEngine, ServedEngine, TrainStage, TransformersEngine, num_agents_of
from salign.gpus import GPUS, Gpu
from salign.training.memory import Shape, find_shape

# Shares of the peak. Arithmetic: Llama 3 was trained at 38 to 43 % (arXiv 2407.21783), PaLM at 46 % (2204.02311), small
# runs at less. Memory: servers that batch continuously reach about half, a model in this process a fifth (its step is a
# Python loop).
_ARITHMETIC = (0.25, 0.45)
_MEMORY = {"server": (0.4, 0.7), "transformers": (0.1, 0.25)}
# Of a prompt, the share that a prefix cache may spare: 50 % was measured on vLLM with the society's order of calls.
_CACHED = 0.5

# Prompts and replies in tokens, as the shipped societies' are: a reply has one to three sentences, a prompt its frame
# and one and a half replies. A rating by a digit's probability writes one token, one in words a sentence.
_REPLY, _FRAME, _SHOWN, _RATING = 50.0, 150.0, 1.5, 30.0
# What a model whose config is not here has, by its billions of parameters: keys and values in bytes a token in 16 bit.
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?[bB](?![a-zA-Z])")
_BYTES_OF_KEYS = 16_000.0


class Range(NamedTuple):
    """From the least to the most that is expected."""

    low: float
    high: float

    @staticmethod
    def exact(value: float) -> "Range":
        """Of what is known."""
        return Range(value, value)

    def times(self, factor: float) -> "Range":
        """Both of them so many times."""
        return Range(self.low * factor, self.high * factor)

    def plus(self, other: "Range") -> "Range":
        """The sum of two."""
        return Range(self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class Size:
    """A model as it is served: its parameters, and the bytes of a token's keys and values."""

    num_parameters: float
    key_bytes: float
    is_guessed: bool = False


def size_of(model: str) -> Size | None:
    """The size of a model, by its config.json or else by the number in its name ("7B"); None if neither says it."""
    shape = find_shape(model)
    if shape is not None:
        return Size(shape.num_parameters, 2.0 * shape.num_layers * _key_width(shape) * 2)
    said = _SIZE.search(model.rsplit("/", 1)[-1].replace("_", "-"))
    if said is None:
        return None
    billions = float(said[1])
    # Layers and widths grow with the root of the parameters, about.
    return Size(billions * 1e9, _BYTES_OF_KEYS * math.sqrt(max(billions, 0.1)), is_guessed=True)


def _key_width(shape: Shape) -> int:
    return shape.linear["k_proj"][1]


class Calls(NamedTuple):
    """The rate of one shard, and what a call has in tokens."""

    per_s: Range
    tokens: Range
    source: str


def tokens_of_calls(config: Config, num_calls: int) -> tuple[float, Range]:
    """Tokens of a prompt, and of a reply: on average over an interaction's calls.

    Args:
        config: The run's.
        num_calls: Of an interaction.
    """
    society = config.society
    longest = (society.draft.max_tokens + society.revision.max_tokens + society.feedback.max_tokens) / 3
    reply = Range(min(_REPLY, longest), float(longest))
    rating = 1.0 if society.rating == "logprob" else min(_RATING, longest)
    written = min(num_calls, 2 + (society.audience_size if society.has_audience else 0))
    share = written / num_calls
    mean = Range(share * reply.low + (1 - share) * rating, share * reply.high + (1 - share) * rating)
    return _FRAME + _SHOWN * reply.low, mean


def calls_of(config: Config, gpu_name: str, num_calls: int, num_agents: int, num_shards: int) -> Calls | str:
    """The rate of a shard's calls; why there is none, in words, where none can be told.

    Args:
        config: The run's.
        gpu_name: Of `GPUS`.
        num_calls: Of an interaction.
        num_agents: That speak at a time in a shard, at most.
        num_shards: That are simulated at a time: they share a fleet.
    """
    section = config.engine
    if not isinstance(section, ServedEngine | TransformersEngine) or (
        isinstance(section, ServedEngine) and section.program != "vllm"
    ):
        return "the rate of this engine is not known before it is measured"
    is_shared = isinstance(section, FleetEngine)
    num_gpus = config.cluster.num_gpus("serve" if is_shared else "simulate")
    if num_gpus <= 0:
        return f"cluster.{'serve' if is_shared else 'simulate'}.gpus_per_node names no GPU"
    model = section.model or config.model
    size = size_of(model)
    if size is None:
        return f"the size of {model} is not known: its config.json is not here"
    is_served = isinstance(section, ServedEngine)
    num_servers = section.num_servers if isinstance(section, ServedEngine) else 1
    of_each = num_gpus if is_shared else num_gpus / num_servers
    half = isinstance(section, ServedEngine) or section.dtype != "float32"
    gpu, num_bytes = GPUS[gpu_name], size.num_parameters * (2 if half else 4)
    if num_bytes > 0.9 * gpu.memory * max(of_each, 1):
        return (
            f"{model} has {num_bytes / 1e9:,.0f} GB of weights, which {max(of_each, 1):g} x {gpu_name} of "
            f"{gpu.memory / 1e9:.0f} GB cannot hold"
        )
    prompt, reply = tokens_of_calls(config, num_calls)
    asking = num_shards if is_shared else 1
    slots = section.num_slots if isinstance(section, ServedEngine) else section.max_batch
    asked = asking * min(section.max_in_flight, num_agents) / num_servers
    room = (0.9 * gpu.memory * of_each - num_bytes) / (size.key_bytes * (prompt + reply.high))
    batch = max(1.0, min(slots, asked, room))
    served = _Served(size, gpu, of_each, num_bytes, batch, "server" if is_served else "transformers")
    slow, fast = served.seconds(prompt, reply.high, 0), served.seconds(prompt, reply.low, 1, _CACHED)
    said = f"{gpu_name} by its data sheet" + (", size by the name" if size.is_guessed else "")
    per_s = Range(1 / slow, 1 / fast).times(num_servers / asking)
    return Calls(per_s, Range(prompt + reply.low, prompt + reply.high), said)


class _Served(NamedTuple):
    """A model on its GPUs; `num_bytes` are its weights', `at_once` the replies that are written together."""

    size: Size
    gpu: Gpu
    num_gpus: float
    num_bytes: float
    at_once: float
    kind: str

    def seconds(self, prompt: float, reply: float, case: int, cached: float = 0.0) -> float:
        """Seconds of all of them that a call takes, with others beside it.

        Args:
            prompt: Tokens of the prompt.
            reply: Tokens that are written.
            cached: The share of the prompt that need not be read again.
            case: 0 for the lower share of the peaks, 1 for the upper.
        """
        arithmetic = self.gpu.half_flops * self.num_gpus * _ARITHMETIC[case]
        memory = self.gpu.bandwidth * self.num_gpus * _MEMORY[self.kind][case]
        flops = 2 * self.size.num_parameters
        read_bytes = self.num_bytes + self.at_once * self.size.key_bytes * (prompt + reply)
        step = max(read_bytes / memory, flops * self.at_once / arithmetic)
        return flops * prompt * (1 - cached) / arithmetic + reply * step / self.at_once


def trained_per_s(config: Config, stage: TrainStage, gpu_name: str, num_gpus: float) -> Range | None:
    """Tokens a second in training, of all ranks; None where the model's size is not known."""
    size = size_of(config.model)
    if size is None or num_gpus <= 0:
        return None
    gpu = GPUS[gpu_name]
    peak = gpu.single_flops if stage.dtype == "float32" else gpu.half_flops
    flops = size.num_parameters * (8 if stage.gradient_checkpointing else 6)
    return Range(*(peak * num_gpus * share / flops for share in _ARITHMETIC))


# Of what a society records: groups an interaction, and tokens of a question with its frame (measured in the quickstart:
# 36 interactions gave 87 groups).
_GROUPS, _QUERY = 2.4, 60.0
# Bytes of a token of English, and how much text there is in a packed byte.
_BYTES_OF_TOKEN, _UNPACKED = 4.0, 3.0


def tokens_of_data(config: Config, stage: TrainStage) -> Range | None:
    """Tokens that a stage is trained on in all its epochs, by its data; None where that is not here.

    Of a society, which is yet to be: what it will record, if no world stops early, and half of that.
    """
    found = Range(0.0, 0.0)
    for part in stage.parts:
        if part.kind == "run":
            society = config.society
            num_agents = num_agents_of(society.topology) or 0
            interactions = society.num_worlds * num_agents * society.max_rounds
            most = interactions * _GROUPS * (_QUERY + _REPLY * stage.max_responses)
            one = Range(most / 2, most)
        else:
            path = getattr(getattr(part, "source", part), "path", None)
            if path is None or not Path(path).is_file():
                return None
            text = Path(path).stat().st_size * (_UNPACKED if str(path).endswith(".gz") else 1.0)
            one = Range(text / _BYTES_OF_TOKEN / 2, text / _BYTES_OF_TOKEN)
        found = found.plus(one)
    return found.times(stage.num_epochs)
