"""What can be checked about the training before it starts."""

from pathlib import Path

from salign.config import Config
from salign.training.settings import deepspeed_config


def check_training(config: Config) -> list[Path]:
    """Reads the DeepSpeed file of each stage.

    Returns:
        Those files.

    Raises:
        ConfigError: One is missing or malformed, or contradicts the stage's config.
    """
    for stage in config.train.stages:
        deepspeed_config(stage, config.cluster.num_ranks)
    return [stage.deepspeed for stage in config.train.stages]
