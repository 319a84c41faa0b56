"""What comes of every family of transformers that can be built small: in the engine, and in training; as the docs say.

`python tests/integration/test_families.py` prints the tables for docs/models.md.
"""

import sys
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

sys.path.insert(0, str(Path(__file__).parents[1]))

import families

from salign.config import StableObjective
from salign.engines.modes import find_mode
from salign.errors import ConfigError
from salign.training.model import GroupLoss, check_layout
from salign.training.packing import Lengths

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
# What a config class that was made for something larger raises when it is asked for a small model.
UNBUILT = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,
)


def outcomes() -> dict[str, tuple[str, str]]:
    """Family -> its mode in the engine or "refused", and "rows" or "refused" in training."""
    found = {}
    for family in families.families():
        try:
            model = families.build(family)
        except UNBUILT:
            found[family] = ("not built", "not built")
            continue
        try:
            mode: str = find_mode(model)
        except ConfigError:
            mode = "refused"
        try:
            loss = GroupLoss(model, StableObjective(kind="stable"))
            lengths = Lengths(families.CONTEXT // 2, families.CONTEXT + 20)
            check_layout(loss, model, lengths, torch.device("cpu"))
            trained = "rows"
        except ConfigError:
            trained = "refused"
        found[family] = (mode, trained)
    return found


def table(found: dict[str, tuple[str, str]]) -> str:
    by_outcome = defaultdict(list)
    for family, outcome in found.items():
        by_outcome[outcome].append(family)
    order = ["shared", "batched", "alone", "refused", "not built"]
    rows = sorted(by_outcome.items(), key=lambda row: (order.index(row[0][0]), row[0][1] != "rows"))
    lines = [f"| {mode} | {trained} | {', '.join(sorted(names))} |" for (mode, trained), names in rows]
    return "\n".join(["| engine | training | families |", "|---|---|---|", *lines])


def test_every_family_is_right_or_refused_as_the_docs_say():
    assert table(outcomes()) in DOCS.read_text(encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(table(outcomes()))
