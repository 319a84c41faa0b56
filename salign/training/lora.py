"""Low-rank adapters in a model, and the ordinary model that results from merging them."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from salign import models
from salign.config import LoRA
from salign.errors import ConfigError


def require_peft() -> None:
    """Checks that peft is installed.

    Raises:
        ConfigError: The package is missing.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ConfigError("a stage with lora needs the package peft: pip install 'salign[lora]'") from None


def add_adapters(model: PreTrainedModel, section: LoRA, seed: int) -> None:
    """Adds adapters to a model, in place; then they alone are trained.

    An adapter begins as nothing: until the first step the model is what it was.

    Args:
        model: Whose linear layers get them; under ZeRO-3 its weights may be sharded.
        section: Their size and place.
        seed: Of their first values, the same on every rank.

    Raises:
        ConfigError: No layer has such a name, or the output is among them.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    wanted = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=list(section.target_modules) or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's maps are transposed
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        inject_adapter_in_model(wanted, model)
    except ValueError as error:
        raise ConfigError(f"lora.target_modules: {models.last_line(str(error))}") from error
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ConfigError(
            "lora.target_modules names the output layer, whose logits are computed in chunks: leave it out"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge(model_name: str, section: LoRA, adapters: Mapping[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
    """Merges the adapters into the weights of the model that the stage started from (in float32).

    Args:
        model_name: What the stage started from.
        section: As for `add_adapters`.
        adapters: The trained parameters by their names in the model with adapters.
        dtype: Of the result.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = models.load_model(model_name, torch.float32)
    add_adapters(model, section, seed=0)
    parameters = dict(model.named_parameters())
    assert adapters.keys() == {name for name in parameters if "lora_" in name}
    with torch.no_grad():
        for name, tensor in adapters.items():
            parameters[name].copy_(tensor)
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    model.to(dtype)  # type: ignore[arg-type]
    return model
