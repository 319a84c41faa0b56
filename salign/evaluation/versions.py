"""The versions of all that decides an evaluation's figures: two models are compared only where they agree."""

import ast
import functools
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salign.config import Config, Effect, selected
from salign.evaluation import judge as judging
from salign.evaluation.jailbreaks import JAILBREAKS_VERSION
from salign.evaluation.judged import OVER_REFUSAL_VERSION
from salign.society.functions import digests_of
from salign.society.prompts import PROMPTS_VERSION
from salign.society.refusals import REFUSALS_VERSION
from salign.society.rules import RULES_VERSION

if TYPE_CHECKING:
    from lm_eval.api.task import Task

Row = dict[str, Any]


def versions_of(config: Config, tasks: "dict[str, Task]", rows: Sequence[Row], identities: Mapping[str, str]) -> Row:
    """Returns everything that must be the same for two models to be compared."""
    section = config.evaluate
    rules = [criterion for criterion in config.society.observed_criteria if criterion.rule is not None]
    data: dict[str, Any] = {}
    for row in rows:
        seen = data.setdefault(row["benchmark"], hashlib.sha256())
        seen.update((row.get("digest") or row["prompt"]).encode() + b"\0")
    of_tasks = {f"task {name}": f"{task.VERSION}" for name, task in tasks.items()}
    return {
        "code": code_digest(),
        "lm_eval": importlib.metadata.version("lm_eval") if tasks else None,
        **of_tasks,
        **{f"data of {benchmark}": digest.hexdigest()[:16] for benchmark, digest in data.items()},
        "prompts": PROMPTS_VERSION,
        "judge's prompt": judging.JUDGE_VERSION,
        "attacks": JAILBREAKS_VERSION,
        "safe prompts": OVER_REFUSAL_VERSION,
        "words of refusal": REFUSALS_VERSION,
        **{f"judge {name}": identity for name, identity in identities.items()},
        **{f"settings of judge {name}": settings_of_judges(config)[name] for name in identities},
        "rating": config.society.rating,
        "rules": [RULES_VERSION, *(rule.model_dump(mode="json") for rule in rules)] if rules else None,
        **{f"function {name}": digest[:16] for name, digest in digests_of(rules).items()},
        "answer": section.answer.model_dump(),
        "settings of answers": settings_of_answers(config),
        "chat_template": section.chat_template,
        "dtype": section.dtype,
        "seed": config.evaluation_seed,
    }


def settings_of_answers(config: Config) -> dict[str, Any]:
    """Returns the answering engine's settings that answers depend on, beside model and sampling."""
    return selected(config.answering, Effect.DECIDES)


def settings_of_judges(config: Config) -> dict[str, dict[str, Any]]:
    """Returns each judge's settings that ratings depend on beside the model, such as its number format."""
    sections = {judge.name: judge.engine or judge.scorer for judge in config.judges}
    return {name: selected(one, Effect.DECIDES) for name, one in sections.items() if one is not None}


# Beside the package `evaluation`: how a model is loaded and asked, and how its rows are laid out.
_DECIDES = (
    *("chat.py", "models.py", "society/frames.py", "society/prompts.py"),
    *("training/attention.py", "training/model.py", "training/packing.py"),
)


@functools.cache
def code_digest() -> str:
    """Computes a digest of the code that decides an evaluation's figures, whatever its comments and docstrings say."""
    package = Path(__file__).parents[1]
    files = [*sorted((package / "evaluation").glob("*.py")), *(package / name for name in _DECIDES)]
    codes = (without_words(file.read_text(encoding="utf-8")) for file in files)
    return hashlib.sha256("\0".join(codes).encode()).hexdigest()[:16]


def without_words(source: str) -> str:
    """Returns Python code in one form of writing, without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_docstring(one)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
