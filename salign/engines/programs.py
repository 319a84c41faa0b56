"""The programs that serve a model, and the GPUs that they get."""

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from salign import models
from salign.config import ServedEngine
from salign.engines.llama_server import SETTINGS, LlamaSettings
from salign.errors import ConfigError
from salign.shown import is_secret


@dataclass(frozen=True)
class Program:
    """How a server is started: its command, and what its environment adds, both for a port and a key.

    Attributes:
        model: The name under which it is served.
        files: The folder or file that is served, brought here if need be.
    """

    model: str
    files: Callable[[], str]
    command: Callable[[int], list[str]]
    environment: Callable[[int, str], dict[str, str]]


def _llama_cpp(section: ServedEngine, model: str, host: str) -> Program:
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError(
            "engine.program=llama_cpp needs the package xllamacpp, which is not installed: pip install xllamacpp"
        )
    gguf = _gguf(model)
    # llama.cpp itself counts the cores of the machine, not those that this process may use.
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    allowed = int(named) if named.isdecimal() and int(named) else len(os.sched_getaffinity(0))

    def environment(port: int, key: str) -> dict[str, str]:
        settings = LlamaSettings(
            gguf=str(gguf),
            name=model,
            host=host,
            port=port,
            key=key,
            context_length=section.context_length,
            num_slots=1 if section.batch_invariant else section.num_slots,
            num_threads=max(1, allowed // section.num_servers),
            keeps_prompts=not section.batch_invariant,
            looks_up=section.speculation == "prompt_lookup",
        )
        return {SETTINGS: settings.dumps()}

    return Program(
        model, lambda: str(gguf), lambda _: [sys.executable, "-m", "salign.engines.llama_server"], environment
    )


def _gguf(model: str) -> Path:
    if model in models.EMBEDDED:
        return models.embedded_gguf(model)
    path = Path(model).expanduser().absolute()
    remedy = (
        f"engine.program=llama_cpp serves a GGUF file or an embedded model ({', '.join(models.EMBEDDED)}): name one in "
        "engine.model (llama.cpp's convert_hf_to_gguf.py makes one of a Hugging Face folder), or set "
        "engine.program=vllm."
    )
    if not path.is_file():
        raise ConfigError(f"model {model!r} is not a file on this machine. {remedy}")
    if not is_gguf(model):
        raise ConfigError(f"model {model!r} is not in GGUF format. {remedy}")
    return path


def is_gguf(model: str) -> bool:
    """Whether a model is named by the path of a GGUF file that is here."""
    path = Path(model).expanduser()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _vllm(section: ServedEngine, model: str, host: str) -> Program:
    # Beside this Python first: a virtual environment need not be activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    executable = shutil.which("vllm", path=path)
    if executable is None:
        raise ConfigError(
            "engine.program=vllm needs the command vllm, which is not on the PATH: pip install vllm (on a machine with "
            "GPUs; it may have a virtual environment of its own whose bin folder is put on the PATH), or set "
            "engine.program=llama_cpp."
        )
    models.check_name(model)

    def command(port: int) -> list[str]:
        options = {
            "host": host,
            "port": port,
            "served-model-name": model,
            "max-model-len": section.context_length,
            "max-num-seqs": section.num_slots,
            "max-logprobs": section.num_top_logprobs,
            # The model's own file would add its top_k and penalties to the sampling that was asked for.
            "generation-config": "vllm",
        }
        if section.speculation == "prompt_lookup":
            options["speculative-config"] = json.dumps(_VLLM_LOOKS_UP)
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [executable, "serve", models.resolve(model), *words, "--disable-uvicorn-access-log", *section.arguments]

    more = {"VLLM_NO_USAGE_STATS": "1", **({"VLLM_BATCH_INVARIANT": "1"} if section.batch_invariant else {})}
    return Program(model, lambda: models.resolve(model), command, lambda _, key: {"VLLM_API_KEY": key, **more})


# The last 2 to 4 tokens are looked for in what was read and said so far; up to 5 that followed there are tried.
_VLLM_LOOKS_UP = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2}


S = TypeVar("S", bound=ServedEngine)


def on_gpus(section: S, num_gpus: int, num_nodes: int = 1) -> S:
    """The section of a fleet's servers, so that each spreads its model over all of its GPUs unless told otherwise.

    Tensors are divided within a node, where GPUs are joined by fast links, and layers among nodes.

    Args:
        section: Of the fleet.
        num_gpus: That each of its servers sees on a node.
        num_nodes: That each of them has.
    """
    spread = {"tensor": num_gpus, "pipeline": num_nodes}
    words = [word for kind, num in spread.items() if num > 1 for word in (f"--{kind}-parallel-size", str(num))]
    if section.program != "vllm" or any(_SAYS_HOW.match(word) for word in section.arguments):
        return section
    return section.model_copy(update={"arguments": (*section.arguments, *words)})


# Words of `vllm serve` by which a model is spread over GPUs.
_SAYS_HOW = re.compile(r"--\w+[-_]parallel[-_]size|-(tp|pp)\b")


_PROGRAMS = {"llama_cpp": _llama_cpp, "vllm": _vllm}


def program_of(section: ServedEngine, model: str, host: str = "127.0.0.1") -> Program:
    """How the servers of a section are started.

    Args:
        section: Which program, and with what.
        model: What is served.
        host: The address that is listened at.

    Raises:
        ConfigError: The program or the model cannot be had here.
    """
    return _PROGRAMS[section.program](section, model, host)


# What programs need to find themselves, their GPUs, threads and caches; keys are not among it.
_PASSED = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV"}
_PASSED |= {"SALIGN_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
_PASSED_BEGINNINGS = (
    *("LC_", "XDG_", "PYTHON", "CONDA_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "CUDA_", "NVIDIA_", "NCCL_", "ROCR_"),
    *("HIP_", "TORCH", "TRITON_", "VLLM_", "GGML_", "LLAMA_"),
)


def server_environment(section: ServedEngine) -> dict[str, str]:
    """The variables that a server gets of this process's: by name or beginning, and those of `engine.environment`."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in section.environment
        or ((name in _PASSED or name.startswith(_PASSED_BEGINNINGS)) and not is_secret(name))
    }
