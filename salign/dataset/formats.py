"""The shapes of rows that groups are read from, and the rows of a file one by one.

A file's first row decides its shape: groups (ours and the released one), one of TRL's two kinds of preferences, or
Moral Stories.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from salign.dataset.templates import plain_query
from salign.errors import DataError
from salign.records import MAX_SCORE, MIN_SCORE, AlignmentGroup
from salign.society.sources import UNREADABLE, moral_story, open_text

Shape = Literal["groups", "preference", "unpaired", "moral_stories"]
Range = tuple[float, float]

# The columns that tell a shape; a prompt may be implied.
_COLUMNS: dict[Shape, tuple[str, ...]] = {
    "groups": ("query", "responses", "scores"),
    "preference": ("chosen", "rejected"),
    "unpaired": ("completion", "label"),
    "moral_stories": ("situation", "intention", "moral_action", "immoral_action"),
}
# The released code writes these in the place of a rating that it could not read (method: section 5).
_RELEASED_PLACEHOLDERS = (-1, 8)
_CHUNK = 1 << 18  # characters
_SPACE = re.compile(r"\s*")
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_NAMES = {role: name for name, role in _ROLES.items()}


class RowError(ValueError):
    """A row is malformed, for the reason that the text says."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


# --- rows ----------------------------------------------------------------------------------------


def stream_rows(path: Path) -> Iterator[tuple[int, object]]:
    """The numbered rows of a JSON array or a JSON Lines file (also .gz), one at a time.

    A line that is no JSON comes as the RowError that says so.

    Raises:
        DataError: There is no such file, it is damaged, or an array's syntax is.
    """
    try:
        with open_text(path) as file:
            line, first = 1, file.read(1)
            while first.isspace():
                line += first == "\n"
                first = file.read(1)
            if first == "[":
                yield from _elements(file, path, line)
                return
            if first:
                yield line, _decoded(first + file.readline())
            for number, text in enumerate(file, start=line + 1):
                if text.strip():
                    yield number, _decoded(text)
    except UNREADABLE as error:
        raise DataError(f"{path}: no UTF-8 text, or damaged ({error})") from None


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return RowError(f"no valid JSON ({error.msg} at column {error.colno})")


def _elements(file: IO[str], path: Path, line: int) -> Iterator[tuple[int, object]]:
    """The elements of a JSON array whose opening bracket, in that line, is read already."""
    decode = json.JSONDecoder().raw_decode
    # `text` is what of the file is in hand, `start` where in it to go on.
    text, start, number, size = "", 0, 0, _CHUNK
    while True:
        error = "the array does not end"
        try:
            start = _after_space(text, start)
            if number == 0 and text.startswith("]", start):
                start += 1
                break
            row, end = decode(text, start)
            end = _after_space(text, end)
            if end < len(text):  # else a number might go on
                if text[end] not in ",]":
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
                number += 1
                yield number, row
                start = end + 1
                if text[end] == "]":
                    break
                continue
        except json.JSONDecodeError as found:
            error = f"{found.msg} in row {number + 1}"
            wrong_line = line + found.lineno - 1
        else:
            wrong_line = line + text.count("\n")
        more = file.read(size)
        if not more:
            raise DataError(f"{path}, line {wrong_line}: no valid JSON ({error})")
        size = 2 * size if text and start == 0 else _CHUNK  # so that one long row is not begun too often
        line += text.count("\n", 0, start)
        text, start = text[start:] + more, 0
    if text[start:].strip() or file.read().strip():
        raise DataError(f"{path}: there is more after the end of the array; give one JSON array, or JSON Lines")


def _after_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    assert found is not None
    return found.end()


# --- rows -> groups ------------------------------------------------------------------------------


def shape_of(row: object) -> Shape:
    """The shape that a row is of, by its columns.

    Raises:
        RowError: It is of none.
    """
    if isinstance(row, RowError):
        raise row
    known = "; ".join(f"{', '.join(columns)} ({shape})" for shape, columns in _COLUMNS.items())
    if not isinstance(row, dict):
        raise RowError(f"no object but {type(row).__name__}; wanted are the columns {known}")
    for shape, columns in _COLUMNS.items():
        if all(column in row for column in columns):
            return shape
    raise RowError(f"it has the columns {', '.join(map(str, row)) or '(none)'}; wanted are {known}")


def parse(row: object, shape: Shape, score_range: Range | None) -> tuple[AlignmentGroup | None, int]:
    """A row as a group, and how many of its responses have no rating and are not in it.

    Args:
        row: What was read.
        shape: Of the file.
        score_range: The ends of the file's scale, None for 1..7.

    Returns:
        The group, None where nothing remains of it.

    Raises:
        ValueError: The row is malformed (a RowError, or what AlignmentGroup finds), with the reason.
    """
    if isinstance(row, RowError):
        raise row
    wanted = f"a row of {shape} has {', '.join(_COLUMNS[shape])}"
    if not isinstance(row, dict):
        raise RowError(f"no object but {type(row).__name__}; {wanted}")
    missing = [column for column in _COLUMNS[shape] if column not in row]
    if missing:
        raise RowError(f"{', '.join(missing)} missing; {wanted}")
    group, num_unrated = _PARSERS[shape](row, score_range)
    if group is not None:
        _check_unicode(group)
    return group, num_unrated


def _check_unicode(group: AlignmentGroup) -> None:
    try:
        "".join((group.query, *group.responses)).encode()
    except UnicodeEncodeError as error:
        raise RowError(f"the text holds half of a character ({error.reason})") from None


def _scaled(score: float, score_range: Range | None) -> float:
    low, high = score_range or (MIN_SCORE, MAX_SCORE)
    if not low <= score <= high:
        raise RowError(
            f"score {float(score)} is outside the scale {low:g}..{high:g}; say the file's own with score_range: [low, "
            "high]"
        )
    if score_range is None:
        return float(score)
    return MIN_SCORE + (score - low) / (high - low) * (MAX_SCORE - MIN_SCORE)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _groups_row(row: dict[str, Any], score_range: Range | None) -> tuple[AlignmentGroup | None, int]:
    query, responses, scores = row["query"], row["responses"], row["scores"]
    if not isinstance(query, str):
        raise RowError("the query is no text")
    if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
        raise RowError("responses must be a list of texts")
    if not isinstance(scores, list) or not all(score is None or _is_number(score) for score in scores):
        raise RowError("scores must be a list of numbers (null where there is none)")
    if len(responses) != len(scores):
        raise RowError(f"{len(responses)} responses and {len(scores)} scores; as many of each are needed")
    # On another scale they may be ratings.
    placeholders = _RELEASED_PLACEHOLDERS if score_range is None else ()
    rated = [
        (response, _scaled(score, score_range))
        for response, score in zip(responses, scores, strict=True)
        if score is not None and score not in placeholders
    ]
    num_unrated = len(responses) - len(rated)
    if not rated:
        return None, num_unrated
    texts, values = zip(*rated, strict=True)
    group = AlignmentGroup(plain_query(query), texts, values, row.get("kind"), row.get("provenance") or {})
    return group, num_unrated


def _preference_row(row: dict[str, Any], score_range: Range | None) -> tuple[AlignmentGroup, int]:
    """TRL's preference: a prompt, which both conversations or texts may begin with instead, and two replies."""
    prompt = row.get("prompt")
    sides = [_conversation(row[side], side) for side in ("chosen", "rejected")]
    chosen, rejected = sides
    if chosen is not None and rejected is not None:
        query, replies = _split_conversations(prompt, chosen, rejected)
    elif chosen is not None or rejected is not None:
        raise RowError("one of chosen and rejected is a conversation and the other a text")
    else:
        texts = [_text(row[side], side) for side in ("chosen", "rejected")]
        query, replies = (_query(prompt), texts) if prompt is not None else _split_texts(*texts)
    if replies[0] == replies[1]:
        raise RowError("chosen and rejected are the same")
    scores = _pair_scores(row.get("score_chosen"), row.get("score_rejected"), score_range)
    return AlignmentGroup(plain_query(query), tuple(replies), scores), 0


def _pair_scores(chosen: object, rejected: object, score_range: Range | None) -> tuple[float, float]:
    if chosen is None and rejected is None:
        return MAX_SCORE, MIN_SCORE
    better, worse = _number(chosen, "score_chosen"), _number(rejected, "score_rejected")
    if better < worse:
        raise RowError(f"score_chosen {better:g} is below score_rejected {worse:g}")
    return _scaled(better, score_range), _scaled(worse, score_range)


def _number(value: object, column: str) -> float:
    if isinstance(value, int | float) and _is_number(value):
        return value
    raise RowError(f"{column} is {value!r}; both scores must be numbers, or both be missing")


def _unpaired_row(row: dict[str, Any], _: Range | None) -> tuple[AlignmentGroup, int]:
    """TRL's unpaired preference: a prompt, one reply, and whether it is a good one."""
    if not isinstance(row["label"], bool):
        raise RowError(f"the label is {row['label']!r}; it must be true or false")
    if row.get("prompt") is None:
        raise RowError("prompt missing; a row of unpaired has prompt, completion, label")
    completion = row["completion"]
    reply = (
        _reply(_messages(completion, "completion"), "completion")
        if isinstance(completion, list)
        else _text(completion, "completion")
    )
    score = MAX_SCORE if row["label"] else MIN_SCORE
    return AlignmentGroup(plain_query(_query(row["prompt"])), (reply,), (score,)), 0


def _moral_stories_row(row: dict[str, Any], _: Range | None) -> tuple[AlignmentGroup, int]:
    """A story of Emelin et al. 2021: what a person does in a situation, in accord with a norm and against it."""
    try:
        query, moral, immoral = moral_story(row, "the story")
    except DataError as error:
        raise RowError(str(error)) from None
    return AlignmentGroup(query, (moral, immoral), (MAX_SCORE, MIN_SCORE)), 0


_PARSERS: dict[Shape, Callable[[dict[str, Any], Range | None], tuple[AlignmentGroup | None, int]]] = {
    "groups": _groups_row,
    "preference": _preference_row,
    "unpaired": _unpaired_row,
    "moral_stories": _moral_stories_row,
}


# --- prompts and replies -------------------------------------------------------------------------


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{column} is no text and no list of messages")
    return value.strip()


def _messages(value: list[Any], column: str) -> list[Message]:
    messages = []
    for item in value:
        role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        if not isinstance(content, str) or role not in ("system", "user", "assistant"):
            raise RowError(
                f"a message of {column} must be {{role, content}}: role system, user or assistant, and content a text"
            )
        messages.append(Message(role, content.strip()))
    return messages


def _conversation(value: object, column: str) -> list[Message] | None:
    """Messages, also those of a transcript 'Human: ... Assistant: ...' as HH has them; None where it is other text."""
    if isinstance(value, list):
        return _messages(value, column)
    if not isinstance(value, str):
        return None
    parts = _TURN.split(value.strip())  # before the first turn, name, text, name, text, ...
    if parts[0] or parts[1:2] != ["Human"] or "Assistant" not in parts[1::2]:
        return None
    return [Message(_ROLES[name], text.strip()) for name, text in zip(parts[1::2], parts[2::2], strict=True)]


def _query(prompt: object) -> str:
    """A prompt as one text."""
    messages = _conversation(prompt, "prompt")
    return _text(prompt, "prompt") if messages is None else _flat(messages)


def _flat(messages: list[Message]) -> str:
    """Messages as one text: a single turn is its own, more than one are a transcript; a system text comes first."""
    if messages[-1:] == [Message("assistant", "")]:  # a transcript that ends where the reply begins
        messages = messages[:-1]
    before = [message.content for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    if not turns or turns[-1].role != "user":
        raise RowError("the prompt does not end with a message of the user")
    if len(turns) == 1:
        return "\n\n".join([*before, turns[0].content])
    return "\n\n".join([*before, *(f"{_NAMES[role]}: {content}" for role, content in turns)])


def _reply(messages: list[Message], column: str) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        raise RowError(
            f"{column} must come to one message of the assistant after the prompt, and comes to "
            f"{', '.join(message.role for message in messages) or 'none'}"
        )
    return messages[0].content


def _split_conversations(prompt: object, chosen: list[Message], rejected: list[Message]) -> tuple[str, list[str]]:
    """What both begin with is the prompt, or goes on with the prompt's own column."""
    shared, most = 0, min(len(chosen), len(rejected)) - 1  # at least the reply is left
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    replies = [_reply(chosen[shared:], "chosen"), _reply(rejected[shared:], "rejected")]
    before = chosen[:shared]
    if isinstance(prompt, list):
        given = _messages(prompt, "prompt")
        return _flat(before if before[: len(given)] == given else given + before), replies
    if not before:
        if prompt is None:
            raise RowError("there is no prompt: chosen and rejected do not begin with the same message")
        return _query(prompt), replies
    return _flat(before), replies


def _split_texts(chosen: str, rejected: str) -> tuple[str, list[str]]:
    """What both texts begin with, in whole words, is the prompt."""
    shared, most = 0, min(len(chosen), len(rejected))
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    if not chosen[:shared].strip():
        raise RowError("there is no prompt: chosen and rejected do not begin with the same words")
    return chosen[:shared].strip(), [chosen[shared:], rejected[shared:]]
