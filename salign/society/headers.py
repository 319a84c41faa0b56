"""Of what a shard's journal is: the models, and all on which an answer depends."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salign import compose
from salign.config import Config, Effect, Section, SocietySection, TransformersEmbedder, selected
from salign.digests import name_of
from salign.logfiles import read_header
from salign.run import RunDir
from salign.society.models import model_names
from salign.society.prompts import PROMPTS_VERSION
from salign.storage import sha256


def journal_header(config: Config, identities: Sequence[str]) -> dict[str, Any]:
    """Of what a journal is: models, seed, prompts, and every setting on which an answer depends.

    Args:
        config: The run's.
        identities: Of the run's engine, the observer's, and each part's of a mixture.
    """
    society = config.society
    decides = {"engine": config.engine, "society": society}
    return {
        **dict(zip(model_names(society), identities, strict=True)),
        **inputs_of(society),
        "run.seed": config.run.seed,
        "prompts": PROMPTS_VERSION,
        **{
            name: value
            for place, section in decides.items()
            for name, value in compose.leaves(selected(section, Effect.DECIDES), place).items()
        },
    }


def inputs_of(society: SocietySection) -> dict[str, str]:
    """What a society reads, by its content: where it lies does not matter. The models that speak name themselves."""
    named: dict[str, Section] = {
        "questions": society.questions,
        "prior": society.prior,
        "topology": society.topology,
        **({} if society.profiles is None else {"profiles": society.profiles}),
        **{f"criteria.{one.name}.scorer.pairs": one.scorer.pairs for one in society.criteria or () if one.scorer},
    }
    found = {}
    if society.branch is not None:
        # By what it is: which models spoke under which settings.
        begun = json.dumps(read_header(RunDir(society.branch.run).shard(0)), sort_keys=True)
        found["society.branch.run"] = hashlib.sha256(begun.encode()).hexdigest()
    if isinstance(society.embedder, TransformersEmbedder):
        found["society.embedder.model"] = name_of(society.embedder.model)
    for name, section in named.items():
        for key, value in selected(section, Effect.INPUT).items():
            path = Path(value)
            found[f"society.{name}.{key}"] = sha256(path) if path.is_file() else value
    return found
