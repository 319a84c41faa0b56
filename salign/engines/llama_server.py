"""llama.cpp's server as a program: `python -m salign.engines.llama_server`, with its settings in the environment.

The settings carry the server's key, which has no place on a command line that everyone on the machine can read.
"""

import dataclasses
import importlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

SETTINGS = "SALIGN_LLAMA_SERVER"
"""The environment variable that holds the settings as JSON."""

_LOOKED_FOR, _TRIED = 4, 8
_SAMPLERS_ARE_SET = 1  # llama.cpp's COMMON_PARAMS_SAMPLING_CONFIG_SAMPLERS


@dataclass(frozen=True)
class LlamaSettings:
    """One server. `context_length` is of each slot; with `looks_up`, what follows is guessed from the prompt."""

    gguf: str
    name: str
    host: str
    port: int
    key: str
    context_length: int
    num_slots: int
    num_threads: int
    keeps_prompts: bool = True
    looks_up: bool = False

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self))


def start(settings: LlamaSettings) -> Any:
    """Loads the model and listens; what is returned is the server, to be held."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # without types
    params = xllamacpp.CommonParams()
    params.model.path = settings.gguf
    params.model_alias = {settings.name}
    params.hostnames, params.port, params.api_keys = [settings.host], settings.port, [settings.key]
    # llama.cpp shares its context out among the slots.
    params.n_ctx, params.n_parallel = settings.context_length * settings.num_slots, settings.num_slots
    # By default it also cuts by top_k 40 and min_p 0.05, and by top_p before the temperature: nobody asked for that.
    # The flag: nor may the model's file.
    params.sampling.samplers, params.sampling.user_sampling_config = "temperature;top_p", _SAMPLERS_ARE_SET
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.num_threads
    # Up to 8 GiB of old prompts beside the model is more than a job may have; each slot keeps its last prompt anyway.
    params.cache_ram_mib, params.cache_idle_slots = 0, False
    params.cache_prompt = settings.keeps_prompts
    if settings.looks_up:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        # So many last tokens are looked for in what was read and said, so many that followed are tried: its own 12
        # and 48 are for files of code.
        params.speculative.ngram_simple.size_n, params.speculative.ngram_simple.size_m = _LOOKED_FOR, _TRIED
    params.ui = False
    params.verbosity = 2  # warnings: not seven lines for each call
    return xllamacpp.Server(params)


def main() -> None:
    """Serves until a signal ends it."""
    settings = LlamaSettings(**json.loads(os.environ.pop(SETTINGS)))
    try:
        server = start(settings)
    except RuntimeError as error:  # llama.cpp has said why; a traceback would push that out of sight
        sys.exit(f"llama.cpp did not start: {error}")
    print(f"{settings.name} is being served at {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
