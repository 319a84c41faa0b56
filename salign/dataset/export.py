"""Groups for other trainers: TRL's preferences and unpaired preferences, one row each."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from salign.dataset.conversations import transcript
from salign.errors import DataError
from salign.records import AlignmentGroup, to_bytes
from salign.storage import new_file

Pairs = Literal["all", "best"]


@dataclass(frozen=True)
class Exported:
    """Counts of an export: groups read, rows written, and groups that gave no row."""

    num_groups: int
    num_rows: int
    num_without: int


def preference_rows(group: AlignmentGroup, pairs: Pairs, *, conversational: bool) -> Iterator[dict[str, Any]]:
    """Pairs responses with different scores: all pairs, or the best response (the first of equals) with each other."""
    order = sorted(range(len(group.responses)), key=lambda position: -group.scores[position])
    firsts = order if pairs == "all" else order[:1]
    for rank, better in enumerate(firsts):
        for worse in order[rank + 1 :]:
            if group.scores[better] > group.scores[worse]:
                yield {
                    "prompt": _prompt(group, conversational=conversational),
                    "chosen": _reply(group.responses[better], conversational=conversational),
                    "rejected": _reply(group.responses[worse], conversational=conversational),
                    "score_chosen": group.scores[better],
                    "score_rejected": group.scores[worse],
                }


def unpaired_rows(group: AlignmentGroup, threshold: float, *, conversational: bool) -> Iterator[dict[str, Any]]:
    """Makes one row of each response, labelled by whether its score is above the threshold."""
    for response, score in zip(group.responses, group.scores, strict=True):
        yield {
            "prompt": _prompt(group, conversational=conversational),
            "completion": _reply(response, conversational=conversational),
            "label": score > threshold,
        }


def _prompt(group: AlignmentGroup, *, conversational: bool) -> Any:
    return group.messages if conversational else transcript(group.messages)


def _reply(text: str, *, conversational: bool) -> Any:
    # TRL joins a plain prompt and its completion as they are.
    return [{"role": "assistant", "content": text}] if conversational else f" {text}"


def export(
    groups: Iterable[AlignmentGroup], target: Path, rows_of: Callable[[AlignmentGroup], Iterable[dict[str, Any]]] | None
) -> Exported:
    """Writes groups as JSON Lines, one group at a time; the file appears whole or not at all.

    Args:
        groups: What to write.
        target: The file.
        rows_of: What a group becomes; None leaves it as it is.

    Raises:
        DataError: There is nothing to write.
    """
    num_groups = num_rows = num_without = 0
    with new_file(target) as file:
        for group in groups:
            lines = [to_bytes(group)] if rows_of is None else [_line(row) for row in rows_of(group)]
            file.writelines(lines)
            num_groups += 1
            num_rows += len(lines)
            num_without += not lines
        if not num_rows:
            raise DataError(
                f"nothing to write to {target}: none of the {num_groups} groups has two responses with different scores"
            )
    return Exported(num_groups, num_rows, num_without)


def _line(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
