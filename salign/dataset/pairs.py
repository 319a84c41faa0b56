"""Shapes of rows with two responses, of which one is preferred."""

from typing import Any

from salign.columns import is_empty
from salign.dataset.conversations import (
    Prompt,
    conversation_of,
    only_reply,
    prompt_of,
    prompt_of_messages,
    reply_of,
    text_of,
)
from salign.dataset.rated import Candidate, Reading, flag_of, number_of, scaled, thumb, weighted
from salign.dataset.templates import plain_query
from salign.files import RowError
from salign.records import MAX_SCORE, MIN_SCORE, Message
from salign.society import sources

SCORES_CHOSEN = ("score_chosen", "chosen_score", "chosen_rating", "chosen-rating")
SCORES_REJECTED = ("score_rejected", "rejected_score", "rejected_rating", "rejected-rating")
_FLAG = (0.0, 1.0)
# What a prompt may stand in beside chosen and rejected.
_PROMPT = ("prompt", "question", "instruction", "query", "conversations")


def preference(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads TRL's preference: a prompt (or conversations that both begin with it) and two replies."""
    chosen, rejected = (
        None if isinstance(row[side], dict) else conversation_of(row[side], side, reading.ignored)
        for side in ("chosen", "rejected")
    )
    if chosen is not None and rejected is not None:
        prompt, replies = _split(row, chosen, rejected, reading)
    elif chosen is not None or rejected is not None:
        raise RowError("of chosen and rejected, one is a conversation and the other a text")
    else:
        prompt = prompt_of(row, reading.ignored)
        replies = [reply_of(row[side], side, reading.ignored) for side in ("chosen", "rejected")]
    if replies[0] == replies[1]:
        raise RowError("chosen and rejected are the same")
    messages = row.get("messages")
    if not is_empty(messages) and messages not in (row["chosen"], row.get("prompt")):
        raise RowError(
            "the column messages differs from chosen, and its meaning is unknown; leave it out with "
            "ignore_columns: [messages]"
        )
    return [Candidate(prompt, list(zip(replies, _scores(row, reading), strict=True)))]


def _scores(row: dict[str, Any], reading: Reading) -> tuple[float, float]:
    given = [
        next(((name, row[name]) for name in names if row.get(name) not in (None, "")), None)
        for names in (SCORES_CHOSEN, SCORES_REJECTED)
    ]
    chosen, rejected = given
    if chosen is None and rejected is None:
        return MAX_SCORE, MIN_SCORE
    if chosen is None or rejected is None:
        raise RowError("only one of chosen and rejected has a score; both must have one, or neither")
    better, worse = number_of(chosen[1], chosen[0]), number_of(rejected[1], rejected[0])
    if better < worse:
        raise RowError(f"{chosen[0]} {better:g} is below {rejected[0]} {worse:g}")
    scale = reading.score_range or (MIN_SCORE, MAX_SCORE)
    return scaled(better, scale), scaled(worse, scale)


def _split(
    row: dict[str, Any], chosen: list[Message], rejected: list[Message], reading: Reading
) -> tuple[Prompt, list[str]]:
    """What both conversations begin with is the prompt, or goes on with the prompt's own column."""
    shared, most = 0, min(len(chosen), len(rejected)) - 1  # at least the reply is left
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    replies = [only_reply(chosen[shared:], "chosen"), only_reply(rejected[shared:], "rejected")]
    before = chosen[:shared]
    if not before:
        return prompt_of(row, reading.ignored), replies
    name = next((name for name in _PROMPT if not is_empty(row.get(name))), None)
    value = None if name is None else row[name]
    beside = {column: row.get(column) for column in ("input", "history") if not is_empty(row.get(column))}
    if beside:
        raise RowError(
            f"{' and '.join(beside)} beside conversations that already begin with the prompt: keep only one of them"
        )
    system = [] if is_empty(row.get("system")) else [Message("system", text_of(row["system"], "system"))]
    if name is None or value is None:
        return prompt_of_messages([*system, *before]), replies
    given = conversation_of(value, name, reading.ignored)
    if given and given[-1] == Message("assistant", ""):  # where the reply begins
        given = given[:-1]
    if given is None:
        # As UltraFeedback, binarized, has it: the prompt is the last message of the user, or the first.
        question = text_of(value, name)
        if question not in [message.content for message in before if message.role == "user"]:
            raise RowError(
                f"{name} differs from what the conversations of chosen and rejected begin with; leave it out with "
                f"ignore_columns: [{name}] where they hold the whole prompt"
            )
        return prompt_of_messages([*system, *before]), replies
    whole = before if before[: len(given)] == given else given + before
    return prompt_of_messages([*system, *whole]), replies


def moral_story(row: dict[str, Any], _: Reading) -> list[Candidate]:
    """Reads a story of Emelin et al. 2021: a situation, an action that follows a norm, and one that breaks it."""
    query, moral, immoral = sources.moral_story(row)
    return [Candidate(Prompt(query), [(moral, MAX_SCORE), (immoral, MIN_SCORE)])]


def shp(row: dict[str, Any], _: Reading) -> list[Candidate]:
    """Reads Stanford Human Preferences: a post, two comments, and whether the first is preferred."""
    first_is_better = flag_of(row["labels"], "labels")
    texts = [text_of(row[f"human_ref_{side}"], f"human_ref_{side}") for side in "AB"]
    scores = [thumb(is_good=first_is_better), thumb(is_good=not first_is_better)]
    return [Candidate(Prompt(plain_query(text_of(row["history"], "history"))), list(zip(texts, scores, strict=True)))]


def pku_saferlhf(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads PKU-SafeRLHF: two responses, which are safe, the safer, and the better; the config weighs these."""
    rated: list[tuple[str, float | None]] = []
    for number in (0, 1):
        grades = {}
        for name in reading.weights:
            if name == "safe":
                column = f"is_response_{number}_safe"
                grades[name] = float(flag_of(row.get(column), column))
            else:
                column = f"{name}_response_id"
                grades[name] = float(flag_of(row[column], column) == bool(number))
        rated.append(
            (text_of(row[f"response_{number}"], f"response_{number}"), weighted(grades, reading.weights, _FLAG))
        )
    return [Candidate(prompt_of(row, reading.ignored), rated)]
