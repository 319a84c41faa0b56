"""What is logged to W&B, by whom, and over what it is drawn. Names follow TRL's under `train/` and `eval/`."""

from typing import Literal

JobType = Literal["simulate", "train", "evaluate"]

_LOSSES = (
    "loss",
    "loss_best",
    "loss_contrast",
    "logps/chosen",
    "logps/rejected",
    "rewards/margins",
    "rewards/accuracies",
)
_POLICY = ("policy/clipped_share", "policy/divergence", "policy/advantage_size")
_TARGET = ("target/divergence", "target/entropy", "target/replayed_divergence")

# Of each kind of run: what its rows and its summary hold. `*` stands for the task of an evaluation, or for what
# observers rate and protocols measure.
LOGGED: dict[JobType, tuple[str, ...]] = {
    "simulate": (
        "sim/round",
        "sim/*_mean",
        "sim/survey_*_sd",
        "sim/description_kept_share",
        "sim/*_share",
        "sim/parse_rate",
        "sim/failed",
        "sim/calls",
        "sim/tokens",
        "sim/cost",
        "sim/digit_mass_median",
        "observer/agreement",
        "observer/length_correlation",
        "sim/shards_done",
        "sim/shards_failed",
        "sim/interactions",
        "sim/samples",
        "data/groups",
        "data/imitation",
        "data/self_critic",
        "data/realignment",
    ),
    "train": (
        "train/global_step",
        "train/steps_most",
        *(f"train/{name}" for name in _LOSSES),
        *(f"eval/{name}" for name in _LOSSES),
        *(f"train/{name}" for name in _POLICY),
        *(f"eval/{name}" for name in _POLICY),
        *(f"train/{name}" for name in _TARGET),
        *(f"eval/{name}" for name in _TARGET),
        "train/replay/share",
        "train/replay/age",
        "train/learning_rate",
        "train/grad_norm",
        "train/epoch",
        "train/num_tokens",
        "perf/step_time_s",
        "perf/data_time_s",
        "perf/tokens_per_s",
        "perf/padding_share",
        "perf/mfu",
        "mem/max_rss_gib",
        "mem/max_gpu_gib",
    ),
    "evaluate": (
        "eval/*/mean",
        "eval/*/low",
        "eval/*/high",
        "eval/*/n",
        "eval/*/num_missing",
        "eval/judge/*/*/*",
        "eval/samples",
        "eval/over_seeds",
    ),
}


def mean_rating(criterion: str, role: str | None = None) -> str:
    """Returns the metric that has a round's mean rating by a criterion.

    Args:
        criterion: By which observers rate.
        role: Of the turns that they rate; None for the outcome of an interaction.
    """
    return f"sim/{criterion}_mean" if role is None else f"sim/{role}_{criterion}_mean"


# What is on the x axis of whose curves; wandb's own step is not used, so that a requeued run may go on.
X_AXES: dict[JobType, dict[str, str]] = {
    "simulate": {"sim/*": "sim/round"},
    "train": dict.fromkeys(("train/*", "eval/*", "perf/*", "mem/*"), "train/global_step"),
    "evaluate": {},
}
