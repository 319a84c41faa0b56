"""The model that a stage leaves: an ordinary one in Hugging Face format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from salign.chat import chat_template
from salign.errors import ConfigError
from salign.storage import new_folder, noticing_full_disk


def trained_weights(engine: Any, model: PreTrainedModel, *, adapters: bool) -> dict[str, Tensor] | None:
    """Collects the weights by their names in the model, whole on rank 0; every rank calls it.

    Args:
        engine: DeepSpeed's.
        model: In it.
        adapters: Gives those of low-rank adapters alone.

    Returns:
        None where the model itself has them, and under ZeRO-3 on other ranks.
    """
    if engine.zero_optimization_stage() == 3:
        state = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapters)
        if state is None:
            return None
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        return {name: tensor for name, tensor in state.items() if not adapters or "lora_" in name}
    if adapters:
        return {name: weight.detach().cpu() for name, weight in model.named_parameters() if weight.requires_grad}
    return None


def complete_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes replies end where training ends them, and checks that the generation config can be written.

    Raises:
        ConfigError: The model's generation config contradicts itself.
    """
    config = model.generation_config
    assert config is not None
    known = config.eos_token_id
    ends = [] if known is None else list(known) if isinstance(known, list | tuple) else [known]
    end = chat_template(tokenizer).end
    missing = [token for token in dict.fromkeys([end, tokenizer.eos_token_id]) if token not in ends]
    if missing:
        ends = [*missing, *ends]
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
    if _fault(config) is not None:
        config.do_sample = True  # what settings of sampling without it are meant to say
    if (fault := _fault(config)) is not None:
        raise ConfigError(
            f"the generation_config.json of the model that training starts from is not valid: {fault}. Fix it."
        )


def _fault(config: GenerationConfig) -> ValueError | None:
    try:
        config.validate(strict=True)
    except ValueError as error:
        return error
    return None


def write_model(
    folder: Path,
    model: PreTrainedModel,
    weights: Mapping[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> None:
    """Writes a model with tokenizer, chat template, generation config and card; the folder appears whole.

    Args:
        folder: The model's.
        model: Its config and, where `weights` is None, its weights.
        weights: By their names in the model.
        tokenizer: With its chat template.
        card: The text of README.md.
    """
    complete_generation_config(model, tokenizer)
    with new_folder(folder) as part, noticing_full_disk(part):
        model.save_pretrained(part, state_dict=None if weights is None else dict(weights))
        tokenizer.save_pretrained(part)
        (part / "README.md").write_text(card, encoding="utf-8")
