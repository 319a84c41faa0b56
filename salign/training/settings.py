"""Combines a stage's config and its DeepSpeed file. Imports no torch: the launcher checks it before everything else."""

import math
from typing import Any

from salign.config import TrainStage
from salign.documents import read_json
from salign.errors import ConfigError, DataError

# Logits that exist at a time, at most: 128 MiB in float32.
MAX_LOGITS = 1 << 25
# What the config says and a DeepSpeed file therefore must not.
_OURS = {
    "train_batch_size": "groups_per_step",
    "train_micro_batch_size_per_gpu": "row_tokens",
    "gradient_accumulation_steps": "groups_per_step",
    "gradient_clipping": "max_grad_norm",
    "bf16": "dtype",
    "fp16": "dtype",
    "amp": "dtype",
    "data_types": "dtype",
    "optimizer": "learning_rate and weight_decay",
    "scheduler": "warmup_share",
}


def deepspeed_config(stage: TrainStage, num_ranks: int) -> dict[str, Any]:
    """Completes the stage's DeepSpeed file by what the stage's config says.

    Raises:
        ConfigError: The file is missing or malformed, or says what the config says; or there are more ranks than groups
            in a step.
    """
    path = stage.deepspeed
    try:
        given = read_json(path, f"train stage {stage.name}: DeepSpeed file {path}")
    except FileNotFoundError:
        raise ConfigError(f"train stage {stage.name}: no DeepSpeed file {path}; configs/deepspeed has some") from None
    except DataError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(given, dict) or not isinstance(given.get("zero_optimization", {}), dict):
        raise ConfigError(
            f"train stage {stage.name}: DeepSpeed file {path} must hold an object, as zero_optimization must"
        )
    mistakes = [
        f"DeepSpeed file {path} sets {name!r}; remove it: train.stages.{stage.name}.{ours} says it"
        for name, ours in _OURS.items()
        if name in given
    ]
    zero = given.get("zero_optimization", {})
    if zero.get("stage", 0) not in (0, 1, 2, 3):
        mistakes.append(f"DeepSpeed file {path}: there is no ZeRO stage {zero['stage']!r}; it is 0, 1, 2 or 3")
    if stage.dtype == "bfloat16" and zero.get("stage", 0) == 0:
        mistakes.append(
            f"DeepSpeed file {path}: without ZeRO the gradients of several rows are added up in bfloat16, where small "
            f"ones are lost; set zero_optimization.stage to 1 or more, or train.stages.{stage.name}.dtype to float32"
        )
    if stage.groups_per_step < num_ranks:
        mistakes.append(
            f"train.stages.{stage.name}.groups_per_step {stage.groups_per_step} is less than the {num_ranks} ranks: "
            "some would have no work"
        )
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    if stage.dtype == "bfloat16":
        # Else the gradients of several rows are added up in bfloat16.
        given["data_types"] = {"grad_accum_dtype": "fp32"}
    return {
        "steps_per_print": 1_000_000_000,
        # An offloaded optimizer too is torch's.
        "zero_force_ds_cpu_optimizer": False,
        **given,
        # The loop says itself where a step ends and what a row weighs; 2 stands for "several rows a step".
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": stage.max_grad_norm,
        "bf16": {"enabled": stage.dtype == "bfloat16"},
        "optimizer": {
            "type": "AdamW",
            # torch's own: DeepSpeed's would be compiled at the first start
            "params": {"lr": stage.learning_rate, "weight_decay": stage.weight_decay, "torch_adam": True},
        },
    }


def learning_rate_share(step: int, num_steps: int, warmup_share: float) -> float:
    """Returns the share of the full rate in a step (counted from 0): linear warm-up, then cosine to 0."""
    warmup = math.ceil(warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
