"""Whether the GPUs of a server hold its model: known before a launch, where the config or Slurm names them.

Only what cannot be is refused: GPUs count with all the memory that they have, weights of unknown precision with four
bits each, and a model whose size is not known is taken.
"""

import argparse
import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from salign.cluster.rates import Size, size_of
from salign.config import Config, FleetEngine, LocalCluster, ServedEngine
from salign.errors import ConfigError
from salign.gpus import GPUS
from salign.machine import visible_devices

# A data sheet's GB are GiB, or up to 6 % less: what a device has at most.
_MOST_OF_A_GB = (1 << 30) / 1e9
_USED = 0.9  # of the memory, by vLLM's own default
_OF_A_NODE = 8  # GPUs, at most, of those that are sold
_LEAST_BYTES = 0.5  # a weight's, however it is quantised
_QUANTISED = re.compile(
    r"awq|gptq|gpt-oss|gguf|bnb|quant|exl\d|w[48]a\d|(int|fp|nvfp|mxfp)[48]|[48][-_]?bit", re.IGNORECASE
)


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GPUs")
    return int(text)


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no share of the memory, above 0 and up to 1")


def _arguments(place: str, section: ServedEngine) -> argparse.Namespace:
    """What a section's arguments of `vllm serve` say of how its model is spread over GPUs.

    Raises:
        ConfigError: One of them has no value, or one that vLLM would end at.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--tensor-parallel-size", "-tp", type=_count)
    parser.add_argument("--pipeline-parallel-size", "-pp", type=_count)
    parser.add_argument("--gpu-memory-utilization", type=_share, default=_USED)
    parser.add_argument("--cpu-offload-gb", type=float, default=0.0)
    parser.add_argument("--quantization", "-q")
    parser.add_argument("--dtype")
    parser.add_argument("--kv-cache-dtype", default="auto")
    try:
        return parser.parse_known_args(section.arguments)[0]
    except argparse.ArgumentError as error:
        wrong = (
            str(error).replace("invalid _count value", "no number from 1").replace("invalid _share value", "no share")
        )
        raise ConfigError(f"{place}.arguments: {wrong}") from None


class Server(NamedTuple):
    """A server as it would be started.

    Attributes:
        place: Of its section in the config.
        section: The section.
        model: What it serves.
        given: By the section's arguments.
        stage: Whose GPUs it gets: `serve`, `simulate` or `evaluate`.
        num_gpus: That it uses, on all of its nodes.
        num_nodes: That it has.
    """

    place: str
    section: ServedEngine
    model: str
    given: argparse.Namespace
    stage: str
    num_gpus: int
    num_nodes: int


def gpus_of_server(config: Config, section: ServedEngine, stage: str) -> float:
    """The GPUs that each server of a section may use, on all of its nodes; less than 1 where several share one.

    Args:
        config: The run's.
        section: The section.
        stage: In whose jobs they run.
    """
    if isinstance(config.cluster, LocalCluster):
        there = float(len(visible_devices()))
        return there / section.num_servers
    if stage == "serve":
        return config.cluster.num_gpus(stage)
    # Of a shard, each rank starts its own; of an evaluation, the first does.
    asked = config.cluster.by_stage[stage]
    num_places = asked.num_tasks if stage == "simulate" else asked.nodes
    return config.cluster.num_gpus(stage) / num_places / section.num_servers


def stage_of_server(place: str, section: ServedEngine) -> str:
    """In whose jobs the servers of a place of the config run."""
    if place.startswith("evaluate."):
        return "evaluate"
    return "serve" if isinstance(section, FleetEngine) else "simulate"


def _servers(config: Config) -> Iterator[Server]:
    """Those of vLLM that the run starts on GPUs."""
    num_nodes = 1 if isinstance(config.cluster, LocalCluster) else config.cluster.serve.nodes
    for place, section in config.engines().items():
        if not isinstance(section, ServedEngine) or section.program != "vllm":
            continue
        stage = stage_of_server(place, section)
        given = _arguments(place, section)
        share = gpus_of_server(config, section, stage)
        there = max(1, math.floor(share)) if share else 0
        asked = (given.tensor_parallel_size or 1) * (given.pipeline_parallel_size or 1)
        if isinstance(section, FleetEngine) and not given.tensor_parallel_size and not given.pipeline_parallel_size:
            asked = there
        if there >= 1:
            of_stage = num_nodes if stage == "serve" else 1
            yield Server(place, section, section.model or config.model, given, stage, min(asked, there), of_stage)


def _weight_bytes(server: Server) -> float:
    """The bytes of one weight, at least."""
    if server.given.quantization or _QUANTISED.search(server.model):
        return _LEAST_BYTES
    return 4.0 if server.given.dtype in ("float32", "float") else 2.0


def _mistake(server: Server, size: Size, gpu_name: str) -> str | None:
    """What is wrong with a server on its GPUs, and what would fit."""
    given = server.given
    if given.cpu_offload_gb:
        return None
    of_weight = _weight_bytes(server)
    weights = of_weight * size.num_parameters
    cache = server.section.context_length * size.key_bytes / (2 if given.kv_cache_dtype.startswith("fp8") else 1)
    usable = GPUS[gpu_name].memory * _MOST_OF_A_GB * given.gpu_memory_utilization
    if weights + cache <= server.num_gpus * usable:
        return None
    enough = 2 ** math.ceil(math.log2((weights + cache) / usable))  # attention's heads are divided by powers of two
    most = (server.num_gpus * usable - cache) / of_weight / 1e9
    guessed = ", by the number in its name" if size.is_guessed else ""
    remedy = f"cluster.{server.stage}.gpus_per_node={enough}"
    if server.stage != "serve":
        remedy += f" and {server.place}.arguments='[--tensor-parallel-size, \"{enough}\"]'"
    elif (num_nodes := max(server.num_nodes, math.ceil(enough / _OF_A_NODE))) > 1:
        remedy = f"cluster.serve.nodes={num_nodes} and cluster.serve.gpus_per_node={math.ceil(enough / num_nodes)}"
    return (
        f"{server.place}: {server.model} has {weights / 1e9:,.0f} GB of weights{guessed}, and one reply of "
        f"{server.place}.context_length {server.section.context_length} needs {cache / 1e9:,.1f} GB beside them; "
        f"{server.num_gpus} x {gpu_name} have {server.num_gpus * usable / 1e9:,.0f} GB for both. {enough} x {gpu_name} "
        f"would do ({remedy})" + (f", or a model of at most {most:,.0f} billion parameters" if most >= 1 else "")
    )


def mistakes_of_room(config: Config, gpus: Mapping[str, str | None], *, by_name: bool = True) -> list[str]:
    """Models that their GPUs cannot hold, each with what would do.

    Args:
        config: The run's.
        gpus: Of each stage the GPU, by its name in `GPUS`; None where it is not known.
        by_name: Whether a size counts that is only known by a model's name.

    Raises:
        ConfigError: The arguments of a server make no sense.
    """
    found = []
    for server in _servers(config):
        gpu, size = gpus.get(server.stage), size_of(server.model)
        if gpu is not None and size is not None and (by_name or not size.is_guessed):
            found.append(_mistake(server, size, gpu))
    return list(dict.fromkeys(mistake for mistake in found if mistake is not None))


def check_room(config: Config) -> None:
    """Compares the models that the run serves with the memory of the GPUs that `cluster.throughput.gpu` names.

    Raises:
        ConfigError: Some do not fit; all of them are named, each with what would do.
    """
    gpu = config.cluster.throughput.gpu
    if mistakes := mistakes_of_room(config, dict.fromkeys(("serve", "simulate", "evaluate"), gpu)):
        raise ConfigError(
            "\n".join(mistakes)
            + "\nIf the GPUs are others, say so or nothing: cluster.throughput.gpu=null is no check."
        )
