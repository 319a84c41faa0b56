"""The model card: what a trained model is, what it was made of and how, in the form that model hubs read."""

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from salign import __version__, models
from salign.config import KINDS, AnswersData, Config, DataPart, DatasetData, Effect, GroupsData, TrainStage, selected
from salign.shown import neutral
from salign.tracking.metrics import Row

_PAPER = "arXiv:2305.16960"
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
# What the card says elsewhere.
_SAID_ELSEWHERE = {"name", "objective", "lora"}
_FIGURES = ("loss", "loss_best", "loss_contrast", "rewards/margins", "rewards/accuracies")


@dataclass(frozen=True)
class Facts:
    """Facts about a complete stage, for its card.

    Attributes:
        counts: Steps, tokens, groups, what was left out.
        digest: Of its data in tokens.
        num_ranks: That trained it.
        zero_stage: Of DeepSpeed.
        base: Digest and revision of the run's model, as its manifest notes them.
    """

    counts: Mapping[str, int]
    digest: str
    num_ranks: int
    zero_stage: int
    base: Mapping[str, Any] | None = None


def licence_of(model: str) -> str | None:
    """Returns the licence that a model's own card names, as hubs abbreviate it; None if it names none."""
    if model in models.EMBEDDED:
        return models.EMBEDDED[model].licence
    front = _front_of(Path(model).expanduser() / "README.md")
    named = front.get("license") if isinstance(front, dict) else None
    return named if isinstance(named, str) and named not in ("", "~", "null") else None


def _front_of(card: Path) -> object:
    """What stands in the head of somebody's card; None where it cannot be read, whatever is wrong with it."""
    try:
        front = _FRONT.match(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
        # Strings alone: no value is made into a date, which it may not be.
        return None if front is None else yaml.load(front[1], Loader=yaml.BaseLoader)  # noqa: S506
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return None


def _code(text: object) -> str:
    return neutral(str(text), "markdown code")


def _origin(model: str) -> str:
    """A model's name as one may tell it to others: without the folders of this machine."""
    if model in models.EMBEDDED:
        return models.EMBEDDED[model].origin
    return Path(model).name if Path(model).expanduser().is_dir() else models.hub_name(model)[0]


def _identity(base: Mapping[str, Any] | None) -> str:
    """What tells the base model from others of its name."""
    if base is None:
        return ""
    revision = f", revision {_code(base['revision'])} of the hub" if base["revision"] else ""
    return f" The first is the model whose files have the digest {_code(base['digest'][:16])}{revision}."


def _data(data: DataPart) -> str:
    if isinstance(data, GroupsData):
        return f"graded groups of responses, from the file {_code(data.path.name)}"
    if isinstance(data, DatasetData):
        parts = {"configuration": data.name, "folder": data.data_dir, "split": data.split, "revision": data.revision}
        said = ", ".join(f"{what} {_code(value)}" for what, value in parts.items() if value is not None)
        return f"graded groups of responses, from the dataset {_code(_origin(data.path))}, {said}"
    if isinstance(data, AnswersData):
        source = data.source
        name = getattr(source, "path", None)
        return f"answers taken as good, from the source `{source.kind}`" + (
            f" ({_code(Path(name).name)})" if name else ""
        )
    kinds = "" if set(data.kinds) == set(KINDS) else f", of the kinds {', '.join(data.kinds)} alone"
    return (
        "graded groups of responses, made by this run's simulated society of language models: drafts and revisions "
        f"with ratings{kinds}"
    )


def _all_data(stage: TrainStage) -> str:
    """Each part of a stage's data by itself: what others made is not taken for the society's."""
    said = [_data(part) for part in stage.parts]
    said = [f"{text[0].upper()}{text[1:]}" for text in said]
    if len(said) == 1:
        return said[0]
    return "\n".join([f"All groups of {len(said)} parts:", "", *(f"- {text}" for text in said), "", "All of it"])


def _table(rows: Sequence[tuple[str, object]]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {neutral(str(value), 'markdown')} |" for name, value in rows)]
    )


def _figures(rows: Sequence[Row]) -> str:
    lines = ["| | first step | last step | held out |", "|---|---|---|---|"]
    measured = [row for row in rows if "eval/loss" in row]
    for name in _FIGURES:
        values = [row.get(f"train/{name}") for row in (rows[0], rows[-1])]
        values.append(measured[-1].get(f"eval/{name}") if measured else None)
        lines.append(f"| {name} | " + " | ".join("-" if value is None else f"{value:.4f}" for value in values) + " |")
    return "\n".join(lines)


_MODELS_LICENCE = (
    "of the model that training started from. The licence of the data is not part of it: look at its source."
)
_NO_LICENCE = "unknown: the model that training started from names none. Find out before you distribute this model."


def _front(config: Config, stage: TrainStage, licence: str | None) -> str:
    """What hubs read."""
    front: dict[str, Any] = {
        "license": licence or "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["salign", stage.objective.kind, *(["lora"] if stage.lora else [])],
    }
    origin = _origin(config.model)
    if "/" in origin:
        front["base_model"] = origin
    return yaml.safe_dump(front, sort_keys=False).strip()


def _settings(config: Config, stage: TrainStage, facts: Facts) -> list[tuple[str, object]]:
    given = selected(stage, Effect.DECIDES)
    shown = [name for name in given if name not in _SAID_ELSEWHERE]
    settings = [(name, given[name]) for name in shown if given[name] is not None]
    if stage.lora is not None:
        settings.append(("lora, merged into the weights", json.dumps(given["lora"])))
    return [*settings, ("ranks", facts.num_ranks), ("ZeRO stage", facts.zero_stage), ("seed", config.run.seed)]


def model_card(config: Config, stage: TrainStage, base: str, facts: Facts, rows: Sequence[Row]) -> str:
    """Writes the model card.

    Args:
        config: The run's.
        stage: That made the model.
        base: What it started from: the run's model, or the folder of the stage before.
        facts: Of the stage.
        rows: Its metrics.
    """
    licence = licence_of(base)
    named = neutral(licence or "unknown", "markdown")
    _, *before = config.train.ancestry(stage.name)
    objective = json.dumps(stage.objective.model_dump(mode="json"))
    chain = " -> ".join([_code(_origin(config.model)), *(f"`{name}`" for name in before), f"**`{stage.name}`**"])
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "deepspeed")
    )
    return f"""---
{_front(config, stage, licence)}
---

# {config.run.name}: {stage.name}

Trained by salign {__version__} in the way of *Training Socially Aligned Language Models in Simulated Human Society*
({_PAPER}): {chain}.{_identity(facts.base)}

## Data

{_all_data(stage)}; digest `{facts.digest[:16]}`.

{_table(list(facts.counts.items()))}

## Objective and settings

{_code(objective)}; template: {config.train.template}.

{_table(_settings(config, stage, facts))}

## Figures

{_figures(rows)}

Losses are in nats a token, of each step's groups; they say how far training went, not how good the model is. It has not
been checked for safety.

## Licence

{named}: {_MODELS_LICENCE if licence else _NO_LICENCE}

## Use

An ordinary model of transformers, with tokenizer, chat template and generation config:
`AutoModelForCausalLM.from_pretrained(FOLDER)`. {versions}.
"""
