"""The W&B workspace as code: the society, the health of training, preferences, evaluation, cost."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from salign.config import KINDS, TrackingSection
from salign.storage import write_atomic
from salign.tracking.names import LOGGED
from salign.tracking.server import Server, asking_wandb

Curves = Mapping[str, Sequence[str]]
"""What a society draws over its rounds: the metrics of each panel by its title."""
GOLDEN = Path(__file__).parent / "workspace.json"
_NAME = "Society and training"
# The view's name on the server: fixed, so that its address stays what it is.
_VIEW = "salign"
_TASKS = ("alignment", "engagement", "moral_stories")
_RECALLED = tuple(f"sim/recalled_{source}_share" for source in ("initial", "own", "heard"))


def build(entity: str, project: str, curves: Curves) -> Any:
    """Builds the workspace of a project whose societies have such curves."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    made = ws.Workspace(
        entity=entity,
        project=project,
        name=_NAME,
        sections=[
            ws.Section(name, panels=panels, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=3, rows=2))
            for name, panels in _sections(wr, curves).items()
        ],
        settings=ws.WorkspaceSettings(smoothing_type="none", max_runs=50),
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group"), ws.Metric("JobType")]),
    )
    made._internal_name = f"nw-{_VIEW}-v"
    return made


def _sections(wr: Any, curves: Curves) -> dict[str, list[Any]]:
    """The panels of each section, made of `wandb_workspaces.reports.v2`."""

    def over(step: str, title: str, *metrics: str, **how: Any) -> Any:
        return wr.LinePlot(title=title, x=step, y=list(metrics), **how)

    over_rounds, over_steps = partial(over, "sim/round"), partial(over, "train/global_step")

    def both(title: str, name: str, **how: Any) -> Any:
        return over_steps(title, f"train/{name}", f"eval/{name}", **how)

    return {
        "Society": [
            *(over_rounds(title, *metrics) for title, metrics in curves.items()),
            wr.LinePlot(title="All that observers rate", x="sim/round", metric_regex="sim/.*_mean"),
            over_rounds("Ratings that could be read", "sim/parse_rate", range_y=(0, 1)),
            over_rounds("Interactions that failed", "sim/failed"),
            over_rounds("What agents recall first, by source", *_RECALLED, range_y=(0, 1)),
            wr.BarPlot(title="Groups of alignment data", metrics=[f"data/{kind}" for kind in KINDS]),
            wr.BarPlot(title="Shards", metrics=["sim/shards_done", "sim/shards_failed"]),
        ],
        "Training health": [
            both("Loss", "loss"),
            over_steps("Gradient norm", "train/grad_norm", log_y=True),
            over_steps("Learning rate", "train/learning_rate"),
            over_steps("Tokens per second", "perf/tokens_per_s"),
            over_steps("Share of the GPUs' peak (MFU)", "perf/mfu"),
            over_steps("Seconds a step", "perf/step_time_s", "perf/data_time_s"),
            over_steps("Memory, GiB", "mem/max_rss_gib", "mem/max_gpu_gib"),
        ],
        "Preference": [
            both("Margin of chosen over rejected", "rewards/margins"),
            both("Groups whose best response is the likeliest", "rewards/accuracies", range_y=(0, 1)),
            over_steps("Log-likelihood of a token", "train/logps/chosen", "train/logps/rejected"),
            over_steps("The loss's parts", "train/loss_best", "train/loss_contrast"),
        ],
        "Generations": [
            both("Answers that the policy gradient held back", "policy/clipped_share", range_y=(0, 1)),
            both("Divergence from the model at the start", "policy/divergence"),
            both("Size of an advantage", "policy/advantage_size"),
            both("Divergence from the optimal policy", "target/divergence"),
            both("Divergence from that of replayed groups", "target/replayed_divergence"),
            both("Entropy of the optimal policy", "target/entropy"),
            over_steps("Groups of earlier generations", "train/replay/share", range_y=(0, 1)),
            over_steps("Age of groups, in generations", "train/replay/age"),
        ],
        "Evaluation": [
            *(wr.BarPlot(title=task.replace("_", " ").capitalize(), metrics=[f"eval/{task}/mean"]) for task in _TASKS),
            wr.RunComparer(diff_only="split"),
        ],
        "Cost": [
            over_rounds("Model calls", "sim/calls"),
            over_rounds("Tokens", "sim/tokens"),
            over_rounds("Cost", "sim/cost"),
            over_steps("Tokens trained on", "train/num_tokens"),
        ],
    }


def spec(workspace: Any) -> dict[str, Any]:
    """Returns what would be sent to the server, without random ids."""
    view = workspace._to_model()
    sent: dict[str, Any] = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    stripped = _without_random(sent)
    assert isinstance(stripped, dict)
    return stripped


def _without_random(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_random(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_random(item) for name, item in value.items() if name not in ("id", "__id__", "ref")}
    return value


def named_metrics(found: Any) -> set[str]:
    """Returns every metric that a spec shows, or draws something over."""
    names: set[str] = set()
    if isinstance(found, list):
        return names.union(*map(named_metrics, found))
    if isinstance(found, dict):
        for name, value in found.items():
            if name == "metrics" and isinstance(value, list):
                names.update(item for item in value if isinstance(item, str))
            elif name == "xAxis" and isinstance(value, str) and not value.startswith("_"):
                names.add(value)
            else:
                names |= named_metrics(value)
    return names


def is_logged(name: str) -> bool:
    """Returns whether one of our W&B runs has a metric of that name."""
    patterns = (pattern for patterns in LOGGED.values() for pattern in patterns)
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]+"), name) for pattern in patterns)


def not_logged(found: Any) -> list[str]:
    """Returns the metrics that a spec shows and none of our W&B runs has."""
    return [name for name in sorted(named_metrics(found)) if not is_logged(name)]


def check(curves: Curves, *, update: bool = False) -> list[str]:
    """Compares the workspace, offline, with its reviewed copy and with what is logged.

    Args:
        curves: Of the default society.
        update: Writes it down as what was agreed on.

    Returns:
        What is wrong, nothing where all is well.
    """
    found = spec(build("entity", "project", curves))
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if update:
        write_atomic(GOLDEN, text)
    problems = [f"{name} is shown, and nothing logs it" for name in not_logged(found)]
    if not GOLDEN.exists() or GOLDEN.read_text(encoding="utf-8") != text:
        problems.append(
            f"the workspace differs from {GOLDEN.name}; review the change, then run: "
            "python jobs/dashboard.py check --update"
        )
    return problems


def apply(tracking: TrackingSection, curves: Curves) -> tuple[str, bool]:
    """Creates the workspace in W&B, or updates it under the same address.

    Args:
        tracking: Names the project.
        curves: Of the society that it is to show.

    Returns:
        Its address, and whether it is new.

    Raises:
        ConfigError: There is no key.
        StageError: What W&B said.
    """
    from wandb_workspaces.workspaces import internal

    with asking_wandb():
        server = Server(tracking)
        workspace = build(server.entity, server.project, curves)
        try:
            view = internal.get_view_dict(server.entity, server.project, _VIEW)
            workspace._internal_id = view["id"]
        except ValueError:  # neither project nor view need be there yet
            view = None
        workspace.save()
        return str(workspace.url), view is None
